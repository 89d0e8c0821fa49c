"""Prepare what comes next while the present is in use, in threads: reading, checking and scaling rows.

NumPy, hashlib and zlib let other threads run while they work, so this takes as many cores as there are.
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
    """The same items in the same order, up to `depth` of them taken ahead by a thread.

    What `items` raises is raised here, at its place.  The thread ends when this generator is closed or exhausted, and
    `items`, which is used by no other, is closed then.
    """
    ready: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    room, wanted = Semaphore(depth), True

    def work() -> None:
        try:
            while room.acquire() and wanted:
                ready.put((next(items), None))
        except BaseException as error:  # handed over, whatever it is
            ready.put((None, error))
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            room.release()
            yield item  # type: ignore[misc]  # an item unless there is an error
    finally:
        wanted = False
        room.release()
        thread.join()


def in_order(work: Callable[[S], T], items: Iterable[S], ahead: int = 2 * THREADS) -> Generator[T]:
    """work(item) for each item, in their order, computed by THREADS threads, up to `ahead` items before they are asked.

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
