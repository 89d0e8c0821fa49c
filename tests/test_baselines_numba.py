"""The fast baselines are the reference's: gradients, steps with AuxK and thresholds, whatever the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from baseline_cases import gates, gradient_sizes, some_config, some_params, with_dead_neurons
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refgba import backends, baselines, gba, sae
from refgba.config import BaselineConfig
from refgba.errors import InputError

pytest.importorskip("numba")
BASELINES = list(pytest.importorskip("refgba.backends.baselines.numba").TRAITS)
BOUND = {"float64": 1e-10, "float32": 1e-5}
ROUNDING = 1e-6  # two ways to sum a y in float32 come apart by less than this share of the largest |y|


def close(ours, theirs, dtype, size=0.0):
    """Whether arrays agree to the bound of their dtype, relative to their entries or to `size` if that is more."""
    scale = max(np.abs(theirs).max(), size, 1e-3)
    assert ours.dtype == theirs.dtype
    assert np.abs(ours - theirs).max() <= BOUND[dtype] * scale


@settings(max_examples=40)
@example(method="l1", dtype="float32", L=23, d=1, M=244, k=1, seed=4)  # b_pre's gradient is all cancellation
@given(
    method=st.sampled_from(BASELINES), dtype=st.sampled_from(["float64", "float32"]), L=st.integers(1, 140),
    d=st.integers(1, 20), M=st.integers(1, 300), k=st.integers(1, 300), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_gradients_and_a_step_are_those_of_the_reference(method, dtype, L, d, M, k, seed):
    rng = np.random.default_rng(seed)
    config = some_config(method, M, k, L, dtype)
    params, x = some_params(rng, config, d), sae.unit_rows(rng.standard_normal((L, d)) + 1e-3).astype(dtype)
    ours, theirs = (backends.load(name, dtype, method) for name in ("numba", "numpy"))
    a, b = ours.init(params, config), theirs.init(params, config)
    fwd = baselines.forward(params, x, config)
    s, on = fwd.s, fwd.y > params.theta - config.bandwidth
    if method == "gated":
        s, on = np.maximum(np.abs(fwd.y), fwd.gate), fwd.gate > 0
    size = gradient_sizes(params, x, config, s, on)
    for name, g in theirs.gradients(b, x).arrays().items():
        close(ours.gradients(a, x).arrays()[name], g, dtype, size[name])
    metrics, expected = ours.step(a, x), theirs.step(b, x)
    assert metrics.l0 == expected.l0
    assert metrics.loss == pytest.approx(expected.loss, rel=BOUND[dtype])
    for name, theta in b.params.arrays().items():  # AdamW makes of an error in g at most lr / eps of it
        close(a.params.arrays()[name], theta, dtype, config.lr / config.adam_eps * size[name])
    assert (a.idle == b.idle).all()
    assert (a.buffer.counts == b.buffer.counts).all()
    np.testing.assert_allclose(a.buffer.peaks, b.buffer.peaks, rtol=BOUND[dtype], atol=BOUND[dtype])


@pytest.mark.parametrize("method", BASELINES)
def test_a_run_with_dead_neurons_is_that_of_the_reference(method):
    (config, X), ends, dead = with_dead_neurons(method, "float64"), [], 0
    for name in ("numba", "numpy"):
        backend = backends.load(name, "float64", method)
        state = backend.init(baselines.random_params(config, 11), config)
        for _ in gba.train(state, gba.minibatches(X, config), backend.step, backend.adapt):
            dead += int((state.idle >= 100).sum())
        ends.append(state)
    assert dead > 0
    for name, theta in ends[1].params.arrays().items():
        np.testing.assert_allclose(ends[0].params.arrays()[name], theta, atol=40 * BOUND["float64"])
    assert (ends[0].last.counts == ends[1].last.counts).all()


def at_edge(y, k):
    """How far the nearest of a row's k largest positive y is from not being one, or another from being one: (L,)."""
    positive = -np.sort(-y.clip(0), axis=1)  # (L, M)   largest first
    if k >= y.shape[1]:
        return np.abs(y).min(axis=1)
    full = positive[:, k - 1] > 0
    return np.where(full, positive[:, k - 1] - positive[:, k], np.abs(y).min(axis=1))


def test_the_edge_of_a_selection_is_where_one_more_or_one_less_would_be_chosen():
    assert at_edge(np.array([[5.0, 3.0, 2.5, -1.0], [4.0, -0.25, -2.0, -3.0]]), 2).tolist() == [0.5, 0.25]
    assert at_edge(np.array([[1.0, 1.0, 1.0, -9.0]]), 2).tolist() == [0.0]
    assert at_edge(np.array([[5.0, 0.5]]), 2).tolist() == [0.5]  # all positive are chosen


def narrowest(before, x):
    """The margin by which the closest selection of a step on rows x is decided, as a share of the largest |y|."""
    config, params = before.config, before.params.astype("float64")
    y, on, _ = baselines.METHODS[config.method].encode(params, x.astype("float64"), config)
    dead = np.where(on.any(axis=0), 0, before.idle + len(x)) >= config.dead_after
    if config.method == "l1":
        margins = [np.abs(y)]
    elif config.method == "gated":
        margins = [np.abs(y), np.abs(gates(params, x))]
    elif config.method == "jumprelu":
        margins = [np.abs(y - params.theta), np.abs(np.abs(y - params.theta) - config.bandwidth / 2)]
    elif config.method == "topk":
        margins = [at_edge(y, config.k)]
    else:  # BatchTopK's selection
        margins = [at_edge(y.reshape(1, -1), config.k * len(x))]
    if config.uses("aux") and dead.any():
        margins.append(at_edge(y[:, dead], config.aux_k))
    return min(margin.min() for margin in margins) / np.abs(y).max()


@pytest.mark.parametrize("method", BASELINES)
def test_in_float32_each_step_of_a_run_with_dead_neurons_is_that_of_the_reference(method):
    # Every step begins from the reference's state: a selection that rounding decides would change all later steps.
    # A step in which one is decided so closely may exceed the bound.  Such steps are few, and no others do.
    config, X = with_dead_neurons(method, "float32", adam_eps=1e-3)  # an update is not 1e8 times a gradient's rounding
    ours, theirs = (backends.load(name, "float32", method) for name in ("numba", "numpy"))
    state, guess, dead, flipped, worst = theirs.init(baselines.random_params(config, 11), config), np.inf, 0, 0, 0.0
    for x in gba.minibatches(X, config):
        before = deepcopy(state)
        fast = replace(ours.restore(deepcopy(before)), guess=guess)  # all that is not the reference's
        metrics, expected = ours.step(fast, x), theirs.step(state, x)
        guess, dead = fast.guess, dead + int((state.idle >= 100).sum())
        error = max(np.abs(fast.params.arrays()[name] - theta).max() for name, theta in state.params.arrays().items())
        same = metrics.l0 == expected.l0 and (fast.buffer.counts == state.buffer.counts).all()
        if same and error <= BOUND["float32"]:
            worst = max(worst, error)
            assert metrics.loss == pytest.approx(expected.loss, rel=BOUND["float32"])
            assert (fast.idle == state.idle).all()
            np.testing.assert_allclose(fast.buffer.peaks, state.buffer.peaks, rtol=0, atol=BOUND["float32"])
        else:
            assert narrowest(before, x) <= ROUNDING, f"step {state.t}: off by {error:.1e}"
            flipped += 1
        if state.t % config.adapt_every == 0:
            theirs.adapt(state)
    print(f"{method}: worst {worst:.1e}; steps with a selection flipped by rounding: {flipped} of {state.t}")
    assert dead > 0
    assert flipped <= 2


@pytest.mark.parametrize("method", BASELINES)
def test_results_do_not_depend_on_the_number_of_threads(method):
    program = f"""if True:
        import hashlib, numpy as np
        from refgba.backends import load
        from refgba import baselines, gba
        from refgba.config import BaselineConfig
        config = BaselineConfig(method="{method}", width=500, k=9, steps=12, batch=150, dead_after=400, dtype="float32")
        backend = load("numba", "float32", "{method}")
        state = backend.init(baselines.random_params(config, 30), config)
        X = np.random.default_rng(0).standard_normal((400, 30))
        for _ in gba.train(state, gba.minibatches(X, config), backend.step, backend.adapt):
            pass
        print([hashlib.sha256(a.tobytes()).hexdigest() for a in state.params.arrays().values()])
    """
    digests = {
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"NUMBA_NUM_THREADS": threads}, capture_output=True,
            text=True, check=True,
        ).stdout
        for threads in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1


def test_a_method_without_a_fast_version_is_refused_by_name():
    from refgba.backends.baselines import numba as fast

    config = BaselineConfig(method="topk", width=9, k=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(fast.TRAITS, "topk")
        with pytest.raises(InputError, match="backend 'numba' has no method topk; numpy has it"):
            fast.init(baselines.random_params(config, 4), config)
