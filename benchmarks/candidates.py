"""What takes part in a measurement of time: backends and what users would pick instead, each with a step to run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from setting import BATCHES, Data, Setting, clock, device, host

STEPS = {"cpu": 2, "cuda": 10}  # steps per sample
REST = 0.2  # seconds before each sample: for 0.1 s after a product OpenBLAS's threads spin on the cores of the others


@dataclass
class Candidate:
    """Something to time.  `step(i)` may return before step i is done; `wait`, called with its result, does not."""

    kind: str  # backends, peers or floor
    name: str
    device: str  # cpu or cuda
    dtype: str
    step: Callable[[int], Any]
    wait: Callable[[Any], object] = lambda _: None
    adapt: Callable[[], object] | None = None
    times: list[float] = field(default_factory=list)  # ms
    adapt_times: list[float] = field(default_factory=list)
    last: Any = None  # what the last step returned

    def sample(self, round: int) -> None:
        """Time one sample: a rest, a step that is not timed, then STEPS with one wait at the end; and an adaptation."""
        time.sleep(REST)
        steps = STEPS[self.device]
        self.wait(self.step(round))
        start = time.perf_counter()
        for i in range(round * steps, (round + 1) * steps):
            self.last = self.step(i)
        self.wait(self.last)
        self.times.append(1e3 * (time.perf_counter() - start) / steps)
        if self.adapt:
            start = time.perf_counter()
            self.adapt()
            self.adapt_times.append(1e3 * (time.perf_counter() - start))

    def sustain(self, seconds: float) -> tuple[float, str]:
        """Milliseconds per step when it runs so long without a rest, in the second half, and the GPU's clock then.

        A burst after a rest can have a clock that a GPU which is hot, or at its limit of power, does not keep.  The
        clock is read while steps run: after them it rises.
        """
        steps, times = STEPS[self.device], list[float]()
        reading: Future[str] | None = None
        begin = now = time.perf_counter()
        with ThreadPoolExecutor(1) as pool:
            while now < begin + seconds or not times:
                if self.device == "cuda" and not reading and now >= begin + seconds / 2:
                    reading = pool.submit(clock)
                for i in range(len(times) * steps, (len(times) + 1) * steps):
                    self.last = self.step(i)
                self.wait(self.last)
                before, now = now, time.perf_counter()
                times.append(1e3 * (now - before) / steps)
        return statistics.median(times[len(times) // 2 :]), reading.result() if reading else ""

    @property
    def ms(self) -> float:
        """Milliseconds per step: the median over the rounds but the first, which warmed up."""
        return statistics.median(self.times[1:])


def usable(s: Setting, unavailable: dict[str, str]) -> Iterator[tuple[Any, str, str]]:
    """Every backend with every dtype to measure: (module, name, dtype); `unavailable` gets why others do not run."""
    from refgba import backends

    for name, reason in backends.status().items():
        if not s.wants(name):
            continue
        if reason is not None:
            unavailable[name] = reason
            continue
        module = backends.load(name)
        for dtype in s.dtypes:
            if dtype in module.DTYPES:
                yield module, name, dtype
            elif s.dtype != "all":
                unavailable[name] = f"no such dtype: {dtype}"


def backend(s: Setting, data: Data, module: Any, name: str, dtype: str) -> Candidate:
    """A backend in a dtype.  InputError where its device has too little memory."""
    state = module.init(data.params.astype(host(dtype)), s.config(dtype))
    batches = [module.put(state, x.astype(host(dtype))) for x in data.x]
    wait = import_module("cupy").cuda.Device().synchronize if device(name) == "cuda" else lambda: None
    return Candidate(
        "backends", name, device(name), dtype,
        step=lambda i: module.step(state, batches[i % BATCHES]),
        wait=lambda metrics: float(metrics.loss),
        adapt=(lambda: (module.adapt(state), wait())) if s.adaptation else None,
    )  # fmt: skip


def peers(s: Setting, data: Data, unavailable: dict[str, str]) -> Iterator[Candidate]:
    """What users would pick instead (peers.py), in every dtype to measure; `unavailable` gets why others do not run."""
    try:
        library = import_module("peers")
    except ImportError as error:
        missing = "not installed" if error.name == "torch" else f"cannot be imported: {error}"
        unavailable |= {"torch": missing, "dictionary_learning": f"needs torch, {missing}"}
        return
    available, reasons = library.available(s.threads)
    unavailable |= reasons
    for name, (where, dtypes, start) in available.items():
        for dtype in s.dtypes if s.wants(name) else ():
            if dtype in dtypes:
                try:
                    step = start(dtype, data.params, data.x, s.density)
                except Exception as error:  # whatever it is, measure the others
                    unavailable[s.label(name, dtype)] = first_line(error)
                else:
                    yield Candidate("peers", name, where, dtype, step, partial(library.wait, where))
            elif s.dtype != "all":
                unavailable[name] = f"no such dtype: {dtype}"


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
