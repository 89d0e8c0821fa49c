"""A baseline's step, its loop, and what a short training makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from baseline_cases import (
    BASELINES,
    CHOOSING,
    QUICK,
    aux_of,
    config_of,
    fvu,
    gradients,
    loss,
    rows,
    start,
    synthetic,
    train,
)

from refgba import baselines, gba
from refgba.adam import AdamW
from refgba.baselines import evaluation_codes, forward
from refgba.bias import Buffer
from refgba.sae import unit_rows


@pytest.mark.parametrize("method", BASELINES)
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


@pytest.mark.parametrize("method", BASELINES)
def test_a_step_is_the_gradients_through_adamw(method):
    config, x = config_of(method, width=16, dead_after=1), rows(6)
    state = start(config)
    before = state.params.astype("float64")
    fwd = forward(before, x, config)
    dead = ~fwd.on.any(axis=0)
    assert dead.any() or method not in CHOOSING
    aux = aux_of(x, fwd, config, dead)
    grads = gradients(before, x, fwd, config, aux)
    along = np.sum(grads.W_dec * before.W_dec, axis=1, keepdims=True)
    grads.W_dec = grads.W_dec - along * before.W_dec
    metrics = baselines.step(state, x)
    assert metrics.loss == loss(before, x, fwd, config, aux).reconstruction
    assert metrics.l0 == fwd.on.sum(axis=1).mean()
    for name in baselines.METHODS[method].optimised(config, 1):
        theta = getattr(before, name)
        moved = AdamW.like(theta).update(theta, getattr(grads, name), config.lr, config)
        expected = unit_rows(moved) if name == "W_dec" else moved
        np.testing.assert_allclose(getattr(state.params, name), expected, rtol=1e-9, atol=1e-12)
    assert state.buffer.counts.tolist() == fwd.on.sum(axis=0).tolist()
    assert state.buffer.peaks.tolist() == fwd.s.max(axis=0).clip(0).tolist()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", BASELINES)
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
    assert set(state.optimiser) == set(baselines.METHODS[config.method].optimised(config, 1))
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


@pytest.mark.parametrize("method", BASELINES)
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


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", BASELINES)
def test_a_few_hundred_steps_reconstruct_new_rows(method):
    config, truth = config_of(method, **QUICK | {"sparsity": 0.05 if method in ("l1", "gated") else 0.01}), synthetic()
    state, x = train(truth, config)
    before = fvu(baselines.random_params(config, truth.d), x, config)
    after = fvu(state.params, x, config)
    y, _ = evaluation_codes(state.params, x, config)
    print(f"{method}: FVU {before:.3f} -> {after:.3f} at L0 {(y > 0).sum(axis=1).mean():.1f}")
    assert after < 0.2
    assert after < 0.5 * before
    assert 1 < (y > 0).sum(axis=1).mean() < 24
