"""Ctrl-C at any moment of a command, from its first import to its last: one line, exit status 130, no traceback.

While modules load nothing has been begun, and an interrupt ends the process at once.  Later it is a KeyboardInterrupt,
so that what has been half written is removed on the way out.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

STATUS = 128 + signal.SIGINT
ABORTED = "Aborted!"


def _end(_number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):  # from a stderr that is closed
        os.write(2, f"\n{ABORTED}\n".encode())
    os._exit(STATUS)


def loading() -> None:
    """From now on an interrupt ends the process, unless the program around this one handles interrupts itself."""
    if threading.current_thread() is threading.main_thread() and _handled_by(signal.default_int_handler):
        signal.signal(signal.SIGINT, _end)


def loaded() -> None:
    """From now on an interrupt is a KeyboardInterrupt again."""
    if _handled_by(_end):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def quiet() -> None:
    """An interrupt that comes where Python can raise nothing, as while threads are joined at the exit, is not shown."""
    before = sys.unraisablehook

    def hook(unraisable: UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)

    sys.unraisablehook = hook


def _handled_by(handler: object) -> bool:
    return signal.getsignal(signal.SIGINT) is handler


loading()  # on import: commands import this module before all others
