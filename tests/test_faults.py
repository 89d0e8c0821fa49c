"""Full disks, read-only folders, damaged shards and checkpoints: one line each, and what was written before is good."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import REFERENCE

from refgba import backends
from refgba.config import GBAConfig
from refgba.data import activations, files, pack
from refgba.data.activations import open_activations, reopen
from refgba.data.store import open_store
from refgba.data.survey import survey
from refgba.errors import InputError
from refgba.runs import checkpoints, folder
from refgba.runs.trainer import Diverged, Saving, Training, TrainingError, resume_run, train_run

ROOT = Path(__file__).parent.parent
NUMPY = backends.load("numpy")
CONFIG = GBAConfig(width=12, groups=3, steps=60, batch=16, adapt_every=4, lr=0.01, a_init=0.3)
QUICK = ["--width", "12", "--groups", "3", "--batch", "16", "--steps", "60", *REFERENCE]


@pytest.fixture
def store(tmp_path):
    """Ten shards of 100 rows."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((1000, 5)).astype(np.float32))
    pack.pack([tmp_path / "x.npy"], tmp_path / "store", rows_per_shard=100)
    return tmp_path / "store"


@pytest.fixture
def streaming(monkeypatch):
    """Blocks of 50 rows and windows of 200, so that shards are read again and again."""
    monkeypatch.setattr(activations, "BLOCK", 50 * 5 * 4)
    monkeypatch.setattr(activations, "WINDOW", 200 * 5 * 4)


def begin(path, out, config=CONFIG):
    data, found = survey(open_activations(path), config.master)
    return train_run(data, found, config, NUMPY, {"backend": "numpy"}, out, Saving(10))


def go_on(run, say=id):
    record = folder.read_record(run)
    data = reopen(record.about["data"], record.dropped, record.crc)
    return resume_run(record, data, record.config, NUMPY, Saving(10), say=say)


def final(run):
    return (run / "final" / "params.safetensors").read_bytes()


def the_error(result, status):
    """The one line that a command says when it fails."""
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("Error: ")


# ---- disks -----------------------------------------------------------------------------------------------------------


def python(program, *arguments, limit=None):
    """Run a program in a process whose files can have at most `limit` bytes, as on a disk that is full."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None,
    )  # fmt: skip


@pytest.mark.parametrize("what", ["a checkpoint", "the log"])
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_when_there_is_room(tmp_path, store, what):
    steps, run = begin(store, tmp_path / "run"), tmp_path / "run"
    for progress in steps:
        if progress.step == 30:
            steps.close()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "metrics.jsonl"}
    log = (run / "metrics.jsonl").read_bytes()
    size = (
        1500 if what == "a checkpoint" else len(log) - 200
    )  # the log is cut to the checkpoint's step, and grows again
    if what == "the log":
        assert size > max(map(len, before.values()))
    result = python("from refgba.cli import main; main()", "train", "--resume", run, limit=size)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert (result.returncode, len(lines), "Traceback" in result.stderr) == (1, 1, False), result.stderr
    step = folder.open_network(checkpoints.found(run)[0]).state["step"]
    assert lines[0].startswith(f"Error: {run}: step ")
    assert "File too large" in lines[0]
    assert lines[0].endswith(f"`refgba train --resume {run}` goes on from its checkpoint at step {step}")
    assert not list(run.rglob(files.PARTIAL + "*"))
    for path, data in before.items():
        assert path.read_bytes() == data, path
    list(go_on(run))
    list(begin(store, tmp_path / "whole"))
    assert final(run) == final(tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))


def test_a_folder_that_cannot_be_written_is_one_line(store):
    with tempfile.TemporaryDirectory() as name:  # pytest's own lies where other users may not look
        place = Path(name)
        shutil.copytree(store, place / "store")
        place.chmod(0o555)
        program = "import os, sys; from click.testing import CliRunner; from refgba.cli import main; "
        if os.geteuid() == 0:  # who may write anywhere; once all is imported, by a run, somebody else can go on
            program += "CliRunner().invoke(main, [*sys.argv[1:3], '-o', sys.argv[4] + '-first', *sys.argv[5:]]); "
            program += "os.seteuid(65534); "
        result = python(program + "main()", "train", place / "store", "-o", place / "run", *QUICK)
        assert result.returncode == 2, result.stderr
        assert result.stderr.splitlines()[-1] == f"Error: {place / 'run'}: cannot be written (Permission denied)"
        assert not (place / "run").exists()
        place.chmod(0o755)


# ---- data ------------------------------------------------------------------------------------------------------------


def truncate(path):
    os.truncate(path, path.stat().st_size - 700)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-700] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (truncate, "shard-00004.npy: truncated: it ends in row 65 of 100"),
        (flip, "shard-00004.npy: rows 50 to 99 are not those that were checked before training"),
        (Path.unlink, "shard-00004.npy: cannot be read (No such file or directory)"),
    ],
)
@pytest.mark.usefixtures("streaming")
def test_a_shard_that_fails_in_the_middle_of_a_run_is_named_and_nothing_learned_is_lost(
    store, tmp_path, damage, complaint
):
    name = open_store(store).shards[4].path.name
    steps, run = begin(store, tmp_path / "run"), tmp_path / "run"
    for _ in range(3):
        next(steps)
    whole = (store / name).read_bytes()
    damage(store / name)
    with pytest.raises(InputError) as caught:
        list(steps)
    assert complaint.replace("shard-00004.npy", name) in str(caught.value)
    assert str(store) in str(caught.value)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert folder.open_network(checkpoints.found(run)[0]).state["step"] == last
    (store / name).write_bytes(whole)
    list(go_on(run))
    list(begin(store, tmp_path / "whole"))
    assert final(run) == final(tmp_path / "whole")


def test_what_is_wrong_with_data_before_training_is_named_by_shard_and_row(cli, store):
    shards = [shard.path for shard in open_store(store).shards]
    whole = [path.read_bytes() for path in shards]
    x = np.load(shards[7])
    x[50, 2] = np.nan
    np.save(shards[7], x)
    meta = json.loads((store / "meta.json").read_text())
    assert f"{shards[7].name}: does not match its checksum in meta.json" in the_error(cli("train", store, "-o", "r"), 2)
    assert f"{shards[7].name}: does not match its checksum" in the_error(cli("data", "verify", store), 2)
    for shard in meta["shards"]:
        del shard["sha256"]
    (store / "meta.json").write_text(json.dumps(meta))
    said = the_error(cli("train", store, "-o", "r"), 2)
    assert f"{shards[7].name}: row 50 (row 750 of store) holds a NaN" in said.replace(str(store.parent) + "/", "")
    assert said == the_error(cli("data", "verify", store), 2)
    for damaged in (whole[3][:-1], whole[3][:50], b""):
        shards[3].write_bytes(damaged)
        assert shards[3].name in the_error(cli("train", store, "-o", "r"), 2)
    shards[3].unlink()
    assert f"{shards[3].name}: no such file" in the_error(cli("train", store, "-o", "r"), 2)
    assert not Path("r").exists()


def test_a_run_does_not_go_on_with_other_data(cli, store):
    assert cli("train", store, "-o", "run", *QUICK).exit_code == 0
    other = np.random.default_rng(1).standard_normal((1000, 5)).astype(np.float32)
    np.save("other.npy", other)
    pack.pack([Path("other.npy")], Path("other"), rows_per_shard=100)
    pack.pack([Path("other.npy")], Path("fewer"), rows_per_shard=500)
    np.save("wider.npy", other[:, :4])
    for path, complaint in [
        ("other", "rows 0 to 99 are not those that were checked before training"),
        ("fewer", "fewer: has 2 shards, the run began with 10"),
        ("wider.npy", "wider.npy: d is 4, the run began with 5"),
    ]:
        assert complaint in the_error(cli("train", path, "--resume", "run", "--steps", 80), 2)
    assert cli("train", "store", "--resume", "run", "--steps", 80).exit_code == 0


def test_a_store_that_grows_is_trained_on_as_it_was(cli, store):
    meta = json.loads((store / "meta.json").read_text())
    less = meta | {"complete": False, "shards": meta["shards"][:6]}
    (store / "meta.json").write_text(json.dumps(less))
    assert cli("train", store, "-o", "run", *QUICK).exit_code == 0
    (store / "meta.json").write_text(json.dumps(meta))
    result = cli("train", "--resume", "run", "--steps", 80, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["rows"] == 600


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["params.safetensors", "training.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(store, tmp_path, name, damage):
    run, config = tmp_path / "run", replace(CONFIG, steps=45)
    list(begin(store, tmp_path / "whole", config))
    steps = begin(store, run, config)
    for progress in steps:
        if progress.step == 35:
            steps.close()
    damage(checkpoints.found(run)[0] / name)
    said = []
    done = [p.step for p in go_on(run, said.append)]
    assert done[0] == 21
    assert f"checkpoints/step-30/{name}" in said[0]
    assert said[0].endswith("; the checkpoint before it is used")
    assert final(run) == final(tmp_path / "whole")


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(store, tmp_path):
    list(begin(store, tmp_path / "run"))
    for path in checkpoints.found(tmp_path / "run"):
        flip(path / "params.safetensors")
    shutil.rmtree(tmp_path / "run" / "final")
    with pytest.raises(InputError, match=r"checkpoints: every checkpoint is damaged; the run cannot go on"):
        list(go_on(tmp_path / "run"))


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"width": 24}, "a checkpoint of another run: its width is 24, the run's 12"),
        ({"seed": 3}, "a checkpoint of another run: its seed is 3, the run's 0"),
        ({}, "a checkpoint of another data set than the run's"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_its_field(store, tmp_path, other, complaint):
    list(begin(store, tmp_path / "run", replace(CONFIG, steps=50)))
    np.save(tmp_path / "y.npy", np.random.default_rng(1).standard_normal((1000, 5)).astype(np.float32))
    data = store if other else tmp_path / "y.npy"
    list(begin(data, tmp_path / "other", replace(CONFIG, steps=60, **other)))
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step-60", tmp_path / "run" / "checkpoints" / "step-60")
    with pytest.raises(InputError, match=f"step-60.*: {complaint}"):
        list(go_on(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("about.json", {"data": 3}),
        ("about.json", {"backend": None}),
        ("about.json", {"checkpoints": {"every": "x", "keep": 2}}),
        ("config.json", {"width": "wide"}),
        ("checkpoints/step-60/state.json", {"updates": {"W": "many"}}),
        ("checkpoints/step-60/state.json", {"last_rows": []}),
        ("checkpoints/step-60/state.json", {"config": {"width": 3}}),
        ("checkpoints/step-60/state.json", {"sha256": {"../../x": ""}}),
    ],
)
def test_records_that_were_tampered_with_are_one_line(cli, store, name, change):
    assert cli("train", store, "-o", "run", *QUICK, "--keep", 1).exit_code == 0
    path = Path("run") / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    result = cli("train", "--resume", "run", "--steps", 70)
    assert result.exit_code == 2, result.output
    assert name.rpartition("/")[2] in result.stderr
    the_error(result, 2)


def test_a_run_that_diverged_keeps_its_good_checkpoints(store, tmp_path):
    steps = begin(store, tmp_path / "run", replace(CONFIG, lr=1e3, a_init=1e15, dtype="float32"))
    with pytest.raises(TrainingError, match="training diverged"), np.errstate(all="ignore"):
        list(steps)
    for path in checkpoints.found(tmp_path / "run"):
        folder.read_network(path)


def test_a_run_that_diverged_goes_on_only_where_it_would_not_diverge_again(cli, store, monkeypatch):
    real = Training._progress

    def diverged(training, state, metrics):
        if state.t > 30:
            raise Diverged(f"step {state.t}: the loss is nan")
        return real(training, state, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_progress", diverged)
        assert cli("train", store, "-o", "run", *QUICK).exit_code == 1
        refused = cli("train", "--resume", "run")
    assert "Error: run: training diverged by step 31; begin anew with a lower lr: as it is, it would" in refused.stderr
    the_error(refused, 2)
    assert cli("train", "--resume", "run", "--steps", 70).exit_code == 0
    assert "diverged" not in json.loads(Path("run/about.json").read_text())
    assert cli("train", "--resume", "run").exit_code == 0
