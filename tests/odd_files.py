"""What tests put in the place of a file: a pipe, a device, a hole larger than memory; and how they do not wait."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def giant(path):
    os.truncate(path, 2**40)  # a hole: no machine has so much memory


@contextmanager
def at_most(seconds):
    """Fails when the body takes longer."""

    def late(_number, _frame):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
