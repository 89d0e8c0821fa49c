"""Rows held out: `train` keeps a share of its data to judge on, or takes other rows, and never trains on either."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from commands import QUICK, assert_one_line, last_json
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import refgba
from refgba.config import GBAConfig
from refgba.data import feed
from refgba.data.activations import open_activations
from refgba.data.held_out import RUN, hold_out, places
from refgba.data.survey import survey
from refgba.model import imbalanced
from refgba.report.gather import gather
from refgba.report.run import Seen
from refgba.runs import folder
from refgba.runs.held_out import FEWEST, SHARE

N = 2000


@pytest.fixture
def many(tmp_path):
    """The file of N rows of the imbalanced set."""
    np.save(tmp_path / "many.npy", imbalanced().draw(0, N).X)
    return tmp_path / "many.npy"


def about(run):
    return json.loads((run / "about.json").read_text())


def numbers(run):
    """Which rows a run holds out."""
    return load_file(run / "data.safetensors")["held_out"]


# ---- which rows ------------------------------------------------------------------------------------------------------


@given(st.integers(2, 100_000), st.floats(0, 0.99))
def test_places_are_rows_of_the_data_each_once(rows, share):
    count = round(share * rows)
    if count:
        picked = places(rows, count)
        assert (np.diff(picked) > 0).all()
        assert 0 <= picked[0] <= picked[-1] < rows
        assert 0.5 * count <= len(picked) <= count


def test_whole_runs_of_rows_are_held_out_all_over_the_data():
    picked = places(100_000, 10_000)
    assert len(picked) == 10_000
    begins = picked[np.diff(picked, prepend=-2) > 1]
    assert len(begins) > 0.9 * len(picked) / RUN
    assert np.histogram(picked, 10, (0, 100_000))[0].min() > 800


def test_large_data_hold_out_no_more_than_are_judged():
    assert len(places(10**9, 65_536)) == 65_536


def test_rows_held_out_are_in_no_minibatch(tmp_path):
    x = np.eye(N, dtype=np.float32)[:, :] + 1e-3  # each row has a direction of its own
    np.save(tmp_path / "x.npy", x)
    data, _ = survey(open_activations(tmp_path / "x.npy"))
    kept = hold_out(data, 0.1)
    config = GBAConfig(width=4, groups=1, steps=200, batch=100)
    seen = {int(l) for batch in feed.minibatches(kept, config) for l in batch.argmax(axis=1)}
    assert seen == set(range(N)) - set(kept.held_out.tolist())
    assert [int(l) for chunk in kept.held(64) for l in chunk.argmax(axis=1)] == kept.held_out.tolist()
    assert len(kept) + len(kept.held_out) == N


def test_rows_that_are_dropped_are_not_held_out(tmp_path):
    x = imbalanced().draw(0, N).X
    zero = places(N, 200)[::2]
    x[zero] = 0
    np.save(tmp_path / "x.npy", x)
    data, _ = survey(open_activations(tmp_path / "x.npy"), drop_zero_rows=True)
    kept = hold_out(data, 0.1)
    assert not set(kept.held_out.tolist()) & set(zero.tolist())
    assert all(chunk.any(axis=1).all() for chunk in kept.held(64))


# ---- train -----------------------------------------------------------------------------------------------------------


def test_train_holds_out_a_share_and_judges_the_run_on_it(cli, many, tmp_path):
    result = last_json(cli("train", many, "-o", "run", *QUICK, "--json"))
    kept, rows = result["held_out"], about(tmp_path / "run")
    assert rows["held_out"] == {"rows": SHARE * N, "share": SHARE, "seed": 0}
    assert rows["data"]["rows"] == result["rows"] == N - kept["rows"]
    np.save(tmp_path / "kept.npy", np.load(many)[numbers(tmp_path / "run")])
    judged = last_json(cli("evaluate", "run", "kept.npy", "--json"))
    for name in ("fvu", "l0", "dead", "loss", "rows"):
        assert judged[name] == pytest.approx(kept[name], rel=1e-12)
    shown = cli("train", many, "-o", "again", *QUICK).stdout
    assert f"On rows it was trained on: FVU {result['fvu']:.4f}" in shown
    assert f"On 200 rows held out: FVU {kept['fvu']:.4f}" in shown


def test_runs_with_other_settings_hold_out_the_same_rows(cli, many, tmp_path):
    assert cli("train", many, "-o", "a", *QUICK, "--seed", 1).exit_code == 0
    assert cli("train", many, "-o", "b", *QUICK, "--seed", 2, "--lr", 0.1).exit_code == 0
    np.testing.assert_array_equal(numbers(tmp_path / "a"), numbers(tmp_path / "b"))


def test_small_data_are_trained_on_whole_and_that_is_said(cli, data, tmp_path):
    result = cli("train", data, "-o", "run", *QUICK)
    assert f"Note: no rows are held out: 0.1 of 500 rows is fewer than {FEWEST}" in result.stderr
    assert "No rows were held out" in result.stdout
    assert "held_out" not in about(tmp_path / "run")
    assert set(load_file("run/data.safetensors")) == {"crc", "dropped"}
    asked = last_json(cli("train", data, "-o", "asked", *QUICK, "--held-out-share", 0.1, "--json"))
    assert (asked["rows"], asked["held_out"]["rows"]) == (450, 50)


def test_nothing_is_held_out_where_that_is_asked_for_or_from_python(cli, many, tmp_path):
    result = last_json(cli("train", many, "-o", "run", *QUICK, "--held-out-share", 0, "--json"))
    assert (result["rows"], result["held_out"]) == (N, None)
    refgba.GBA(width=24, groups=3, steps=30, batch=32).fit(many, run=tmp_path / "python")
    for run in ("run", "python"):
        assert "held_out" not in about(tmp_path / run)
        assert about(tmp_path / run)["data"]["rows"] == N
    a, b = ((tmp_path / run / "final" / "params.safetensors").read_bytes() for run in ("run", "python"))
    assert a == b


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--held-out-share", 1], "from 0 to under 1, not 1"),
        (["--held-out-share", "nan"], "from 0 to under 1, not nan"),
        (["--held-out-share", 1e-6], "is no row to judge on"),
        (["--held-out-share", 0.1, "--held-out", "many.npy"], "give one"),
        (["--held-out", "none.npy"], "none.npy: no such file"),
        (["--held-out", "small.npy"], "small.npy"),
        (["--held-out", "zero.npy"], "row 3 is all zeros"),
        (["--held-out-share", 0.99], "batch 32 is more than the 20 rows to train on beside the 1980 held out"),
    ],
)
def test_what_cannot_be_held_out_is_refused_before_training(cli, many, tmp_path, flags, complaint):
    np.save(tmp_path / "small.npy", np.ones((5, 3)))
    x = np.load(many)[:9]
    x[3] = 0
    np.save(tmp_path / "zero.npy", x)
    assert_one_line(cli("train", many, "-o", "run", *QUICK, *flags), complaint)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--held-out-share", 1], "from 0 to under 1, not 1"),
        (["--held-out-share", 1e-6], "is no row to judge on"),
        (["--held-out-share", 0.99], "batch 32 is more than the 20 rows to train on beside the 1980 held out"),
        (["--batch", N], "batch 2000 is more than the 1800 rows to train on beside the 200 held out"),
        (["--batch", N + 1, "--held-out-share", 0], "batch 2001 is more than the 2000 rows to train on; choose"),
        (["--batch", N + 1, "--drop-zero-rows"], "batch 2001 is more than the 2000 rows to train on; choose"),
        (["--held-out", "narrow.npy"], "narrow.npy: its rows have d = 3"),
    ],
)
def test_what_the_header_tells_is_refused_before_the_rows_are_read(cli, many, tmp_path, monkeypatch, flags, complaint):
    np.save(tmp_path / "narrow.npy", np.ones((5, 3)))
    monkeypatch.setattr("refgba.runs.launch.survey", None)
    for dry in ([], ["--dry-run"]) if "--drop-zero-rows" not in flags else ([],):
        assert_one_line(cli("train", many, "-o", "run", *QUICK, *flags, *dry), complaint)
    assert not (tmp_path / "run").exists()


# ---- going on --------------------------------------------------------------------------------------------------------


def test_a_run_with_rows_held_out_goes_on_to_the_same_bit(cli, many, tmp_path):
    whole = last_json(cli("train", many, "-o", "whole", *QUICK, "--checkpoint-every", 10, "--json"))
    shutil.copytree("whole", "half")
    for newest in ("final", "checkpoints/step-30"):
        shutil.rmtree(tmp_path / "half" / newest)
    half = last_json(cli("train", "--resume", "half", "--json"))
    assert half["held_out"] == whole["held_out"]
    a, b = ((tmp_path / run / "final" / "params.safetensors").read_bytes() for run in ("whole", "half"))
    assert a == b
    assert_one_line(cli("train", "--resume", "half", "--held-out-share", 0.2), "--held-out-share cannot be given")


def test_rows_held_out_that_are_damaged_are_named(cli, many, tmp_path):
    assert cli("train", many, "-o", "run", *QUICK).exit_code == 0
    shutil.copy("run/about.json", "about.json")
    for wrong in ({"rows": 5, "share": 0.1, "seed": 0}, {"rows": "x"}, {"rows": 200, "share": 7, "seed": 0}):
        (tmp_path / "run" / "about.json").write_text(json.dumps(about(tmp_path) | {"held_out": wrong}))
        assert_one_line(cli("train", "--resume", "run", "--steps", 40), "damaged")


def test_other_rows_can_be_held_out_and_are_known_when_the_run_goes_on(cli, many, data, tmp_path):
    result = last_json(cli("train", many, "-o", "run", *QUICK, "--held-out", data, "--json"))
    judged = last_json(cli("evaluate", "run", data, "--json"))
    assert judged["fvu"] == pytest.approx(result["held_out"]["fvu"], rel=1e-12)
    assert (result["rows"], result["held_out"]["rows"]) == (N, 500)
    longer = last_json(cli("train", "--resume", "run", "--steps", 40, "--json"))
    assert longer["held_out"]["rows"] == 500
    assert gather([tmp_path / "run"])[0].rows == 500
    np.save(data, np.load(data)[::-1])
    assert_one_line(cli("train", "--resume", "run", "--steps", 50), f"{data}: not the rows held out when the run began")
    data.unlink()
    assert_one_line(cli("train", "--resume", "run", "--steps", 50), f"{data}: no such file")
    np.save(tmp_path / "moved.npy", np.load(many)[:300])
    moved = last_json(cli("train", "--resume", "run", "--steps", 50, "--held-out", "moved.npy", "--json"))
    assert moved["held_out"]["rows"] == 300
    assert about(tmp_path / "run")["held_out"]["path"] == str(tmp_path / "moved.npy")


# ---- reports ---------------------------------------------------------------------------------------------------------


def test_a_report_judges_rows_held_out_and_knows_when_others_were_trained_on(cli, many, data, tmp_path):
    assert cli("train", many, "-o", "share", *QUICK).exit_code == 0
    assert cli("train", many, "-o", "other", *QUICK, "--held-out", data).exit_code == 0
    assert cli("train", many, "-o", "none", *QUICK, "--held-out-share", 0).exit_code == 0
    paths = [tmp_path / name for name in ("share", "other", "none")]
    assert [(run.rows, run.seen) for run in gather(paths)] == [(200, Seen.NO), (500, Seen.NO), (N, Seen.ALL)]
    seen = {path.name: gather([path], many)[0].seen for path in paths}
    assert seen == {"share": Seen.SOME, "other": Seen.ALL, "none": Seen.ALL}
    assert gather([paths[2]], data)[0].seen is Seen.NO
    assert gather([paths[0] / "final"], data)[0].seen is Seen.UNKNOWN


def test_top_rows_of_a_report_have_their_numbers_in_the_data(cli, many, tmp_path):
    assert cli("train", many, "-o", "run", *QUICK).exit_code == 0
    run, X = gather([tmp_path / "run"])[0], np.load(many)
    params = folder.open_network(tmp_path / "run").params
    top, kept = run.evaluation["top_rows"], numbers(tmp_path / "run")
    assert np.isin(top[top >= 0], kept).all()
    x = X[kept] / np.linalg.norm(X[kept], axis=1, keepdims=True)
    y = (x - params.b_pre) @ params.W.T + params.b
    fired = y.max(axis=0) > 0
    np.testing.assert_array_equal(top[fired, 0], kept[y.argmax(axis=0)[fired]])
    counts = run.evaluation["activation_counts"]
    np.testing.assert_array_equal(counts.sum(axis=1), (y > 0).sum(axis=0))


def test_a_dry_run_counts_the_rows_to_train_on(cli, many):
    assert last_json(cli("train", many, "--dry-run", *QUICK, "--json"))["rows"] == N - SHARE * N
