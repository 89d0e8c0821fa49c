"""The opponents on the frontier: directions that nobody learned, and each method at its best rate and batch."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from experiments_micro import MICRO

from refgba import baselines
from refgba.config import BaselineConfig
from refgba.errors import InputError
from refgba.experiments import frontier, random_directions, training, workers
from refgba.sae import unit_rows

COMMITTED = Path(__file__).parents[1] / "benchmarks" / "results" / "frontier.json"


@pytest.fixture(scope="module")
def real():
    return training.opened(None)


def config_of(**settings):
    small = {"method": "topk", "width": 96, "k": 8, "steps": 40, "batch": 64, "dtype": "float32"}
    return BaselineConfig(**small | settings)


# ---- random directions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", random_directions.NAMES)
def test_directions_stay_and_scales_and_thresholds_are_fitted(real, name):
    _, params = random_directions.trained(real, config_of(), "numpy", name)
    directions = unit_rows(params.W) * np.sign(np.sum(params.W * params.W_dec, axis=1, keepdims=True))
    np.testing.assert_allclose(directions, params.W_dec, atol=1e-6)
    scale = np.linalg.norm(params.W, axis=1)
    assert np.ptp(scale) > 0.001
    assert np.ptp(params.b) > 0.001
    start = baselines.random_params(config_of(), real.train.d).W
    if name == random_directions.UNITS:
        assert (params.W_dec == start).all()
    else:
        data = unit_rows(np.concatenate(list(real.seen(config_of()))).astype("float64"))
        less = data - data.mean(axis=0)
        nearest = (params.W_dec @ unit_rows(less).T).max(axis=1)
        assert nearest.min() > 0.9999  # each is a row
        assert len({row.tobytes() for row in params.W_dec}) == 96  # and no two the same


def test_fitting_helps_and_rows_of_the_data_are_better_than_units(real):
    x, left = unit_rows(np.concatenate(list(real.judged(config_of())))), {}
    for name in random_directions.NAMES:
        for steps in (1, 60):
            _, params = random_directions.trained(real, config_of(steps=steps, lr=0.01), "numpy", name)
            f = baselines.forward(params, x, config_of()).f
            left[name, steps] = np.sum((f - x) ** 2) / np.sum((x - x.mean(axis=0)) ** 2)
    print(left)
    for name in random_directions.NAMES:
        assert left[name, 60] < left[name, 1]
    assert left[random_directions.ROWS, 60] < left[random_directions.UNITS, 60] < 1


def test_the_common_scale_is_that_of_least_squares():
    # Two neurons along one direction: f = 2 · 3 along it, where the row has 3, so half of it is right.
    params = replace(baselines.random_params(config_of(width=2, k=2), 2), W=np.eye(2)[[0, 0]], W_dec=np.eye(2)[[0, 0]])
    assert random_directions.common_scale(params, np.array([[3.0, 1.0]]), config_of(width=2, k=2)) == pytest.approx(0.5)


def test_more_neurons_than_rows_are_refused(real):
    with pytest.raises(InputError, match=r"8,192 rows cannot be the directions of 8,193 neurons"):
        random_directions.trained(real, config_of(width=8193), "numpy", random_directions.ROWS)


# ---- the best rate and batch of each ---------------------------------------------------------------------------------


def test_the_halves_of_the_held_out_rows_share_nothing_and_leave_nothing_out(real):
    config = config_of()
    whole, first, last = (np.concatenate(list(real.judged(config, half))) for half in (None, 0, 1))
    assert len(first) == len(last) == 1024
    assert (np.concatenate([first, last]) == whole).all()


def point(method, setting, lr, fvu, l0, batch=512, seed=0):
    chosen = {"fvu": fvu, "l0": l0}
    return {"method": method, "setting": setting, "seed": seed, "lr": lr, "batch": batch, "choosing": chosen}


def test_topk_keeps_the_lowest_fvu_and_others_the_lowest_for_their_l0():
    points = [
        point("topk", 10, 1, 0.40, 10), point("topk", 10, 2, 0.50, 10), point("topk", 40, 1, 0.30, 40),
        point("topk", 40, 2, 0.10, 40), point("topk", 40, 2, 0.12, 40, batch=64),  # the line has 0.2 at 20
        point("l1", 1, 1, 0.25, 20), point("l1", 1, 2, 0.14, 40),  # denser, and worse for that
        point("l1", 2, 1, 0.9, 0), point("l1", 2, 2, 0.95, 10),  # an empty network is never kept
    ]  # fmt: skip
    frontier.keep(points)
    assert [p["kept"] for p in points] == [True, False, False, True, False, True, False, False, True]


def test_equal_rows_are_seen_whatever_the_batch():
    sizes = replace(MICRO["frontier"], steps=400)
    for batch in (128, 512, 1024):
        config = frontier.configure(frontier.Task("gated", 0.1, 0, 1e-3, batch), sizes, 24)
        assert (config.steps * config.batch, config.batch, config.lr) == (400 * 512, batch, 1e-3)
    ours = frontier.configure(frontier.Task("GBA", None, 1), sizes, 24)
    assert (ours.steps, ours.batch, ours.lr, ours.seed) == (400, 512, 0.0075, 1)  # the recipe's
    measured = frontier.configure(frontier.Task("measured", 16, 2), sizes, 24)
    assert (measured.targets_from, measured.l0, measured.lr, measured.seed) == ("data", 16, 0.0075, 2)


def test_what_is_reported_is_of_networks_that_other_rows_chose():
    data = {
        "points": [
            point("topk", k, lr, 0.5, k) | {"l0": k, "fvu": fvu, "kept": kept}
            for k, lr, fvu, kept in ((8, 1, 0.3, True), (8, 2, 0.1, False), (16, 2, 0.2, True))
        ]
    }
    assert frontier.best(data, "topk") == [(8, 0.3), (16, 0.2)]  # not the lowest of all


def test_what_an_earlier_version_wrote_is_still_judged_and_drawn():
    data = json.loads(COMMITTED.read_text())["data"]
    assert "kept" not in data["points"][0]
    assert [round(l0) for l0, _ in frontier.best(data, "topk")] == [32, 45, 64]
    assert "each of them at the best of its learning rates." in frontier.verdict(data)
    assert len(frontier.pictures(data)) == 1


def test_the_program_for_one_s_own_rows_writes_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(COMMITTED.parents[1])
    opponents = import_module("opponents")
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 1)
    folder = Path(training.__file__).parent / "data"
    data, out = (folder / training.SAMPLE[0], folder / training.SAMPLE[1]), tmp_path / "found.json"
    sizes = replace(MICRO["frontier"], gated=(0.05,), lr=(1e-3, 1e-2), batch=(512,), seeds=2)
    found = opponents.trained(data, sizes, ["gated", "measured", "topk"], "numpy", out)
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert [p["method"] for p in found["points"]] == ["topk"] * 6 + ["measured"] * 4 + ["gated"] * 3
    for method, settings in (("topk", sizes.k), ("measured", sizes.k), ("gated", sizes.gated)):
        kept = frontier.kept(found, method)
        assert tuple(kept) == settings
        for points in kept.values():
            assert [p["seed"] for p in points] == [0, 1]
            assert len({(p["lr"], p["batch"]) for p in points}) == 1  # what the first seed chose
    assert {p["lr"] for p in found["points"] if p["method"] == "measured"} == {0.0075}  # the recipe's
