"""Children that run a command and are killed: what programs that kill again and again share."""

from __future__ import annotations

import os
from collections.abc import Callable


def forked(child: Callable[[list[str], int], None], arguments: list[str]) -> tuple[int, int]:
    """Start `child`, given the arguments and a pipe to tell how far it is; its process, and the pipe to read from.

    It exits with the status of the command.  Only a process that has started no thread may call this.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            child(arguments, writing)
        except SystemExit as ended:
            os._exit(ended.code or 0)
        finally:
            os._exit(99)
    os.close(writing)
    return pid, reading
