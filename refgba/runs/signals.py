"""Signals that ask training to stop, which then writes a checkpoint and says how to go on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ASKING = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Training was asked to stop by a signal, and has written a checkpoint.  The message is one line."""

    def __init__(self, message: str, number: int) -> None:
        """The message, and the number of the signal."""
        super().__init__(message)
        self.number = number


@contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """While it lasts, the signals ASKING only ask to stop; yields a function that returns the number of the last one.

    It returns 0 while none has come.  A second signal of the same number acts as it always does.
    """
    came = 0

    def handler(number: int, _frame: Any) -> None:
        nonlocal came
        came = number
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, handler) for number in ASKING}
    try:
        yield lambda: came
    finally:
        for number, old in before.items():
            signal.signal(number, old)
