"""The seam: every backend that can run here keeps the contract, and none falls back to another."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import backends
from backends.base import Backend
from refgba import gba, sae
from refgba.config import GBAConfig
from refgba.errors import InputError

CONFIG = GBAConfig(width=12, groups=3, steps=10, batch=16, adapt_every=3, lr=0.01, a_init=0.3, form=0.5, hold=0.9)
USABLE = [name for name, reason in backends.status().items() if reason is None]


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


@pytest.mark.parametrize("untied", [False, True])
def test_ten_steps_with_adaptations_equal_the_reference(backend, untied):
    config = GBAConfig.from_json(CONFIG.to_json().replace('"untied": false', f'"untied": {str(untied).lower()}'))
    X = np.random.default_rng(0).standard_normal((64, 5))
    params = gba.random_params(config, 5)
    reference, state = gba.init(params, config), backend.init(params, config)
    mine = gba.train(state, (backend.put(state, x) for x in gba.minibatches(X, config)), backend.step, backend.adapt)
    for theirs, ours in zip(gba.train(reference, gba.minibatches(X, config)), mine, strict=True):
        assert float(ours.loss) == pytest.approx(theirs.loss, rel=1e-10)
        assert float(ours.l0) == pytest.approx(theirs.l0, rel=1e-10)
    assert state.t == config.steps
    result = backend.params(state).arrays()
    for name, expected in reference.params.arrays().items():
        np.testing.assert_allclose(result[name], expected, rtol=1e-10, atol=1e-13, err_msg=name)
    counters = backend.counters(state)
    assert (counters.rows, counters.counts.tolist()) == (reference.last.rows, reference.last.counts.tolist())
    np.testing.assert_allclose(counters.peaks, reference.last.peaks, rtol=1e-10)
    x = next(gba.minibatches(X, config))
    y, s = backend.encode(state, backend.put(state, x))
    fwd = sae.forward(reference.params, x, config.activation)
    np.testing.assert_allclose(backend.get(y), fwd.y, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(backend.get(s), fwd.s, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(backend.get(backend.decode(state, s)), fwd.f, rtol=1e-10, atol=1e-12)


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
