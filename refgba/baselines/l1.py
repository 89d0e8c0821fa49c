"""L1: every positive y is a code, and each code costs λ = `sparsity`.

    s = max(y, 0) ,        loss = 1/2 ||r||² + λ Σ_m s_m

Bricken et al. 2023, "Towards Monosemanticity".  Their penalty is λ Σ_m s_m ||v_m||.  Here ||v_m|| = 1, and the part of
its gradient in v_m would be along v_m, which a step removes (`training.across`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refgba.baselines.facts import OWN, TWINS, Config, configured, exported, extended, extension, groups, parameters
from refgba.baselines.method import Description
from refgba.baselines.network import Forward, Params, backward, decode, pre_activations, random_params
from refgba.baselines.training import State, adapt, count, init, move, optimised, record
from refgba.gba import Metrics
from refgba.types import Array, Mask

__all__ = [
    "OWN", "TWINS", "Config", "Params", "State", "adapt", "configure", "decode", "description", "encode",
    "evaluation_codes", "exported", "extended", "extension", "forward", "gradients", "groups", "init", "optimised",
    "parameters", "penalty", "random_params", "step",
]  # fmt: skip


def encode(params: Params, x: Array, config: Config, training: bool = True) -> tuple[Array, Mask, Array]:
    """Pre-activations y, who is active, and codes s of rows x (L, d), each (L, M)."""
    y = pre_activations(params, x)
    on = y > 0
    return y, on, on * y


def evaluation_codes(params: Params, x: Array, config: Config) -> tuple[Array, Array]:
    """y, which is positive exactly where a neuron is active, and codes s of rows x (L, d), each (L, M)."""
    y, _, s = encode(params, x, config)
    return y, s


def forward(params: Params, x: Array, config: Config, training: bool = True) -> Forward:
    """The network on rows x (L, d)."""
    y, on, s = encode(params, x, config, training)
    return Forward(y, on, s, decode(params, s))


def penalty(params: Params, fwd: Forward, config: Config) -> float:
    """λ Σ_m s_m, mean over the batch."""
    return config.sparsity * float(np.mean(np.sum(fwd.s, axis=1)))


def gradients(params: Params, x: Array, fwd: Forward, config: Config) -> Params:
    """The gradients of the loss at rows x (L, d), as a `Params`.

        dL/dy_m = (v_m · r + λ) on_m
        dL/dv_m = s_m r

    averaged over the batch; `network.backward` has the others.
    """
    r = fwd.f - x  # (L, d)
    dy = (r @ params.W_dec.T + config.sparsity) * fwd.on  # (L, M)
    return backward(params, x, r, dy, dV=fwd.s.T @ r)


def step(state: State, x: Array) -> Metrics:
    """One step on a minibatch x (L, d) of unit rows, in the dtype of the run."""
    params, config = state.params, state.config
    fwd = forward(params, x, config)
    count(state, fwd)
    move(state, gradients(params, x, fwd, config))
    return record(state, x, fwd)


def configure(d: int, recipe: str, **settings: Any) -> Config:
    """The settings of a run on rows of d dimensions; the recipes, which are GBA's, do not matter."""
    return configured("l1", d, settings)


def description(config: Config, recipe: str | None) -> Description:
    """What a report says of a run."""
    return Description(f"l1, sparsity {config.sparsity:.6g}")
