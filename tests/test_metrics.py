"""What each metric of section 6 counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import refgba.metrics
from refgba.errors import InputError
from refgba.metrics import TOP_SHARES, GroupFrequency, cosine, frr, match, matched_recovery, mcs, mcs_share, per_group

seeds = st.integers(0, 2**32 - 1)


def two_dictionaries(seed):
    """Features V and neurons W of random shapes, most neurons near some feature."""
    rng = np.random.default_rng(seed)
    M, n, d = rng.integers(1, 12, 3)
    V = rng.standard_normal((n, d))
    return V[rng.integers(0, n, M)] + rng.choice([0.1, 0.5, 2.0], (M, 1)) * rng.standard_normal((M, d)), V, rng


# --- against the truth, against another run ---------------------------------------------------------------------------


def test_cosine_by_hand():
    W = np.array([[2.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    V = np.array([[0.0, 5.0], [-1.0, 0.0]])
    np.testing.assert_allclose(cosine(W, V), [[0, -1], [0.8, -0.6], [0, 0]], atol=1e-15)


def test_frr_counts_features_and_not_neurons():
    V = np.eye(4)
    W = np.array([[9.0, 1, 0, 0], [9, 0, 1, 0], [0, 9, 5, 0]])  # cosines with their features 0.994, 0.994, 0.874
    assert frr(W, V, tau=0.8) == 0.5
    assert frr(W, V, tau=0.9) == 0.25


def test_frr_reaches_tau_at_equality():
    assert frr(np.array([[3.0, 4.0]]), np.array([[0.0, 2.0]]), tau=0.8) == 1


def test_one_neuron_between_two_features_is_matched_to_one_of_them():
    V = np.array([[1.0, 0.1], [1.0, -0.1]])
    W = np.array([[1.0, 0.01], [0.0, 1.0]])
    assert frr(W, V, tau=0.9) == 1
    assert matched_recovery(W, V, tau=0.9) == 0.5


def test_match_by_hand():
    # greedily the first neuron would take feature 0 at 0.96 and leave feature 1 at 0; the best sum gives 0.28 + 0.8
    V = np.eye(3)[:2]
    W = np.array([[0.96, 0.28, 0.0], [0.8, 0.0, 0.6], [0.0, 0.0, 1.0]])
    neuron, cosines = match(W, V)
    np.testing.assert_array_equal(neuron, [1, 0])
    np.testing.assert_allclose(cosines, [0.8, 0.28])


def test_features_without_a_neuron_are_not_recovered():
    V = np.eye(3)
    neuron, cosines = match(V[[1]], V)
    np.testing.assert_array_equal(neuron, [-1, 0, -1])
    np.testing.assert_array_equal(cosines, [0, 1, 0])
    assert matched_recovery(V[[1]], V, tau=0.9) == pytest.approx(1 / 3)


@given(seeds)
def test_cosine_and_mcs_agree_with_the_naive_ones(seed):
    W, V, _ = two_dictionaries(seed)
    naive = np.array([[w @ v / np.sqrt((w @ w) * (v @ v)) for v in V] for w in W])
    np.testing.assert_allclose(cosine(W, V), naive, atol=1e-12)
    np.testing.assert_allclose(mcs(W, V), naive.max(axis=1), atol=1e-12)


@given(seeds)
def test_frr_ignores_the_order_and_the_length_of_neurons(seed):
    W, V, rng = two_dictionaries(seed)
    other = rng.permutation(W) * rng.uniform(0.01, 100, (len(W), 1))
    assert frr(other, V, 0.9) == frr(W, V, 0.9)


@given(seeds)
def test_recovery_falls_with_tau_and_with_one_to_one_matching(seed):
    W, V, _ = two_dictionaries(seed)
    assert matched_recovery(W, V, 0.9) <= frr(W, V, 0.9) <= frr(W, V, 0.8)


@given(seeds)
def test_match_is_one_to_one_and_the_best_there_is(seed):
    W, V, _ = two_dictionaries(seed)
    neuron, cosines = match(W, V)
    used = neuron[neuron >= 0]
    assert len(set(used)) == len(used) == min(len(W), len(V))
    np.testing.assert_array_equal(cosines[neuron >= 0], cosine(W, V)[used, neuron >= 0])
    i, m = linear_sum_assignment(-cosine(V, W))
    assert cosines.sum() == pytest.approx(cosine(V, W)[i, m].sum())


@given(seeds)
def test_mcs_of_a_dictionary_with_itself_shuffled_is_one(seed):
    W, _, rng = two_dictionaries(seed)
    np.testing.assert_allclose(mcs(W, rng.permutation(W)), 1)


def test_mcs_does_not_depend_on_the_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((10, 4)), rng.standard_normal((7, 4))
    whole = mcs(A, B)
    monkeypatch.setattr(refgba.metrics, "_BLOCK", 3 * 7)
    np.testing.assert_allclose(mcs(A, B), whole, rtol=1e-14)


def test_mcs_share_looks_at_the_neurons_with_the_highest_score():
    similarity = np.array([0.95, 0.9, 0.2, 0.99])
    score = np.array([4, 3, 2, 1])
    assert [mcs_share(similarity, score, share) for share in (0.25, 0.5, 0.75, 1.0)] == [1, 0.5, 1 / 3, 0.5]
    assert mcs_share(similarity, -score, 0.5) == 0.5
    assert mcs_share(similarity, score, 1.0, tau=0.1) == 1


def test_mcs_share_rounds_the_number_of_neurons_and_keeps_at_least_one():
    similarity = np.zeros(2000)
    similarity[:1] = 1
    score = -np.arange(2000.0)
    assert [mcs_share(similarity, score, share) for share in TOP_SHARES] == [1, 0.1, 0.01, 0.0005]
    assert mcs_share(similarity, score, 1e-9) == 1
    assert mcs_share(np.array([1.0, 0.0, 1.0]), np.array([3, 2, 1]), 0.6) == 0.5  # 1.8 neurons are two


def test_of_equal_scores_the_first_neuron_goes_first():
    assert mcs_share(np.repeat([1.0, 0.0], 50), np.tile([0.0, 1.0], 50), 0.25) == 1


def test_float32_dictionaries_stay_float32_and_float16_is_widened():
    W = np.random.default_rng(0).standard_normal((4, 3))
    assert cosine(W.astype(np.float32), W.astype(np.float32)).dtype == np.float32
    assert mcs(W.astype(np.float16) * np.float16(300), W.astype(np.float16)) == pytest.approx([1] * 4, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frr(np.ones((2, 3)), np.ones((2, 4)), 0.9), "same d"),
        (lambda: frr(np.ones(3), np.ones((2, 3)), 0.9), "same d"),
        (lambda: frr(np.ones((0, 3)), np.ones((2, 3)), 0.9), "same d"),
        (lambda: frr(np.full((1, 3), np.nan), np.ones((2, 3)), 0.9), "not finite"),
        (lambda: frr(np.ones((1, 3)), np.ones((2, 3)), 90), "tau"),
        (lambda: matched_recovery(np.ones((1, 3)), np.ones((2, 3)), 0.0), "tau"),
        (lambda: mcs_share(np.ones(3), np.ones(2), 0.5), "mcs and score"),
        (lambda: mcs_share(np.ones(2), np.array([1, np.nan]), 0.5), "mcs and score"),
        (lambda: mcs_share(np.ones(2), np.ones(2), 5), "share"),
    ],
)
def test_mistakes_in_dictionaries_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- on data ----------------------------------------------------------------------------------------------------------


def test_metrics_of_data_by_hand():
    x = np.array([[0.0, 0.0], [2.0, 2.0]])  # mean (1, 1): Σ ||x - mean||² = 2 + 2
    f = np.array([[1.0, 0.0], [2.0, 0.0]])  # Σ ||x - f||² = 1 + 4
    y = np.array([[1.0, -1.0, 0.0, 5.0], [3.0, -3.0, -2.0, 5.0]])  # exactly 0 is not active
    assert refgba.metrics.fvu(x, f) == 1.25
    assert refgba.metrics.explained_variance(x, f) == -0.25
    assert refgba.metrics.l0(y) == 2
    assert refgba.metrics.dead(y) == 0.5
    np.testing.assert_array_equal(refgba.metrics.frequency(y), [1, 0, 0, 1])
    np.testing.assert_array_equal(refgba.metrics.z_score(y), [1, 1, 1, 0])  # the last column does not vary


def test_rows_that_are_all_equal_have_no_fvu():
    with pytest.raises(InputError, match="FVU is undefined: all rows of the data are equal"):
        refgba.metrics.fvu(np.ones((3, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("x", "f", "message"),
    [
        (np.eye(2), np.ones((1, 2)), r"must both be \(N, d\) and not empty, got shapes \(2, 2\) and \(1, 2\)"),
        (np.ones(2), np.ones(2), "must both be"),
        (np.empty((0, 2)), np.empty((0, 2)), "not empty"),
        (np.array([[1.0], [np.nan]]), np.ones((2, 1)), "not finite"),
        (np.array([[1.0], [2.0]]), np.array([[1.0], [np.inf]]), "not finite"),
    ],
)
def test_fvu_compares_finite_rows_of_the_same_shape(x, f, message):
    for measure in (refgba.metrics.fvu, refgba.metrics.explained_variance):
        with pytest.raises(InputError, match=message):
            measure(x, f)


@pytest.mark.parametrize("name", ["frequency", "l0", "dead", "z_score"])
@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.empty((0, 3)), r"not empty, got shape \(0, 3\)"),
        (np.empty((3, 0)), "not empty"),
        (np.ones(3), r"must be \(N, M\)"),
        (np.array([[1.0, np.nan]]), "not finite"),
    ],
)
def test_what_is_counted_on_pre_activations_needs_some(name, y, message):
    with pytest.raises(InputError, match=message):
        getattr(refgba.metrics, name)(y)


# --- against the targets ----------------------------------------------------------------------------------------------


def test_groups_are_compared_with_their_targets():
    frequency = np.array([0.5, 0.1, 0.3, 0.01, 0.0])
    group = np.array([0, 0, 0, 1, 1])
    assert per_group(frequency, group, np.array([0.3, 0.001])) == [
        GroupFrequency(target=0.3, median=0.3, mean=pytest.approx(0.3), within=pytest.approx(2 / 3), neurons=3),
        GroupFrequency(target=0.001, median=0.005, mean=0.005, within=0.5, neurons=2),
    ]


@pytest.mark.parametrize(
    ("group", "target", "message"),
    [
        ([0, 0, 1], [0.1], "0 .. 0"),
        ([0, 0, 2], [0.1, 0.1, 0.1], "none of them empty"),
        ([0, 0], [0.1], "must be"),
        ([0, 0, 0], 0.1, "must be"),
    ],
)
def test_groups_that_do_not_fit_are_refused(group, target, message):
    with pytest.raises(InputError, match=message):
        per_group(np.zeros(3), np.array(group), np.array(target))
