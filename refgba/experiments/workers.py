"""Several networks at once: work in processes of one thread each."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import TypeVar

from refgba.experiments.experiment import Tick

S = TypeVar("S")
T = TypeVar("T")

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
POLL = 1.0  # seconds between two looks at whether the parent is there
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
    others = set(active_children())
    try:
        with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (os.getpid(),)) as pool:
            try:
                with _uninterrupted():
                    begun = [pool.submit(work, item) for item in items]
                for done, _ in enumerate(as_completed(begun), start=1):
                    tick(f"{done} of {len(items)} done")
                return [future.result() for future in begun]
            except KeyboardInterrupt:
                for worker in set(active_children()) - others:
                    worker.terminate()
                raise
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that begin meanwhile never see Ctrl-C, which a terminal sends to all: this one ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(parent: int) -> None:
    """Make this process end soon after its parent, however that ends."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)
