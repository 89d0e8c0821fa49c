"""BatchTopK: TopK whose rows compete, so that a row may have more codes than another.

    s = y of the k L largest positive of L rows ,        loss = 1/2 ||r||² + AuxK

Bussmann et al. 2024, arXiv 2412.06410, with AuxK as TopK has it.  Inference cannot let the codes of a row depend on
others, and takes one threshold instead: the mean of the smallest code that got a place.
"""

from __future__ import annotations

from typing import Any

from refgba.baselines.auxk import auxiliary
from refgba.baselines.facts import OWN, TWINS, Config, configured, exported, extended, extension, groups, parameters
from refgba.baselines.method import Description
from refgba.baselines.network import Forward, Params, decode, largest, pre_activations, random_params
from refgba.baselines.topk import gradients, penalty
from refgba.baselines.training import State, adapt, count, init, move, optimised, record
from refgba.gba import Metrics
from refgba.types import Array, Mask

__all__ = [
    "OWN", "TWINS", "Config", "Params", "State", "adapt", "configure", "decode", "description", "encode",
    "evaluation_codes", "exported", "extended", "extension", "forward", "gradients", "groups", "init", "optimised",
    "parameters", "penalty", "random_params", "step",
]  # fmt: skip


AVERAGED = 1000  # steps over which the threshold is averaged, or a twentieth of the run if that is less


def encode(params: Params, x: Array, config: Config, training: bool = True) -> tuple[Array, Mask, Array]:
    """Pre-activations y, who is active, and codes s of rows x (L, d), each (L, M).

    In training the rows compete for the k L places of their batch; in inference the threshold decides.
    """
    y = pre_activations(params, x)
    if training:
        on = largest(y.reshape(1, -1), config.k * len(x)).reshape(y.shape)
    else:
        on = y > params.theta
    return y, on, on * y


def evaluation_codes(params: Params, x: Array, config: Config) -> tuple[Array, Array]:
    """By how much y exceeds its threshold, and the codes s of inference on rows x (L, d), each (L, M)."""
    y, _, s = encode(params, x, config, training=False)
    return y - params.theta, s


def forward(params: Params, x: Array, config: Config, training: bool = True) -> Forward:
    """The network on rows x (L, d)."""
    y, on, s = encode(params, x, config, training)
    return Forward(y, on, s, decode(params, s))


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


def averaged(theta: Array, smallest: float, config: Config, t: int) -> Array:
    """The thresholds of inference (M,) after step t = 1..T, whose smallest active code is `smallest`.

    The mean over batches of the smallest active code, as its authors take it; it is 0 in a batch without any.  Since
    it moves while the network learns, only about the last AVERAGED steps count, but no more than a twentieth of the run
    (ours; dictionary_learning averages over 1000, and not before step 1000): θ + (smallest - θ) / n, the plain mean of
    the first n steps, and from there an exponential one.
    """
    n = min(t, AVERAGED, max(1, config.steps // 20))
    moved: Array = theta + (smallest - theta) / n
    return moved


def configure(d: int, recipe: str, **settings: Any) -> Config:
    """The settings of a run on rows of d dimensions; the recipes, which are GBA's, do not matter."""
    return configured("batchtopk", d, settings)


def description(config: Config, recipe: str | None) -> Description:
    """What a report says of a run."""
    return Description(f"batchtopk, k {config.k}")
