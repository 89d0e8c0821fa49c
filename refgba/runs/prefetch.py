"""Prepare what comes next while the present is in use: minibatches are read and normalised in a thread of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")
POLL = 0.1  # seconds until a thread that waits looks whether it is still wanted


def prefetched(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, up to `depth` of them taken ahead by a thread.

    What `items` raises is raised here, at its place.  The thread ends when this generator is closed or exhausted, and
    `items` is used by no other.
    """
    ready: Queue[tuple[T | None, BaseException | None]] = Queue(depth)
    unwanted = Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not unwanted.is_set():
            with suppress(Full):
                return ready.put((item, error), timeout=POLL)

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if unwanted.is_set():
                    return
        except BaseException as error:  # handed over, whatever it is
            return put(None, error)
        put(None, StopIteration())

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # an item unless there is an error
    finally:
        unwanted.set()
        with suppress(Empty):
            ready.get_nowait()  # lets a thread that waits for room go on
        thread.join()
