"""AuxK: which codes dead neurons get, and that it revives them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from baseline_cases import CHOOSING, QUICK, config_of, fvu, random_case, synthetic

from refgba import baselines, gba
from refgba.baselines import forward
from refgba.baselines.auxk import auxiliary
from refgba.sae import unit_rows


def test_dead_neurons_of_auxk_are_the_largest_of_the_dead_and_no_others():
    config, params, x, _ = random_case("topk", 6, 5, 8, 1)
    dead = np.arange(8) >= 3
    config = replace(config, aux_k=2)
    fwd = forward(params, x, config)
    aux = auxiliary(x, fwd, config, dead)
    assert aux.dead.tolist() == [3, 4, 5, 6, 7]
    for row, codes in zip(fwd.y[:, 3:], aux.s, strict=True):
        assert sorted(codes[codes != 0]) == sorted(row[row > 0])[-2:]
    half = auxiliary(x, fwd, replace(config, aux_k=0, width=8), dead)  # d/2 = 2
    assert (half.s == aux.s).all()


@pytest.mark.parametrize("method", CHOOSING)
def test_auxk_revives_the_dead(method):
    # Eight neurons for 40 features; 40 more whose y is positive, but never among the largest.
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
