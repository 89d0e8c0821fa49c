"""Section 3, Algorithm 1: Group Bias Adaptation, whole.

`step` is lines 2 to 5, `adapt` is line 6, `train` is the loop around them.  These functions are the reference behind
the contract of `backends/base.py`: a backend repeats `init`, `step` and `adapt` on its own arrays, and `train` drives
it unchanged.

Everything random (initial weights, batch order) is drawn here with NumPy's Generator, so that backends see the same
numbers.  Settings are in `config`; what this project adds to the paper is in `recipe`, each piece called from the line
where it acts and without effect at the paper's settings.  Reading files, logging and checkpoints are left to
`refgba.runs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, NamedTuple, Protocol

import numpy as np

from refgba import recipe, sae
from refgba.adam import AdamW
from refgba.bias import Buffer
from refgba.bias import adapt as algorithm_2
from refgba.config import GBAConfig, Settings
from refgba.sae import Params, unit_rows
from refgba.streams import stream
from refgba.types import Array, Mask


class Metrics(NamedTuple):
    """What a step reports: the loss of its batch and L0, its mean active neurons a row (scalars of the backend)."""

    loss: Any
    l0: Any


@dataclass
class State:
    """A run between two steps.

    buffer: counts and peaks since the last adaptation.  last: those that the last adaptation used, None before the
    first.  held: (M,) neurons that no longer turn (see `recipe`).  t: steps done.
    """

    config: GBAConfig
    params: Params
    optimiser: dict[str, AdamW]
    buffer: Buffer
    last: Buffer | None
    held: Mask
    t: int = 0


def random_params(config: GBAConfig, d: int) -> Params:
    """Θ before the first step: random unit w_m, every a_m at `a_init` and b_m at `b_init`, b_pre = 0.

    Where untied, W_dec = W; with forming steps it only comes after them (`begin_fit`).
    """
    W = unit_rows(stream(config.seed, "weights").standard_normal((config.width, d)))  # (M, d)
    params = Params(
        W=W,
        a=np.full(config.width, config.a_init),
        b=np.full(config.width, config.b_init),
        b_pre=np.zeros(d),
        W_dec=W.copy() if config.untied and not recipe.forming_steps(config) else None,
    )
    return params.astype(config.master)


def minibatches(X: Array, config: Settings) -> Iterator[Array]:
    """Line 1 of Algorithm 1: the minibatches of steps 1..T, each L rows of X (N, d) at unit norm.

    Sampled without replacement within an epoch; a batch may straddle two.
    """
    orders = (stream(config.seed, "order", epoch).permutation(len(X)) for epoch in count())
    rows = chain.from_iterable(orders)  # the endless sequence of shuffled epochs
    for _ in range(config.steps):
        yield unit_rows(X[np.fromiter(rows, np.int64, config.batch)].astype(config.master))


def init(params: Params, config: GBAConfig) -> State:
    """The state before the first step; the arrays of `params` are not shared with it."""
    params = params.astype(config.master)
    optimiser = {name: AdamW.like(theta) for name, theta in params.arrays().items() if name != "b"}
    return State(config, params, optimiser, Buffer(config.width), None, np.zeros(config.width, bool))


def step(state: State, x: Array) -> Metrics:
    """Lines 2 to 5 of Algorithm 1 on a minibatch x (L, d) of unit rows, in the dtype of the run."""
    config, params = state.config, state.params
    state.t += 1
    if recipe.fit_begins(config, state.t):
        begin_fit(state)
    lr = recipe.learning_rate(config, state.t)
    fwd = sae.forward(params, x, config.activation)  # 2. forward
    grads = sae.gradients(params, x, fwd)  # 3. backward, and one optimiser step on everything but b
    W, V = params.W, params.V
    for name in recipe.trained(config, state.t):
        theta, g = getattr(params, name), getattr(grads, name)
        setattr(params, name, state.optimiser[name].update(theta, g, lr, config))
    held = state.held[:, None]
    params.W = np.where(held, W, unit_rows(params.W))  # 4. renormalise
    if params.W_dec is not None:
        params.W_dec = np.where(held, V, unit_rows(params.W_dec))
    state.buffer.add(fwd.y)  # 5. the buffers
    return Metrics(sae.loss(x, fwd.f), np.count_nonzero(fwd.on) / len(x))


def begin_fit(state: State) -> None:
    """Between the two phases of `recipe`: find the neurons to hold, and where untied, give W a decoder of its own."""
    params, config = state.params, state.config
    state.held = recipe.agreeing(params.W, config.hold)
    if config.untied:  # it goes on as W would have, with W's moments
        params.W_dec, state.optimiser["W_dec"] = params.W.copy(), deepcopy(state.optimiser["W"])


def adapt(state: State) -> None:
    """Line 6 of Algorithm 1: b <- A(b, B), then empty the buffers."""
    c = state.config
    state.params.b = algorithm_2(
        state.params.b, state.buffer, c.group(), c.target(), c.gamma_minus, c.gamma_plus, c.eps, c.floor
    )  # fmt: skip
    state.last, state.buffer = state.buffer, Buffer(c.width)


class AnyState(Protocol):
    """What the loop knows of a state: the reference's, a backend's, or that of a baseline."""

    @property
    def config(self) -> Settings:
        """The settings of the run."""

    @property
    def t(self) -> int:
        """Steps done."""


def train(
    state: AnyState,
    minibatches: Iterable[Array],
    step: Callable[[Any, Array], Metrics] = step,
    adapt: Callable[[Any], None] = adapt,
) -> Iterator[Metrics]:
    """Algorithm 1, from the state's step on: yields after every step.  A backend passes its own two verbs."""
    for x in minibatches:  # 1. draw a minibatch, rows at unit norm
        metrics = step(state, x)  # 2. to 5.
        if state.t % state.config.adapt_every == 0:
            adapt(state)  # 6.
        yield metrics
