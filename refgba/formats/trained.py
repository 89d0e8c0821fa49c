"""A network trained here as a `Dictionary`, which any format can write."""

from __future__ import annotations

import numpy as np

from refgba import baselines
from refgba.backends.base import AnyConfig, AnyParams
from refgba.config import BaselineConfig, GBAConfig
from refgba.errors import InputError
from refgba.formats.dictionary import Dictionary


def from_params(params: AnyParams, config: AnyConfig) -> Dictionary:
    """A trained network as a `Dictionary` of unit rows: the same codes and reconstructions, to the last bit.

    In GBA, JumpReLU's gate z + b > 0 is z > -b, so a bias is a threshold; with ReLU it is part of the pre-activation.
    InputError, naming the first neuron, where a JumpReLU has a bias above 0: other libraries silently make it a ReLU.
    Algorithm 2 leaves no such bias.
    """
    if isinstance(params, baselines.Params):
        k = config.k if isinstance(config, BaselineConfig) and config.method == "topk" else None
        return Dictionary(
            params.W, params.b, params.theta, params.W_dec, params.b_pre, subtract_b_dec=True, input="unit", k=k
        )
    assert isinstance(config, GBAConfig)
    zero = np.zeros_like(params.b)
    if config.activation == "relu":
        b_enc, threshold = params.b, zero
    else:
        positive = np.flatnonzero(params.b > 0)
        if positive.size:
            raise InputError(
                f"neuron {positive[0]} has the bias {params.b[positive[0]]:.6g} ({positive.size} such neurons); "
                "as a threshold it would be negative, which other libraries take for ReLU"
            )
        b_enc, threshold = zero, 0 - params.b  # not -b: of b = 0 that is -0.0
    W_dec = params.a[:, None] * params.V  # (M, d)
    return Dictionary(params.W, b_enc, threshold, W_dec, params.b_pre, subtract_b_dec=True, input="unit")
