"""One pass over data, in chunks of any size, gives what the formulas of the metrics give on all of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgba import metrics, sae
from refgba.errors import InputError
from refgba.runs import accumulate
from refgba.runs.accumulate import QUANTILES, Evaluation, quantiles

seeds = st.integers(0, 2**32 - 1)


def network_output(rng, L=40, d=3, M=6):
    x = rng.standard_normal((L, d))
    return x, x + 0.3 * rng.standard_normal((L, d)), rng.standard_normal((L, M)) - np.linspace(0, 4, M)


def evaluate(*chunks, top=0):
    x, _, y = chunks[0]
    evaluation = Evaluation(y.shape[1], x.shape[1], top)
    for chunk in chunks:
        evaluation.update(*chunk)
    return evaluation


ARRAYS = ("frequency", "peak", "mean", "std", "z_score")
COUNTS = ("l0_histogram", "top_rows", "top_values")


def test_an_evaluation_by_hand():
    x = np.array([[0.0, 0.0], [2.0, 2.0]])  # mean (1, 1): sum ||x - mean||^2 = 2 + 2
    x_hat = np.array([[1.0, 0.0], [2.0, 0.0]])  # sum ||x - f||^2 = 1 + 4
    y = np.array([[1.0, -1.0, 0.0, 5.0], [3.0, -3.0, -2.0, 5.0]])  # exactly 0 is not active
    evaluation = evaluate((x, x_hat, y))
    assert evaluation.summary() == {
        "fvu": 1.25,
        "explained_variance": -0.25,
        "l0": 2.0,
        "activation_fraction": 0.5,
        "dead": 0.5,
        "loss": 1.25,  # (1/2 + 4/2) / 2
        "rows": 2,
    }
    np.testing.assert_array_equal(evaluation.frequency, [1, 0, 0, 1])
    np.testing.assert_array_equal(evaluation.peak, [3, -1, 0, 5])
    np.testing.assert_array_equal(evaluation.mean, [2, -2, -1, 5])
    np.testing.assert_array_equal(evaluation.std, [1, 1, 1, 0])
    np.testing.assert_array_equal(evaluation.z_score, [1, 1, 1, 0])
    np.testing.assert_array_equal(evaluation.l0_histogram, [0, 0, 2, 0, 0])


def activity(*rows, top=0):
    """An evaluation of which only the pre-activations matter."""
    y = np.array(rows, np.float64)
    x = np.zeros((len(y), 1))
    return evaluate((x, x, y), top=top)


def test_the_distribution_of_l0_by_hand():
    evaluation = activity([1, 1, 1], [-1, 0, 2], [0, 0, 0], [3, -1, 0], [1, -2, 0])
    np.testing.assert_array_equal(evaluation.l0_histogram, [1, 3, 0, 1])  # a row with 0, three with 1, one with 3
    # 0 1 1 1 3: 5% of the rows are the first of them, 25% and 50% the second and third, 95% the fifth
    found = quantiles(evaluation.l0_histogram)
    assert found == {"min": 0, "p5": 0, "p25": 1, "median": 1, "p75": 1, "p95": 3, "max": 3}


def test_a_quantile_is_reached_at_equality():
    y = np.tri(21, 20, -1)[1:]  # 1, 2, .., 20 active: at most 1 on exactly 5% of the rows
    found = quantiles(activity(*y).l0_histogram)
    assert found == {"min": 1, "p5": 1, "p25": 5, "median": 10, "p75": 15, "p95": 19, "max": 20}


def test_the_top_rows_by_hand():
    y = [[1, 5, -1, 0], [3, 5, -2, 0], [2, -5, -3, 4], [3, 6, -1, 0]]
    evaluation = activity(*y, top=3)
    np.testing.assert_array_equal(evaluation.top_rows, [[1, 3, 2], [3, 0, 1], [-1, -1, -1], [2, -1, -1]])
    np.testing.assert_array_equal(evaluation.top_values, [[3, 3, 2], [6, 5, 5], [0, 0, 0], [4, 0, 0]])
    assert (evaluation.top_rows.dtype, evaluation.top_values.dtype) == (np.int64, np.float64)


def test_more_top_rows_than_rows_are_filled_up():
    evaluation = activity([1, -1], [2, 1], top=4)
    np.testing.assert_array_equal(evaluation.top_rows, [[1, 0, -1, -1], [1, -1, -1, -1]])
    np.testing.assert_array_equal(evaluation.top_values, [[2, 1, 0, 0], [1, 0, 0, 0]])


def test_without_top_there_are_no_top_rows():
    evaluation = activity([1, 2], [3, 4])
    assert evaluation.top_rows.shape == evaluation.top_values.shape == (2, 0)


def test_an_evaluation_agrees_with_the_formulas_of_the_metrics():
    x, f, y = network_output(np.random.default_rng(0))
    evaluation = evaluate((x, f, y))
    for formula in (metrics.fvu, metrics.explained_variance):
        assert getattr(evaluation, formula.__name__) == pytest.approx(formula(x, f))
    for formula in (metrics.l0, metrics.dead, metrics.frequency, metrics.z_score):
        np.testing.assert_allclose(getattr(evaluation, formula.__name__), formula(y))
    assert evaluation.loss == pytest.approx(sae.loss(x, f))


def test_an_evaluation_agrees_with_the_naive_formulas():
    x, f, y = network_output(np.random.default_rng(0))
    evaluation = evaluate((x, f, y))
    assert evaluation.fvu == pytest.approx(((x - f) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum())
    assert evaluation.loss == pytest.approx(np.mean([0.5 * (r @ r) for r in f - x]))
    assert evaluation.l0 == pytest.approx((y > 0).sum(axis=1).mean())
    assert 0 < evaluation.dead == (y.max(axis=0) <= 0).mean() < 1
    np.testing.assert_allclose(evaluation.frequency, (y > 0).mean(axis=0))
    np.testing.assert_allclose(evaluation.z_score, (y.max(axis=0) - y.mean(axis=0)) / y.std(axis=0))


@given(seeds, st.lists(st.integers(0, 40), max_size=6))
def test_any_split_of_the_data_gives_the_same_evaluation(seed, cuts):
    x, f, y = network_output(np.random.default_rng(seed))
    whole = evaluate((x, f, y))
    cuts = sorted(cuts)
    parts = evaluate(*zip(np.split(x, cuts), np.split(f, cuts), np.split(y, cuts), strict=True))
    assert parts.summary() == pytest.approx(whole.summary(), rel=1e-12)
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-11, atol=1e-13)


def naive_top(y, k):
    order = np.argsort(-y, axis=0, kind="stable").T  # (M, L), of equal values the earlier row first
    values = np.take_along_axis(y.T, order, axis=1)
    order, values = np.where(values > 0, order, -1), np.maximum(values, 0)
    fill = ((0, 0), (0, max(0, k - len(y))))
    return np.pad(order, fill, constant_values=-1)[:, :k], np.pad(values, fill)[:, :k]


@given(
    seeds,
    st.integers(1, 50),
    st.integers(1, 6),
    st.lists(st.integers(0, 50), max_size=8),
    st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_counts_and_top_rows_are_exact_for_any_split(seed, L, k, cuts, dtype):
    rng = np.random.default_rng(seed)
    y = rng.integers(-4, 5, (L, 5)).astype(dtype)  # few values: many ties
    y[:, 0] = -1 - rng.random(L)  # never active
    y[:, 1] = np.sort(y[:, 1])  # every row beats those before it, or equals one
    x = np.zeros((L, 1))
    cuts = sorted(cuts)
    evaluation = evaluate(*((part[:, :1], part[:, :1], part) for part in np.split(y, cuts)), top=k)
    rows, values = naive_top(y, k)
    np.testing.assert_array_equal(evaluation.top_rows, rows)
    np.testing.assert_array_equal(evaluation.top_values, values)
    active = np.sort((y > 0).sum(axis=1))
    np.testing.assert_array_equal(evaluation.l0_histogram, np.bincount(active, minlength=6))
    ranks = {name: max(1, int(np.ceil(L * percent / 100))) for name, percent in QUANTILES.items()}
    assert quantiles(evaluation.l0_histogram) == {name: active[rank - 1] for name, rank in ranks.items()}
    one = evaluate((x, x, y), top=k)
    np.testing.assert_array_equal(one.top_rows, rows)


def test_top_rows_may_be_asked_for_at_any_time():
    rng = np.random.default_rng(0)
    y = rng.integers(-2, 9, (60, 4)).astype(np.float64)
    evaluation = Evaluation(4, 1, top=3)
    for l in range(60):
        evaluation.update(np.zeros((1, 1)), np.zeros((1, 1)), y[l : l + 1])
        np.testing.assert_array_equal(evaluation.top_rows, naive_top(y[: l + 1], 3)[0])


def test_what_an_evaluation_returns_is_a_copy():
    evaluation = activity([1, 2], [3, 4], top=1)
    for name in ("peak", "l0_histogram", "top_rows", "top_values"):
        before = getattr(evaluation, name).copy()
        getattr(evaluation, name)[...] = 7
        np.testing.assert_array_equal(getattr(evaluation, name), before)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_evaluation_does_not_depend_on_the_blocks(monkeypatch, order):
    x, f, y = (np.asarray(array, order=order) for array in network_output(np.random.default_rng(0)))
    whole = evaluate((x, f, y), top=4)
    monkeypatch.setattr(accumulate, "_CACHED", 7 * 6)  # of y 7 rows
    monkeypatch.setattr(accumulate, "_FEWEST", 1)
    blocks = evaluate((x, f, y), top=4)
    assert blocks.summary() == pytest.approx(whole.summary(), rel=1e-12)
    np.testing.assert_allclose(blocks.z_score, whole.z_score, rtol=1e-12)
    np.testing.assert_array_equal(blocks.top_rows, whole.top_rows)
    np.testing.assert_array_equal(blocks.l0_histogram, whole.l0_histogram)


def test_a_large_common_offset_costs_no_precision():
    rng = np.random.default_rng(0)
    x, f, y = (np.round(array, 6) for array in network_output(rng, L=1000))
    offset = 2.0**26
    moved = evaluate(
        *((x[i : i + 90] + offset, f[i : i + 90] + offset, y[i : i + 90] + offset) for i in range(0, 990, 90))
    )
    still = evaluate((x[:990], f[:990], y[:990]))
    assert moved.fvu == pytest.approx(still.fvu, rel=1e-6)  # the data itself is rounded to 1e-8
    np.testing.assert_allclose(moved.std, still.std, rtol=1e-7)


def test_float32_is_accumulated_in_float64():
    rng = np.random.default_rng(0)
    chunks = [tuple(a.astype(np.float32) for a in network_output(rng, L=512)) for _ in range(20)]
    wide = [tuple(a.astype(np.float64) for a in chunk) for chunk in chunks]
    assert evaluate(*chunks).summary() == pytest.approx(evaluate(*wide).summary(), rel=1e-13)
    assert all(getattr(evaluate(*chunks), name).dtype == np.float64 for name in ARRAYS)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_data_without_variance_has_no_fvu(value):
    x = np.full((7, 3), value)
    evaluation = evaluate((x[:3], x[:3] + 1, np.full((3, 2), value)), (x[3:], x[3:] + 1, np.full((4, 2), value)))
    with pytest.raises(InputError, match="FVU is undefined"):
        evaluation.summary()
    assert evaluation.loss == 1.5
    np.testing.assert_array_equal(evaluation.z_score, [0, 0])  # nor has a constant neuron a Z-score


def test_an_evaluation_without_rows_says_so():
    evaluation = Evaluation(2, 3)
    evaluation.update(np.empty((0, 3)), np.empty((0, 3)), np.empty((0, 2)))
    for name in ("rows", "loss", "fvu", "explained_variance", "l0", "activation_fraction", "dead", *ARRAYS, *COUNTS):
        with pytest.raises(InputError, match="no row"):
            getattr(evaluation, name)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_row(which, bad):
    chunk = network_output(np.random.default_rng(0))
    evaluation = evaluate(chunk)
    spoilt = [array.copy() for array in chunk]
    spoilt[which][2, 1] = bad
    with pytest.raises(InputError, match=f"^{('x', 'x_hat', 'y')[which]} .* row 42 "):
        evaluation.update(*spoilt)


def test_infinities_that_cancel_and_those_of_the_first_row_are_found():
    x = np.zeros((4, 1))
    y = np.array([[np.inf], [0.0], [-np.inf], [0.0]])
    with pytest.raises(InputError, match=r"^y .* row 0 "):
        evaluate((x, x, y))
    with pytest.raises(InputError, match=r"^y .* row 1 "):
        evaluate((x, x, y[[1, 0, 2, 3]]))


@pytest.mark.parametrize("shapes", [((4, 3), (4, 3), (5, 2)), ((4, 3), (4, 2), (4, 2)), ((4, 2), (4, 2), (4, 2))])
def test_chunks_of_the_wrong_shape_are_refused(shapes):
    with pytest.raises(InputError, match=r"must be \(L, 3\)"):
        Evaluation(2, 3).update(*map(np.ones, shapes))


def test_an_evaluation_needs_neurons_and_dimensions():
    with pytest.raises(InputError, match="at least 1"):
        Evaluation(0, 3)
    with pytest.raises(InputError, match="top at least 0"):
        Evaluation(2, 3, top=-1)
