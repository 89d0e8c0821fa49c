"""The baselines' gradients are what they claim to be, and each method is worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from baseline_cases import BASELINES, CASES, CHOOSING, aux_of, axes, config_of, encode, gradients, loss, random_case
from hypothesis import settings

from refgba import baselines
from refgba.baselines import METHODS, Params, forward


@pytest.mark.parametrize("method", BASELINES)
@settings(max_examples=40)
@CASES
def test_gradients_of_weights_and_biases_match_central_differences(method, L, d, M, seed):
    config, params, x, dead = random_case(method, L, d, M, seed)
    fwd = forward(params, x, config)
    aux = aux_of(x, fwd, config, dead)
    assert (aux is None) == (method not in CHOOSING or L == 1 or not dead.any())

    def total(moved):
        there = forward(moved, x, config)
        if method == "gated":  # the decoder of what the gates reconstruct is a constant to the gradient
            there.left = baselines.decode(params, there.gate) - x
        again = aux_of(x, there, config, dead)
        if aux is not None:
            again = replace(again, e=aux.e, weight=aux.weight)  # constants to the gradient
        return loss(moved, x, there, config, again).total

    written_out, h = gradients(params, x, fwd, config, aux), 1e-6
    for name in sorted(set(params.arrays()) - {"theta"}):
        theta = getattr(params, name)
        numerical = np.zeros_like(theta)
        for i in np.ndindex(theta.shape):
            up, down = theta.copy(), theta.copy()
            up[i] += h
            down[i] -= h
            numerical[i] = (total(replace(params, **{name: up})) - total(replace(params, **{name: down}))) / (2 * h)
        scale = max(np.abs(numerical).max(), 1e-2)
        assert np.abs(getattr(written_out, name) - numerical).max() <= 1e-6 * scale, name


@settings(max_examples=60)
@CASES
def test_a_threshold_s_share_of_l0_is_the_derivative_of_l0_averaged_over_a_bandwidth(L, d, M, seed):
    # d/dθ of the mean over θ' in [θ - ε/2, θ + ε/2] of L0(θ') is [L0(θ + ε/2) - L0(θ - ε/2)] / ε, exactly.
    config, params, x, _ = random_case("jumprelu", L, d, M, seed)
    fwd = forward(params, x, config)
    pseudo = gradients(params, x, fwd, config).theta - gradients(params, x, fwd, replace(config, sparsity=0)).theta

    def penalty(m, by):
        theta = params.theta.copy()
        theta[m] += by
        moved = replace(params, theta=theta)
        return loss(moved, x, forward(moved, x, config), config).penalty

    half = config.bandwidth / 2
    exact = [(penalty(m, half) - penalty(m, -half)) / config.bandwidth for m in range(M)]
    np.testing.assert_allclose(pseudo, exact, atol=1e-12)


def test_with_a_narrow_bandwidth_the_threshold_s_gradient_is_that_of_the_expected_loss():
    # One neuron along e_1, v = (0.6, 0.8), rows (t, t²) for t uniform in [0, 1], λ = 0.1.  Active, a row's loss changes
    # by t²/2 - t (0.6 t + 0.8 t²) + λ, so dL/dθ is minus that at t = θ = 0.4: -(0.08 - 0.4 * 0.368 + 0.1) = -0.0328.
    t = (np.arange(200_000) + 0.5) / 200_000
    x = np.stack([t, t**2], axis=1)
    params = Params(np.array([[1.0, 0.0]]), np.zeros(1), np.zeros(2), np.array([[0.6, 0.8]]), np.array([0.4]))
    config = config_of("jumprelu", width=1, sparsity=0.1)
    moved = [replace(params, theta=np.array([theta])) for theta in (0.399, 0.401)]
    low, high = (loss(p, x, forward(p, x, config), config).total for p in moved)
    assert (high - low) / 0.002 == pytest.approx(-0.0328, abs=1e-4)
    errors = []
    for bandwidth in (0.1, 0.05, 0.025):
        config = replace(config, bandwidth=bandwidth)
        errors.append(abs(gradients(params, x, forward(params, x, config), config).theta[0] + 0.0328))
    assert errors[0] < 0.4 * 0.1 / 4
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.05)
    assert errors[2] / errors[1] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("method", [method for method in BASELINES if method != "jumprelu"])
def test_only_jumprelu_has_a_gradient_in_the_thresholds(method):
    config, params, x, _ = random_case(method, 5, 4, 6, 0)
    assert not gradients(params, x, forward(params, x, config), config).theta.any()
    assert "theta" not in baselines.METHODS[config.method].optimised(config, 1)


# ---- worked by hand --------------------------------------------------------------------------------------------------


def test_l1_worked_by_hand():
    config, params, x = config_of("l1", sparsity=0.5), axes(b=(-1.0, 0.0)), np.array([[3.0, -1.0]])
    fwd = forward(params, x, config)
    assert fwd.y.tolist() == [[2.0, -1.0]]
    assert fwd.s.tolist() == [[2.0, 0.0]]
    assert fwd.f.tolist() == [[2.0, 0.0]]  # r = (-1, 1)
    assert loss(params, x, fwd, config) == (2.0, 1.0, 1.0)  # 1/2 (1 + 1), and 0.5 * 2
    g = gradients(params, x, fwd, config)
    assert g.b.tolist() == [-0.5, 0.0]  # v . r + λ = -1 + 0.5
    assert g.W.tolist() == [[-1.5, 0.5], [0.0, 0.0]]
    assert g.W_dec.tolist() == [[-2.0, 2.0], [0.0, 0.0]]
    assert g.b_pre.tolist() == [-0.5, 1.0]


def test_topk_with_auxk_worked_by_hand():
    # k = 1: the second neuron never fires, and is dead.  Its codes are 1.5 and 0.5, of a residual (0, 2) and (0, 1).
    config, params, x = config_of("topk", k=1, aux=0.1), axes(b=(0.0, -0.5)), np.array([[3.0, 2.0], [3.0, 1.0]])
    fwd = forward(params, x, config)
    assert fwd.s.tolist() == [[3.0, 0.0], [3.0, 0.0]]
    aux = aux_of(x, fwd, config, np.array([False, True]))
    assert aux.dead.tolist() == [1]
    assert aux.s.tolist() == [[1.5], [0.5]]
    assert aux.e.tolist() == [[0.0, 2.0], [0.0, 1.0]]
    assert aux.weight == pytest.approx(0.1 / 0.25)  # the residual is 0.5 from its mean
    found = loss(params, x, fwd, config, aux)
    assert found.reconstruction == (2.0 + 0.5) / 2
    assert found.penalty == pytest.approx(0.4 * 0.5 * 0.25)  # ê misses by 0.5 in both rows
    g = gradients(params, x, fwd, config, aux)  # u = 0.4 (0, -0.5), and the first neuron has v . r = 0
    np.testing.assert_allclose(g.b, [0, -0.2])
    np.testing.assert_allclose(g.W, [[0, 0], [-0.6, -0.3]])
    np.testing.assert_allclose(g.W_dec, [[0, -4.5], [0, -0.2]])
    np.testing.assert_allclose(g.b_pre, [0, -1.5 + 0.2])


def test_in_training_rows_compete_for_batchtopk_and_in_inference_a_threshold_decides():
    config, x = config_of("batchtopk", k=1), np.array([[3.0, 2.0], [1.0, 0.5]])
    on = encode(axes(), x, config, training=True)[1]
    assert on.tolist() == [[True, True], [False, False]]  # k L = 2 places, both to the first row
    on = encode(axes(theta=(1.0, 1.0)), x, config, training=False)[1]
    assert on.tolist() == [[True, True], [False, False]]  # y > θ, not >=
    alone = encode(axes(theta=(1.0, 1.0)), x[:1], config, training=False)[1]
    assert alone.tolist() == [[True, True]]  # whatever the other rows are


def test_matryoshka_worked_by_hand():
    config, params, x = config_of("matryoshka", width=2), axes(b=(1.0, -0.5)), np.array([[3.0, 2.0]])
    assert config.ends() == (1, 2)
    fwd = forward(params, x, config)
    assert fwd.s.tolist() == [[4.0, 1.5]]
    assert fwd.r.tolist() == [[[1.0, -2.0]], [[1.0, -0.5]]]  # the first neuron alone, and both
    assert loss(params, x, fwd, config) == (3.125, 0.625, 2.5)
    g = gradients(params, x, fwd, config)  # the first neuron sees (2, -2.5), the second (1, -0.5)
    assert g.b.tolist() == [2.0, -0.5]
    assert g.W.tolist() == [[6.0, 4.0], [-1.5, -1.0]]
    assert g.W_dec.tolist() == [[8.0, -10.0], [1.5, -0.75]]
    assert g.b_pre.tolist() == [0.0, -2.0]


def test_with_one_prefix_matryoshka_is_batchtopk():
    _, params, x, dead = random_case("matryoshka", 6, 5, 8, 2)
    found = []
    for method in ("matryoshka", "batchtopk"):
        config = config_of(method, prefixes=1)
        fwd = forward(params, x, config)
        aux = aux_of(x, fwd, config, dead)
        found.append((loss(params, x, fwd, config, aux), gradients(params, x, fwd, config, aux).arrays()))
    assert found[0][0] == found[1][0]
    assert all((array == found[1][1][name]).all() for name, array in found[0][1].items())


def test_gated_worked_by_hand():
    # The first neuron has the scale 2 and the bias -1 for its code, the second is shut by its gate.
    config, x = config_of("gated", width=2, sparsity=0.5), np.array([[3.0, 1.0]])
    own = {"r_mag": np.log([2.0, 1.0]), "b_mag": np.array([-1.0, 5.0])}
    params = METHODS["gated"].Params(**axes(b=(-1.0, -2.0)).arrays(), **own)
    fwd = forward(params, x, config)
    assert fwd.gate.tolist() == [[2.0, 0.0]]  # 3 - 1, and 1 - 2
    assert fwd.y.tolist() == [[5.0, 6.0]]  # 2 * 3 - 1, and 1 + 5
    assert fwd.s.tolist() == [[5.0, 0.0]]
    assert fwd.f.tolist() == [[5.0, 0.0]]  # r = (2, -1), of the gates alone (-1, -1)
    assert fwd.left.tolist() == [[-1.0, -1.0]]
    assert loss(params, x, fwd, config) == (4.5, 2.5, 2.0)  # and 0.5 * 2 + 1/2 (1 + 1)
    g = gradients(params, x, fwd, config)
    assert g.b_mag.tolist() == [2.0, 0.0]  # v . r
    assert g.r_mag.tolist() == [12.0, 0.0]  # times y - c
    assert g.b.tolist() == [-0.5, 0.0]  # v . r_g + λ
    assert g.W.tolist() == [[10.5, 3.5], [0.0, 0.0]]  # (2 * 2 - 0.5) x
    assert g.W_dec.tolist() == [[10.0, -5.0], [0.0, 0.0]]
    assert g.b_pre.tolist() == [-1.5, -1.0]  # r - 3.5 w_1
    arrays = METHODS["gated"].exported(params, config)  # y > θ, with θ = c - e^ρ b
    assert arrays.threshold.tolist() == [1.0, 7.0]
    assert arrays.W_enc.tolist() == [[2.0, 0.0], [0.0, 1.0]]


@settings(max_examples=60)
@CASES
def test_gated_by_its_paths_and_by_its_thresholds_is_one(L, d, M, seed):
    config, params, x, _ = random_case("gated", L, d, M, seed)
    by_paths, by_thresholds = (encode(params, x, config, training) for training in (True, False))
    assert (by_paths[1] == by_thresholds[1]).all()
    np.testing.assert_allclose(by_thresholds[2], by_paths[2], atol=1e-12)


def test_jumprelu_worked_by_hand():
    config = config_of("jumprelu", sparsity=0.2, bandwidth=0.5)
    params, x = axes(theta=(1.0, 1.0)), np.array([[1.1, 0.8]])
    fwd = forward(params, x, config)
    assert fwd.s.tolist() == [[1.1, 0.0]]  # the magnitude that passes is y, the threshold is not taken off
    assert loss(params, x, fwd, config) == pytest.approx((0.52, 0.32, 0.2))  # r = (0, -0.8), one active
    g = gradients(params, x, fwd, config)
    np.testing.assert_allclose(g.theta, [-(0 + 0.2) / 0.5, -(-0.8 + 0.2) / 0.5])  # both within 0.25 of θ
    assert not g.b.any()
    assert not g.W.any()  # λ moves thresholds only
    far = gradients(params, x, fwd, replace(config, bandwidth=0.3)).theta
    np.testing.assert_allclose(far, [-0.2 / 0.3, 0])  # the second is 0.2 away
