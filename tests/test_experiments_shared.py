"""What the experiments share: measures, data, workers."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest
from experiments_micro import MICRO

from refgba.experiments import imbalanced, measures, nongaussian, outcome, training, width, workers

# ---- what is shared --------------------------------------------------------------------------------------------------


def test_edges_are_where_the_curve_crosses():
    x, y = [1.0, 10.0, 100.0, 1000.0], [0.0, 1.0, 1.0, 0.0]
    assert measures.edges(x, y, 0.5) == pytest.approx((10**0.5, 10**2.5))
    assert measures.decades(x, y, 0.5) == pytest.approx(2)
    assert measures.edges(x, y, 1.1) is None
    assert measures.decades(x, y, 1.1) == 0
    assert measures.edges(x, [1, 1, 1, 1], 0.9) == (1, 1000)
    assert measures.edges(x, [0.95, 0, 1, 0], 0.9)[0] > 10  # a second rise elsewhere does not count


def test_a_power_law_is_found_exactly():
    assert measures.power([1, 2, 4], [3, 1.5, 0.75]) == pytest.approx(-1)
    assert measures.power([2], [3]) is None


def test_grades_count_what_holds():
    assert outcome.grade({"a": True, "b": True}) == "Reproduced"
    assert outcome.grade({"a": True, "b": False}) == "Reproduced in part"
    assert outcome.grade({"a": False, "b": False}) == "Not reproduced"


def test_spread_is_mean_lowest_highest():
    assert measures.spread([0.5, 1.0]) == "75.0% (50.0-100.0%)"


def test_rows_are_those_of_the_model_at_unit_norm():
    from refgba.model import Independent, SyntheticModel, Uniform

    V = training.gaussian(16, 8, seed=3)
    X = training.mixture(Uniform(16, (3,)), V, 300, seed=3)
    expected = SyntheticModel(Uniform(16, (3,)), 8, seed=3).draw(0, 300).X
    np.testing.assert_allclose(X, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert X.dtype == np.float32
    sparse = training.mixture(Independent(np.full(16, 0.05)), V, 300, seed=3)
    assert 100 < len(sparse) < 300  # rows without a feature are left out


def test_expected_recovery_is_that_of_random_subsets():
    rng = np.random.default_rng(0)
    hits = rng.random((4000, 5)) < [0, 0.001, 0.01, 0.1, 0.5]
    subsets = [hits[rng.choice(4000, 50)].any(axis=0).mean() for _ in range(2000)]
    assert width.expected(hits.mean(axis=0), 50) == pytest.approx(np.mean(subsets), abs=0.01)
    h = np.full(3, 0.01)
    assert width.expected(h, width.smallest(h, 1000)) == pytest.approx(0.9, abs=1e-3)
    assert width.smallest(h, 100) is None


@pytest.mark.parametrize("law", ["gaussian", "laplace", "rank 4", "shared 0.3"])
def test_laws_give_unit_features_of_the_kind_they_name(law):
    V = nongaussian.draw(law, 64, 16, seed=0)
    assert V.shape == (64, 16)
    np.testing.assert_allclose(np.linalg.norm(V, axis=1), 1)
    energy = np.linalg.svd(V, compute_uv=False) ** 2 / 64
    if law == "rank 4":
        assert energy[:4].sum() > 0.85
    if law == "shared 0.3":
        assert energy[0] == pytest.approx(0.3, abs=0.1)


def test_what_is_done_at_once_is_what_is_done_one_by_one():
    ticks, before = [], dict(os.environ)
    assert workers.at_once(math.factorial, [5, 3, 4], "numpy", ticks.append) == [120, 6, 24]
    assert (os.cpu_count() or 1) < 2 or ticks[-1] == "3 of 3 done"
    with pytest.raises(ValueError, match="factorial"):
        workers.at_once(math.factorial, [5, -3, 4], "numpy", ticks.append)
    assert workers.at_once(math.factorial, [5, 3], "cupy", pytest.fail) == [120, 6]
    assert dict(os.environ) == before


def test_seeds_in_processes_of_their_own_are_the_same_seeds():
    sizes = replace(MICRO["imbalanced"], seeds=3)
    found = imbalanced.measure(sizes, "numpy", id)
    assert {name: len(found["frr"][name]) for name in ("GBA", imbalanced.WRONG)} == {"GBA": 3, imbalanced.WRONG: 1}
    for seed in range(3):
        alone, kept = imbalanced.of_seed(seed, sizes, "numpy", found["lr"])
        assert kept == found["lr"]
        for name, shares in alone.items():
            assert found["frr"][name][seed] == pytest.approx(shares, abs=0.02)  # threads add up in another order
