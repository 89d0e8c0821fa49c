"""The baselines: worked by hand, every gradient against what it claims to be, training, and the field's own."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from engines import library, real
from hypothesis import given, settings
from hypothesis import strategies as st

from refgba import baselines, gba
from refgba.adam import AdamW
from refgba.baselines import Params, auxiliary, encode, evaluation_codes, forward, gradients, loss
from refgba.bias import Buffer
from refgba.config import BaselineConfig, Method
from refgba.model import SyntheticModel, Uniform
from refgba.sae import unit_rows

METHODS = get_args(Method)
CHOOSING = ["topk", "batchtopk"]


def config_of(method, **given_):
    """Settings for the small cases here; no two penalties alike."""
    settings = {"width": 8, "k": 2, "sparsity": 0.3, "bandwidth": 0.2, "theta_init": 0.1, "aux": 0.7, "aux_k": 2}
    return BaselineConfig(**{"method": method, "batch": 6, "steps": 40, "lr": 0.01, **settings, **given_})


def random_case(method, L, d, M, seed):
    """Settings, parameters, rows, and who is dead, such that no z is within 2e-4 of another, of 0 or of a threshold."""
    rng = np.random.default_rng(seed)
    config = config_of(method, width=M, k=int(rng.integers(1, M + 1)), aux_k=int(rng.integers(0, M)))
    for _ in range(1000):
        params = Params(
            W=rng.standard_normal((M, d)),
            b=0.5 * rng.standard_normal(M),
            b_pre=0.1 * rng.standard_normal(d),
            W_dec=unit_rows(rng.standard_normal((M, d))),
            theta=rng.uniform(0.05, 0.8, M) if method == "jumprelu" else np.zeros(M),
        )
        x = rng.standard_normal((L, d))
        z = encode(params, x, config, training=True)[0]
        edges = np.sort(np.append(z.ravel(), 0.0))
        if min(np.diff(edges).min(), np.abs(z - params.theta).min()) > 2e-4:
            return config, params, x, rng.random(M) < 0.5
    raise AssertionError("no such case found")


CASES = given(L=st.integers(1, 6), d=st.integers(1, 6), M=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@CASES
def test_gradients_of_weights_and_biases_match_central_differences(method, L, d, M, seed):
    config, params, x, dead = random_case(method, L, d, M, seed)
    fwd = forward(params, x, config)
    aux = auxiliary(x, fwd, config, dead)
    assert (aux is None) == (method not in CHOOSING or L == 1 or not dead.any())

    def total(moved):
        there = forward(moved, x, config)
        again = auxiliary(x, there, config, dead)
        if aux is not None:
            again = replace(again, e=aux.e, weight=aux.weight)  # constants to the gradient
        return loss(moved, x, there, config, again).total

    written_out, h = gradients(params, x, fwd, config, aux), 1e-6
    for name in ("W", "b", "b_pre", "W_dec"):
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


@pytest.mark.parametrize("method", [method for method in METHODS if method != "jumprelu"])
def test_only_jumprelu_has_a_gradient_in_the_thresholds(method):
    config, params, x, _ = random_case(method, 5, 4, 6, 0)
    assert not gradients(params, x, forward(params, x, config), config).theta.any()
    assert "theta" not in baselines.trained(config)


# ---- worked by hand --------------------------------------------------------------------------------------------------


def axes(b=(0.0, 0.0), theta=(0.0, 0.0)):
    """Two neurons along the axes, encoder and decoder."""
    return Params(np.eye(2), np.array(b), np.zeros(2), np.eye(2), np.array(theta))


def test_l1_worked_by_hand():
    config, params, x = config_of("l1", sparsity=0.5), axes(b=(-1.0, 0.0)), np.array([[3.0, -1.0]])
    fwd = forward(params, x, config)
    assert fwd.z.tolist() == [[2.0, -1.0]]
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
    aux = auxiliary(x, fwd, config, np.array([False, True]))
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
    assert on.tolist() == [[True, True], [False, False]]  # z > θ, not >=
    alone = encode(axes(theta=(1.0, 1.0)), x[:1], config, training=False)[1]
    assert alone.tolist() == [[True, True]]  # whatever the other rows are


def test_jumprelu_worked_by_hand():
    config = config_of("jumprelu", sparsity=0.2, bandwidth=0.5)
    params, x = axes(theta=(1.0, 1.0)), np.array([[1.1, 0.8]])
    fwd = forward(params, x, config)
    assert fwd.s.tolist() == [[1.1, 0.0]]  # the magnitude that passes is z, the threshold is not taken off
    assert loss(params, x, fwd, config) == pytest.approx((0.52, 0.32, 0.2))  # r = (0, -0.8), one active
    g = gradients(params, x, fwd, config)
    np.testing.assert_allclose(g.theta, [-(0 + 0.2) / 0.5, -(-0.8 + 0.2) / 0.5])  # both within 0.25 of θ
    assert not g.b.any()
    assert not g.W.any()  # λ moves thresholds only
    far = gradients(params, x, fwd, replace(config, bandwidth=0.3)).theta
    np.testing.assert_allclose(far, [-0.2 / 0.3, 0])  # the second is 0.2 away


# ---- who is active ---------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@CASES
def test_topk_has_exactly_k_active_or_all_positives_and_they_are_the_largest(L, d, M, seed):
    config, params, x, _ = random_case("topk", L, d, M, seed)
    z, on, s = encode(params, x, config, training=True)
    assert on.sum(axis=1).tolist() == np.minimum(config.k, (z > 0).sum(axis=1)).tolist()
    for row, active in zip(z, on, strict=True):
        assert sorted(row[active]) == sorted(sorted(row[row > 0])[-config.k :])
    assert (s == np.where(on, z, 0)).all()


@settings(max_examples=60)
@CASES
def test_batchtopk_has_at_most_k_a_row_in_the_mean_of_a_batch(L, d, M, seed):
    config, params, x, _ = random_case("batchtopk", L, d, M, seed)
    z, on, _ = encode(params, x, config, training=True)
    assert on.sum() == min(config.k * L, (z > 0).sum())
    assert sorted(z[on]) == sorted(z[z > 0])[-config.k * L :]


def test_among_equals_exactly_k_are_taken():
    assert baselines.largest(np.ones((3, 7)), 2).sum(axis=1).tolist() == [2, 2, 2]
    assert not baselines.largest(np.zeros((3, 7)), 2).any()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=30)
@CASES
def test_what_evaluation_sees_is_positive_exactly_where_active(method, L, d, M, seed):
    config, params, x, _ = random_case(method, L, d, M, seed)
    if method == "batchtopk":
        params.theta[:] = 0.2
    _, on, s = encode(params, x, config, training=False)
    y, codes = evaluation_codes(params, x, config)
    assert ((y > 0) == on).all()
    assert (codes == s).all()
    assert ((s > 0) == on).all()


def test_dead_neurons_of_auxk_are_the_largest_of_the_dead_and_no_others():
    config, params, x, _ = random_case("topk", 6, 5, 8, 1)
    dead = np.arange(8) >= 3
    config = replace(config, aux_k=2)
    fwd = forward(params, x, config)
    aux = auxiliary(x, fwd, config, dead)
    assert aux.dead.tolist() == [3, 4, 5, 6, 7]
    for row, codes in zip(fwd.z[:, 3:], aux.s, strict=True):
        assert sorted(codes[codes != 0]) == sorted(row[row > 0])[-2:]
    half = auxiliary(x, fwd, replace(config, aux_k=0, width=8), dead)  # d/2 = 2
    assert (half.s == aux.s).all()


# ---- a step, and the loop --------------------------------------------------------------------------------------------


def start(config, d=5):
    return baselines.init(baselines.random_params(config, d), config)


def rows(N=64, d=5, seed=0):
    return unit_rows(np.random.default_rng(seed).standard_normal((N, d)))


@pytest.mark.parametrize("method", METHODS)
def test_parameters_start_as_documented(method):
    config = config_of(method, width=300)
    params = baselines.random_params(config, 5)
    assert (params.W_dec == params.W).all()
    assert params.W_dec is not params.W
    assert not params.b.any()
    assert not params.b_pre.any()
    assert (params.theta == (0.1 if method == "jumprelu" else 0)).all()
    np.testing.assert_allclose(np.linalg.norm(params.W, axis=1), 1, rtol=1e-12)
    same = gba.random_params(gba.GBAConfig(width=300), 5)
    assert (params.W == same.W).all()  # of the same seed


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_the_gradients_through_adamw(method):
    config, x = config_of(method, width=16, dead_after=1), rows(6)
    state = start(config)
    before = state.params.astype("float64")
    fwd = forward(before, x, config)
    dead = ~fwd.on.any(axis=0)
    assert dead.any() or method not in CHOOSING
    aux = auxiliary(x, fwd, config, dead)
    grads = gradients(before, x, fwd, config, aux)
    along = np.sum(grads.W_dec * before.W_dec, axis=1, keepdims=True)
    grads.W_dec = grads.W_dec - along * before.W_dec
    metrics = baselines.step(state, x)
    assert metrics.loss == loss(before, x, fwd, config, aux).reconstruction
    assert metrics.l0 == fwd.on.sum(axis=1).mean()
    for name in ("W", "b", "b_pre", "W_dec", *(["theta"] if method == "jumprelu" else [])):
        theta = getattr(before, name)
        moved = AdamW.like(theta).update(theta, getattr(grads, name), config.lr, config)
        expected = unit_rows(moved) if name == "W_dec" else moved
        np.testing.assert_allclose(getattr(state.params, name), expected, rtol=1e-9, atol=1e-12)
    assert state.buffer.counts.tolist() == fwd.on.sum(axis=0).tolist()
    assert state.buffer.peaks.tolist() == fwd.s.max(axis=0).clip(0).tolist()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_after_each_step_the_decoder_has_unit_rows_and_everything_its_dtype(method, dtype):
    config = config_of(method, dtype=dtype, dead_after=12, lr=0.05)
    state, t = start(config), 0
    for _ in gba.train(state, gba.minibatches(rows(), config), baselines.step, baselines.adapt):
        t += 1
        np.testing.assert_allclose(np.linalg.norm(state.params.W_dec, axis=1), 1, rtol=1e-6)
        assert {a.dtype for a in state.params.arrays().values()} == {np.dtype(dtype)}
        assert {a.dtype for o in state.optimiser.values() for a in (o.m, o.v)} == {np.dtype(dtype)}
        assert {o.t for o in state.optimiser.values()} == {t} == {state.t}
        assert (state.params.theta >= 0).all()
    assert t == config.steps
    assert set(state.optimiser) == set(baselines.trained(config))
    assert (state.params.W_dec != state.params.W).any()


def test_thresholds_are_kept_from_below_zero():
    config = config_of("jumprelu", theta_init=0.005, lr=0.5, sparsity=0.0, bandwidth=1.0)
    state = start(config)
    for _ in gba.train(state, gba.minibatches(rows(), config), baselines.step, baselines.adapt):
        assert (state.params.theta >= 0).all()
    assert (state.params.theta == 0).any()


def test_idle_counts_the_rows_since_a_neuron_fired():
    config = config_of("topk", width=3, k=1, lr=0.0)
    state = start(config, d=2)
    state.params.W = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    seen = []
    for x in ([[1.0, 0.1]] * 4, [[0.1, 1.0]] * 3, [[1.0, 0.1], [0.1, 1.0]]):
        baselines.step(state, np.array(x))
        seen.append(state.idle.tolist())
    assert seen == [[0, 4, 4], [3, 0, 7], [0, 0, 9]]
    assert state.idle.dtype == np.int64


def test_the_learning_rate_falls_linearly_over_the_last_share_of_the_run():
    config = config_of("l1", steps=8, lr=1.0, lr_decay=0.5)
    assert [baselines.learning_rate(config, t) for t in range(1, 9)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert {baselines.learning_rate(replace(config, lr_decay=0.0), t) for t in (1, 8)} == {1.0}


def test_the_counters_are_emptied_now_and_then():
    config = config_of("l1", steps=600)
    assert config.adapt_every == 4
    state = start(config)
    before = state.params.astype("float64")
    state.buffer.add(np.ones((2, 8)))
    full = state.buffer
    baselines.adapt(state)
    assert state.last is full
    assert state.buffer.rows == 0
    assert all((a == b).all() for a, b in zip(before.arrays().values(), state.params.arrays().values(), strict=True))
    assert isinstance(state.buffer, Buffer)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_run_and_shares_no_memory(method):
    config = config_of(method, dead_after=12)
    ends, given_ = [], baselines.random_params(config, 5)
    for _ in range(2):
        state = baselines.init(given_, config)
        for _ in gba.train(state, gba.minibatches(rows(), config), baselines.step, baselines.adapt):
            pass
        ends.append(state.params.arrays())
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])
    untouched = baselines.random_params(config, 5).arrays()
    assert all((array == untouched[name]).all() for name, array in given_.arrays().items())


# ---- BatchTopK's threshold -------------------------------------------------------------------------------------------


def test_the_threshold_is_the_mean_of_the_smallest_codes_and_then_a_moving_one():
    config = config_of("batchtopk", steps=40)  # of the last 40 / 20 = 2
    theta, values = np.zeros(3), [4.0, 2.0, 7.0]
    for t, value in enumerate(values, start=1):
        theta = baselines.averaged(theta, value, config, t)
        assert theta.tolist() == [[4.0] * 3, [3.0] * 3, [5.0] * 3][t - 1]
    assert baselines.averaged(theta, 0.0, config, 4).tolist() == [2.5] * 3


def synthetic(d=24, n=40, s=3, seed=1):
    return SyntheticModel(Uniform(n, (s,)), d=d, seed=seed)


def train(truth, config, N=10_000):
    """The state after a run on N rows, and 2000 rows that it has not seen."""
    X = truth.draw(0, N + 2000).X
    state = start(config, truth.d)
    for _ in gba.train(state, gba.minibatches(X[:N], config), baselines.step, baselines.adapt):
        pass
    return state, unit_rows(X[N:])


def fvu(params, x, config):
    _, s = evaluation_codes(params, x, config)
    return np.sum((baselines.decode(params, s) - x) ** 2) / np.sum((x - x.mean(axis=0)) ** 2)


QUICK = {"width": 96, "steps": 400, "batch": 128, "lr": 3e-3, "k": 5, "sparsity": 0.01, "bandwidth": 0.05}


def test_after_a_short_training_the_threshold_gives_an_l0_near_k_on_new_rows():
    config = config_of("batchtopk", **QUICK)
    state, x = train(synthetic(), config)
    y, _ = evaluation_codes(state.params, x, config)
    assert (y > 0).sum(axis=1).mean() == pytest.approx(5, rel=0.1)
    assert len(set((y > 0).sum(axis=1))) > 1  # not the same for every row
    assert len(set(state.params.theta)) == 1


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_few_hundred_steps_reconstruct_new_rows(method):
    config, truth = config_of(method, **QUICK | {"sparsity": 0.05 if method == "l1" else 0.01}), synthetic()
    state, x = train(truth, config)
    before = fvu(baselines.random_params(config, truth.d), x, config)
    after = fvu(state.params, x, config)
    y, _ = evaluation_codes(state.params, x, config)
    print(f"{method}: FVU {before:.3f} -> {after:.3f} at L0 {(y > 0).sum(axis=1).mean():.1f}")
    assert after < 0.2
    assert after < 0.5 * before
    assert 1 < (y > 0).sum(axis=1).mean() < 24


@pytest.mark.parametrize("method", CHOOSING)
def test_auxk_revives_the_dead(method):
    # Eight neurons for 40 features; 40 more whose z is positive, but never among the largest.
    revived, left = {}, {}
    for aux in (0.0, 1 / 32):
        config = config_of(method, **QUICK | {"width": 48, "k": 2}, aux=aux, aux_k=0, dead_after=1000)
        truth = synthetic()
        X = truth.draw(0, 10_000).X
        params = baselines.random_params(config, truth.d)
        params.b[:8] = 2.0
        params.W[8:] *= 0.01
        state = baselines.init(params, config)
        for _ in gba.train(state, gba.minibatches(X, config), baselines.step, baselines.adapt):
            pass
        revived[aux] = int((state.idle[8:] < config.dead_after).sum())
        left[aux] = fvu(state.params, unit_rows(truth.draw(10_000, 12_000).X), config)
        if aux == 0:
            assert (state.params.W[8:] == params.W[8:]).all()  # no gradient ever came
    print(method, revived, left)
    assert revived[0.0] == 0
    assert revived[1 / 32] >= 16
    assert left[1 / 32] < 0.8 * left[0.0]


# ---- the field's own -------------------------------------------------------------------------------------------------


def loaded(network, **arrays):
    """A torch network in float64, with these arrays as its parameters."""
    torch = library("torch")
    network.double()
    parameters = dict(network.named_parameters())
    assert set(parameters) == {name.replace("__", ".") for name in arrays}
    with torch.no_grad():
        for name, array in arrays.items():
            parameters[name.replace("__", ".")].copy_(torch.tensor(array))
    return network, {name.replace(".", "__"): parameter for name, parameter in parameters.items()}


@real
@pytest.mark.parametrize("method", CHOOSING)
def test_topk_and_its_gradients_are_those_of_dictionary_learning(method):
    torch = library("torch")
    name = {
        "topk": ("top_k", "AutoEncoderTopK", "TopKTrainer"),
        "batchtopk": (
            "batch_top_k",
            "BatchTopKSAE",
        ),
    }[method]
    module = library(f"dictionary_learning.trainers.{name[0]}")
    config, params, x, _ = random_case(method, 12, 6, 20, 3)
    config = replace(config, k=3, aux_k=0, aux=1 / 32)
    network, theirs = loaded(
        getattr(module, name[1])(6, 20, 3),
        encoder__weight=params.W, encoder__bias=params.b, decoder__weight=params.W_dec.T, b_dec=params.b_pre,
    )  # fmt: skip
    rows = torch.tensor(x)
    codes = network.encode(rows, **{"use_threshold": False})
    f = network.decode(codes)
    fwd = forward(params, x, config)
    assert ((codes.detach().numpy() > 0) == fwd.on).all()
    np.testing.assert_allclose(codes.detach().numpy(), fwd.s, atol=1e-14)
    np.testing.assert_allclose(f.detach().numpy(), fwd.f, atol=1e-13)

    dead = ~fwd.on.any(axis=0) | (np.arange(20) < 4)
    trainer_class = getattr(module, "TopKTrainer" if method == "topk" else "BatchTopKTrainer")
    trainer = trainer_class(steps=2000, activation_dim=6, dict_size=20, k=3, layer=0, lm_name="none", device="cpu")
    trainer.ae = network
    trainer.num_tokens_since_fired = torch.tensor(np.where(dead, trainer.dead_feature_threshold, 0))
    positive = torch.relu(network.encoder(rows - network.b_dec))
    theirs_aux = trainer.get_auxiliary_loss((rows - f).detach(), positive)
    aux = auxiliary(x, fwd, config, dead)
    found = loss(params, x, fwd, config, aux)
    assert trainer.top_k_aux == 3
    assert found.penalty == pytest.approx(theirs_aux.item() / 32 / 2, rel=1e-5)  # it computes AuxK in float32

    total = (rows - f).pow(2).sum(dim=-1).mean() + trainer.auxk_alpha * theirs_aux
    (total / 2).backward()
    g = gradients(params, x, fwd, config, aux)
    ours = {"encoder__weight": g.W, "encoder__bias": g.b, "decoder__weight": g.W_dec.T, "b_dec": g.b_pre}
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.grad.numpy(), rtol=1e-5, atol=1e-7, err_msg=name)


@real
def test_jumprelu_and_its_gradients_are_those_of_dictionary_learning():
    torch = library("torch")
    module, dictionary = library("dictionary_learning.trainers.jumprelu"), library("dictionary_learning.dictionary")
    config, params, x, _ = random_case("jumprelu", 12, 6, 20, 3)
    config = replace(config, bandwidth=1.0)
    network, theirs = loaded(
        dictionary.JumpReluAutoEncoder(6, 20),
        W_enc=params.W.T, b_enc=params.b, W_dec=params.W_dec, b_dec=params.b_pre, threshold=params.theta,
    )  # fmt: skip
    network.apply_b_dec_to_input = True
    rows, fwd = torch.tensor(x), forward(params, x, config)
    f, codes = network(rows, output_features=True)
    assert ((codes.detach().numpy() > 0) == fwd.on).all()
    np.testing.assert_allclose(f.detach().numpy(), fwd.f, atol=1e-13)
    # Its straight-through functions, its L0 term on pre-activations as the paper has it, and not on codes.
    z = (rows - network.b_dec) @ network.W_enc + network.b_enc
    s = module.JumpReLUFunction.apply(z, network.threshold, config.bandwidth)
    active = module.StepFunction.apply(z, network.threshold, config.bandwidth).sum(dim=-1).mean()
    total = (rows - network.decode(s)).pow(2).sum(dim=-1).mean() / 2 + config.sparsity * active
    total.backward()
    assert total.item() == pytest.approx(loss(params, x, fwd, config).total, rel=1e-7)  # L0 in float32
    g = gradients(params, x, fwd, config)
    assert np.count_nonzero(g.theta) > 10
    ours = {"W_enc": g.W.T, "b_enc": g.b, "W_dec": g.W_dec, "b_dec": g.b_pre, "threshold": g.theta}
    for name, parameter in theirs.items():  # it keeps the bandwidth in float32
        np.testing.assert_allclose(ours[name], parameter.grad.numpy(), rtol=1e-6, atol=1e-12, err_msg=name)
