"""The one exception for mistakes in what a user gave: a file, a flag, a setting.

Its message is a single line that says what was wrong, where, and what would be right; the command line prints
it without a traceback and exits with status 2.
"""

from __future__ import annotations


class InputError(ValueError):
    """Bad input or bad usage.  The message is one line, meant for a person."""
