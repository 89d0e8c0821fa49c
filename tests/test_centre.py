"""The centre of rows: it takes a constant that all rows share away, whatever its size, and goes where the network goes.

What a constant does to recovery when nothing is subtracted is in benchmarks/offsets.py, at the size of the demo.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import QUICK, REFERENCE, assert_one_line, last_json
from hypothesis import given, settings
from hypothesis import strategies as st

import refgba
from refgba import formats
from refgba.data.activations import open_activations
from refgba.data.centre import NEAREST, OFFSET, centre, centred, locate
from refgba.data.memory import held
from refgba.data.unit_rows import prepared
from refgba.errors import InputError
from refgba.model import imbalanced
from refgba.report.gather import gather
from refgba.runs import folder
from refgba.sae import unit_rows

ROWS = imbalanced(0).draw(0, 4000).X  # (4000, 42)
CONSTANT = 5 * np.median(np.linalg.norm(ROWS, axis=1)) * np.eye(42)[3]  # (42,)


@pytest.fixture
def offset(tmp_path):
    np.save(tmp_path / "x.npy", ROWS + CONSTANT)
    return tmp_path / "x.npy"


@given(st.integers(0, 2**32), st.floats(-1e3, 1e3), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_a_constant_added_to_all_rows_is_added_to_the_centre(seed, size, d):
    rng = np.random.default_rng(seed)
    x, constant = rng.standard_normal((50, d)) * rng.exponential(1, (50, 1)), size * rng.standard_normal(d)
    np.testing.assert_allclose(centre(x + constant) - constant, centre(x), atol=1e-3 + 1e-9 * abs(size))


def test_the_centre_is_where_the_weighted_distances_cancel():
    x = np.random.default_rng(0).standard_normal((500, 8)) + 3
    c = centre(x)
    r = np.linalg.norm(x - c, axis=1, keepdims=True)
    r = np.maximum(r, np.quantile(r, NEAREST))
    assert np.linalg.norm(((x - c) / r**4).sum(axis=0)) < 1e-3 * (1 / r**3).sum()


def test_rows_that_are_mostly_equal_have_their_place_as_centre():
    x = np.concatenate([np.full((90, 4), 2.0), np.random.default_rng(0).standard_normal((10, 4))])
    np.testing.assert_allclose(centre(x), 2, atol=1e-3)


def test_rows_with_many_features_and_outliers_count_little():
    x = np.concatenate([ROWS, 1e4 * np.random.default_rng(0).standard_normal((40, 42))])  # attention sinks, say
    assert np.linalg.norm(x.mean(axis=0)) > 5
    assert np.linalg.norm(centre(x) - centre(ROWS)) < 0.01
    assert np.linalg.norm(centre(ROWS)) < 0.7 * np.linalg.norm(ROWS.mean(axis=0))  # nearer to where no feature is on


def test_auto_centres_from_an_offset_on():
    near, far = held(ROWS), held(ROWS + CONSTANT)
    assert locate(near).offset < OFFSET < locate(far).offset
    assert centred(near, "auto")[0].centre is None
    assert centred(far, "off")[0].centre is None
    for data, centring in ((near, "on"), (far, "auto")):
        np.testing.assert_array_equal(centred(data, centring)[0].centre, locate(data).centre)


@pytest.mark.parametrize("rows", [np.ones((5, 3)), np.full((5, 3), np.nan), np.zeros((5, 3))])
def test_rows_that_lie_nowhere_are_left_to_the_survey(rows):
    assert locate(held(rows)).offset == 0


@pytest.mark.usefixtures("offset")
def test_what_training_sees_does_not_depend_on_the_constant(cli, tmp_path):
    np.save(tmp_path / "plain.npy", ROWS)
    for name, data in (("a", "x.npy"), ("b", "plain.npy")):
        assert cli("train", data, "-o", name, *QUICK, "--centre", "on").exit_code == 0
    a, b = (folder.open_network(tmp_path / name) for name in "ab")
    np.testing.assert_allclose(a.centre - CONSTANT, b.centre, atol=1e-3)
    np.testing.assert_allclose(a.params.W, b.params.W, atol=0.01)
    x = prepared(ROWS + CONSTANT, "float64", a.centre)
    np.testing.assert_allclose(x, unit_rows(ROWS - b.centre), atol=1e-3)


@pytest.mark.usefixtures("offset")
def test_train_says_that_it_centres_and_every_reader_of_the_run_does(cli, tmp_path):
    trained = cli("train", "x.npy", "-o", "run", *QUICK, "--held-out-share", 0, "--json")
    assert "share an offset of" in trained.stderr
    assert json.loads((tmp_path / "run/about.json").read_text())["data"]["centred"] is True
    judged = last_json(cli("evaluate", "run", "x.npy", "--json"))
    assert judged["fvu"] == pytest.approx(last_json(trained)["fvu"], rel=1e-9)
    assert cli("export", "run", "-o", "npz", "--format", "npz").exit_code == 0
    assert cli("export", "run", "-o", "folded", "--format", "saelens-folded").exit_code == 0
    for name in ("npz", "folded"):
        assert last_json(cli("evaluate", name, "x.npy", "--json"))["fvu"] == pytest.approx(judged["fvu"], rel=1e-5)
    assert_one_line(
        cli("export", "run", "-o", "raw", "--format", "saelens"), "rows were centred before they were scaled"
    )
    assert not (tmp_path / "raw").exists()


def test_a_smaller_offset_is_named_and_left(cli, tmp_path):
    small = CONSTANT * 0.25 / locate(held(ROWS + CONSTANT)).offset
    for name, constant in (("near", 0 * small), ("between", small)):
        np.save(tmp_path / f"{name}.npy", ROWS + constant)
        said = cli("train", f"{name}.npy", "-o", name, *QUICK).stderr
        assert ("can hide some features; --centre on subtracts it" in said) == (name == "between")
        assert json.loads((tmp_path / name / "about.json").read_text())["data"]["centred"] is False


@pytest.mark.usefixtures("offset")
def test_it_can_be_left_off_and_the_papers_recipe_leaves_it_off(cli, tmp_path):
    for name, flags in (("off", ["--centre", "off"]), ("paper", ["--recipe", "paper"])):
        result = cli("train", "x.npy", "-o", name, *QUICK, *flags)
        assert "hides features; --centre on subtracts it" in result.stderr
        assert folder.open_network(tmp_path / name).centre is None


@pytest.mark.usefixtures("offset")
def test_a_run_goes_on_with_its_centre_to_the_bit(cli, tmp_path):
    flags = ["--width", "24", "--groups", "3", "--batch", "32", "--form", "0.2", *REFERENCE]
    assert cli("train", "x.npy", "-o", "short", *flags, "--steps", "20").exit_code == 0
    state = folder.open_network(tmp_path / "short/checkpoints/step-20")
    assert state.centre is not None
    assert cli("train", "--resume", "short", "--steps", "40").exit_code == 0
    assert (folder.open_network(tmp_path / "short").centre == state.centre).all()
    assert_one_line(cli("train", "--resume", "short", "--centre", "off"), "--centre")


@pytest.mark.usefixtures("offset")
def test_a_report_judges_a_run_of_centred_rows_on_those_held_out(cli, tmp_path):
    trained = last_json(cli("train", "x.npy", "-o", "run", *QUICK, "--held-out-share", "0.2", "--json"))
    assert folder.read_record(tmp_path / "run").centre is not None
    [run] = gather([tmp_path / "run"])
    assert run.summary["fvu"] == pytest.approx(trained["held_out"]["fvu"], rel=1e-5)


@pytest.mark.usefixtures("offset")
def test_a_damaged_centre_is_named(cli, tmp_path):
    assert cli("train", "x.npy", "-o", "run", *QUICK).exit_code == 0
    arrays = formats.npz.read_arrays
    assert cli("export", "run", "-o", "npz", "--format", "npz").exit_code == 0
    good = dict(np.load(tmp_path / "npz/dictionary.npz"))
    for bad, why in ((np.zeros(3), "the centre should be (42,)"), (np.full(42, np.inf), "holds a NaN or an infinity")):
        np.savez(tmp_path / "npz/dictionary.npz", **(good | {"centre": bad}))
        assert_one_line(cli("evaluate", "npz", "x.npy"), why)
    assert arrays(tmp_path / "npz/dictionary.npz", ("centre",))["centre"].shape == (42,)


def test_in_python_rows_come_back_where_they_were(offset):
    model = refgba.GBA(width=64, steps=60, batch=64, verbose=False).fit(ROWS + CONSTANT)
    f = model.reconstruct(ROWS + CONSTANT)
    x = ROWS + CONSTANT
    assert ((f - x) ** 2).sum() < ((x - x.mean(axis=0)) ** 2).sum()
    loaded = refgba.load(model.save(offset.parent / "saved"))
    np.testing.assert_allclose(loaded.transform(x), model.transform(x), atol=1e-12)
    with pytest.raises(InputError, match="rows were centred before they were scaled"):
        model.export(offset.parent / "raw")


def test_a_constant_does_not_change_what_is_recovered():
    truth = imbalanced(1)
    rows = truth.draw(0, 20_000).X
    found = []
    for size in (0.5, 20):
        constant = size * np.median(np.linalg.norm(rows, axis=1)) * np.eye(42)[0]
        model = refgba.GBA(width=256, steps=500, backend="numba", dtype="float32", verbose=False).fit(rows + constant)
        found.append(model.frr(truth.V, 0.8))
    assert min(found) > 0.5
    assert abs(found[0] - found[1]) < 0.05


def test_opened_data_have_no_centre_before_it_is_asked_for(offset):
    assert open_activations(offset).centre is None
