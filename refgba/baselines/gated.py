"""Gated: one path decides which neurons are active and another how strongly, along the same direction.

    π_m = w_m · (x - b_pre) + b_m                  the gate
    y_m = e^{ρ_m} w_m · (x - b_pre) + c_m          the magnitude
    s = y 1{π > 0, y > 0}
    loss = 1/2 ||r||² + λ Σ_m max(π_m, 0) + 1/2 ||r_g||² ,      r_g = Σ_m max(π_m, 0) v_m + b_pre - x

Rajamanoharan et al. 2024, arXiv 2404.16014.  λ is `sparsity`, ρ is `r_mag` and c is `b_mag`.  λ shrinks the gates and
leaves the codes alone.  No gradient goes through 1{π > 0}; the last term, in which v_m and b_pre of the decoder are
constants, teaches the gates which features are there.

With tied directions the gate is a threshold, as they say: π_m > 0 is y_m > θ_m with θ_m = c_m - e^{ρ_m} b_m.  So a
trained network is a JumpReLU, which is how inference and other libraries take it (`exported`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from refgba.baselines import network
from refgba.baselines.facts import OWN, TWINS, Config, configured, extended, extension, groups
from refgba.baselines.method import Description, Exported
from refgba.baselines.network import Forward, backward, decode, pre_activations
from refgba.baselines.training import WEIGHTS, State, adapt, count, move, record, starting_state
from refgba.gba import Metrics
from refgba.types import Array, Mask

__all__ = [
    "OWN", "TWINS", "Config", "Params", "State", "adapt", "configure", "decode", "description", "encode",
    "evaluation_codes", "exported", "extended", "extension", "forward", "gradients", "groups", "init", "optimised",
    "parameters", "penalty", "random_params", "step",
]  # fmt: skip


@dataclass
class Params(network.Params):
    """The parameters of the network, b those of the gates, and the magnitudes' own: ρ and c, `r_mag` and `b_mag`, (M,).

    The thresholds `theta` stay 0, and nothing reads them.
    """

    r_mag: Array
    b_mag: Array


@dataclass
class Gated(Forward):
    """A forward pass, whose y are the magnitudes, with what the gates alone reconstruct.

    gate: (L, M) max(π, 0).  left: (L, d) r_g.
    """

    gate: Array
    left: Array


def random_params(config: Config, d: int) -> Params:
    """The parameters before the first step: random unit w_m, v_m = w_m, all others 0, so that gate and code are one."""
    zero = np.zeros(config.width, config.master)
    return Params(**network.random_params(config, d).arrays(), r_mag=zero, b_mag=zero.copy())


def encode(params: Params, x: Array, config: Config, training: bool = True) -> tuple[Array, Mask, Array]:
    """Magnitudes y, who is active, and codes s of rows x (L, d), each (L, M).

    In training by both paths, in inference by the thresholds that the gates are; the two differ by rounding.
    """
    if training:
        gate = pre_activations(params, x)  # (L, M)   π
        y = np.exp(params.r_mag) * (gate - params.b) + params.b_mag
        on = (gate > 0) & (y > 0)
    else:
        as_jumprelu = exported(params, config)
        y = (x - as_jumprelu.b_dec) @ as_jumprelu.W_enc.T + as_jumprelu.b_enc
        on = y > as_jumprelu.threshold
    return y, on, on * y


def evaluation_codes(params: Params, x: Array, config: Config) -> tuple[Array, Array]:
    """By how much y exceeds its threshold, and the codes s of inference on rows x (L, d), each (L, M)."""
    y, _, s = encode(params, x, config, training=False)
    return y - exported(params, config).threshold, s


def forward(params: Params, x: Array, config: Config, training: bool = True) -> Gated:
    """The network on rows x (L, d), and what its gates alone reconstruct."""
    y, on, s = encode(params, x, config, training)
    gate = np.maximum(pre_activations(params, x), 0)
    return Gated(y, on, s, decode(params, s), gate, decode(params, gate) - x)


def penalty(params: Params, fwd: Gated, config: Config) -> float:
    """λ Σ_m max(π_m, 0) + 1/2 ||r_g||², mean over the batch."""
    reconstruction = 0.5 * float(np.mean(np.sum(fwd.left**2, axis=1)))
    return config.sparsity * float(np.mean(np.sum(fwd.gate, axis=1))) + reconstruction


def gradients(params: Params, x: Array, fwd: Gated, config: Config) -> Params:
    """The gradients of the loss at rows x (L, d), as a `Params`.

        dL/dy_m = (v_m · r) on_m                        dL/dπ_m = (v_m · r_g + λ) 1{π_m > 0}
        dL/dw_m = (e^{ρ_m} dL/dy_m + dL/dπ_m) (x - b_pre)
        dL/db_m = dL/dπ_m ,      dL/dc_m = dL/dy_m ,      dL/dρ_m = dL/dy_m (y_m - c_m) ,      dL/dv_m = s_m r

    averaged over the batch; `network.backward` has that of b_pre.
    """
    r = fwd.f - x  # (L, d)
    dy = (r @ params.W_dec.T) * fwd.on  # (L, M)
    dgate = (fwd.left @ params.W_dec.T + config.sparsity) * (fwd.gate > 0)  # (L, M)
    grads = backward(params, x, r, np.exp(params.r_mag) * dy + dgate, dV=fwd.s.T @ r)
    own = {
        "b": dgate.mean(axis=0),
        "r_mag": np.mean(dy * (fwd.y - params.b_mag), axis=0),
        "b_mag": dy.mean(axis=0),
    }
    return Params(**grads.arrays() | own)


def parameters(config: Config, t: int) -> tuple[str, ...]:
    """The arrays that a network has after step t: all of them, always."""
    return tuple(f.name for f in fields(Params))


def optimised(config: Config, t: int) -> tuple[str, ...]:
    """The parameters that have moments of AdamW after step t: those of the magnitudes too."""
    return (*WEIGHTS, "r_mag", "b_mag")


def init(params: Params, config: Config) -> State:
    """The state before the first step; the arrays of `params` are not shared with it."""
    return starting_state(params, config, optimised(config, 0))


def step(state: State, x: Array) -> Metrics:
    """One step on a minibatch x (L, d) of unit rows, in the dtype of the run."""
    params: Any = state.params
    fwd = forward(params, x, state.config)
    count(state, fwd)
    move(state, gradients(params, x, fwd, state.config))
    return record(state, x, fwd)


def exported(params: Params, config: Config) -> Exported:
    """The network as a JumpReLU: rows e^{ρ_m} w_m, biases c_m, thresholds max(c_m - e^{ρ_m} b_m, 0)."""
    scale = np.exp(params.r_mag)  # (M,)
    threshold = np.maximum(params.b_mag - scale * params.b, 0)
    return Exported(scale[:, None] * params.W, params.b_mag, threshold, params.W_dec, params.b_pre)


def configure(d: int, recipe: str, **settings: Any) -> Config:
    """The settings of a run on rows of d dimensions; the recipes, which are GBA's, do not matter."""
    return configured("gated", d, settings)


def description(config: Config, recipe: str | None) -> Description:
    """What a report says of a run."""
    return Description(f"gated, sparsity {config.sparsity:.6g}")
