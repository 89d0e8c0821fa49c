"""The baselines on a GPU are the reference's, in the emulation: gradients, steps with AuxK, thresholds, every dtype."""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import islice

import emulated_cupy
import numpy as np
import pytest
from baseline_cases import gradient_sizes, some_config, some_params, with_dead_neurons
from engines import engine
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refgba import backends, baselines, gba, sae
from refgba.backends.baselines.traits import LACKING, TRAITS
from refgba.config import BaselineConfig
from refgba.errors import InputError

BASELINES = [name for name in TRAITS if name not in LACKING["cupy"]]
DTYPES = ["float64", "float32", "tf32", "bfloat16"]
# Of arithmetic, relative to the terms that are summed; in tf32 and bfloat16 factors of products are rounded besides.
BOUND = {"float64": 1e-10, "float32": 1e-5, "tf32": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-8}


everywhere = pytest.mark.parametrize("place", ["cupy emulated", pytest.param("cupy", marks=pytest.mark.gpu)])


@contextmanager
def fast(method, place="cupy emulated"):
    """The backend in the emulation, or on a GPU, and its twin in NumPy."""
    with engine(place) as cupy, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy, "unusable", lambda: None)
        module = pytest.importorskip("refgba.backends.baselines.cupy", exc_type=ImportError)
        patch.setattr(module, "cp", cupy.cp)
        yield module, backends.load("numpy", None, method)


@everywhere
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@settings(max_examples=25)
@example(method="l1", L=23, d=1, M=244, k=1, seed=4)
@given(
    method=st.sampled_from(BASELINES), L=st.integers(1, 70), d=st.integers(1, 20), M=st.integers(1, 200),
    k=st.integers(1, 200), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_gradients_and_a_step_are_those_of_the_reference(place, method, dtype, L, d, M, k, seed):
    rng = np.random.default_rng(seed)
    config = some_config(method, M, k, L, dtype)
    params, x = some_params(rng, config, d), sae.unit_rows(rng.standard_normal((L, d)) + 1e-3).astype(dtype)
    with fast(method, place) as (ours, theirs):
        a, b = ours.init(params, config), theirs.init(params, config)
        rows, wide = ours.put(a, x), params.astype("float64")
        rows64 = x.astype("float64")
        y64 = baselines.forward(wide, rows64, config).y
        size = gradient_sizes(wide, rows64, config, y64, np.ones_like(y64))
        for name, g in theirs.gradients(b, x).arrays().items():
            got = ours.gradients(a, rows).arrays()[name]
            assert got.dtype == g.dtype
            assert np.abs(got - g).max() <= BOUND[dtype] * max(size[name], 1e-3), name
        y, s = ours.encode(a, rows)
        expected_y, expected_s = theirs.encode(b, x)
        np.testing.assert_allclose(ours.get(y), expected_y, rtol=BOUND[dtype], atol=10 * BOUND[dtype])
        np.testing.assert_allclose(ours.get(s), expected_s, rtol=BOUND[dtype], atol=10 * BOUND[dtype])
        f = ours.get(ours.decode(a, s))
        np.testing.assert_allclose(f, theirs.decode(b, expected_s), atol=BOUND[dtype] * max(1, abs(expected_s).sum()))
        for name, theta in ours.params(a).arrays().items():
            assert theta.tobytes() == getattr(params, name).tobytes(), name  # nothing has moved
        metrics, expected = ours.step(a, rows), theirs.step(b, x)
        assert float(metrics.l0) == pytest.approx(expected.l0, rel=1e-6)
        assert float(metrics.loss) == pytest.approx(expected.loss, rel=BOUND[dtype])
        ended = ours.export(a)
        for name, theta in b.params.arrays().items():  # AdamW makes of an error in g at most lr / eps of it
            allowed = BOUND[dtype] * max(np.abs(theta).max(), config.lr / config.adam_eps * size[name], 1e-3)
            assert np.abs(getattr(ended.params, name) - theta).max() <= allowed, name
        assert (ended.idle == b.idle).all()
        assert (ended.buffer.counts == b.buffer.counts).all()
        np.testing.assert_allclose(ended.buffer.peaks, b.buffer.peaks, rtol=BOUND[dtype], atol=BOUND[dtype])


@everywhere
@pytest.mark.parametrize("method", BASELINES)
def test_a_run_with_dead_neurons_is_that_of_the_reference(place, method):
    (config, X), ends, dead = with_dead_neurons(method, "float64"), [], 0
    with fast(method, place) as both:
        for backend in both:
            state = backend.init(baselines.random_params(config, 11), config)
            rows = (backend.put(state, x) for x in gba.minibatches(X, config))
            for _ in gba.train(state, rows, backend.step, backend.adapt):
                pass
            ends.append(backend.export(state))
            dead += int((ends[-1].idle >= 100).sum())
            assert backend.counters(state).rows == ends[-1].last.rows
    assert dead > 0
    for name, theta in ends[1].params.arrays().items():
        np.testing.assert_allclose(ends[0].params.arrays()[name], theta, atol=40 * BOUND["float64"])
    assert (ends[0].last.counts == ends[1].last.counts).all()
    assert (ends[0].idle == ends[1].idle).all()
    assert {name: adam.t for name, adam in ends[0].optimiser.items()} == {
        name: adam.t for name, adam in ends[1].optimiser.items()
    }


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", BASELINES)
def test_each_step_of_a_run_with_dead_neurons_is_nearly_that_of_the_reference(place, method, dtype):
    # Every step begins from the reference's state: a selection that rounding decides would change all later steps.
    config, X = with_dead_neurons(method, dtype, adam_eps=1e-2)
    dead, same, steps = 0, 0, 0
    with fast(method, place) as (ours, theirs):
        reference = replace(config, dtype="float64")
        state = theirs.init(baselines.random_params(reference, 11), reference)
        for x in gba.minibatches(X, reference):
            before = deepcopy(state)
            before.config, before.params = config, before.params.astype(config.master)
            for adam in before.optimiser.values():
                adam.m, adam.v = (a.astype(config.master) for a in (adam.m, adam.v))
            copy = ours.restore(before)
            metrics, expected = ours.step(copy, ours.put(copy, x)), theirs.step(state, x)
            got, dead, steps = ours.export(copy), dead + int((state.idle >= 100).sum()), steps + 1
            pairs = ((got.params.arrays()[name], theta) for name, theta in state.params.arrays().items())
            error = max(np.abs(one - other).max() for one, other in pairs)
            same += float(metrics.l0) == expected.l0 and (got.buffer.counts == state.buffer.counts).all()
            assert float(metrics.loss) == pytest.approx(expected.loss, rel=4 * BOUND[dtype])
            # A selection that rounding decides moves its neuron by its whole gradient: at most lr each.
            assert error <= (3 * config.lr if dtype in ("tf32", "bfloat16") else 10 * BOUND[dtype])
            if state.t % config.adapt_every == 0:
                theirs.adapt(state)
    assert dead > 0
    assert same >= {"float64": steps, "float32": steps - 2}.get(dtype, 0)


@pytest.mark.parametrize("method", ["topk", "batchtopk"])
def test_of_equals_the_first_are_taken_and_no_more_than_there_are_places(method):
    config = BaselineConfig(method=method, width=2100, k=3, batch=4, steps=4, aux=0.0)
    zeros = np.zeros((2100, 8))
    params = baselines.Params(zeros, np.full(2100, 0.5), np.zeros(8), np.eye(2100, 8) + 1, np.zeros(2100))
    params.W_dec = sae.unit_rows(params.W_dec)
    params.b[7] = 2.0
    with fast(method) as (ours, _):
        state = ours.init(params, config)
        ours.step(state, ours.put(state, np.eye(4, 8)))
        counts = ours.export(state).buffer.counts
    # A row has 3 places: 7, which is the largest, then of the equals 0 and 1.  A batch has 12: 7 four times, and then
    # those of its first row.
    expected = {7: 4, 0: 4, 1: 4} if method == "topk" else {7: 4} | {m: 1 for m in [*range(7), 8]}
    assert {int(m): int(counts[m]) for m in np.flatnonzero(counts)} == expected


@pytest.mark.parametrize("method", ["topk", "batchtopk"])
def test_fewer_positive_than_places_are_all_taken(method):
    config = BaselineConfig(method=method, width=50, k=40, batch=5, steps=4, aux=0.0)
    rng = np.random.default_rng(0)
    params = some_params(rng, config, 6)
    params.b -= 0.5
    x = sae.unit_rows(rng.standard_normal((5, 6)))
    with fast(method) as (ours, theirs):
        a, b = ours.init(params, config), theirs.init(params, config)
        metrics, expected = ours.step(a, ours.put(a, x)), theirs.step(b, x)
        assert float(metrics.l0) == expected.l0 < 40
        np.testing.assert_allclose(ours.params(a).theta, b.params.theta, rtol=1e-10)


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_are_the_same_in_every_order_of_the_threads_and_of_a_run_that_goes_on(method, dtype):
    config, X = with_dead_neurons(method, dtype)
    ends = []
    with fast(method) as (ours, _):
        for order, pause in (("forward", None), ("backward", None), ("shuffled", 7)):
            emulated_cupy.emulation.order = order
            state = ours.init(baselines.random_params(config, 11), config)
            for t, x in enumerate(islice(gba.minibatches(X, config), 15)):
                if t == pause:
                    state = ours.restore(deepcopy(ours.export(state)))
                ours.step(state, ours.put(state, x))
            ends.append([array.tobytes() for array in ours.params(state).arrays().values()])
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize("method", BASELINES)
def test_a_step_waits_for_nothing_but_the_counts_that_auxk_needs(method):
    config, X = with_dead_neurons(method, "float32")
    with fast(method) as (ours, _):
        state = ours.init(baselines.random_params(config, 11), config)
        for x in islice(gba.minibatches(X, config), 8):
            rows = ours.put(state, x)
            before = emulated_cupy.emulation.waits
            ours.step(state, rows)
            assert emulated_cupy.emulation.waits - before == ("topk" in method)


def test_rows_of_every_matrix_that_is_multiplied_begin_at_16_bytes():
    for method in BASELINES:
        config, X = with_dead_neurons(method, "bfloat16")
        with fast(method) as (ours, _):
            state = ours.init(baselines.random_params(config, 11), config)
            for x in islice(gba.minibatches(X, config), 6):
                ours.step(state, ours.put(state, x))
            assert emulated_cupy.emulation.unaligned == 0


def test_a_device_that_is_too_small_says_what_would_fit():
    config = BaselineConfig(method="topk", width=4096, k=32, batch=512, dtype="bfloat16")
    with fast("topk") as (ours, _):
        emulated_cupy.Device.mem_info = (2**22, 2**25)
        message = r"the GPU's memory is too small: width 4096, batch 512 and d 256 in bfloat16 need .* would fit"
        with pytest.raises(InputError, match=message):
            ours.init(baselines.random_params(config, 256), config)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_needs_is_what_init_takes(dtype, monkeypatch):
    import emulated_arrays

    taken, allocate = [], emulated_arrays.allocate

    def counted(shape, dtype, *rest):
        taken.append(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return allocate(shape, dtype, *rest)

    monkeypatch.setattr(emulated_arrays, "allocate", counted)
    config = BaselineConfig(method="topk", width=3000, k=32, batch=256, dtype=dtype)
    with fast("topk") as (ours, _):
        ours.init(baselines.random_params(config, 64), config)
        assert sum(taken) + 2**25 == pytest.approx(ours.needs(dtype, 3000, 256, 64), rel=0.01)


def test_a_method_without_a_fast_version_is_refused_by_name():
    config = BaselineConfig(method="topk", width=9, k=2)
    with fast("topk") as (ours, _), pytest.MonkeyPatch.context() as patch:
        patch.delitem(ours.TRAITS, "topk")
        with pytest.raises(InputError, match="backend 'cupy' has no method topk; numpy has it"):
            ours.init(baselines.random_params(config, 4), config)
