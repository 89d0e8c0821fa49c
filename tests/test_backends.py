"""The seam: every backend that can run here keeps the contract, and none falls back to another."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest

import backends
from backends.base import Backend
from refgba import gba, sae
from refgba.config import GBAConfig
from refgba.errors import InputError

CONFIG = GBAConfig(
    width=12, groups=3, steps=10, batch=16, adapt_every=3, lr=0.01, a_init=0.3, form=0.5, hold=0.9,
    gamma_minus=0.3, gamma_plus=0.1, floor=0.5, lr_decay=0.5, weight_decay=0.1,
)  # fmt: skip


@pytest.fixture(params=backends.NAMES)
def backend(request):
    reason = backends.status()[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return backends.load(request.param)


def test_it_has_every_verb_of_the_contract_with_the_same_parameters(backend):
    for name, verb in inspect.getmembers(Backend, inspect.isfunction):
        if not name.startswith("_"):
            expected = [p for p in inspect.signature(verb).parameters if p != "self"]
            assert list(inspect.signature(getattr(backend, name)).parameters) == expected, name


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
@pytest.mark.parametrize("untied", [False, True])
def test_ten_steps_with_adaptations_equal_the_reference(backend, untied, activation, dtype):
    config = replace(CONFIG, untied=untied, activation=activation, dtype=dtype)
    near = {"rtol": 1e-10, "atol": 1e-12} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-5}
    X = np.random.default_rng(0).standard_normal((64, 5))
    params = gba.random_params(config, 5)
    reference, state = gba.init(params, config), backend.init(params, config)
    mine = gba.train(state, (backend.put(state, x) for x in gba.minibatches(X, config)), backend.step, backend.adapt)
    for theirs, ours in zip(gba.train(reference, gba.minibatches(X, config)), mine, strict=True):
        np.testing.assert_allclose(float(ours.loss), theirs.loss, **near)
        np.testing.assert_allclose(float(ours.l0), theirs.l0, **near)
    assert state.t == config.steps
    result = backend.params(state).arrays()
    for name, expected in reference.params.arrays().items():
        assert result[name].dtype == dtype
        np.testing.assert_allclose(result[name], expected, **near, err_msg=name)
    counters = backend.counters(state)
    assert (counters.rows, counters.counts.tolist()) == (reference.last.rows, reference.last.counts.tolist())
    np.testing.assert_allclose(counters.peaks, reference.last.peaks, **near)
    x = next(gba.minibatches(X, config))
    device = backend.put(state, x.astype(np.float64))
    y, s = backend.encode(state, device)
    fwd = sae.forward(reference.params, x, activation)
    for ours, theirs in ((y, fwd.y), (s, fwd.s), (backend.decode(state, s), fwd.f)):
        assert backend.get(ours).dtype == dtype
        np.testing.assert_allclose(backend.get(ours), theirs, **near)
    ours, theirs = backend.gradients(state, device).arrays(), sae.gradients(reference.params, x, fwd).arrays()
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, **near, err_msg=name)


def test_counters_are_copies_of_what_was_seen_so_far(backend):
    state = backend.init(gba.random_params(CONFIG, 5), CONFIG)
    batches = gba.minibatches(np.random.default_rng(0).standard_normal((64, 5)), CONFIG)
    backend.step(state, backend.put(state, next(batches)))
    first = backend.counters(state)
    backend.step(state, backend.put(state, next(batches)))
    assert (first.rows, backend.counters(state).rows) == (16, 32)


def test_params_are_copies(backend):
    state = backend.init(gba.random_params(CONFIG, 5), CONFIG)
    backend.params(state).W[:] = 0
    assert backend.params(state).W.any()


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="there is no backend 'abacus'; the backends are numpy"):
        backends.load("abacus")


def test_an_unusable_backend_is_an_error_with_its_reason(monkeypatch):
    monkeypatch.setattr("backends.numpy.unusable", lambda: "no abacus on this machine; buy one")
    assert backends.status()["numpy"] == "no abacus on this machine; buy one"
    with pytest.raises(InputError, match="'numpy' cannot run here: no abacus on this machine; buy one"):
        backends.load("numpy")
