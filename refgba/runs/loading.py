"""Ctrl-C while the commands load: nothing has been begun, and the process ends at once, with one line and no traceback.

To import this module is to begin: `cli` imports it before all others, and calls `done` when it has loaded.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType

from refgba.runs.interrupts import ABORTED, STATUS


def _end(_number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):  # from a stderr that is closed
        os.write(2, f"\n{ABORTED}\n".encode())
    os._exit(STATUS)


def done() -> None:
    """From now on an interrupt is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# A program around this one that handles interrupts itself goes on doing so.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _end)
