"""What only a GPU can show of backends/cupy.py: `make gpu`.  What it computes is tests/test_conformance.py's."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from engines import engine

from refgba import gba
from refgba.config import GBAConfig
from refgba.data.prefetch import prefetched
from refgba.errors import InputError
from refgba.sae import Params

pytestmark = pytest.mark.gpu

CONFIG = GBAConfig(width=32768, groups=10, batch=4096, steps=40, adapt_every=100, dtype="bfloat16", a_init=0.02)


@pytest.fixture
def cupy():
    with engine("cupy") as backend:
        yield backend


def parameters(M, d):
    W = np.random.default_rng(0).standard_normal((M, d), np.float32)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    return Params(W, np.full(M, 0.01, np.float32), np.full(M, -0.05, np.float32), np.zeros(d, np.float32))


def test_a_step_returns_before_the_device_is_done(cupy):
    state = cupy.init(parameters(32768, 1024), CONFIG)
    x = np.random.default_rng(1).standard_normal((4096, 1024), np.float32) / 32
    rows = cupy.put(state, x)
    float(cupy.step(state, rows).loss)  # kernels are loaded, cuBLAS has chosen
    start = time.perf_counter()
    for _ in range(20):
        metrics = cupy.step(state, rows)
    launched = time.perf_counter() - start
    float(metrics.loss)
    assert launched < 0.5 * (time.perf_counter() - start)


def test_prefetched_batches_arrive_whole(cupy):
    X = np.random.default_rng(2).standard_normal((50_000, 1024), np.float32)
    config = replace(CONFIG, dtype="float64", width=64, groups=1)
    state = cupy.init(gba.random_params(config, 1024), config)
    p = cupy.params(state)
    for x, rows in zip(
        gba.minibatches(X, config), prefetched(cupy.put(state, x) for x in gba.minibatches(X, config)), strict=True
    ):
        y, _ = cupy.encode(state, rows)
        np.testing.assert_allclose(cupy.get(y), (x - p.b_pre) @ p.W.T + p.b, atol=1e-12)


def test_two_runs_are_equal_to_the_bit(cupy):
    X = np.random.default_rng(3).standard_normal((10_000, 512), np.float32)
    config = replace(CONFIG, width=4096, batch=1024, adapt_every=5)
    results = []
    for _ in range(2):
        state = cupy.init(gba.random_params(config, 512), config)
        rows = prefetched(cupy.put(state, x) for x in islice(gba.minibatches(X, config), 20))
        losses = [float(m.loss) for m in gba.train(state, rows, cupy.step, cupy.adapt)]
        results.append((losses, cupy.params(state).W))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_a_million_neurons_fit(cupy):
    config = replace(CONFIG, width=2**20, lr=1e-6)  # Adam moves all that many at once: a larger step goes too far
    needed, free = cupy.memory.needs("bfloat16", 2**20, 4096, 1536), cupy.cp.cuda.Device().mem_info[0]
    if free < needed:
        pytest.skip(f"{needed / 2**30:.0f} GiB are needed, {free / 2**30:.0f} GiB free")
    some = parameters(2**16, 1536)  # over and over: to draw a million takes most of a minute
    state = cupy.init(Params(**{k: np.concatenate([A] * 16) for k, A in some.arrays().items() if k != "b_pre"},
                             b_pre=some.b_pre), config)  # fmt: skip
    x = np.random.default_rng(4).standard_normal((4096, 1536), np.float32)
    rows = cupy.put(state, x / np.linalg.norm(x, axis=1, keepdims=True))
    losses = [float(cupy.step(state, rows).loss) for _ in range(3)]
    taken = free - cupy.cp.cuda.Device().mem_info[0]
    assert losses[2] < losses[0]
    assert taken < needed + 2**30


def test_a_run_that_does_not_fit_says_what_would(cupy):
    config = replace(CONFIG, width=2**16, batch=2**24)
    with pytest.raises(InputError, match=r"the GPU's memory is too small: .* need .* GiB are free; .* would fit"):
        cupy.init(parameters(2**16, 64), config)
    assert float(cupy.step(*_small(cupy)).loss) > 0  # and the next that fits, runs


def _small(cupy):
    config = replace(CONFIG, width=256, batch=64)
    state = cupy.init(parameters(256, 64), config)
    return state, cupy.put(state, np.random.default_rng(5).standard_normal((64, 64), np.float32))
