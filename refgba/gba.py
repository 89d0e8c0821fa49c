"""Section 3, Algorithm 1: Group Bias Adaptation, whole.

`minibatches` is line 1, `step` is lines 2 to 5, `adapt` is line 6, and `train` is the loop around them.  What this
project adds to the steps lives in `recipe` and is called `ours` here: at the paper's settings each call of `ours.`
does, or returns, what the paper's line says.  Additions elsewhere: `floor` in `bias`, W_dec in `sae`, and `measured`.
`refgba.paper` is the same algorithm without any of them.

These functions are the reference behind the contract of `backends/base.py`: a backend repeats `init`, `step` and
`adapt` on its own arrays, and `train` drives it unchanged.  Everything random (initial weights, batch order) is drawn
here with NumPy's Generator, so that all backends see the same numbers.  Settings are in `config`; reading files,
logging and checkpoints are left to `refgba.runs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any, NamedTuple, Protocol

import numpy as np

from refgba import measured, sae
from refgba import recipe as ours
from refgba.adam import AdamW
from refgba.bias import Buffer
from refgba.bias import adapt as algorithm_2
from refgba.config import GBAConfig, Settings
from refgba.errors import InputError
from refgba.measured import Shares
from refgba.sae import Params, unit_rows
from refgba.streams import stream
from refgba.types import Array, Int64, Mask


class Metrics(NamedTuple):
    """What a step reports of its batch, as scalars of the backend: the loss, and L0, mean number of active neurons."""

    loss: Any
    l0: Any


@dataclass
class State:
    """A run between two steps.

    buffer: counts and peaks since the last adaptation.  last: those that the last adaptation used, None before the
    first.  held: (M,) neurons that no longer turn (see `recipe`).  t: steps done.  shares: from which targets are
    measured (see `measured`), None where they are the groups'.
    """

    config: GBAConfig
    params: Params
    optimiser: dict[str, AdamW]
    buffer: Buffer
    last: Buffer | None
    held: Mask
    t: int = 0
    shares: Shares | None = None


def random_params(config: GBAConfig, d: int) -> Params:
    """Θ before the first step: random unit w_m, every a_m at `a_init` and b_m at `b_init`, b_pre = 0."""
    W = unit_rows(stream(config.seed, "weights").standard_normal((config.width, d)))  # (M, d)
    params = Params(
        W=W,
        a=np.full(config.width, config.a_init),
        b=np.full(config.width, config.b_init),
        b_pre=np.zeros(d),
        W_dec=ours.first_decoder(W, config),
    )
    return params.astype(config.master)


def minibatches(X: Array, config: Settings) -> Iterator[Array]:
    """Line 1 of Algorithm 1: the minibatches of steps 1..T, each L rows of X (N, d) at unit norm.

    Unit norm is our reading of the paper's "normalize".  Raises InputError where X has no rows, and at a minibatch with
    a row of zeros, named by its number in X.
    """
    for rows in row_numbers(len(X), config):  # (L,)
        yield unit_rows(X[rows].astype(config.master), rows)


def row_numbers(N: int, config: Settings) -> Iterator[Int64]:
    """Which of N rows the minibatches of steps 1..T hold, (L,) each.

    They are sampled without replacement within an epoch; a batch may straddle two.  Raises InputError for N = 0.
    """
    if N == 0:
        raise InputError("there are no rows to draw minibatches from: give at least one")
    orders = (stream(config.seed, "order", epoch).permutation(N) for epoch in count())
    rows = chain.from_iterable(orders)  # the endless sequence of shuffled epochs
    for _ in range(config.steps):
        yield np.fromiter(rows, np.int64, config.batch)


def init(params: Params, config: GBAConfig) -> State:
    """The state before the first step; the arrays of `params` are not shared with it."""
    params = params.astype(config.master)
    optimiser = {name: AdamW.like(theta) for name, theta in params.arrays().items() if name != "b"}
    M = config.width
    return State(config, params, optimiser, Buffer(M), None, np.zeros(M, bool), shares=measured.first(config, M))


def step(state: State, x: Array) -> Metrics:
    """Lines 2 to 5 of Algorithm 1 on a minibatch x (L, d) of unit rows, in the dtype of the run.

    Raises InputError at line 4 for a w_m that became zero.  Values that are not finite pass, and stay.
    """
    config = state.config
    state.t += 1
    ours.begin_phase(state)
    params = state.params
    fwd = sae.forward(params, x, config.activation)  # 2. forward; y_m for every row and neuron
    grads = sae.gradients(params, x, fwd)  # 3. backward, and one optimiser step on everything but b
    state.params = replace(params)  # a new Params: `params` keeps the arrays of before, which `keep_held_rows` needs
    for name in ours.trained(config, state.t):
        theta, g, lr = getattr(params, name), getattr(grads, name), ours.learning_rate(config, state.t)
        setattr(state.params, name, state.optimiser[name].update(theta, g, lr, config))
    state.params.W = unit_rows(state.params.W)  # 4. renormalise each w_m to unit norm
    ours.keep_held_rows(state, params)
    state.buffer.add(fwd.y)  # 5. add the y_m to the buffers
    return Metrics(sae.loss(x, fwd.f), np.count_nonzero(fwd.on) / len(x))


def adapt(state: State, x: Array | None = None) -> None:
    """Line 6 of Algorithm 1: b <- A(b, B), then empty the buffers.

    Ours: `floor`, 0 in the paper; and x (L, d), the minibatch of lines 2 to 5, on which targets are measured where they
    are not the groups'.  Raises InputError where they are to be measured and there is no x.
    """
    c = state.config
    own = measured.own_targets(state, x)
    state.params.b = algorithm_2(
        state.params.b, state.buffer, c.group(), c.target(), c.gamma_minus, c.gamma_plus, c.eps, c.floor, own
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
    adapt: Callable[[Any, Any], None] = adapt,
) -> Iterator[Metrics]:
    """Algorithm 1, from the state's step on: yields after every step.  A backend passes its own two verbs."""
    for x in minibatches:  # 1. draw a minibatch, rows at unit norm
        metrics = step(state, x)  # 2. to 5.
        if state.t % state.config.adapt_every == 0:
            adapt(state, x)  # 6.
        yield metrics
