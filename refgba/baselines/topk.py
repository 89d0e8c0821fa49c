"""TopK: of each row the k largest y are codes, as far as they are positive; nothing is penalised.

    s = y of the k largest positive ,        loss = 1/2 ||r||² + AuxK

Gao et al. 2024, arXiv 2406.04093, with AuxK against dead neurons, which is in `auxk`.
"""

from __future__ import annotations

from typing import Any

from refgba.baselines.auxk import Aux, add_gradients, aux_loss, auxiliary
from refgba.baselines.facts import OWN, TWINS, Config, configured, extended, extension, groups, parameters
from refgba.baselines.method import Description, Exported
from refgba.baselines.network import Forward, Params, backward, decode, largest, pre_activations, random_params, signed
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
    on = largest(y, config.k)
    return y, on, on * y


def evaluation_codes(params: Params, x: Array, config: Config) -> tuple[Array, Array]:
    """y where a neuron is active, elsewhere at most 0, and the codes s of rows x (L, d), each (L, M).

    By how much a y exceeds what it has to would depend on the row's other neurons.
    """
    y, on, s = encode(params, x, config)
    return signed(y, on), s


def forward(params: Params, x: Array, config: Config, training: bool = True) -> Forward:
    """The network on rows x (L, d)."""
    y, on, s = encode(params, x, config, training)
    return Forward(y, on, s, decode(params, s))


def penalty(params: Params, fwd: Forward, config: Config, aux: Aux | None = None) -> float:
    """AuxK's part of the loss; without dead neurons there is none."""
    return 0.0 if aux is None else aux_loss(params, aux)


def gradients(params: Params, x: Array, fwd: Forward, config: Config, aux: Aux | None = None) -> Params:
    """The gradients of the loss at rows x (L, d), as a `Params`; none goes through the selection.

        dL/dy_m = (v_m · r) on_m
        dL/dv_m = s_m r

    averaged over the batch.  `add_gradients` has AuxK's part, `network.backward` the other gradients.
    """
    r = fwd.f - x  # (L, d)
    dy = (r @ params.W_dec.T) * fwd.on  # (L, M)
    dV = fwd.s.T @ r  # (M, d)
    if aux is not None:
        add_gradients(params, aux, dy, dV)
    return backward(params, x, r, dy, dV)


def step(state: State, x: Array) -> Metrics:
    """One step on a minibatch x (L, d) of unit rows, in the dtype of the run."""
    params, config = state.params, state.config
    fwd = forward(params, x, config)
    count(state, fwd)
    aux = auxiliary(x, fwd, config, dead=state.idle >= config.dead_after)
    move(state, gradients(params, x, fwd, config, aux))
    return record(state, x, fwd)


def exported(params: Params, config: Config) -> Exported:
    """The network as others write a TopK: k, and no thresholds."""
    return Exported(params.W, params.b, params.theta, params.W_dec, params.b_pre, config.k)


def configure(d: int, recipe: str, **settings: Any) -> Config:
    """The settings of a run on rows of d dimensions; the recipes, which are GBA's, do not matter."""
    return configured("topk", d, settings)


def description(config: Config, recipe: str | None) -> Description:
    """What a report says of a run."""
    return Description(f"topk, k {config.k}")
