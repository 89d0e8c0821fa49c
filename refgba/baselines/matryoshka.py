"""Matryoshka: a BatchTopK whose first neurons reconstruct alone, so that they learn what is general.

    f_p(x) = Σ_{m < M_p} s_m v_m + b_pre ,      r_p = f_p(x) - x ,      p = 1..P ,      M_P = M
    s as in BatchTopK ,        loss = Σ_p 1/2 ||r_p||² + AuxK

Bussmann et al. 2025, arXiv 2503.17547.  The P nested prefixes of the dictionary, `prefixes`, share one selection, and
AuxK sees what the whole dictionary leaves over.  Inference is BatchTopK's, with its threshold and all neurons.

A prefix is half of the next, M_p = ⌈M / 2^(P - p)⌉: with 5 of them M/16, M/8, M/4, M/2 and M.  Theirs nearly are: of
65,536 neurons 2048, 6144, 14,336, 30,720 and all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refgba.baselines import batchtopk
from refgba.baselines.auxk import Aux, add_gradients, aux_loss, auxiliary
from refgba.baselines.batchtopk import averaged, evaluation_codes
from refgba.baselines.facts import OWN, TWINS, Config, configured, exported, extended, extension, groups, parameters
from refgba.baselines.method import Description
from refgba.baselines.network import Forward, Params, backward, decode, random_params
from refgba.baselines.training import State, adapt, count, init, move, optimised, record
from refgba.gba import Metrics
from refgba.types import Array, Mask

__all__ = [
    "OWN", "TWINS", "Config", "Params", "State", "adapt", "configure", "decode", "description", "encode",
    "evaluation_codes", "exported", "extended", "extension", "forward", "gradients", "groups", "init", "optimised",
    "parameters", "penalty", "random_params", "step",
]  # fmt: skip


@dataclass
class Nested(Forward):
    """A forward pass with what each prefix leaves over: r (P, L, d), r_p = f_p - x, the last that of all neurons."""

    r: Array


def encode(params: Params, x: Array, config: Config, training: bool = True) -> tuple[Array, Mask, Array]:
    """Pre-activations y, who is active, and codes s of rows x (L, d), each (L, M): BatchTopK's."""
    return batchtopk.encode(params, x, config, training)


def forward(params: Params, x: Array, config: Config, training: bool = True) -> Nested:
    """The network on rows x (L, d), prefix by prefix: f_p = f_{p-1} + Σ_{M_{p-1} <= m < M_p} s_m v_m."""
    y, on, s = encode(params, x, config, training)
    r: list[Array] = []
    left, start = params.b_pre - x, 0
    for end in config.ends()[:-1]:
        left = left + s[:, start:end] @ params.W_dec[start:end]  # (L, d)
        r.append(left)
        start = end
    f = decode(params, s)
    return Nested(y, on, s, f, np.stack([*r, f - x]))


def penalty(params: Params, fwd: Nested, config: Config, aux: Aux | None = None) -> float:
    """Σ_{p < P} 1/2 ||r_p||², mean over the batch, and AuxK's part: all but what the whole dictionary leaves over."""
    inner = 0.5 * float(np.mean(np.sum(fwd.r[:-1] ** 2, axis=(0, 2))))
    return inner + (0.0 if aux is None else aux_loss(params, aux))


def gradients(params: Params, x: Array, fwd: Nested, config: Config, aux: Aux | None = None) -> Params:
    """The gradients of the loss at rows x (L, d), as a `Params`; none goes through the selection.

    A neuron is in every prefix from the first that reaches it, p(m), so it sees the sum of what those leave over:

        R_p = Σ_{q >= p} r_q
        dL/dy_m = (v_m · R_p(m)) on_m
        dL/dv_m = s_m R_p(m)

    averaged over the batch, and b_pre, which is in all of them, sees R_1.  `add_gradients` has AuxK's part,
    `network.backward` the other gradients.
    """
    R = np.cumsum(fwd.r[::-1], axis=0)[::-1]  # (P, L, d)
    dy, dV, start = np.empty_like(fwd.y), np.empty_like(params.W_dec), 0
    for end, left in zip(config.ends(), R, strict=True):
        own = slice(start, end)
        dy[:, own] = (left @ params.W_dec[own].T) * fwd.on[:, own]
        dV[own] = fwd.s[:, own].T @ left
        start = end
    if aux is not None:
        add_gradients(params, aux, dy, dV)
    return backward(params, x, R[0], dy, dV)


def step(state: State, x: Array) -> Metrics:
    """One step on a minibatch x (L, d) of unit rows, in the dtype of the run."""
    params, config = state.params, state.config
    fwd = forward(params, x, config)
    count(state, fwd)
    aux = auxiliary(x, fwd, config, dead=state.idle >= config.dead_after)
    move(state, gradients(params, x, fwd, config, aux))
    smallest = float(fwd.s[fwd.on].min()) if fwd.on.any() else 0.0
    params.theta = averaged(params.theta, smallest, config, state.t)
    return record(state, x, fwd)


def configure(d: int, recipe: str, **settings: Any) -> Config:
    """The settings of a run on rows of d dimensions; the recipes, which are GBA's, do not matter."""
    return configured("matryoshka", d, settings)


def description(config: Config, recipe: str | None) -> Description:
    """What a report says of a run."""
    return Description(
        f"matryoshka, k {config.k}, prefixes of {', '.join(f'{end:,}' for end in config.ends())} neurons"
    )
