"""Claims of section 6: Modified BA recovers every feature inside the resonance band, and none far outside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refgba.theory
from refgba.errors import InputError
from refgba.metrics import frr, matched_recovery
from refgba.theory import (
    Band,
    frequency_band,
    modified_ba,
    modified_ba_step,
    resonance_band,
    superposition,
    width_bound,
)


def uniform_sparse_data(rng, N, n=128, d=42, s=3):
    """Unit rows x = hV / ||hV|| with s features in each, all of weight 1, and V Gaussian with unit rows."""
    V = rng.standard_normal((n, d))
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    H = np.zeros((N, n))
    np.put_along_axis(H, rng.random((N, n)).argpartition(s, axis=1)[:, :s], 1.0, axis=1)
    X = H @ V
    return X / np.linalg.norm(X, axis=1, keepdims=True), V


def last(neurons):
    *_, W = neurons
    return W


# --- Modified BA ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_feature_is_recovered_within_five_steps_inside_the_band(seed):
    rng = np.random.default_rng(seed)
    X, V = uniform_sparse_data(rng, N=20_000)
    W = last(modified_ba(X, rng.standard_normal((2048, 42)), p=0.01, steps=5))
    assert frr(W, V, tau=0.9) == 1
    assert matched_recovery(W, V, tau=0.9) == 1


@pytest.mark.parametrize(("p", "most"), [(0.05, 0.4), (0.1, 0.02)])
def test_recovery_collapses_above_the_band(p, most):
    rng = np.random.default_rng(0)
    X, V = uniform_sparse_data(rng, N=10_000)
    assert p > resonance_band(128, 42, 3).high
    assert frr(last(modified_ba(X, rng.standard_normal((2048, 42)), p, steps=5)), V, tau=0.9) <= most


def test_recovery_collapses_below_the_band():
    rng = np.random.default_rng(0)
    X, V = uniform_sparse_data(rng, N=10_000)
    assert resonance_band(128, 42, 3).low > 0.0005
    assert frr(last(modified_ba(X, rng.standard_normal((2048, 42)), p=0.0005, steps=5)), V, tau=0.9) <= 0.05


@pytest.mark.parametrize("eta", [0.5, 100.0, np.inf])
@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
def test_a_step_is_the_papers_formula_neuron_by_neuron(activation, eta):
    rng = np.random.default_rng(0)
    X, _ = uniform_sparse_data(rng, N=300, n=20, d=8)
    W = rng.standard_normal((5, 8))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    p, expected = 0.05, []
    for w in W:
        z = [w @ x for x in X]
        b = -np.mean(sorted(z, reverse=True)[14:16])  # between the 15th, which fires, and the 16th
        phi = [(z_l if activation == "jumprelu" else z_l + b) if z_l + b > 0 else 0.0 for z_l in z]
        g = sum(phi_l * x for phi_l, x in zip(phi, X, strict=True)) / len(X)
        v = g if eta == np.inf else w + eta * g
        expected.append(v / np.linalg.norm(v))
    np.testing.assert_allclose(modified_ba_step(X, W, p, eta=eta, activation=activation), expected, rtol=1e-12)


def test_the_default_is_the_limit_of_a_large_eta():
    rng = np.random.default_rng(0)
    X, V = uniform_sparse_data(rng, N=500, n=20, d=8)
    W = V[:5]
    np.testing.assert_allclose(modified_ba_step(X, W, 0.05), modified_ba_step(X, W, 0.05, eta=1e12), atol=1e-9)


def test_a_hand_worked_step():
    # w sees z = 3, 2, 1, -1; p = 1/2 puts the gate between 2 and 1; g = (3 (3, 4) + 2 (2, 0)) / 4 = (13, 12) / 4
    X = np.array([[3.0, 4.0], [2.0, 0.0], [1.0, 9.0], [-1.0, 5.0]])
    W = np.array([[1.0, 0.0]])
    relu = np.array([1.5 * 3 + 0.5 * 2, 1.5 * 4])  # at b = -1.5
    np.testing.assert_allclose(modified_ba_step(X, W, 0.5, activation="relu"), [relu / np.linalg.norm(relu)])
    np.testing.assert_allclose(modified_ba_step(X, W, 0.5), np.array([[13.0, 12.0]]) / np.hypot(13, 12))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(p=st.floats(0.005, 0.995), seed=st.integers(0, 2**32 - 1))
def test_every_neuron_fires_on_exactly_its_share_of_rows(dtype, p, seed):
    rng = np.random.default_rng(seed)
    X, W = rng.standard_normal((200, 6)).astype(dtype), rng.standard_normal((7, 6)).astype(dtype)
    # A dimension of its own for each row, which no neuron sees, shows in the step of which rows it is made.
    X, W = np.hstack([X, np.eye(200, dtype=dtype)]), np.hstack([W, np.zeros((7, 200), dtype)])
    stepped = modified_ba_step(X, W, p)
    assert stepped.dtype == dtype
    # exactly, except that float32 may not hold a number between two neighbouring rows
    fired = np.count_nonzero(stepped[:, 6:], axis=1)
    assert np.all(np.abs(fired - round(p * 200)) <= (dtype == np.float32))


def test_the_result_does_not_depend_on_the_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    X, _ = uniform_sparse_data(rng, N=500, n=20, d=8)
    W = rng.standard_normal((11, 8))
    whole = last(modified_ba(X, W, 0.03, steps=3))
    monkeypatch.setattr(refgba.theory, "_BLOCK", 4 * 500)  # four neurons, four, and three
    np.testing.assert_allclose(last(modified_ba(X, W, 0.03, steps=3)), whole, rtol=1e-12)


@pytest.mark.parametrize("eta", [10.0, np.inf])
@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
def test_a_neuron_without_a_gradient_stays_where_it_is(eta, activation):
    X = np.random.default_rng(0).standard_normal((50, 3))
    X[:, 2] = 0.0
    W = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])  # the first is orthogonal to every row
    stepped = modified_ba_step(X, W, 0.1, eta=eta, activation=activation)
    np.testing.assert_array_equal(stepped[0], W[0])
    assert not np.array_equal(stepped[1], W[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_step_yields_new_unit_neurons_in_the_dtype_of_the_input(dtype):
    rng = np.random.default_rng(0)
    X, _ = uniform_sparse_data(rng, N=500, n=20, d=8)
    W0 = rng.standard_normal((6, 8)).astype(dtype)
    before = W0.copy()
    trajectory = list(modified_ba(X.astype(dtype), W0, 0.05, steps=3))
    assert len(trajectory) == 3
    assert all(W.dtype == dtype for W in trajectory)
    np.testing.assert_allclose([np.linalg.norm(W, axis=1) for W in trajectory], 1, rtol=1e-6)
    assert not np.array_equal(trajectory[1], trajectory[2])
    np.testing.assert_array_equal(W0, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 0.0}, "p must"),
        ({"p": 1.0}, "p must"),
        ({"p": 0.01}, "none of them"),
        ({"p": 0.99}, "or all"),
        ({"steps": 0}, "steps"),
        ({"eta": 0.0}, "eta"),
        ({"eta": np.nan}, "eta"),
        ({"activation": "gelu"}, "activation"),
        ({"X": np.ones((10, 4))}, "same d"),
        ({"X": np.ones(3)}, "same d"),
        ({"X": np.full((10, 3), np.nan)}, "not finite"),
        ({"W": np.zeros((2, 3))}, "nonzero"),
        ({"W": np.full((2, 3), np.inf)}, "nonzero"),
        ({"W": np.ones(3)}, "nonzero"),
        ({"W": np.ones((0, 3))}, "same d"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {"X": np.eye(3).repeat(4, axis=0), "W": np.ones((2, 3)), "p": 0.3, "steps": 1} | change
    with pytest.raises(InputError, match=message):
        last(modified_ba(**arguments))


# --- the bounds -------------------------------------------------------------------------------------------------------


def test_the_band_of_the_papers_synthetic_set():
    band = resonance_band(n=128, d=42, s=3)
    assert band.low == 1 / 128
    assert band.high == pytest.approx(128 ** (-2 / 3))  # (1 + 1/3) / 2 = 2/3, and 2/3 again: a tie
    assert (round(band.low, 3), round(band.high, 3)) == (0.008, 0.039)
    assert not band.empty


@pytest.mark.parametrize(
    ("arguments", "high", "binding"),
    [
        ({"n": 256, "d": 64, "s": 4}, 256**-0.625, "n^(-(1 + 1/s)/2)"),  # = 1/32, against 1/16 and 1/4
        ({"n": 256, "d": 64, "s": 2}, 256**-1.0, "n^(-2 (1+e)^2/s)"),  # = 1/256, against 1/64 and 1/4
        ({"n": 256, "d": 2, "s": 4}, 2 / 256, "d^(1-c)/n"),
        ({"n": 256, "d": 64, "s": 4, "e": 0.5}, 256**-1.125, "n^(-2 (1+e)^2/s)"),
        ({"n": 256, "d": 16, "s": 4, "c": 0.5}, 4 / 256, "d^(1-c)/n"),
    ],
)
def test_the_smallest_upper_term_binds(arguments, high, binding):
    band = resonance_band(**arguments)
    assert band.high == pytest.approx(high)
    assert band.binding == binding


def test_a_band_is_empty_when_nothing_is_left_of_it():
    assert resonance_band(n=256, d=64, s=2).empty  # 1/256 .. 1/256
    assert not resonance_band(n=256, d=64, s=3).empty
    assert Band(0.2, 0.1, "").empty


sizes = st.tuples(st.integers(2, 10**5), st.integers(1, 10**4), st.integers(1, 50)).filter(lambda t: t[2] <= t[0])


@given(sizes, st.floats(0, 0.9), st.floats(0, 0.9))
def test_slack_never_widens_the_band(size, e, c):
    assert resonance_band(*size, e, c).high <= resonance_band(*size).high


def test_the_frequency_band_by_hand():
    assert frequency_band(n=100, d=50, s=4) == Band(0.04, 0.2, "sqrt(f)")
    assert frequency_band(n=100, d=3, s=4) == Band(0.04, pytest.approx(0.12), "f d")


@given(st.integers(2, 10**5), st.integers(1, 10**4))
def test_heavy_superposition_is_where_f_d_binds(n, d):
    if d * d != n:  # there they tie, up to rounding
        assert (superposition(n, d) == "heavy") == (frequency_band(n, d, s=1).binding == "f d")


def test_the_phase_change_is_at_the_root_of_n():
    assert [superposition(100, d) for d in (9, 10, 11)] == ["heavy", "light", "light"]


def test_width_bound_by_hand():
    assert width_bound(n=10, p=0.5, s=3) == pytest.approx(80)  # 10 * 2^3
    assert width_bound(n=10, p=0.5, s=1, e=0.5) == pytest.approx(160)  # 10 * 2^(1 / (1/2)^2)
    assert width_bound(n=128, p=0.01, s=3) == pytest.approx(1.28e8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: resonance_band(0, 42, 3),
        lambda: resonance_band(128, 0, 3),
        lambda: resonance_band(128, 42, 0),
        lambda: resonance_band(128, 42, 129),
        lambda: resonance_band(128, 42, 3, e=1.0),
        lambda: resonance_band(128, 42, 3, e=-0.1),
        lambda: resonance_band(128, 42, 3, c=1.0),
        lambda: resonance_band(128, 42, 3, c=float("nan")),
        lambda: frequency_band(128, 42, 129),
        lambda: frequency_band(128, 0, 3),
        lambda: superposition(0, 1),
        lambda: superposition(1, 0),
        lambda: width_bound(128, 0.0, 3),
        lambda: width_bound(128, 1.0, 3),
        lambda: width_bound(128, 0.1, 129),
        lambda: width_bound(128, 0.1, 3, e=1.0),
    ],
)
def test_sizes_and_slack_out_of_range_are_refused(call):
    with pytest.raises(InputError):
        call()
