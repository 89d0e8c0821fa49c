"""The one exception for mistakes in what a user gave: a file, a flag, a setting.

Its message is a single line that says what was wrong, where, and what would be right; the command line prints
it without a traceback and exits with status 2.
"""

from __future__ import annotations


class InputError(ValueError):
    """Bad input or bad usage.  The message is one line, meant for a person."""


def brief(value: object) -> str:
    """A value or an error from a file that may hold anything, for a message: printable, on one line, not long.

    The lines of an error, which a library broke for a person to read, are joined; what is in a value is shown.
    """
    text = " ".join(str(value).split()) if isinstance(value, BaseException) else str(value)
    text = repr(text)[1:-1] or type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}..."
