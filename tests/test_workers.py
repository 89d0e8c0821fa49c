"""Workers end with their parent, however that ends, and Ctrl-C shows no traceback of theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

pytestmark = pytest.mark.skipif(
    (os.cpu_count() or 1) < 2 or not Path("/proc").is_dir(), reason="workers run on two cores; /proc shows them"
)

PROGRAM = """
import os, time
from pathlib import Path
from refgba.experiments import workers
from refgba.runs.console import Commands
import click

def work(name):
    Path(name).write_text(str(os.getpid()))
    time.sleep(300)

@click.group(cls=Commands)
def main(): pass

@main.command()
def begin(): workers.at_once(work, ["a", "b"], "numpy", print)

if __name__ == "__main__":
    main()
"""


def alive(pid):
    """Whether a process still runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def within(seconds, condition):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGINT, "the parent"),
        (signal.SIGINT, "all"),  # as a terminal does
        (signal.SIGTERM, "the parent"),
        (signal.SIGHUP, "the parent"),
        (signal.SIGKILL, "the parent"),
    ],
)
def test_workers_end_with_their_parent(tmp_path, number, to):
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "program.py", "begin"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    pids = [tmp_path / name for name in "ab"]
    try:
        assert within(60, lambda: all(path.exists() and path.read_text() for path in pids))
        if to == "all":
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
        assert within(30, lambda: not any(alive(path.read_text()) for path in pids))
    finally:
        if any(alive(path.read_text()) for path in pids if path.exists()):
            os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in stderr
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert stderr.strip() == "Aborted!"
