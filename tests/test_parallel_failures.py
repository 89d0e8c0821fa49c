"""Whatever befalls a rank, the run ends at once and says why, no process is left, and it goes on to the same bits."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time

import numpy as np
import pytest
from ranks import TRAIN, finish, needs_mpi, on_ranks, processes_of, start

pytestmark = needs_mpi
QUICK = ["--width", 60, "--groups", 3, "--batch", 32, "--backend", "numpy", "--dtype", "float64"]
RANKS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).standard_normal((600, 8)))
    return path


def sums(run):
    """The checksums of the result and of the last checkpoint, shard by shard."""
    paths = [*run.glob("final/*.safetensors"), *run.glob("checkpoints/step-100/*.safetensors")]
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run that nothing befalls."""
    run = tmp_path_factory.mktemp("whole") / "run"
    status, _, err = on_ranks(RANKS, *TRAIN, data, "-o", run, *QUICK, "--steps", 100, "--checkpoint-every", 5)
    assert status == 0, err
    return sums(run)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def nothing_left(folder):
    until(lambda: not processes_of(folder), 10)


def kill_and_go_on(data, run, whole, rng):
    """SIGKILL a random rank at a random moment of a run that writes checkpoints all the time; then resume."""
    process = start(RANKS, *TRAIN, data, "-o", run, *QUICK, "--steps", 100, "--checkpoint-every", 5)
    until(lambda: (run / "checkpoints").exists() or process.poll() is not None)
    time.sleep(rng.uniform(0, 1))
    victims = dict(pair for pair in processes_of(run) if pair[0] >= 0)
    rank = rng.randrange(RANKS)
    if process.poll() is None and rank in victims:
        os.kill(victims[rank], signal.SIGKILL)
        began = time.monotonic()
        status, _, err = finish(process, 30)
        assert time.monotonic() - began < 10
        assert status != 0
        assert f"Error: rank {rank} of {RANKS} has died (process {victims[rank]} on" in err
        assert "Traceback" not in err
    nothing_left(run)
    status, _, err = on_ranks(RANKS, *TRAIN, "--resume", run)
    assert status == 0, err
    assert sums(run) == whole


def test_a_killed_rank_is_named_and_the_run_goes_on_to_the_same_bits(data, whole, tmp_path):
    kill_and_go_on(data, tmp_path / "run", whole, random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_twenty_killed_ranks(data, whole, tmp_path, seed):
    kill_and_go_on(data, tmp_path / "run", whole, random.Random(seed))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_mpiexec_checkpoints_all_ranks_at_one_step(data, tmp_path, name):
    run, number = tmp_path / "run", signal.Signals[name]
    process = start(2, *TRAIN, data, "-o", run, *QUICK, "--steps", 20_000, "--checkpoint-every", 0)
    until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size)
    process.send_signal(number)
    status, _, err = finish(process, 30)
    assert status == 128 + number
    (checkpoint,) = (run / "checkpoints").iterdir()
    step = checkpoint.name.removeprefix("step-")
    assert f"stopped after step {step} by {name}" in err
    assert {p.name for p in checkpoint.glob("params*")} == {f"params-{r}-of-2.safetensors" for r in range(2)}
    nothing_left(run)


def test_a_signal_to_any_rank_stops_all(data, tmp_path):
    run = tmp_path / "run"
    process = start(2, *TRAIN, data, "-o", run, *QUICK, "--steps", 20_000, "--checkpoint-every", 0)
    until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size)
    os.kill(dict(processes_of(run))[1], signal.SIGUSR1)
    status, _, err = finish(process, 30)
    assert status == 128 + signal.SIGUSR1
    assert "by SIGUSR1" in err


FAILING = """
import sys
from refgba.backends import numpy as backend
from refgba.backends.comm import world
from refgba.cli import main

rank, step = int(__import__("os").environ["PMI_RANK"]), backend.step
def failing(state, x):
    if rank == 1 and state.t == 30:
        {what}
    return step(state, x)
backend.step = failing
main()
"""


@pytest.mark.parametrize(
    ("what", "told", "expected"),
    [
        ("raise MemoryError('Unable to allocate 9 GiB')", "not enough memory (Unable to allocate 9 GiB)", 1),
        ("raise ZeroDivisionError('division by zero')", "division by zero", 1),
        ("raise OSError(5, 'Input/output error', 'x.npy')", "x.npy: Input/output error", 2),
    ],
)
def test_a_rank_that_fails_alone_names_itself_and_ends_all(data, tmp_path, what, told, expected):
    run, program = tmp_path / "run", FAILING.format(what=what)
    began = time.monotonic()
    command = [sys.executable, "-c", program, "train", data, "-o", run, *QUICK, "--steps", 400]
    status, out, err = on_ranks(2, *command, seconds=60)
    assert time.monotonic() - began < 30
    assert status == expected
    assert not out
    (line,) = (line for line in err.splitlines() if line.startswith("Error: "))
    assert line.startswith("Error: rank 1 of 2: ")
    assert told in line
    assert ("Traceback" in err) == ("ZeroDivision" in what)
    nothing_left(run)


# ---- bad use, one line each ------------------------------------------------------------------------------------------


def one_line(outcome):
    status, out, err = outcome
    assert status == 2, err
    assert not out
    assert "Traceback" not in err
    (line,) = (line for line in err.splitlines() if line.startswith("Error: "))
    return line


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--groups", 50], "2 ranks are more than the 1 neurons of a group (width 60 in 50 groups)"),
        (["--method", "topk", "--groups", None], "backend 'numpy' trains method topk in one process, not on 2 ranks"),
        (["--width", 2], "width (2) must be at least groups (3)"),
    ],
)
def test_what_cannot_be_spread_is_refused_in_one_line(data, tmp_path, flags, complaint):
    settings = dict(zip(QUICK[::2], QUICK[1::2], strict=True)) | dict(zip(flags[::2], flags[1::2], strict=True))
    given = [part for name, value in settings.items() if value is not None for part in (name, value)]
    line = one_line(on_ranks(2, *TRAIN, data, "-o", tmp_path / "run", *given))
    assert complaint in line
    assert not list(tmp_path.iterdir())


def test_ranks_that_disagree_on_settings_are_refused(data, tmp_path):
    one = [*TRAIN, data, "-o", tmp_path / "run", *QUICK, "--adapt-every", 5, "--seed"]
    line = one_line(on_ranks(1, *one, 3, ":", "-n", 1, *one, 4))
    assert "ranks disagree on settings: rank 1 has seed 4, rank 0 has seed 3; start all of them with the same" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [600, 500])
def test_ranks_that_disagree_on_data_are_refused(data, tmp_path, rows):
    np.save(tmp_path / "y.npy", np.random.default_rng(1).standard_normal((rows, 8)))
    ends = ["-o", tmp_path / "run", *QUICK]
    line = one_line(on_ranks(1, *TRAIN, data, *ends, ":", "-n", 1, *TRAIN, tmp_path / "y.npy", *ends))
    assert ("rank 1 of 2: " in line and "y.npy" in line) or "disagree on data: rank 1 has" in line


def test_without_mpi4py_the_extra_is_named(data, tmp_path):
    program = "import sys; sys.modules['mpi4py'] = None; from refgba.cli import main; main()"
    outcome = on_ranks(2, sys.executable, "-c", program, "train", data, "-o", tmp_path / "run", *QUICK)
    assert outcome[0] == 2
    lines = [line for line in outcome[2].splitlines() if line.startswith("Error: ")]
    assert lines  # each rank says it: without MPI they know nothing of each other
    assert all("pip install 'refgba[mpi]'" in line for line in lines)
