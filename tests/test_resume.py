"""A run that was killed, stopped or struck by a fault goes on, and ends as if nothing had happened: to the bit."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from commands import REFERENCE
from engines import ENGINES, engine

from refgba import backends, gba, recipe
from refgba.config import Baseline, BaselineConfig, GBAConfig
from refgba.data import files
from refgba.data.activations import open_activations, reopen
from refgba.data.survey import survey
from refgba.errors import InputError
from refgba.runs import checkpoints, folder, trainer
from refgba.runs.signals import Stopped
from refgba.runs.trainer import Saving, resume_run, train_run

HERE = Path(__file__).parent
CONFIG = GBAConfig(
    width=12, groups=3, steps=40, batch=16, adapt_every=3, lr=0.01, a_init=0.3, form=0.4, lr_decay=0.5, hold=0.5,
)  # fmt: skip
NUMPY = backends.load("numpy")


@pytest.fixture
def X(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((300, 5)))
    return tmp_path / "x.npy"


def begin(path, out, config=CONFIG, backend=NUMPY, name="numpy", **more):
    data, found = survey(open_activations(path), config.master)
    return train_run(data, found, config, backend, {"backend": name}, out, **more)


def go_on(run, steps=None, backend=NUMPY, said=None, path=None, **more):
    record = folder.read_record(run)
    config = record.config if steps is None else trainer.extended(record.config, steps)
    data = reopen(record.about["data"], record.dropped, record.crc, path)
    saving = Saving.of(config, **record.about["checkpoints"])
    return resume_run(record, data, config, backend, saving, say=[].append if said is None else said.append, **more)


def outcome(run):
    """Everything a run ends with, but for times."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.suffix == ".safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name in ("state.json", "config.json"):
            found[name] = json.loads(path.read_text()) | {"seconds": 0}
        elif path.name == "metrics.jsonl":
            found[name] = [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]
        elif path.name != "about.json" and path.is_file():
            found[name] = "should not be here"
    return found


def stopping(after):
    """Asks to stop after so many steps."""
    left = chain([0] * (after - 1), repeat(signal.SIGTERM))
    return lambda: next(left)


# ---- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype"), ENGINES)
@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
def test_a_run_that_stops_and_goes_on_is_the_run_that_did_not(X, tmp_path, name, dtype, untied):
    config = replace(CONFIG, dtype=dtype, untied=untied)
    with engine(name) as backend:
        list(begin(X, tmp_path / "whole", config, backend, name, saving=Saving(7)))
        with pytest.raises(Stopped):
            list(begin(X, tmp_path / "parts", config, backend, name, saving=Saving(7), stop=stopping(5)))
        for steps in (1, 11, 3, 9):  # through forming, the hold and adaptations
            with pytest.raises(Stopped):
                list(go_on(tmp_path / "parts", backend=backend, stop=stopping(steps)))
        list(go_on(tmp_path / "parts", backend=backend))
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert [line["step"] for line in whole["metrics.jsonl"]] == list(range(1, 41))
    newest = [str(path.relative_to(tmp_path / "whole")) for path in checkpoints.found(tmp_path / "whole")][:1]
    assert newest == ["checkpoints/step-40"]
    for what in (
        "metrics.jsonl",
        "config.json",
        "data.safetensors",
        *(n for n in whole if n.startswith(("final", newest[0]))),
    ):
        assert whole[what] == parts[what], what


@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.parametrize("method", get_args(Baseline))
def test_a_baseline_that_stops_and_goes_on_is_the_one_that_did_not(X, tmp_path, name, method):
    reason = backends.status()[name]
    if reason is not None:
        pytest.skip(reason)
    sizes = {"width": 12, "k": 3, "steps": 40, "batch": 16, "dead_after": 50, "aux_k": 2, "prefixes": 3}
    config = BaselineConfig(method=method, dtype="float32", **sizes)
    backend = backends.load(name, config.dtype, method)
    list(begin(X, tmp_path / "whole", config, backend, name, saving=Saving(7)))
    with pytest.raises(Stopped):
        list(begin(X, tmp_path / "parts", config, backend, name, saving=Saving(7), stop=stopping(5)))
    with pytest.raises(Stopped):
        list(go_on(tmp_path / "parts", backend=backend, stop=stopping(11)))
    list(go_on(tmp_path / "parts", backend=backend))
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    for what in ("metrics.jsonl", "final/params.safetensors", "checkpoints/step-40/training.safetensors"):
        assert whole[what] == parts[what], what


def test_a_run_without_a_checkpoint_begins_again(X, tmp_path):
    steps = begin(X, tmp_path / "parts", saving=Saving(0))
    for _ in range(5):
        next(steps)
    steps.close()
    assert not (tmp_path / "parts" / "checkpoints").exists()
    list(go_on(tmp_path / "parts"))
    list(begin(X, tmp_path / "whole", saving=Saving(0)))
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_the_newest_checkpoints_are_kept(X, tmp_path):
    list(begin(X, tmp_path / "run", saving=Saving(6, keep=3)))
    assert [path.name for path in checkpoints.found(tmp_path / "run")] == ["step-40", "step-36", "step-30"]


def test_a_run_can_be_read_from_any_of_its_checkpoints(X, tmp_path):
    list(begin(X, tmp_path / "run", saving=Saving(30)))
    early = folder.open_network(tmp_path / "run" / "checkpoints" / "step-30")
    state = gba.init(gba.random_params(CONFIG, 5), CONFIG)
    for _ in gba.train(state, gba.minibatches(np.load(X), CONFIG)):
        if state.t == 30:
            break
    assert (early.params.W == state.params.W).all()
    assert early.state["step"] == 30
    last = folder.open_network(tmp_path / "run" / "checkpoints" / "step-40")
    assert (last.params.W == folder.open_network(tmp_path / "run").params.W).all()


def test_a_finished_run_is_extended_where_its_forming_ended(X, tmp_path):
    list(begin(X, tmp_path / "run"))
    said = []
    steps = [p.step for p in go_on(tmp_path / "run", 100, said=said)]
    assert (steps[0], steps[-1]) == (41, 100)
    config = folder.open_network(tmp_path / "run").config
    assert (config.steps, recipe.forming_steps(config)) == (100, recipe.forming_steps(CONFIG))
    assert f"the learning rate of step 41 is {recipe.learning_rate(config, 41):.3g}" in said[0]
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert about["extended"] == [{"at": 40, "steps": 100}]
    log = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert log == list(range(1, 101))


def test_an_extended_run_that_is_killed_goes_on_extended(X, tmp_path):
    for name in ("whole", "parts"):
        list(begin(X, tmp_path / name))
    list(go_on(tmp_path / "whole", 60))
    steps = go_on(tmp_path / "parts", 60)
    for _ in range(15):
        next(steps)
    steps.close()
    list(go_on(tmp_path / "parts"))
    assert (
        outcome(tmp_path / "whole")["final/params.safetensors"]
        == outcome(tmp_path / "parts")["final/params.safetensors"]
    )
    assert outcome(tmp_path / "whole")["metrics.jsonl"] == outcome(tmp_path / "parts")["metrics.jsonl"]


def test_only_one_process_trains_in_a_folder(X, tmp_path):
    steps = begin(X, tmp_path / "run")
    next(steps)
    with pytest.raises(InputError, match="another process is training in this folder"):
        list(go_on(tmp_path / "run"))
    assert [p.step for p in steps][-1] == 40


def test_data_that_moved_is_named_and_data_that_grew_is_the_same(cli, X, tmp_path):
    quick = ["--width", 12, "--groups", 3, "--batch", 16, "--steps", 30, *REFERENCE]
    assert cli("train", X, "-o", "run", *quick).exit_code == 0
    X.rename(tmp_path / "y.npy")
    result = cli("train", "--resume", "run", "--steps", 40)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"Error: {X}: no such file")
    assert cli("train", "y.npy", "--resume", "run", "--steps", 40).exit_code == 0


@pytest.mark.parametrize("steps", [[], ["--steps", 40]], ids=["finished", "extended"])
def test_where_data_moved_to_is_remembered(cli, X, tmp_path, steps):
    quick = ["--width", 12, "--groups", 3, "--batch", 16, "--steps", 30, *REFERENCE]
    assert cli("train", X, "-o", "run", *quick).exit_code == 0
    (tmp_path / "b").mkdir()
    X.rename(tmp_path / "b" / "x.npy")
    assert cli("train", "b/x.npy", "--resume", "run", *steps).exit_code == 0
    about = json.loads(Path("run/about.json").read_text())
    assert about["data"]["path"] == str((tmp_path / "b" / "x.npy").resolve())
    for command in (["train", "--resume", "run"], ["train", "--resume", "run", "--steps", 60]):
        result = cli(*command)
        assert result.exit_code == 0, result.stderr
    if importlib.util.find_spec("matplotlib"):
        result = cli("report", "run", "-o", "r.html")
        assert result.exit_code == 0, result.stderr


def test_resuming_through_the_command_line_keeps_the_runs_settings(cli, X):
    quick = ["--width", 12, "--groups", 3, "--batch", 16, "--steps", 30, *REFERENCE]
    quick += ["--checkpoint-every", 10, "--keep", 5]
    assert cli("train", X, "-o", "run", *quick).exit_code == 0
    assert len(checkpoints.found(Path("run"))) == 3
    again = cli("train", "--resume", "run")
    assert again.exit_code == 0
    assert "Note: the run has done its 30 steps; --steps extends it" in again.stderr
    result = cli("train", "--resume", "run", "--steps", 60, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["steps"] == 60
    assert [path.name for path in checkpoints.found(Path("run"))][:2] == ["step-60", "step-50"]
    for flags, complaint in [
        (["--lr", 1], "a run that goes on keeps its settings: --lr cannot be given with --resume"),
        (["-o", "other"], "a run that goes on keeps its settings: -o cannot be given with --resume"),
        (["--steps", 50], "--steps can only be more than the run's 60, not 50"),
        (["--checkpoint-every", -1], "--checkpoint-every must not be negative, not -1"),
        (["--keep", 0], "--keep must be at least 1, not 0"),
    ]:
        refused = cli("train", "--resume", "run", *flags)
        assert (refused.exit_code, refused.stderr.splitlines()[-1]) == (2, f"Error: {complaint}")
    assert cli("train", X).stderr.startswith("Error: give DATA and -o FOLDER to begin a run, or --resume RUN")
    assert cli("train", "--resume", "nowhere").stderr.startswith("Error: nowhere: not a run, it has no config.json")


# ---- kills -----------------------------------------------------------------------------------------------------------


def refgba(*arguments, **more):
    code = "from refgba.cli import main; main()"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, **more,
    )  # fmt: skip


def killed(tmp_path, X, kills, saving, *flags):
    """Kill a run again and again; then it must be as one that was not, and nothing of its folder damaged or left."""
    settings = ["--batch", 16, "--groups", 3, "--checkpoint-every", 20, *REFERENCE, *flags]
    arguments = [str(a) for a in ("train", X, *settings)]
    told = tmp_path / "settings.json"
    run = str(tmp_path / "killed")
    resume = ["train", "--resume", run]
    told.write_text(
        json.dumps(
            {
                "train": [*arguments, "-o", run],
                "resume": resume,
                "run": run,
                "kills": kills,
                "saving": saving,
                "seed": 1,
            }
        )
    )
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    result = subprocess.run(
        [sys.executable, HERE / "kills.py", told], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["status"] == 0, result.stderr
    assert found["killed"] >= kills, found
    assert found["saving"] >= saving, found
    with refgba(*arguments, "-o", tmp_path / "whole") as whole:
        assert whole.wait() == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob(files.PARTIAL + "*"))
    for path in checkpoints.found(tmp_path / "killed"):
        folder.read_network(path)


def test_a_killed_run_loses_nothing(tmp_path, X):
    killed(tmp_path, X, 8, 2, "--width", 64, "--steps", 2000)


@pytest.mark.slow
def test_a_run_killed_a_hundred_times_loses_nothing(tmp_path, X):
    killed(tmp_path, X, 100, 20, "--width", 64, "--steps", 20_000)


@pytest.mark.slow
def test_a_run_of_numba_killed_again_and_again_loses_nothing(tmp_path, X):
    pytest.importorskip("numba")
    killed(tmp_path, X, 15, 4, "--width", 64, "--steps", 4_000, "--backend", "numba")
