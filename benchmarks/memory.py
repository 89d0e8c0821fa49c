"""Peak memory of the first steps of each backend: `step.py --memory`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from candidates import usable
from setting import Data, Result, Setting, device, host

PROMISE = 5  # the most that a step may hold: so many copies of W, besides one L x M array


def peaks(s: Setting) -> Result:
    """The peak memory at one width, each backend in a process of its own."""
    result: Result = {"backends": {}, "unavailable": {}, "setting": asdict(s)}
    for _, name, dtype in usable(s, result["unavailable"]):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            peak = process.submit(peak_memory, s, name, dtype).result()
        W = s.width * s.d * (8 if dtype == "float64" else 4)
        promised = PROMISE * W * (1 + s.untied) + s.batch * W // s.d
        figures = {"bytes": peak, "copies": peak / W, "promised_bytes": promised, "share": peak / promised}
        result["backends"][s.label(name, dtype)] = figures
    return result


def peak_memory(s: Setting, name: str, dtype: str) -> int:
    """The most bytes that a backend takes for its state, the first steps and an adaptation.

    What was there before does not count: libraries, what a run of tiny size leaves, and the parameters and rows.
    """
    from refgba import backends

    module = backends.load(name)

    def run(s: Setting, before: Callable[[], int], after: Callable[[], int]) -> int:
        data = Data(s)
        params, batches = data.params.astype(host(dtype)), [x.astype(host(dtype)) for x in data.x]
        del data
        taken = before()
        state = module.init(params, s.config(dtype))
        for x in batches:
            float(module.step(state, module.put(state, x)).loss)
        module.adapt(state)
        return after() - taken

    run(replace(s, d=16, width=512, batch=64), int, int)
    if device(name) == "cuda":  # the GPU's memory: CuPy's pool keeps what it has taken, so the end shows the peak
        gpu = import_module("cupy").cuda.Device()
        return -run(s, lambda: int(gpu.mem_info[0]), lambda: int(gpu.mem_info[0]))
    return run(s, forget_peak, lambda: resident("VmHWM"))


def forget_peak() -> int:
    """Resident bytes, which become the peak so far.  Linux with glibc only."""
    ctypes.CDLL(None).malloc_trim(0)  # memory that is freed but kept would be used again, uncounted
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(name: str) -> int:
    """A line of the process's status, in bytes: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
