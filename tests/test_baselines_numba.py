"""The fast baselines are the reference's: gradients, steps with AuxK and thresholds, whatever the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgba import backends, baselines, gba, sae
from refgba.config import BaselineConfig, Method

pytest.importorskip("numba")
METHODS = get_args(Method)
BOUND = {"float64": 1e-10, "float32": 1e-5}


def close(ours, theirs, dtype):
    scale = max(np.abs(theirs).max(), 1e-3)
    assert ours.dtype == theirs.dtype
    assert np.abs(ours - theirs).max() <= BOUND[dtype] * scale


def some_params(rng, config, d):
    M = config.width
    W = rng.standard_normal((M, d)) / np.sqrt(d)
    V = sae.unit_rows(rng.standard_normal((M, d)))
    theta = np.abs(rng.standard_normal(M)) / 5 if config.method == "jumprelu" else np.zeros(M)
    params = baselines.Params(W, rng.standard_normal(M) / 5, rng.standard_normal(d) / 5, V, theta)
    return params.astype(config.master)


@settings(max_examples=40)
@given(
    method=st.sampled_from(METHODS), dtype=st.sampled_from(["float64", "float32"]), L=st.integers(1, 140),
    d=st.integers(1, 20), M=st.integers(1, 300), k=st.integers(1, 300), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_gradients_and_a_step_are_those_of_the_reference(method, dtype, L, d, M, k, seed):
    rng = np.random.default_rng(seed)
    config = BaselineConfig(
        method=method, width=M, k=min(k, M), batch=L, steps=9, sparsity=0.1, bandwidth=0.3, weight_decay=0.1, lr=0.01,
        adam_eps=1e-3, dtype=dtype,
    )  # fmt: skip
    params, x = some_params(rng, config, d), sae.unit_rows(rng.standard_normal((L, d)) + 1e-3).astype(dtype)
    ours, theirs = (backends.load(name, dtype, method) for name in ("numba", "numpy"))
    a, b = ours.init(params, config), theirs.init(params, config)
    for name, g in theirs.gradients(b, x).arrays().items():
        close(ours.gradients(a, x).arrays()[name], g, dtype)
    told, expected = ours.step(a, x), theirs.step(b, x)
    assert told.l0 == expected.l0
    assert told.loss == pytest.approx(expected.loss, rel=BOUND[dtype])
    for name, theta in b.params.arrays().items():
        close(a.params.arrays()[name], theta, dtype)
    assert (a.idle == b.idle).all()
    assert (a.buffer.counts == b.buffer.counts).all()
    np.testing.assert_allclose(a.buffer.peaks, b.buffer.peaks, rtol=BOUND[dtype], atol=BOUND[dtype])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_dead_neurons_is_that_of_the_reference(method, dtype):
    config = BaselineConfig(
        method=method, width=60, k=5, steps=40, batch=33, lr=0.02, sparsity=0.05, bandwidth=0.1, theta_init=0.05,
        dead_after=100, aux=0.5, aux_k=6, dtype=dtype,
    )  # fmt: skip
    X, ends, dead = np.random.default_rng(0).standard_normal((200, 11)), [], 0
    for name in ("numba", "numpy"):
        backend = backends.load(name, dtype, method)
        state = backend.init(baselines.random_params(config, 11), config)
        for _ in gba.train(state, gba.minibatches(X, config), backend.step, backend.adapt):
            dead += int((state.idle >= 100).sum())
        ends.append(state)
    assert dead > 0
    for name, theta in ends[1].params.arrays().items():
        np.testing.assert_allclose(ends[0].params.arrays()[name], theta, atol=40 * BOUND[dtype])
    if dtype == "float64":
        assert (ends[0].last.counts == ends[1].last.counts).all()


@pytest.mark.parametrize("method", METHODS)
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
    told = {
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"NUMBA_NUM_THREADS": threads}, capture_output=True,
            text=True, check=True,
        ).stdout
        for threads in ("1", "2")
    }  # fmt: skip
    assert len(told) == 1
