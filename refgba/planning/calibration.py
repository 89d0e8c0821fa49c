"""What the numba backend takes on a machine: a short measurement, a fit, and its own errors.

The seconds of a step are a sum of five kinds of work (`costs.numba_work`), each at a rate of its own, which are fitted
to a few sizes.  Memory needs no fit but for what the process holds before it trains.  `python -m
refgba.planning.calibration d M L dtype` measures one size and prints it as JSON: a process of its own per size, so that
its peak of memory is its own.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.optimize import nnls

from refgba import backends
from refgba.baselines import METHODS
from refgba.data import files
from refgba.data.outputs import result
from refgba.errors import InputError
from refgba.planning.costs import TERMS, numba_bytes, numba_work
from refgba.runs import forecast
from refgba.runs.schema import Table, each, entries, has, number, require, text, whole
from refgba.sae import unit_rows

# (d, M, L): the sizes that a calibration measures, and those that it is judged on, none of them the same.
CALIBRATED = (
    (64, 1024, 128), (64, 8192, 128), (128, 4096, 256), (256, 2048, 512), (256, 8192, 128), (512, 1024, 256),
    (512, 4096, 128), (768, 2048, 256), (1024, 1024, 512), (1024, 8192, 128), (128, 2048, 512), (512, 2048, 512),
)  # fmt: skip
JUDGED = ((96, 3072, 384), (384, 3072, 256), (640, 2048, 320), (896, 4096, 192), (1280, 6144, 160))
BUSY = 0.16  # share of its rows on which a neuron of the default recipe is active at first: P(z > 1) of a normal z
DENSE = 256  # neurons and rows of the tiny network that is trained before memory is looked at
SHIPPED = "calibration.json"
ROUNDS = 3  # measurements of a size, of which the quickest counts


@dataclass(frozen=True)
class Size:
    """A measured size.  seconds: of a step at the targets, and busy: at the beginning.  bytes: held at most.

    base: bytes held before.  density: mean share of active entries at the targets.
    """

    d: int
    M: int
    L: int
    dtype: str
    density: float
    seconds: float
    busy: float
    base: int
    bytes: int


@dataclass(frozen=True)
class Calibration:
    """The numba backend on a machine.

    machine: its processor.  threads: of each process.  rates: seconds per unit of each of `costs.TERMS`, for float32.
    base: bytes of a process that has trained something tiny.  checks: predicted and measured, at sizes not fitted.
    """

    machine: str
    threads: int
    rates: tuple[float, ...]
    base: int
    checks: tuple[dict[str, Any], ...] = ()

    def seconds(self, d: int, m: int, L: int, decoders: int, density: float) -> float:
        """Of a step of a rank with m neurons."""
        return float(np.dot(self.rates, numba_work(d, m, L, decoders, density)))

    def bytes(self, d: int, m: int, L: int, decoders: int, dtype: str, ranks: int = 1) -> float:
        """That a rank with m neurons holds at most."""
        return self.base + numba_bytes(d, m, L, decoders, dtype, BUSY, ranks == 1)

    def judged(self, size: Size) -> dict[str, Any]:
        """What was predicted for a size, beside what was measured."""
        predicted = self.seconds(size.d, size.M, size.L, 2, size.density)
        held = self.bytes(size.d, size.M, size.L, 2, size.dtype)
        return {
            "d": size.d, "M": size.M, "L": size.L, "predicted_seconds": predicted, "seconds": size.seconds,
            "predicted_bytes": held, "bytes": size.bytes,
            "time_error": predicted / size.seconds - 1, "memory_error": held / size.bytes - 1,
        }  # fmt: skip

    def worst(self, name: str) -> float | None:
        """The largest of its errors, "time_error" or "memory_error", without sign; None where none was looked at."""
        return max((abs(check[name]) for check in self.checks), default=None)


CHECK: Table = {name: number(-1, 1e18) for name in ("predicted_seconds", "seconds", "predicted_bytes", "bytes")} | {
    name: whole(1) for name in ("d", "M", "L")
} | {"time_error": number(-1, 1e9), "memory_error": number(-1, 1e9)}  # fmt: skip
FIELDS: Table = {
    "machine": text,
    "threads": whole(1),
    "rates": entries(*(number(0, 1e3) for _ in TERMS)),
    "base": whole(0),
    "checks": each(has(CHECK)),
}
OUTPUT = result("a calibration of `refgba plan`", "machine", "threads", "rates", "base", "checks", suffix=".json")


def read(path: Path | None) -> Calibration:
    """A calibration that `write` wrote; None: the one that comes along.  InputError, naming the file, for another."""
    if path is None:
        shipped = resources.files("refgba.planning") / SHIPPED
        value = json.loads(shipped.read_text(encoding="utf-8"))
    else:
        value = files.read_json(path)
        require(path, value, FIELDS)
    return Calibration(**value | {"rates": tuple(value["rates"]), "checks": tuple(value["checks"])})


def write(calibration: Calibration, path: Path) -> None:
    """Make or replace the file of a calibration; InputError, naming it, when it cannot be written, or is another."""
    OUTPUT.write_json(path, asdict(calibration))


def fitted(sizes: list[Size]) -> Calibration:
    """Rates, none negative, with the least squares of relative errors."""
    rows, seconds = [], []
    for size in sizes:
        for density, taken in ((size.density, size.seconds), (BUSY, size.busy)):
            rows.append(np.array(numba_work(size.d, size.M, size.L, 2, density)) / taken)
            seconds.append(1.0)
    matrix = np.array(rows)
    scale = np.abs(matrix).max(axis=0)  # the kinds of work differ by many orders of magnitude
    rates = nnls(matrix / scale, np.array(seconds))[0] / scale
    base = int(median(size.base for size in sizes))
    return Calibration(processor(), threads(), tuple(float(rate) for rate in rates), base)


def measure(sizes: tuple[tuple[int, int, int], ...], dtype: str = "float32") -> list[Size]:
    """Measure sizes, each in a process of its own; InputError where numba cannot run here."""
    return [measured(*size, dtype) for size in sizes]


def measured(d: int, M: int, L: int, dtype: str) -> Size:
    """Measure one size in a process of its own; InputError where numba cannot run here, or with its last line."""
    backends.load("numba", dtype)  # A process that compiles holds more than one that finds what was compiled.
    command = [sys.executable, "-m", "refgba.planning.calibration", *map(str, (d, M, L)), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"a measurement of d {d}, width {M}, batch {L} failed: {last}")
    return Size(**json.loads(done.stdout.splitlines()[-1]))


def in_this_process(d: int, M: int, L: int, dtype: str) -> Size:
    """The measurement itself: first memory, since a peak never falls, then time."""
    backend = backends.load("numba", dtype)
    method = METHODS["gba"]

    def settings(d: int, M: int, L: int) -> Any:
        return replace(method.configure(d, "default", width=M, batch=L, steps=1000, dtype=dtype), form=0.0)

    def steps(config: Any, d: int) -> None:
        state = backends.begin(backend, config, d)
        for _ in range(2):
            float(backend.step(state, backend.put(state, rows(config.batch, d))).loss)
        backend.adapt(state)

    def rows(L: int, d: int) -> Any:
        return unit_rows(np.random.default_rng(0).standard_normal((L, d))).astype(config.master)

    config = settings(d, M, L)
    steps(settings(16, DENSE, DENSE), 16)
    base = forecast.peak_bytes()
    steps(config, d)
    held = forecast.peak_bytes()
    x = rows(L, d)
    params: Any = method.random_params(config, d)
    # What other programs do does not count: with one thread by the processor's own time, else by the quickest step.
    clock = time.process_time if threads() == 1 else time.perf_counter
    busy = min(forecast.step_seconds(params, config, backend, x, min, clock) for _ in range(ROUNDS))
    forecast.settle(params, config, x)
    seconds = min(forecast.step_seconds(params, config, backend, x, min, clock) for _ in range(ROUNDS))
    groups = method.groups(config)
    assert groups is not None
    return Size(d, M, L, dtype, float(groups.target[groups.group].mean()), seconds, busy, base, held)


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def threads() -> int:
    """How many threads numba has in a process that is started from here."""
    return int(os.environ.get("NUMBA_NUM_THREADS") or os.cpu_count() or 1)


if __name__ == "__main__":
    size = [int(argument) for argument in sys.argv[1:4]]
    print(json.dumps(asdict(in_this_process(size[0], size[1], size[2], sys.argv[4]))))
