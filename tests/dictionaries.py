"""Networks and folders of dictionaries, and what they are held against, for the tests of formats."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from safetensors.numpy import save

from refgba import baselines, gba, recipe, sae
from refgba.config import BaselineConfig, GBAConfig
from refgba.errors import InputError
from refgba.formats import read
from refgba.formats.dictionary import ARRAYS
from refgba.sae import Params, unit_rows

ACTIVATIONS = ["jumprelu", "relu"]


OURS = ["npz", "saelens", "saelens-folded"]  # formats that are read again


PROVENANCE = {"config": {"width": 7}, "refgba": "0.1.0", "data": {"sha256": "ab" * 32, "rows": 100}}


def network(activation="jumprelu", untied=False, dtype="float64", M=7, d=4, seed=0):
    rng = np.random.default_rng(seed)
    params = Params(
        W=unit_rows(rng.standard_normal((M, d))),
        a=rng.standard_normal(M),
        b=-rng.uniform(0, 0.5, M),
        b_pre=0.3 * rng.standard_normal(d),
        W_dec=unit_rows(rng.standard_normal((M, d))) if untied else None,
    )
    config = GBAConfig(width=M, groups=1, activation=activation, untied=untied, dtype=dtype)
    return params.astype(dtype), config


def topk(k=3, dtype="float64", M=7, d=4, seed=0):
    """A TopK network with biases and encoder rows of any norm."""
    rng = np.random.default_rng(seed)
    params = baselines.Params(
        W=rng.standard_normal((M, d)),
        b=0.1 * rng.standard_normal(M),
        b_pre=0.3 * rng.standard_normal(d),
        W_dec=unit_rows(rng.standard_normal((M, d))),
        theta=np.zeros(M),
    )
    return params.astype(dtype), BaselineConfig(method="topk", k=k, width=M, dtype=dtype)


def activations(L, d, seed=1):
    """Rows like a language model's: a few directions with most of the variance, a mean, norms of 2 to 900."""
    rng = np.random.default_rng(seed)
    V = unit_rows(rng.standard_normal((2 * d, d)))
    codes = rng.exponential(size=(L, 2 * d)) * (rng.random((L, 2 * d)) < 6 / d)
    spectrum = 3.0 * np.arange(1, d + 1) ** -0.5
    x = (codes @ V + 0.3 * rng.standard_normal((L, d))) * spectrum + 0.5 * rng.standard_normal(d)
    return (x * np.exp(rng.normal(2, 0.7, (L, 1)))).astype(np.float32)


@cache
def trained(activation, untied, dtype, d=32):
    """A network trained on `activations`, and rows it has not seen."""
    x = activations(8192, d)
    phases = {"form": 0.0, "hold": 1.0} if activation == "relu" else {}  # the recipe's two are made for JumpReLU
    network = {"activation": activation, "untied": untied, "dtype": dtype}
    config = recipe.default(d, width=256, steps=300, batch=256, groups=4, **network, **phases)
    state = gba.init(gba.random_params(config, d), config)
    for _ in gba.train(state, gba.minibatches(x[:4096], config)):
        pass
    return state.params, config, x[4096:]


def same(left, right):
    assert (left.subtract_b_dec, left.input, left.k) == (right.subtract_b_dec, right.input, right.k)
    for name in ARRAYS:
        a, b = getattr(left, name), getattr(right, name)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert (a == b).all(), name


def refused(path):
    """The one line with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def theirs(folder, cfg=None, drop=(), **tensors):
    """A folder of SAELens: of a jumprelu SAE, with these entries of cfg.json and tensors instead, some left out."""
    rng = np.random.default_rng(0)
    given = {
        "W_enc": rng.standard_normal((3, 5)).astype(np.float32),
        "b_enc": rng.standard_normal(5).astype(np.float32),
        "W_dec": rng.standard_normal((5, 3)).astype(np.float32),
        "b_dec": rng.standard_normal(3).astype(np.float32),
        "threshold": rng.random(5).astype(np.float32),
    } | tensors
    settings = {
        "architecture": "jumprelu",
        "d_in": 3,
        "d_sae": 5,
        "dtype": "float32",
        "metadata": {"sae_lens_version": "6.54.12"},
    } | (cfg or {})
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({name: v for name, v in settings.items() if name not in drop}))
    (folder / "sae_weights.safetensors").write_bytes(save({name: v for name, v in given.items() if name not in drop}))
    return given


def agrees(params, config, rows, codes, reconstructions, near):
    """Codes (L, M) and reconstructions (L, d) of unit rows are the network's: no gate flipped, 1e-4 apart at most.

    Rounding may flip a gate whose pre-activation is within `near` of 0.
    """
    y, on, s = sae.encode(params, unit_rows(rows.astype(params.W.dtype)), config.activation)
    f = sae.decode(params, s)
    flipped = (codes > 0) != on
    assert on.any()
    assert not flipped[np.abs(y) > near].any()
    off = np.abs(codes - s)[~flipped].max() / s.max(), np.abs(reconstructions - f).max() / np.abs(f).max()
    print(f"{flipped.sum()} of {on.size} gates flipped, L0 {on.sum() / len(on):.1f}; codes, rows apart: {off}")
    assert max(off) < 1e-4


CASES = [
    pytest.param(activation, untied, dtype, id=f"{activation}-{'untied' if untied else 'tied'}-{dtype}")
    for activation in ACTIVATIONS
    for untied in (False, True)
    for dtype in ("float32", "float64")
]


NEAR = {"float32": 2e-6, "float64": 1e-14}
