"""refgba.identifiability: the conditions of section 5, against examples worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgba.data.laws import Hierarchy, Pairs
from refgba.errors import InputError
from refgba.identifiability import count, identifiability, partners
from refgba.model import SyntheticModel, Uniform, features, imbalanced

# D_0 = {0, 1, 4}, D_1 = {1, 2}, D_2 = {2, 4}; no row holds 0 and 1 and 2; row 3 is empty.
H = np.array(
    [
        [1.0, 0.0, 0.0],
        [2.0, 4.0, 0.0],
        [0.0, 6.0, 1.0],
        [0.0, 0.0, 0.0],
        [3.0, 0.0, 1.0],
    ]
)
V = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])  # cosines: 0 (0, 1), 0.6 (0, 2), 0.8 (1, 2)


# ---- H1 - H3 and V1 by hand ----------------------------------------------------------------------------------------


def test_counts_by_hand() -> None:
    counts = count(H)
    assert (counts.N, counts.s) == (5, 2)
    np.testing.assert_array_equal(counts.together, [[3, 1, 1], [1, 2, 1], [1, 1, 2]])
    np.testing.assert_allclose(counts.f, [0.6, 0.4, 0.4])
    np.testing.assert_allclose(counts.weight, [2, 5, 1])
    np.testing.assert_allclose(counts.cooccurrence, [[1, 1 / 3, 1 / 3], [1 / 2, 1, 1 / 2], [1 / 2, 1 / 2, 1]])
    assert counts.missing.size == 0


def test_conditions_by_hand() -> None:
    report = identifiability(H, V)
    assert [c.value for c in report.conditions] == [2, 2, 0.5, pytest.approx(0.8)]
    assert (report.H1.threshold, report.H1.satisfied) == (1.0, False)  # d / 2, as n > d
    assert (report.H2.threshold, report.H2.satisfied) == (1.0, True)
    assert (report.H3.threshold, report.H3.satisfied) == (pytest.approx(0.5 / np.sqrt(3)), False)
    assert (report.V1.threshold, report.V1.satisfied) == (pytest.approx(np.sqrt(2 * np.log(3))), False)  # above 1
    assert not report.decomposable
    assert report.partners is None


def test_a_feature_that_never_occurs_is_named_and_spoils_no_other_number() -> None:
    report = identifiability(H * [1, 1, 0], V)
    assert report.counts.missing.tolist() == [2]
    assert (report.H2.value, report.H2.satisfied) == (0, False)
    assert "1 never occur: 2" in report.H2.detail
    assert report.H3.value == 0.5  # |D_1 n D_0| / |D_1|
    assert report.counts.weight.tolist() == [2, 5, 0]


def test_rho_2_divides_by_the_rarer_feature() -> None:
    assert identifiability(np.array([[1.0, 1], [1, 0], [1, 0], [1, 0]]), np.eye(2)).H3.value == 1.0


def test_orthogonal_features_are_incoherent_and_allow_rows_of_any_sparsity() -> None:
    model = SyntheticModel(Uniform(16, (12,)), d=16, features="orthogonal")
    report = identifiability(model.draw(0, 100).H, model.V)
    assert report.V1.value < 1e-14
    assert (report.H1.value, report.H1.threshold, report.H1.satisfied) == (12, 16, True)  # no superposition: s <= n


@pytest.mark.parametrize("n", [128, 400])
def test_gaussian_features_pass_V1_and_a_near_copy_fails_it(n: int) -> None:
    H = np.ones((1, n))
    for seed in range(5):
        V = features(n, 64, "gaussian", np.random.default_rng(seed))
        report = identifiability(H, V)
        assert report.V1.satisfied
        assert report.V1.value > 0.6 * report.V1.threshold  # the threshold is of the right order, not merely safe
        for sign in (1, -1):
            V[7] = sign * (V[3] + 0.1 * V[9])
            copied = identifiability(H, V).V1
            assert (copied.satisfied, copied.detail) == (False, "i 3, j 7")


# ---- on models whose answer is known -------------------------------------------------------------------------------


def test_uniform_sparse_data_is_decomposable() -> None:
    model = SyntheticModel(Uniform(128, (3,)), d=42, weights="half-normal")
    report = identifiability((draw.H for draw in model.chunks(100_000, 8192)), model.V, model.V)
    assert report.decomposable
    assert (report.H1.value, report.counts.N) == (3, 100_000)
    assert report.H3.value > 2 / 127  # the population value; a maximum over noise lies above it


def test_the_imbalanced_set_exceeds_low_cooccurrence() -> None:
    # Its population rho_2 is E s(s - 1) / ((n - 1) E s) = 193 / (127 * 11.5) = 0.132, above 128^-1/2 = 0.088.
    report = identifiability(imbalanced().draw(0, 50_000).H, imbalanced().V)
    assert report.H3.value == pytest.approx(193 / (127 * 11.5), abs=0.03)
    assert [c.satisfied for c in report.conditions] == [True, True, False, True]


@pytest.mark.parametrize(("rho_2", "satisfied"), [(0.05, True), (0.3, False)])
def test_H3_follows_the_dial_of_pairs(rho_2: float, satisfied: bool) -> None:
    model = SyntheticModel(Pairs(16, 0.05, rho_2), d=8)
    report = identifiability(model.draw(0, 50_000).H, model.V)
    assert report.H3.value == pytest.approx(rho_2, abs=0.03)
    assert report.H3.satisfied is satisfied


def test_hierarchies_fail_low_cooccurrence() -> None:
    model = SyntheticModel(Hierarchy(8, 2, f_parent=0.1, p_child=0.5), d=12)
    assert identifiability(model.draw(0, 5000).H, model.V).H3.value == 1.0


# ---- streaming -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 700), st.integers(1, 300))
def test_chunks_count_like_the_whole(N: int, size: int) -> None:
    H = replace(imbalanced(), weights="log-normal").draw(0, N).H
    whole, parts = count(H), count(H[l : l + size] for l in range(0, N, size))
    assert (parts.N, parts.s) == (whole.N, whole.s) == (N, H.astype(bool).sum(axis=1).max())
    np.testing.assert_array_equal(parts.together, whole.together)
    np.testing.assert_allclose(parts.total, whole.total, rtol=1e-12)


# ---- e -------------------------------------------------------------------------------------------------------------


def test_e_by_hand() -> None:
    # Row 1 is v_0 turned so that its cosine is 0.8, row 2 is v_1 exactly, row 0 belongs to nobody.
    W = np.array([[-1.0, 0.0], [4.0, 3.0], [0.0, 0.1]])
    matched = partners(W, np.eye(2))
    assert matched.neuron.tolist() == [1, 2]
    np.testing.assert_allclose(matched.cosine, [0.8, 1.0])
    assert matched.e == pytest.approx(0.2)
    assert matched.mean == pytest.approx(0.1)


def test_e_undoes_permutation_scaling_and_splitting() -> None:
    rng = np.random.default_rng(0)
    V = features(20, 12, "gaussian", rng)
    order = rng.permutation(40) % 20  # every feature twice
    matched = partners(rng.uniform(0.1, 10, (40, 1)) * V[order], V)
    assert matched.e < 1e-14
    np.testing.assert_array_equal(order[matched.neuron], np.arange(20))
    assert len(set(matched.neuron)) == 20


def test_a_neuron_serves_one_feature_only() -> None:
    # Both features like w_0 best (cosines 0.8 and 0.6); one of them has to take w_1, which points away.
    matched = partners(np.array([[4.0, 3.0], [-1.0, 0.0]]), np.eye(2))
    assert matched.neuron.tolist() == [0, 1]  # sum 0.8 + 0, against 0.6 - 1 the other way round
    assert matched.e == 1.0


def test_a_sign_flip_is_no_match() -> None:
    assert partners(np.array([[-1.0, 0.0]]), np.array([[1.0, 0.0]])).e == 2.0


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 2))
def test_matching_has_the_greatest_sum_of_cosines(seed: int, n: int, surplus: int) -> None:
    rng = np.random.default_rng(seed)
    V, W = features(n, 3, "gaussian", rng), features(n + surplus, 3, "gaussian", rng)
    best = max(sum(V[i] @ W[m] for i, m in enumerate(way)) for way in permutations(range(n + surplus), n))
    assert partners(W, V).cosine.sum() == pytest.approx(best)


# ---- the table, and refusals ---------------------------------------------------------------------------------------


def test_the_table_shows_every_number_and_verdict() -> None:
    text = str(identifiability(H, V, V[::-1]))
    names = [line.split()[0] for line in text.splitlines()]
    assert names == ["condition", "H1", "H2", "H3", "V1", "e"]
    assert [("NO" in line.split(), "yes" in line.split()) for line in text.splitlines()[1:5]] == [
        (True, False),
        (False, True),
        (True, False),
        (True, False),
    ]
    assert "d 2 is too small for n 3" in text
    assert len(identifiability(H, V).lines()) == 5


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: count(np.zeros((0, 3))), "no rows"),
        (lambda: count(iter([])), "no rows"),
        (lambda: count(np.zeros(3)), r"\(rows, 3\)"),
        (lambda: count([np.ones((2, 3)), np.ones((2, 4))]), r"row 2 has shape \(2, 4\): every chunk must be \(rows, 3"),
        (lambda: count([np.ones((2, 3)), np.array([[1, -1.0, 0]])]), r"H\[2, 1\] is -1.0"),
        (lambda: count(np.array([[1, np.nan]])), r"H\[0, 1\] is nan"),
        (lambda: identifiability(H, np.eye(4)), "H has 3 columns and V 4 rows"),
        (lambda: identifiability(H, np.zeros((3, 2))), "row 0 of V is zero"),
        (lambda: partners(np.eye(3)[:2], np.eye(3)), "2 rows for 3 features: .* needs M >= n"),
        (lambda: partners(np.ones((5, 4)), np.eye(3)), "same d"),
        (lambda: partners(np.array([[1.0, 0], [np.inf, 0]]), np.eye(2)), "values that are not finite"),
    ],
)
def test_mistakes_are_refused_with_what_would_be_right(mistake: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        mistake()
    assert "\n" not in str(refusal.value)
