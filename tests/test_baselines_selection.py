"""Who is active: TopK and BatchTopK choose as many as they say, evaluation sees who it is; BatchTopK's threshold."""

from __future__ import annotations

import numpy as np
import pytest
from baseline_cases import BASELINES, CASES, QUICK, config_of, encode, random_case, synthetic, train
from hypothesis import settings

from refgba import baselines
from refgba.baselines import evaluation_codes


@settings(max_examples=60)
@CASES
def test_topk_has_exactly_k_active_or_all_positives_and_they_are_the_largest(L, d, M, seed):
    config, params, x, _ = random_case("topk", L, d, M, seed)
    y, on, s = encode(params, x, config, training=True)
    assert on.sum(axis=1).tolist() == np.minimum(config.k, (y > 0).sum(axis=1)).tolist()
    for row, active in zip(y, on, strict=True):
        assert sorted(row[active]) == sorted(sorted(row[row > 0])[-config.k :])
    assert (s == np.where(on, y, 0)).all()


@settings(max_examples=60)
@CASES
def test_batchtopk_has_at_most_k_a_row_in_the_mean_of_a_batch(L, d, M, seed):
    config, params, x, _ = random_case("batchtopk", L, d, M, seed)
    y, on, _ = encode(params, x, config, training=True)
    assert on.sum() == min(config.k * L, (y > 0).sum())
    assert sorted(y[on]) == sorted(y[y > 0])[-config.k * L :]


def test_among_equals_exactly_k_are_taken():
    assert baselines.largest(np.ones((3, 7)), 2).sum(axis=1).tolist() == [2, 2, 2]
    assert not baselines.largest(np.zeros((3, 7)), 2).any()


@pytest.mark.parametrize("method", BASELINES)
@settings(max_examples=30)
@CASES
def test_what_evaluation_sees_is_positive_exactly_where_active(method, L, d, M, seed):
    config, params, x, _ = random_case(method, L, d, M, seed)
    if method in ("batchtopk", "matryoshka"):
        params.theta[:] = 0.2
    _, on, s = encode(params, x, config, training=False)
    y, codes = evaluation_codes(params, x, config)
    assert ((y > 0) == on).all()
    assert (codes == s).all()
    assert ((s > 0) == on).all()


# ---- BatchTopK's threshold -------------------------------------------------------------------------------------------


def test_the_threshold_is_the_mean_of_the_smallest_codes_and_then_a_moving_one():
    config = config_of("batchtopk", steps=40)  # of the last 40 / 20 = 2
    theta, values = np.zeros(3), [4.0, 2.0, 7.0]
    for t, value in enumerate(values, start=1):
        theta = baselines.averaged(theta, value, config, t)
        assert theta.tolist() == [[4.0] * 3, [3.0] * 3, [5.0] * 3][t - 1]
    assert baselines.averaged(theta, 0.0, config, 4).tolist() == [2.5] * 3


@pytest.mark.parametrize("method", ["batchtopk", "matryoshka"])
def test_after_a_short_training_the_threshold_gives_an_l0_near_k_on_new_rows(method):
    config = config_of(method, **QUICK)
    state, x = train(synthetic(), config)
    y, _ = evaluation_codes(state.params, x, config)
    assert (y > 0).sum(axis=1).mean() == pytest.approx(5, rel=0.1)
    assert len(set((y > 0).sum(axis=1))) > 1  # not the same for every row
    assert len(set(state.params.theta)) == 1
