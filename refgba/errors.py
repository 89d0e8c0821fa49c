"""The one exception for mistakes in what a user gave: a file, a flag, a setting.

Its message is a single line that says what was wrong, where, and what would be right; the command line prints
it without a traceback and exits with status 2, or with 1 where the disk failed.
"""

from __future__ import annotations

import errno
from pathlib import Path

FAILING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # of a disk that is full or fails


def os_status(error: OSError) -> int:
    """The exit status of a command that such an error ends: 1 where the disk failed, 2 where a path is wrong."""
    return 1 if error.errno in FAILING else 2


class InputError(ValueError):
    """Bad input or bad usage.  The message is one line, meant for a person.

    status: the exit status of a command that it ends.
    """

    status = 2


class DiskError(InputError):
    """What was given is right, but the disk is full or fails, so that the same command may do another time."""

    status = 1


def unwritten(path: Path, error: OSError) -> InputError:
    """What a user is told of a path that could not be written."""
    kind = DiskError if os_status(error) == DiskError.status else InputError
    return kind(f"{path}: cannot be written ({error.strerror or error})")


def brief(value: object) -> str:
    """A value or an error from a file that may hold anything, for a message: printable, on one line, not long.

    The lines of an error, which a library broke for a person to read, are joined; what is in a value is shown.
    """
    text = " ".join(str(value).split()) if isinstance(value, BaseException) else str(value)
    text = repr(text)[1:-1] or type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}..."
