"""The reference behind the contract: NumPy arrays on the host, the functions of `refgba.sae` and `refgba.bias`.

`step` and `adapt` are those of `refgba.gba`, line for line, with the sums over ranks (`refgba.backends.comm`) between.
One process gets the reference's results to the bit: tests/test_comm.py.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np

from refgba import gba, measured, recipe, sae
from refgba.adam import AdamW
from refgba.backends import shards
from refgba.backends.comm import ALONE, Ranks
from refgba.bias import Buffer
from refgba.config import GBAConfig
from refgba.gba import Metrics
from refgba.sae import Forward, Params, unit_rows
from refgba.types import Array

__all__ = [
    "DTYPES", "adapt", "counters", "decode", "encode", "export", "get", "gradients", "init", "join", "params", "put",
    "restore", "step", "unusable",
]  # fmt: skip

DTYPES = ("float64", "float32")


@dataclass
class State(gba.State):
    """The reference's state, of the neurons that this rank has."""

    ranks: Ranks = field(default=ALONE)


def unusable() -> str | None:
    """None: NumPy is always there."""
    return None


def init(params: Params, config: GBAConfig) -> State:
    """The state before the first step; the arrays of `params` are not shared with it."""
    params = params.astype(config.master)
    optimiser = {name: AdamW.like(theta) for name, theta in params.arrays().items() if name != "b"}
    M = params.b.size
    return State(config, params, optimiser, Buffer(M), None, np.zeros(M, bool), shares=measured.first(config, M))


def join(state: State, ranks: Ranks) -> None:
    """From here on the neurons of the state are this rank's part of a network."""
    state.ranks = ranks


def params(state: State) -> Params:
    """A copy of the parameters."""
    return state.params.astype(state.config.master)


def export(state: State) -> State:
    """The state itself."""
    return state


def restore(state: gba.State) -> State:
    """The state of a run that goes on; its arrays are taken over."""
    return State(**vars(state))


def put(state: State, x: Array) -> Array:
    """The rows x (L, d) in the dtype of the run."""
    return x.astype(state.config.master, copy=False)


def get(array: Array) -> Array:
    """The array itself."""
    return array


def begin_phase(state: State) -> None:
    """`refgba.recipe.begin_phase`; neurons that agree with those of other ranks are held, too."""
    if recipe.fit_begins(state.config, state.t):
        recipe.begin_fit(state)
        state.held |= shards.agreeing_elsewhere(state.params.W, state.config.hold, state.ranks)


def forward(state: State, x: Array) -> Forward:
    """The network on rows x (L, d): y, gates and codes of this rank's neurons, reconstructions by those of all."""
    y, on, s = sae.encode(state.params, x, state.config.activation)
    return Forward(y, on, s, decode(state, s))


def backward(state: State, x: Array, fwd: Forward) -> tuple[Params, float]:
    """`refgba.sae.gradients` at the rows x (L, d), that of b_pre over all ranks; and how many gates are open on all."""
    grads = sae.gradients(state.params, x, fwd)
    # The mean of r is in every rank's gradient of b_pre, and is to be counted once.
    part = grads.b_pre if state.ranks.rank == 0 else grads.b_pre - (fwd.f - x).mean(axis=0)
    db_pre, active = state.ranks.totals(part, np.count_nonzero(fwd.on))
    grads.b_pre = db_pre.astype(part.dtype)
    return grads, float(active)


def step(state: State, x: Array) -> Metrics:
    """Lines 2 to 5 of Algorithm 1, as `refgba.gba.step`."""
    config = state.config
    state.t += 1
    begin_phase(state)
    params = state.params
    fwd = forward(state, x)  # 2. forward
    grads, active = backward(state, x, fwd)  # 3. backward, and one optimiser step on everything but b
    state.params = replace(params)  # a new Params: `params` keeps the arrays of before, which `keep_held_rows` needs
    for name in recipe.trained(config, state.t):
        theta, g, lr = getattr(params, name), getattr(grads, name), recipe.learning_rate(config, state.t)
        setattr(state.params, name, state.optimiser[name].update(theta, g, lr, config))
    state.params.W = unit_rows(state.params.W)  # 4. renormalise each w_m to unit norm
    recipe.keep_held_rows(state, params)
    state.buffer.add(fwd.y)  # 5. add the y_m to the buffers
    return Metrics(sae.loss(x, fwd.f), active / len(x))


def adapt(state: State, x: Array | None = None) -> None:
    """Line 6 of Algorithm 1, as `refgba.gba.adapt`."""
    own = measured.own_targets(state, x, lambda highest: shards.gathered(highest, state.ranks))
    state.params.b = shards.adapted(state.params.b, state.buffer, state.config, state.ranks, own)
    state.last, state.buffer = state.buffer, Buffer(state.params.b.size)


def counters(state: State) -> Buffer:
    """Counts and peaks that the last adaptation used (before the first: so far), a copy."""
    return deepcopy(state.last or state.buffer)


def gradients(state: State, x: Array) -> Params:
    """The gradients at rows x (L, d); nothing moves."""
    return backward(state, x, forward(state, x))[0]


def encode(state: State, x: Array) -> tuple[Array, Array]:
    """Pre-activations y and codes s of rows x (L, d), each (L, M)."""
    y, _, s = sae.encode(state.params, x, state.config.activation)
    return y, s


def decode(state: State, s: Array) -> Array:
    """Reconstructions f (L, d) of codes s (L, M): `refgba.sae.decode`, whose sum over neurons is one over ranks too."""
    params = state.params
    f: Array = state.ranks.sum(s @ (params.a[:, None] * params.V)) + params.b_pre
    return f
