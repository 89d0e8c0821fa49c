"""The seam: what is there, what cannot run here and why, and that nothing falls back to another.

What backends compute is tests/test_conformance.py's.
"""

from __future__ import annotations

import inspect
import sys

import numpy as np
import pytest
from engines import DTYPES, engine

from refgba import backends
from refgba.backends.base import Backend
from refgba.errors import InputError


@pytest.mark.parametrize("name", [name for name in DTYPES if name != "cupy"])
def test_it_has_every_verb_of_the_contract_with_the_same_parameters(name):
    with engine(name) as backend:
        assert DTYPES[name] == backend.DTYPES
        for verb, function in inspect.getmembers(Backend, inspect.isfunction):
            if not verb.startswith("_"):
                expected = [p for p in inspect.signature(function).parameters if p != "self"]
                assert list(inspect.signature(getattr(backend, verb)).parameters) == expected, verb


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="there is no backend 'abacus'; the backends are numpy, numba, cupy"):
        backends.load("abacus")


def test_an_unusable_backend_is_an_error_with_its_reason(monkeypatch):
    monkeypatch.setattr("refgba.backends.numpy.unusable", lambda: "no abacus on this machine; buy one")
    assert backends.status()["numpy"] == "no abacus on this machine; buy one"
    with pytest.raises(InputError, match="'numpy' cannot run here: no abacus on this machine; buy one"):
        backends.load("numpy")


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [("numba", "numba", "pip install numba threadpoolctl"), ("cupy", "cupy", "'cupy-cuda13x[ctk]' for CUDA 13")],
)
def test_a_missing_package_is_named_with_its_install_line(name, package, install, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    for part in [part for part in sys.modules if part.startswith(f"refgba.backends.{name}")]:
        monkeypatch.delitem(sys.modules, part)
    reason = backends.status()[name]
    assert package in reason
    assert install in reason
    assert "\n" not in reason
    with pytest.raises(InputError, match=f"backend '{name}' cannot run here"):
        backends.load(name)


def test_without_a_driver_cupy_says_so():
    cupy = pytest.importorskip("cupy")
    if cupy.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=r"backend 'cupy' cannot run here: .*no NVIDIA driver and GPU"):
        backends.load("cupy")


def test_a_dtype_that_a_backend_lacks_is_refused():
    with pytest.raises(InputError, match="backend 'numpy' has no dtype bfloat16; it has float64, float32"):
        backends.load("numpy", "bfloat16")


def test_results_do_not_depend_on_the_number_of_threads():
    numba = pytest.importorskip("numba")
    from refgba import gba
    from refgba.config import GBAConfig

    X = np.random.default_rng(0).standard_normal((300, 70))
    config = GBAConfig(width=1100, groups=5, batch=150, steps=12, adapt_every=2, gamma_minus=0.4, a_init=0.1, lr=1e-2)
    results = []
    for threads in (1, 2, numba.config.NUMBA_NUM_THREADS):
        with engine("numba") as backend:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            state = backend.init(gba.random_params(config, 70), config)
            metrics = list(gba.train(state, gba.minibatches(X, config), backend.step, backend.adapt))
            results.append((metrics, backend.params(state), state.codes.dense.copy()))
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert 0 < results[0][2].sum() < results[0][2].size  # dense and sparse blocks
    for metrics, params, _ in results[1:]:
        assert metrics == results[0][0]
        for name, array in params.arrays().items():
            np.testing.assert_array_equal(array, getattr(results[0][1], name))


@pytest.mark.parametrize("name", ["numba", "cupy emulated"])
def test_a_neuron_that_is_no_longer_finite_shows_in_the_loss(name):
    from refgba import gba
    from refgba.config import GBAConfig

    config = GBAConfig(width=40, groups=2, batch=8, steps=4)
    params = gba.random_params(config, 6)
    params.W[3] = np.nan
    with engine(name) as backend:
        state = backend.init(params, config)
        metrics = backend.step(state, backend.put(state, next(gba.minibatches(np.eye(6), config))))
        assert np.isnan(float(metrics.loss))


@pytest.mark.parametrize("name", ["numpy", "numba", "cupy emulated"])
def test_parameters_in_any_memory_order_are_taken(name):
    from dataclasses import replace

    from refgba import gba
    from refgba.config import GBAConfig

    config = GBAConfig(width=40, groups=2, batch=8, steps=4)
    params = gba.random_params(config, 6)
    losses = []
    with engine(name) as backend:
        for given in (params, replace(params, W=np.asfortranarray(params.W))):
            state = backend.init(given, config)
            rows = (backend.put(state, x) for x in gba.minibatches(np.eye(6) + 0.1, config))
            losses.append([float(m.loss) for m in gba.train(state, rows, backend.step, backend.adapt)])
    assert losses[0] == losses[1]
