"""JumpReLU: each neuron has a trained threshold that y has to exceed, and each active neuron costs λ = `sparsity`.

    s = y 1{y > θ} ,        loss = 1/2 ||r||² + λ Σ_m 1{y_m > θ_m}

Rajamanoharan et al. 2024, arXiv 2407.14435.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refgba.baselines.facts import OWN, TWINS, Config, configured, exported, extended, extension, groups, parameters
from refgba.baselines.method import Description
from refgba.baselines.network import Forward, Params, backward, decode, pre_activations, starting_params
from refgba.baselines.training import WEIGHTS, State, adapt, count, move, record, starting_state
from refgba.gba import Metrics
from refgba.types import Array, Mask

__all__ = [
    "OWN", "TWINS", "Config", "Params", "State", "adapt", "configure", "decode", "description", "encode",
    "evaluation_codes", "exported", "extended", "extension", "forward", "gradients", "groups", "init", "optimised",
    "parameters", "penalty", "random_params", "step",
]  # fmt: skip


def random_params(config: Config, d: int) -> Params:
    """The parameters before the first step: random unit w_m, v_m = w_m, biases 0, thresholds at `theta_init`."""
    return starting_params(config, d, config.theta_init)


def encode(params: Params, x: Array, config: Config, training: bool = True) -> tuple[Array, Mask, Array]:
    """Pre-activations y, who is active, and codes s of rows x (L, d), each (L, M).

    The magnitude that passes is y: the threshold is not taken off.
    """
    y = pre_activations(params, x)
    on = y > params.theta
    return y, on, on * y


def evaluation_codes(params: Params, x: Array, config: Config) -> tuple[Array, Array]:
    """By how much y exceeds its threshold, and codes s of rows x (L, d), each (L, M)."""
    y, _, s = encode(params, x, config)
    return y - params.theta, s


def forward(params: Params, x: Array, config: Config, training: bool = True) -> Forward:
    """The network on rows x (L, d)."""
    y, on, s = encode(params, x, config, training)
    return Forward(y, on, s, decode(params, s))


def penalty(params: Params, fwd: Forward, config: Config) -> float:
    """λ Σ_m 1{y_m > θ_m}, mean over the batch."""
    return config.sparsity * np.count_nonzero(fwd.on) / len(fwd.on)


def gradients(params: Params, x: Array, fwd: Forward, config: Config) -> Params:
    """The gradients of the loss at rows x (L, d), as a `Params`; y gets none through the jump.

        dL/dy_m = (v_m · r) on_m
        dL/dv_m = s_m r
        dL/dθ_m = -(θ_m v_m · r + λ) K((y_m - θ_m) / ε) / ε          K(u) = 1{|u| < 1/2}

    averaged over the batch; `network.backward` has the others.

    The last line is no derivative: the loss is a staircase in θ.  It estimates that of the *expected* loss, to which
    only rows with y_m at θ_m contribute, by those within half a bandwidth ε of it (their section 4).  K sees y, on both
    sides of θ_m, as in their equations; dictionary_learning's L0 term looks at the codes, which are 0 below it.
    """
    r = fwd.f - x  # (L, d)
    vr = r @ params.W_dec.T  # (L, M)   v_m · r
    grads = backward(params, x, r, vr * fwd.on, dV=fwd.s.T @ r)
    near = np.abs(fwd.y - params.theta) < config.bandwidth / 2  # (L, M)   K
    share = np.count_nonzero(near, axis=0) / len(x)  # (M,)   mean of K
    grads.theta -= params.theta * np.mean(near * vr, axis=0) / config.bandwidth
    grads.theta -= config.sparsity * (share / config.bandwidth).astype(grads.theta.dtype)
    return grads


def optimised(config: Config, t: int) -> tuple[str, ...]:
    """The parameters that have moments of AdamW after step t: the thresholds too."""
    return (*WEIGHTS, "theta")


def init(params: Params, config: Config) -> State:
    """The state before the first step; the arrays of `params` are not shared with it."""
    return starting_state(params, config, optimised(config, 0))


def step(state: State, x: Array) -> Metrics:
    """One step on a minibatch x (L, d) of unit rows, in the dtype of the run."""
    params, config = state.params, state.config
    fwd = forward(params, x, config)
    count(state, fwd)
    move(state, gradients(params, x, fwd, config))
    params.theta = np.maximum(params.theta, 0)  # a code is never negative
    return record(state, x, fwd)


def configure(d: int, recipe: str, **settings: Any) -> Config:
    """The settings of a run on rows of d dimensions; the recipes, which are GBA's, do not matter."""
    return configured("jumprelu", d, settings)


def description(config: Config, recipe: str | None) -> Description:
    """What a report says of a run."""
    return Description(f"jumprelu, sparsity {config.sparsity:.6g}")
