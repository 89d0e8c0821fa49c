"""What may happen to a training run from outside: signals that ask it to stop, and a terminal that goes away.

A run that is asked to stop writes a checkpoint and says how to go on.  Nobody at the other end of standard error is no
reason to stop: what would have been shown there is lost, the run is not.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

STUBBORN = (signal.SIGINT, signal.SIGTERM)  # The second of these acts as it always does, should the first not help.
PATIENT = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # A terminal that closes may send several.


class Stopped(Exception):
    """Training was asked to stop by a signal, and has written a checkpoint.  The message is one line."""

    def __init__(self, message: str, number: int) -> None:
        """The message, and the number of the signal."""
        super().__init__(message)
        self.number = number


@contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """While it lasts, signals only ask to stop; yields a function that returns the number of the last one, or 0.

    A second SIGINT or SIGTERM acts as it always does.  SIGHUP, SIGUSR1 and SIGUSR2 ask too, unless they were ignored
    before, as `nohup` has SIGHUP ignored.
    """
    came = 0

    def handler(number: int, _frame: Any) -> None:
        nonlocal came
        came = number
        if number in STUBBORN:
            signal.signal(number, before[signal.Signals(number)])

    asking = [*STUBBORN, *(number for number in PATIENT if signal.getsignal(number) != signal.SIG_IGN)]
    before = {number: signal.signal(number, handler) for number in asking}
    try:
        yield lambda: came
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Steady:
    """A text stream that falls silent, instead of failing, once it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        """Wrap a stream; everything but writing is the stream's own."""
        self._stream, self._gone = stream, False

    def write(self, text: str) -> int:
        """Write text, as long as that is possible."""
        if not self._gone:
            try:
                self._stream.write(text)
            except OSError:
                self._gone = True
        return len(text)

    def flush(self) -> None:
        """Flush, as long as that is possible."""
        if not self._gone:
            try:
                self._stream.flush()
            except OSError:
                self._gone = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def steady_stderr() -> Iterator[None]:
    """While it lasts, standard error is `Steady`: a terminal that closes ends no command."""
    before = sys.stderr
    sys.stderr = cast(TextIO, Steady(before))
    try:
        yield
    finally:
        sys.stderr = before
