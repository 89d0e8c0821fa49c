"""Rows near zero: counted, reported and left out if asked, by every command that computes on rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from commands import QUICK, assert_one_line, last_json
from safetensors.numpy import load_file

from refgba.cli import main

NOTE = "have a norm under a thousandth of the median"
FAINT = np.arange(500) % 2 == 1
LEFT_OUT = "250 rows with a norm below 0.001 of the median"


@pytest.fixture
def mixed(data):
    """The file of 500 rows, of which every other one is noise of 1e-9 of their norms; sound.npy has the others."""
    x = np.load(data)
    np.save("sound.npy", x[~FAINT])
    x[FAINT] = np.random.default_rng(0).standard_normal((250, x.shape[1])) * 1e-9
    np.save("mixed.npy", x)
    return Path("mixed.npy")


def recorded(run):
    return json.loads((Path(run) / "about.json").read_text())["data"]


def test_training_says_how_many_rows_are_near_zero_and_records_it(cli, mixed):
    result = cli("train", mixed, "-o", "run", *QUICK)
    assert f"Note: 250 rows {NOTE}" in result.stderr
    assert "--drop-below 0.001 skips them" in result.stderr
    about = recorded("run")
    assert (about["rows"], about["dropped"], about["faint"], about["faint_dropped"]) == (500, 0, 250, 0)
    assert about["drop_below"] == 0
    assert 0 < about["median_norm"] < 10
    sound = cli("train", "sound.npy", "-o", "sound", *QUICK)
    assert NOTE not in sound.stderr
    assert "left out" not in sound.stderr


def test_training_leaves_them_out_if_asked(cli, mixed):
    result = cli("train", mixed, "-o", "run", "--drop-below", "1e-3", *QUICK)
    assert LEFT_OUT in result.stderr
    assert NOTE not in result.stderr
    about = recorded("run")
    assert (about["rows"], about["dropped"], about["faint"], about["faint_dropped"]) == (250, 250, 0, 250)
    assert about["drop_below"] == 1e-3
    assert cli("train", "sound.npy", "-o", "sound", *QUICK).exit_code == 0
    assert about["variance"] == pytest.approx(recorded("sound")["variance"], rel=1e-9)


def test_rows_of_zeros_that_are_left_out_are_counted(cli, mixed):
    x = np.load(mixed)
    x[1:6:2] = 0
    np.save(mixed, x)
    result = cli("train", mixed, "-o", "run", "--drop-zero-rows", "--drop-below", "1e-3", *QUICK)
    assert "Note: 3 rows of zeros are left out" in result.stderr
    assert "247 rows with a norm below 0.001" in result.stderr
    assert (recorded("run")["dropped"], recorded("run")["faint_dropped"]) == (250, 247)
    judged = last_json(cli("evaluate", "run", mixed, "--drop-zero-rows", "--drop-below", "1e-3", "--json"))
    assert (judged["rows"], judged["dropped"], judged["faint_dropped"]) == (250, 250, 247)
    for flags in ((), ("--drop-below", "1e-3")):
        assert_one_line(cli("evaluate", "run", mixed, *flags), "mixed.npy: row 1 is all zeros")


def test_a_run_that_goes_on_leaves_out_the_same_rows(cli, mixed):
    short = [*QUICK[:4], "--batch", "32", "--drop-below", "1e-3"]
    assert cli("train", mixed, "-o", "whole", *short, "--steps", 40, "--checkpoint-every", 10).exit_code == 0
    shutil.copytree("whole", "again")
    shutil.rmtree("again/final")
    shutil.rmtree("again/checkpoints/step-40")
    before = recorded("again")
    assert cli("train", "--resume", "again").exit_code == 0
    assert recorded("again") == before
    weights = [Path(run, "final", "params.safetensors").read_bytes() for run in ("whole", "again")]
    assert weights[0] == weights[1]
    asked = cli("train", "--resume", "again", "--drop-below", "1e-3")
    assert_one_line(asked, "a run that goes on keeps its settings: --drop-below cannot be given with --resume")


def test_a_run_without_these_fields_goes_on(cli, mixed):
    assert cli("train", mixed, "-o", "run", *QUICK).exit_code == 0
    path = Path("run/about.json")
    about = json.loads(path.read_text())
    for name in ("drop_below", "faint", "faint_dropped", "median_norm"):
        del about["data"][name]
    path.write_text(json.dumps(about))
    assert cli("train", "--resume", "run", "--steps", 50).exit_code == 0
    assert cli("report", "run").exit_code == 0


@pytest.mark.parametrize("network", ["run", "dictionary"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_judging_without_them_is_judging_the_others(cli, mixed, network, dtype):
    np.save(mixed, np.load(mixed).astype(dtype))
    np.save("sound.npy", np.load("sound.npy").astype(dtype))
    assert cli("train", "sound.npy", "-o", "run", *QUICK).exit_code == 0
    assert cli("export", "run", "-o", "dictionary", "--format", "npz").exit_code == 0
    sound = last_json(cli("evaluate", network, "sound.npy", "-o", "sound.safetensors", "--json"))
    flags = ["--drop-below", "1e-3", "-o", "kept.safetensors", "--json"]
    told = cli("evaluate", network, mixed, *flags)
    kept = last_json(told)
    assert LEFT_OUT in told.stderr
    assert (kept["dropped"], kept["faint_dropped"], kept["faint"], kept["drop_below"]) == (250, 250, 0, 1e-3)
    for name in ("fvu", "explained_variance", "l0", "dead", "rows"):
        assert kept[name] == pytest.approx(sound[name], rel=1e-6), name
    rows = [load_file(f"{name}.safetensors")["top_rows"] for name in ("sound", "kept")]
    assert np.array_equal(np.where(rows[0] < 0, rows[0], 2 * rows[0]), rows[1])  # numbers in the data
    whole = cli("evaluate", network, mixed, "--json")
    assert f"250 rows {NOTE}" in whole.stderr
    assert (last_json(whole)["faint"], last_json(whole)["dropped"]) == (250, 0)


def test_a_report_leaves_them_out_and_says_so(cli, mixed):
    assert cli("train", mixed, "-o", "run", "--drop-below", "1e-3", *QUICK).exit_code == 0
    assert cli("report", "run", "--drop-below", "1e-3", "-o", "less.html").exit_code == 0
    less, trained_on = Path("less.html").read_text(), "these are rows that the run was trained on"
    assert f"{mixed}, 250 left out: 250 rows." in less
    assert trained_on in less
    assert cli("report", "run", "-o", "all.html").exit_code == 0
    assert f"{mixed}, 250 near zero: 500 rows." in Path("all.html").read_text()
    assert trained_on in Path("all.html").read_text()


@pytest.mark.parametrize("share", ["-0.1", "1", "nan", "inf"])
@pytest.mark.parametrize(
    "command", [["train", "absent.npy", "-o", "run"], ["evaluate", "absent", "absent.npy"]], ids=["train", "evaluate"]
)
def test_a_share_that_cannot_be_is_refused_before_all_else(tmp_path, monkeypatch, command, share):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [*command, "--drop-below", share])
    assert_one_line(result, "below a share of the median norm from 0 to under 1")
