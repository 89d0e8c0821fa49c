"""The network of section 2: worked by hand, and every gradient against central differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgba.errors import InputError
from refgba.sae import Params, forward, gradients, loss, unit_rows

ACTIVATIONS = ["jumprelu", "relu"]


def random_case(L, d, M, untied, seed):
    """Parameters and rows whose pre-activations all stay at least 1e-3 from the kink."""
    rng = np.random.default_rng(seed)
    params = Params(
        W=unit_rows(rng.standard_normal((M, d))),
        a=rng.standard_normal(M),
        b=-rng.uniform(0, 0.5, M),
        b_pre=0.1 * rng.standard_normal(d),
        W_dec=unit_rows(rng.standard_normal((M, d))) if untied else None,
    )
    x = rng.standard_normal((L, d))
    for m in range(M):  # move each bias to the middle of the widest gap between pre-activations near it
        z = np.sort((x - params.b_pre) @ params.W[m])
        edges = np.concatenate([[z[0] - 1], z, [z[-1] + 1]])
        gap = np.argmax(np.diff(edges))
        params.b[m] = -(edges[gap] + edges[gap + 1]) / 2
    y = forward(params, x, "jumprelu").y
    assert np.abs(y).min() > 1e-3
    return params, x


def numerical_gradient(params, x, activation, name, h=1e-5):
    theta = getattr(params, name)
    out = np.zeros_like(theta)
    for i in np.ndindex(theta.shape):
        values = []
        for step in (h, -h):
            moved = theta.copy()
            moved[i] += step
            moved_params = replace(params, **{name: moved})
            values.append(loss(x, forward(moved_params, x, activation).f))
        out[i] = (values[0] - values[1]) / (2 * h)
    return out


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("untied", [False, True])
@settings(max_examples=25, deadline=None)
@given(L=st.integers(1, 6), d=st.integers(1, 6), M=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_every_gradient_matches_central_differences(activation, untied, L, d, M, seed):
    params, x = random_case(L, d, M, untied, seed)
    written_out = gradients(params, x, forward(params, x, activation))
    for name, exact in written_out.arrays().items():
        if name == "b":
            continue
        numerical = numerical_gradient(params, x, activation, name)
        scale = max(np.abs(numerical).max(), 1e-3)
        assert np.abs(exact - numerical).max() <= 1e-6 * scale, name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_bias_gets_no_gradient(activation):
    params, x = random_case(5, 3, 4, False, 0)
    assert not gradients(params, x, forward(params, x, activation)).b.any()


def test_worked_by_hand():
    # Two inputs, two neurons along the axes; b_pre = 0, a = (2, 1), b = (-1, -1).
    params = Params(W=np.eye(2), a=np.array([2.0, 1.0]), b=np.array([-1.0, -1.0]), b_pre=np.zeros(2))
    x = np.array([[3.0, 0.5]])  # y = (2, -0.5): only the first neuron fires
    jump = forward(params, x, "jumprelu")
    assert jump.y.tolist() == [[2.0, -0.5]]
    assert jump.s.tolist() == [[3.0, 0.0]]  # the magnitude that passes ignores the bias
    assert jump.f.tolist() == [[6.0, 0.0]]
    assert loss(x, jump.f) == 0.5 * (3.0**2 + 0.5**2)
    relu = forward(params, x, "relu")
    assert relu.s.tolist() == [[2.0, 0.0]]  # and with ReLU it does not
    # r = (3, -0.5): dL/dw_1 = a s r + a (w.r) x = 2*3*(3, -0.5) + 2*3*(3, 0.5) = (36, 0); silent: nothing.
    g = gradients(params, x, jump)
    assert g.W.tolist() == [[36.0, 0.0], [0.0, 0.0]]
    assert g.a.tolist() == [9.0, 0.0]  # s (w . r) = 3 * 3
    assert g.b_pre.tolist() == [3.0 - 2 * 3, -0.5]  # r - a (w . r) w


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_pre_activation_of_zero_is_off(activation):
    params = Params(W=np.eye(2), a=np.ones(2), b=np.array([-1.0, 0.0]), b_pre=np.zeros(2))
    fwd = forward(params, np.array([[1.0, 2.0]]), activation)  # y = (0, 2)
    assert fwd.on.tolist() == [[False, True]]
    assert fwd.s.tolist() == [[0.0, 2.0]]


def test_tied_gradient_is_the_sum_of_the_untied_ones():
    params, x = random_case(7, 4, 5, False, 3)
    untied = replace(params, W_dec=params.W.copy())
    both = gradients(untied, x, forward(untied, x, "jumprelu"))
    tied = gradients(params, x, forward(params, x, "jumprelu"))
    np.testing.assert_allclose(tied.W, both.W + both.W_dec, rtol=1e-12)


@pytest.mark.parametrize("untied", [False, True])
def test_float32_stays_float32(untied):
    params, x = random_case(4, 3, 5, untied, 1)
    params, x = params.astype(np.float32), x.astype(np.float32)
    fwd = forward(params, x, "jumprelu")
    assert {fwd.y.dtype, fwd.s.dtype, fwd.f.dtype} == {np.dtype(np.float32)}
    assert {g.dtype for g in gradients(params, x, fwd).arrays().values()} == {np.dtype(np.float32)}


def test_a_row_of_zeros_has_no_direction():
    A = np.array([[3.0, 4.0], [0.0, 0.0]])
    with pytest.raises(InputError, match="row 1 is all zeros"):
        unit_rows(A)
    with pytest.raises(InputError, match="row 17 is all zeros"):
        unit_rows(A, np.array([4, 17]))
    assert unit_rows(A, otherwise=A).tolist() == [[0.6, 0.8], [0, 0]]
    assert unit_rows(A, otherwise=np.ones((2, 2))).tolist() == [[0.6, 0.8], [1, 1]]
