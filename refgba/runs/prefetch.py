"""Prepare what comes next while the present is in use: minibatches are read and normalised in a thread of their own."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")


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
