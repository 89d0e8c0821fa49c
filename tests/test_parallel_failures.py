"""Whatever befalls a rank, the run ends at once and says why, no process is left, and it goes on to the same bits."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ranks import TRAIN, finish, needs_mpi, on_ranks, processes_of, start

pytestmark = needs_mpi
QUICK = ["--width", 60, "--groups", 3, "--batch", 32, "--backend", "numpy", "--dtype", "float64"]
OFTEN = ["--steps", 100, "--checkpoint-every", 5]
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
    status, _, err = on_ranks(RANKS, *TRAIN, data, "-o", run, *QUICK, *OFTEN)
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
    process = start(RANKS, *TRAIN, data, "-o", run, *QUICK, *OFTEN)
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


KILLED = """
import os, signal, sys
from pathlib import Path
from refgba.cli import main
from refgba.data import files
from refgba.runs import folder

moment, victim = sys.argv.pop(1), int(sys.argv.pop(1))
save_file, rename, remove, shards = folder.save_file, Path.rename, files.remove_folder, []

def die_at(reached):
    if (moment, victim) == (reached, int(os.environ["PMI_RANK"])):
        os.kill(os.getpid(), signal.SIGKILL)

def save(arrays, path):
    shards.append(path)
    eighth = len(shards) == 15  # the first of the two shards of the eighth checkpoint
    if eighth:
        die_at("before its shard")
    save_file(arrays, path)
    if eighth:
        if moment == "half its shard":
            os.truncate(path, path.stat().st_size // 2)
        die_at("half its shard")

def named(path, target):
    if Path(target).name == "step-40":
        die_at("before the name")
    return rename(path, target)

def removed(path):
    if path.name == "step-30" and path.exists():
        die_at("before the old one goes")
    remove(path)

folder.save_file, Path.rename, files.remove_folder = save, named, removed
main()
"""


@pytest.mark.parametrize(
    ("moment", "rank", "kept"),
    [
        pytest.param("before its shard", 2, ["step-30", "step-35"], marks=pytest.mark.slow),
        ("half its shard", 1, ["step-30", "step-35"]),
        pytest.param("before the name", 0, ["step-30", "step-35"], marks=pytest.mark.slow),
        pytest.param("before the old one goes", 0, ["step-30", "step-35", "step-40"], marks=pytest.mark.slow),
    ],
)
def test_a_rank_killed_inside_a_checkpoint_leaves_a_whole_one_behind(data, whole, tmp_path, moment, rank, kept):
    run = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, moment, rank, "train", data, "-o", run, *QUICK, *OFTEN]
    began = time.monotonic()
    status, _, err = on_ranks(RANKS, *command)
    assert time.monotonic() - began < 30
    assert status != 0
    assert f"Error: rank {rank} of {RANKS} has died" in err
    nothing_left(run)
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == kept
    status, _, err = on_ranks(RANKS, *TRAIN, "--resume", run)
    assert status == 0, err
    assert "damaged" not in err
    assert sums(run) == whole
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-100", "step-95"]


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


def test_with_nohup_a_terminal_that_closes_stops_nothing(data, tmp_path):
    run = tmp_path / "run"
    process = start(2, *TRAIN, data, "-o", run, *QUICK, "--steps", 1000, before=["nohup"], stdin=subprocess.DEVNULL)
    until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size)
    for _, other in processes_of(run):
        os.kill(other, signal.SIGHUP)
    status, out, err = finish(process, 60)
    assert status == 0, err
    assert (run / "final").is_dir()
    assert "UCX" not in out + err  # a library of mpich's, which else would log its every message from here on


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
        (["--width", 2], "--width (2) must be at least --groups (3)"),
    ],
)
def test_what_cannot_be_spread_is_refused_in_one_line(data, tmp_path, flags, complaint):
    settings = dict(zip(QUICK[::2], QUICK[1::2], strict=True)) | dict(zip(flags[::2], flags[1::2], strict=True))
    given = [part for name, value in settings.items() if value is not None for part in (name, value)]
    line = one_line(on_ranks(2, *TRAIN, data, "-o", tmp_path / "run", *given))
    assert complaint in line
    assert not list(tmp_path.iterdir())


SAME = "start all of them with the same command"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--seed", 3, "--seed", 4], "flags: rank 1 has --seed 4, rank 0 has --seed 3"),
        (["--held-out", "a.npy", "--held-out", "b.npy"], "flags: rank 1 has --held-out b.npy, rank 0 has --held-out"),
        (["--json", None, "--broadcast-rows", None], "flags: rank 1 has --broadcast-rows True, --json False, rank 0"),
    ],
)
def test_ranks_with_other_flags_are_refused(data, tmp_path, flags, told):
    one = [*TRAIN, data, "-o", tmp_path / "run", *QUICK, "--adapt-every", 5]
    zero, other = ([*one, *(f for f in pair if f is not None)] for pair in (flags[:2], flags[2:]))
    line = one_line(on_ranks(1, *zero, ":", "-n", 1, *other))
    assert told in line
    assert line.endswith(SAME)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [600, 500])
def test_ranks_that_disagree_on_data_are_refused(data, tmp_path, rows):
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "x.npy", np.random.default_rng(1).standard_normal((rows, 8)))
    one = [*TRAIN, "x.npy", "-o", tmp_path / "run", *QUICK]
    line = one_line(on_ranks(1, "-wdir", data.parent, *one, ":", "-n", 1, "-wdir", other, *one))
    assert "Error: rank 1 of 2: " in line
    assert "x.npy: " in line
    assert list(tmp_path.iterdir()) == [other]


def test_ranks_that_disagree_on_a_file_of_settings_are_refused(data, tmp_path):
    for name, text in (("zero", '{"seed": 3}'), ("one", '{"seed": 4}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.json").write_text(text)
    one = [*TRAIN, data, "-o", tmp_path / "run", *QUICK, "--adapt-every", 5, "--config", "own.json"]
    line = one_line(on_ranks(1, "-wdir", tmp_path / "zero", *one, ":", "-n", 1, "-wdir", tmp_path / "one", *one))
    assert "ranks disagree on settings: rank 1 has seed 4, rank 0 has seed 3" in line
    assert line.endswith(SAME)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--width", "wide"], "Invalid value for '--width': 'wide' is not a valid"),
        (["-o", __file__], "test_parallel_failures.py: exists and is not a folder"),
    ],
)
def test_a_mistake_in_the_flags_of_all_ranks_is_told_once(data, tmp_path, flags, complaint):
    assert complaint in one_line(on_ranks(2, *TRAIN, data, "-o", tmp_path / "run", *QUICK, *flags))


def test_a_mistake_in_the_flags_of_one_rank_ends_all(data, tmp_path):
    one = [*TRAIN, data, "-o", tmp_path / "run", *QUICK]
    line = one_line(on_ranks(1, *one, ":", "-n", 1, *one, "--width", "wide"))
    assert line.startswith("Error: rank 1 of 2: Invalid value for '--width'")
    assert not list(tmp_path.iterdir())


def test_without_mpi4py_the_extra_is_named_once(data, tmp_path):
    program = "import sys; sys.modules['mpi4py'] = None; from refgba.cli import main; main()"
    line = one_line(on_ranks(3, sys.executable, "-c", program, "train", data, "-o", tmp_path / "run", *QUICK))
    assert "pip install '.[mpi]'" in line
