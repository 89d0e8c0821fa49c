"""What `refgba llm explore` says where something fails: only what can be done with the flags that it has."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from pathlib import Path

import llm_models
import numpy as np
import pytest
from commands import assert_one_line
from llm_models import SITES, llm

from refgba import recipe
from refgba.llm.commands import llm_group
from refgba.runs import console, folder, log
from refgba.runs.trainer import Diverged, Training

models, corpus = llm_models.models, llm_models.corpus  # fixtures
TRAINING = re.compile(r"`refgba train out/store`, which has --\w+")  # named with the flag that it has


@pytest.fixture
def command(cli, models, corpus):
    """Explores into the folder `out`, and sees to it that no flag is named that `explore` has not."""
    for k in range(30):
        (corpus / f"more{k:02d}.txt").write_text(llm_models.text(100 + k, 60), encoding="utf-8")
    flags = ["--text", corpus, "--width", 40, "--steps", 30, "--context", 24, "--tokens", 1500, "-o", "out"]

    def run(*more):
        result = cli("llm", "explore", models("gpt2"), "--site", SITES["gpt2"], *flags, *more)
        named = set(re.findall(r"--[a-z][\w-]*", TRAINING.sub("", result.stderr)))
        assert named <= {flag for option in llm_group.commands["explore"].params for flag in option.opts} | {"--help"}
        assert "refgba train --resume" not in result.stderr
        return result

    return run


@pytest.fixture
def harvested(command, monkeypatch):
    """What `command` leaves if it is stopped before it trains."""

    def stopped(_):
        raise KeyboardInterrupt

    def stop(*more):
        with monkeypatch.context() as patch:
            patch.setattr(console, "train", stopped)
            assert command(*more).exit_code == 130

    return stop


def with_rows(store, change):
    """The store with other rows, as if the model had made them."""
    meta = json.loads((store / "meta.json").read_text())
    for shard in meta["shards"]:
        rows = np.load(store / shard["file"])
        change(rows)
        np.save(store / shard["file"], rows)
        shard["sha256"] = hashlib.sha256((store / shard["file"]).read_bytes()).hexdigest()
    (store / "meta.json").write_text(json.dumps(meta))


def zeros(every):
    """Of so many rows one is all zeros, to be changed in place."""
    return lambda rows: rows.__setitem__(slice(None, None, every), 0)


@llm
def test_a_full_disk_while_it_trains_is_met_by_the_same_command(command, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(log.Log, "append", full)
        result = command()
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: out/run: step ")
    assert last.endswith("No space left on device; the run is not complete; the same command goes on")
    assert command().exit_code == 0
    assert (tmp_path / "out" / "dashboard" / "index.html").is_file()


@llm
def test_where_training_diverges_the_same_command_would_not_do(command, monkeypatch):
    def diverged(*_):
        raise Diverged("step 3: the loss is nan")

    monkeypatch.setattr(Training, "_progress", diverged)
    for what in ("step 3: the loss is nan", "out/run: has no result"):
        last = command().stderr.splitlines()[-1]
        assert last.startswith(f"Error: {what}; training diverged: remove out/run and try another --seed")
        assert last.endswith("or `refgba train out/store`, which has --lr")


@llm
@pytest.mark.parametrize("begun", [(), (folder.DATA,), (folder.DATA, folder.ABOUT), (f"{folder.files.PARTIAL}x",)])
def test_a_run_that_was_killed_while_its_folder_was_made_is_made_anew(command, harvested, tmp_path, begun):
    harvested()
    (tmp_path / "out" / "run").mkdir()
    for name in begun:
        (tmp_path / "out" / "run" / name).write_bytes(b"{}")
    assert command().exit_code == 0
    assert (tmp_path / "out" / "run" / "final").is_dir()


@llm
def test_a_run_without_its_settings_is_left_as_it_is(command, tmp_path):
    assert command().exit_code == 0
    (tmp_path / "out" / "run" / "config.json").unlink()
    before = sorted((tmp_path / "out" / "run").rglob("*"))
    (tmp_path / "out" / "dashboard" / "index.html").unlink()
    (tmp_path / "out" / "dashboard").rename(tmp_path / "dashboard")
    assert_one_line(command(), "run: is no whole run, it has no config.json; remove it, and the same command")
    assert sorted((tmp_path / "out" / "run").rglob("*")) == before


@llm
def test_a_run_that_lacks_its_result_alone_gets_it_and_is_not_said_to_be_extended(command, tmp_path):
    assert command().exit_code == 0
    final = tmp_path / "out" / "run" / "final"
    params = (final / "params.safetensors").read_bytes()
    final.rename(tmp_path / "was")
    (tmp_path / "out" / "dashboard").rename(tmp_path / "dashboard")
    result = command()
    assert result.exit_code == 0
    assert "extends it" not in result.stderr
    assert (final / "params.safetensors").read_bytes() == params


# ---- rows ------------------------------------------------------------------------------------------------------------


@llm
def test_rows_of_zeros_are_refused_with_a_flag_that_there_is(command, harvested, tmp_path):
    harvested()
    with_rows(tmp_path / "out" / "store", zeros(10))
    assert_one_line(command(), "is all zeros and has no direction; --drop-zero-rows skips such rows")
    result = command("--drop-zero-rows")
    assert result.exit_code == 0, result.output
    assert "rows of zeros are left out" in result.stderr


@llm
def test_few_rows_are_told_of_with_flags_that_there_are(command, harvested, tmp_path):
    harvested("--tokens", 600)
    result = command("--tokens", 600)
    assert result.exit_code == 0, result.output
    assert "is fewer than 100; another folder and more --tokens would give more" in result.stderr
    harvested("-o", "few", "--tokens", 600)
    with_rows(tmp_path / "few" / "store", zeros(3))
    complaint = "some are left out, and the others are too few for a batch of 512; choose another folder, and more --t"
    assert_one_line(command("-o", "few", "--tokens", 600, "--drop-zero-rows"), complaint)


@llm
def test_what_is_said_of_rows_can_be_done_and_is_asked_for_again(command, harvested, tmp_path):
    def faint_and_offset(rows):
        rows += 0.28 * np.median(np.linalg.norm(rows, axis=1)) / np.sqrt(rows.shape[1])
        rows[::50] *= 1e-6

    harvested()
    with_rows(tmp_path / "out" / "store", faint_and_offset)
    result = command()
    assert "--drop-below 0.001 skips them" in result.stderr
    assert_one_line(command("--drop-below", 0.001), "with drop-below = 0, not 0.001; give no --drop-below")
    centred = json.loads((tmp_path / "out" / "run" / "about.json").read_text())["data"].get("centred", False)
    own, other = ("on", "off") if centred else ("off", "on")
    assert_one_line(command("--centre", other), f"was begun with centre {own}, not {other}; give --centre {own}")
    assert_one_line(command("--backend", "cupy"), "not cupy; give the same")
    backend = json.loads((tmp_path / "out" / "run" / "about.json").read_text())["backend"]
    for more in (("--centre", own), ("--centre", "auto"), ("--backend", "auto"), ("--backend", backend)):
        assert command(*more).exit_code == 0


@llm
def test_documents_of_one_token_are_said_to_give_no_rows(command, corpus, tmp_path):
    for file in corpus.iterdir():
        file.write_text("a", encoding="utf-8")
    assert_one_line(command(), "42 tokens give no row to train on: the first of each context is left out")
    assert "not in the range x>=2" in command("--context", 1).stderr
    assert_one_line(command("--drop-below", 2), "a share of the median norm from 0 to under 1, not 2")
    assert not (tmp_path / "out").exists()


def test_a_run_of_an_earlier_recipe_goes_on_with_what_it_was_begun_with(command, monkeypatch):
    assert command("--l0", 3).exit_code == 0
    before = folder.read_config(Path("out/run"))
    monkeypatch.setattr(recipe, "MEASURED_LR", 2 * recipe.MEASURED_LR)
    assert command("--l0", 3).exit_code == 0
    assert folder.read_config(Path("out/run")) == before
    assert_one_line(command("--l0", 4), "was begun with l0 = 3.0, not 4.0; give --l0 3")
