"""Several networks at once: work in processes of one thread each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

from refgba.experiments.experiment import Tick

S = TypeVar("S")
T = TypeVar("T")

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
ON_CORES = ("numpy", "numba")  # backends that compute on the CPU


def at_once(work: Callable[[S], T], items: Sequence[S], backend: str, tick: Tick) -> list[T]:
    """work(item) for each, in processes of one thread, as many as there are cores: for networks too small for threads.

    `work` is a function of a module, or a partial of one.  One after the other where there is one item or one core, and
    for a backend whose device they would share.
    """
    processes = min(len(items), os.cpu_count() or 1)
    if processes < 2 or backend not in ON_CORES:
        return [work(item) for item in items]
    tick(f"{len(items)} more, {processes} at a time")
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # read by libraries as a new process loads them
    try:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            begun = [pool.submit(work, item) for item in items]
            for done, _ in enumerate(as_completed(begun), start=1):
                tick(f"{done} of {len(items)} done")
            return [future.result() for future in begun]
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
