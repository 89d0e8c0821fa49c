"""What a method provides, so that the rest of the program never asks which one it has: the Protocol of the table.

A method is a module of `refgba.baselines`; its file name is its name, in `METHODS` and as the value of `--method`.
GBA's module is an adapter: it gives the paper's functions these names.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from refgba.config import Settings
from refgba.gba import Metrics
from refgba.types import Array, Float64, Int64, Mask


class Own(NamedTuple):
    """The one array (M,) in a method's state that others do not have; a checkpoint keeps it under its name."""

    name: str
    dtype: npt.DTypeLike


class Groups(NamedTuple):
    """The groups of neurons: of each neuron its group, (M,) from 0, and of each group its target frequency, (K,)."""

    group: Int64
    target: Float64


class Description(NamedTuple):
    """What a report says of a run.

    method: its name, and what makes its codes sparse.  network: what the name leaves open.  formed: the step up to
    which features form, 0 where there is no such phase.
    """

    method: str
    network: str = ""
    formed: int = 0


class Exported(NamedTuple):
    """A network in the terms of other libraries, for rows of unit norm.

        pre = (x - b_dec) · W_enc^T + b_enc ,    s = pre 1{pre > threshold} ,    f = s · W_dec + b_dec

    W_enc, W_dec: (M, d).  b_enc, threshold: (M,).  b_dec: (d,).  With k only the k largest positive entries of each row
    of pre pass.
    """

    W_enc: Array
    b_enc: Array
    threshold: Array
    W_dec: Array
    b_dec: Array
    k: int | None = None


class Method(Protocol):
    """What every method's module provides.  L rows in a batch, d dimensions, M neurons, steps t = 1..T.

    `config` is a `Config`, `params` and gradients are a `Params`, `state` is a `State`.
    """

    # ---- its types, and where its fast twins are

    @property
    def Config(self) -> type[Settings]:
        """The settings: a frozen dataclass, whose `method` is the method's name."""

    @property
    def Params(self) -> type[Any]:
        """The parameters: a dataclass of arrays with `arrays`, `astype` and `V`, the decoder rows (M, d)."""

    @property
    def State(self) -> type[Any]:
        """A run between two steps: config, params, optimiser, buffer, last, its own array, t, in this order."""

    @property
    def OWN(self) -> Own:
        """Name and dtype of the state's own array (M,)."""

    @property
    def TWINS(self) -> str:
        """The package of its backends: there `numba.py` is what `--backend numba` runs."""

    # ---- the network

    def random_params(self, config: Any, d: int) -> Any:
        """The parameters before the first step, for rows of d dimensions."""

    def encode(self, params: Any, x: Array, config: Any, training: bool = True) -> tuple[Array, Mask, Array]:
        """Pre-activations, who is active, and codes s of rows x (L, d), each (L, M).

        With `training` as a step sees them, where rows of a batch may compete; otherwise as inference does, where the
        codes of a row depend on no other.
        """

    def evaluation_codes(self, params: Any, x: Array, config: Any) -> tuple[Array, Array]:
        """By how much pre-activations exceed what they have to, and the codes s of inference, each (L, M).

        x: (L, d) rows.  The first is positive exactly where a neuron is active.
        """

    def decode(self, params: Any, s: Array) -> Array:
        """Reconstructions f (L, d) of codes s (L, M)."""

    def forward(self, params: Any, x: Array, config: Any, training: bool = True) -> Any:
        """What `encode` finds on rows x (L, d), with `on`, `s` and the reconstructions `f` as attributes."""

    def penalty(self, params: Any, fwd: Any, config: Any) -> float:
        """What the loss of a batch holds besides 1/2 ||f - x||², mean over the rows of a `forward`."""

    def gradients(self, params: Any, x: Array, fwd: Any, config: Any) -> Any:
        """The gradients of the loss at rows x (L, d), as a `Params`; 0 for what is not trained by gradients."""

    # ---- training

    def init(self, params: Any, config: Any) -> Any:
        """The state before the first step; the arrays of `params` are not shared with it."""

    def step(self, state: Any, x: Array) -> Metrics:
        """One step on a minibatch x (L, d) of unit rows, in the dtype of the run."""

    def adapt(self, state: Any, x: Array | None = None) -> None:
        """What happens every `config.adapt_every` steps: the counters are used, kept as `last`, and emptied.

        x: (L, d) the minibatch of the step before.
        """

    # ---- settings, and a run on disk

    def configure(self, d: int, recipe: str, **settings: Any) -> Any:
        """The settings of a run on rows of d dimensions: those given, and by a recipe the others.

        InputError for those that cannot be.
        """

    def extended(self, config: Any, steps: int) -> Any:
        """The settings of a run that goes on to more steps than it began with."""

    def extension(self, config: Any, done: int) -> str:
        """What it means for a run that it goes on from step `done` under settings from `extended`, one line."""

    def parameters(self, config: Any, t: int) -> tuple[str, ...]:
        """The names of the arrays of `Params` that exist after step t."""

    def optimised(self, config: Any, t: int) -> tuple[str, ...]:
        """Those of them that have moments of AdamW after step t."""

    # ---- what is said of a run, and what becomes of its network

    def groups(self, config: Any) -> Groups | None:
        """The groups of neurons and their targets; None where neurons have no targets."""

    def description(self, config: Any, recipe: str | None) -> Description:
        """What a report says of a run that a recipe configured, None if that is not known."""

    def exported(self, params: Any, config: Any) -> Exported:
        """The same codes and reconstructions in the terms of other libraries; InputError where those have none."""
