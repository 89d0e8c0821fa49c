"""How a baseline is trained, but for its codes and gradients: the state of a run, and the pieces of a step.

A method's `step` is in its own file, and calls `count`, `move` and `record` here.  The optimiser is in `refgba.adam`;
the minibatches and the loop are in `refgba.gba`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from refgba import sae
from refgba.adam import AdamW
from refgba.baselines.network import Forward, Params, signed
from refgba.bias import Buffer
from refgba.config import BaselineConfig
from refgba.gba import Metrics
from refgba.sae import unit_rows
from refgba.types import Array, Int64

WEIGHTS = ("W", "b", "b_pre", "W_dec")  # what AdamW trains in every method


@dataclass
class State:
    """A run between two steps.

    buffer: counts and peaks of the codes since the last `adapt`.  last: those before, None at first.  idle: (M,) rows
    since each neuron last fired, counted in whole batches.  t: steps done.
    """

    config: BaselineConfig
    params: Params
    optimiser: dict[str, AdamW]
    buffer: Buffer
    last: Buffer | None
    idle: Int64
    t: int = 0


def learning_rate(config: BaselineConfig, t: int) -> float:
    """The learning rate of step t = 1..T: `lr`, and over the last `lr_decay` share of the steps linearly to zero."""
    left = (config.steps - t + 1) / config.steps  # share of the run still to go, from 1 down
    return config.lr * min(1.0, left / config.lr_decay) if config.lr_decay else config.lr


def optimised(config: BaselineConfig, t: int) -> tuple[str, ...]:
    """The parameters that have moments of AdamW after step t: those that it trains, always."""
    return WEIGHTS


def init(params: Params, config: BaselineConfig) -> State:
    """The state before the first step; the arrays of `params` are not shared with it."""
    return starting_state(params, config, optimised(config, 0))


def starting_state(params: Params, config: BaselineConfig, optimised: Iterable[str]) -> State:
    """The same with AdamW for the parameters of these names."""
    params = params.astype(config.master)
    optimiser = {name: AdamW.like(getattr(params, name)) for name in optimised}
    return State(config, params, optimiser, Buffer(config.width), None, np.zeros(config.width, np.int64))


def count(state: State, fwd: Forward) -> None:
    """Count the step, and for each neuron the rows since it last fired, those of this forward pass included."""
    state.t += 1
    state.idle = np.where(fwd.on.any(axis=0), 0, state.idle + len(fwd.on))  # (M,)


def move(state: State, grads: Params) -> None:
    """AdamW's update of everything that it trains, at the learning rate of step t, and unit norm for the rows v_m."""
    config, params = state.config, state.params
    grads.W_dec = across(grads.W_dec, params.W_dec)
    lr = learning_rate(config, state.t)
    for name, adam in state.optimiser.items():
        setattr(params, name, adam.update(getattr(params, name), getattr(grads, name), lr, config))
    params.W_dec = unit_rows(params.W_dec)


def record(state: State, x: Array, fwd: Forward) -> Metrics:
    """Take a forward pass on rows x (L, d) into the counters, and report it.

    The loss reported is the reconstruction's, without the penalty: comparable between methods, and with GBA's.
    """
    state.buffer.add(signed(fwd.y, fwd.on))
    return Metrics(sae.loss(x, fwd.f), np.count_nonzero(fwd.on) / len(x))


def across(g: Array, V: Array) -> Array:
    """The gradients g (M, d) without their parts along the unit rows of V (M, d): g_m - (g_m · v_m) v_m.

    Renormalising undoes a move along v_m anyway, but Adam would take that part into its moments and scale the rest by
    it (Bricken et al. 2023, appendix on training).
    """
    rest: Array = g - np.einsum("md,md->m", g, V)[:, None] * V
    return rest


def adapt(state: State, x: Array | None = None) -> None:
    """Empty the counters.  Nothing adapts here: the loop calls it every `adapt_every` steps, and logs read `last`."""
    state.last, state.buffer = state.buffer, Buffer(state.config.width)
