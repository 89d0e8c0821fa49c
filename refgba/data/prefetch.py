"""Threads that prepare what comes next while the present is in use: they read, check and scale rows.

NumPy, hashlib and zlib let other threads run while they work, so this uses as many cores as there are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

THREADS = min(8, os.cpu_count() or 1)


def prefetched(items: Iterator[T], depth: int = 2) -> Generator[T]:
    """The same items in the same order; a thread takes up to `depth` of them ahead.

    What `items` raises is raised here, at its place.  The thread ends when this generator is closed or exhausted; it
    then closes `items`, which nothing else may use.
    """
    ready: SimpleQueue[tuple[T] | BaseException] = SimpleQueue()
    free, wanted = Semaphore(depth), True

    def work() -> None:
        try:
            while free.acquire() and wanted:
                ready.put((next(items),))
        except BaseException as error:  # whatever it is, the other thread raises it
            ready.put(error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, StopIteration):
                return
            if isinstance(item, BaseException):
                raise item
            free.release()
            yield item[0]
    finally:
        wanted = False
        free.release()
        thread.join()


def in_order(work: Callable[[S], T], items: Iterable[S], ahead: int = 2 * THREADS) -> Generator[T]:
    """work(item) for each item, in their order; THREADS threads compute it, up to `ahead` items before it is asked for.

    What `work` raises is raised here, at its place.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        begun: deque[Future[T]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) > ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
