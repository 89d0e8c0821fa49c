"""Ctrl-C while a command works: a KeyboardInterrupt, so that what has been half written is removed on the way out.

`refgba.runs.console` makes one line of it.  While modules load, `refgba.runs.loading` has the say.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

STATUS = 128 + signal.SIGINT
ABORTED = "Aborted!"


def quiet() -> None:
    """An interrupt that comes where Python can raise nothing, as while threads are joined at the exit, is not shown."""
    before = sys.unraisablehook

    def hook(unraisable: UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)

    sys.unraisablehook = hook
