"""What happens to a run from outside: signals leave a checkpoint, and a terminal that goes away ends nothing."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from commands import REFERENCE

from refgba.runs import checkpoints, folder
from refgba.runs.signals import Steady

ROOT = Path(__file__).parent.parent
ENDLESS = ["--steps", 10**6, "--width", 12, "--groups", 3, "--checkpoint-every", 0, *REFERENCE]


@pytest.fixture
def X(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((600, 5)))
    return tmp_path / "x.npy"


def refgba(*arguments, **more):
    code = "from refgba.cli import main; main()"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, env=environment, **streams)


def wait_for_training(process, run):
    """Until the run has logged a step."""
    log = run / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None


def newest_step(run):
    return folder.open_network(checkpoints.found(run)[0]).state["step"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(X, tmp_path, name):
    number, run = signal.Signals[name], tmp_path / "run"
    with refgba("train", X, "-o", run, *ENDLESS) as process:
        wait_for_training(process, run)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = newest_step(run)
    assert stderr.splitlines()[-1] == (
        f"{run}: stopped after step {step} by {name}; "
        f"`refgba train --resume {run}` goes on from its checkpoint at step {step}"
    )
    assert "Traceback" not in stderr


def test_a_hangup_that_nohup_ignores_is_ignored(X, tmp_path):
    def nohup():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    run = tmp_path / "run"
    with refgba("train", X, "-o", run, *ENDLESS, preexec_fn=nohup) as process:
        wait_for_training(process, run)
        process.send_signal(signal.SIGHUP)
        before = (run / "metrics.jsonl").stat().st_size
        while (run / "metrics.jsonl").stat().st_size == before and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "by SIGTERM" in stderr


@pytest.mark.parametrize("lost", ["stderr", "a pipe"])
def test_training_goes_on_when_nobody_reads_its_progress(X, tmp_path, lost):
    ours, theirs = os.openpty() if lost == "stderr" else os.pipe()
    run = tmp_path / "run"
    settings = ["--steps", 8000, "--width", 12, "--groups", 3, *REFERENCE]
    with refgba("train", X, "-o", run, *settings, stderr=theirs) as process:
        os.close(theirs)
        wait_for_training(process, run)
        os.close(ours)
        stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 0, stdout
    assert "FVU" in stdout
    assert folder.open_network(run).state["step"] == 8000


def test_a_terminal_that_closes_leaves_a_checkpoint(X, tmp_path):
    ours, theirs = os.openpty()
    run = tmp_path / "run"

    def control():
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    with refgba("train", X, "-o", run, *ENDLESS, stderr=theirs, start_new_session=True, preexec_fn=control) as process:
        os.close(theirs)
        wait_for_training(process, run)
        os.close(ours)  # the kernel sends SIGHUP, and whatever is written from then on fails
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP
    assert newest_step(run) > 0


def test_a_stream_that_fails_falls_silent():
    class Failing(io.StringIO):
        def write(self, text):
            if self.getvalue():
                raise OSError(5, "Input/output error")
            return super().write(text)

    stream = Steady(Failing())
    assert [stream.write("once"), stream.write("twice"), stream.flush()] == [4, 5, None]
    assert stream.getvalue() == "once"
    assert not stream.isatty()
