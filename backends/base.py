"""The contract of a backend: the verbs of Algorithm 1 on arrays of its own.

A backend is a module of this package; its file name is the value of `--backend`.  It owns device arrays and nothing
else: configuration, random numbers, minibatches, the loop (`refgba.gba.train`), files and metrics are shared.  It is
judged against `backends/numpy.py`, the reference itself, by tests/test_conformance.py: gradient by gradient and step by
step, in float64 to 1e-10 relative and in float32 to 1e-5 a step; in dtypes that round the factors of products, to what
that rounding can do.  `counters` are equal but for gates that rounding flips, which are reported.

Nothing falls back: `backends.load` refuses a backend that cannot run here, with the reason.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from refgba import baselines, gba
from refgba.bias import Buffer
from refgba.config import BaselineConfig, GBAConfig
from refgba.gba import Metrics
from refgba.sae import Params
from refgba.types import Array

DeviceArray: TypeAlias = Any
AnyConfig: TypeAlias = GBAConfig | BaselineConfig
AnyParams: TypeAlias = Params | baselines.Params
HostState: TypeAlias = gba.State | baselines.State


class Backend(Protocol):
    """What every backend module provides.  L rows in a batch, d dimensions, M neurons.

    `state` is the backend's own and opaque, but for the `config` and the `t` of `refgba.gba.AnyState`.
    """

    DTYPES: tuple[str, ...]  # values of `GBAConfig.dtype` it can compute in

    def unusable(self) -> str | None:
        """Why this backend cannot run here and what to install, in one line; None when it can."""

    def init(self, params: AnyParams, config: AnyConfig) -> Any:
        """The state before the first step, from host arrays, which are copied.

        InputError when the device has too little memory, saying what was needed and what would fit.
        """

    def params(self, state: Any) -> AnyParams:
        """A copy of the parameters, on the host."""

    def export(self, state: Any) -> HostState:
        """All of a state, on the host, as the reference's: what a checkpoint holds.

        May share memory with the state, and is good until its next step.
        """

    def restore(self, state: HostState) -> Any:
        """The state that `export` was of, whose run goes on to the bit as if it had not stopped.

        May take over its arrays.  InputError as `init`.
        """

    def put(self, state: Any, x: Array) -> DeviceArray:
        """Host rows x (L, d) on the device, in `GBAConfig.master`; may return before the copy is done."""

    def get(self, array: DeviceArray) -> Array:
        """A device array on the host."""

    def step(self, state: Any, x: DeviceArray) -> Metrics:
        """Lines 2 to 5 on rows x (L, d) from `put`, as `refgba.gba.step` does them, in this order:

        count t up; after the last forming step, `refgba.recipe.begin_fit`; forward; gradients;
        AdamW at `recipe.learning_rate` on the parameters `recipe.trained` names, each counting its own updates for the
        bias correction; renormalise W and W_dec, held neurons staying as they were; add y of the forward pass to the
        counts and peaks.

        Returns loss and L0 as scalars of the backend and never waits for the device, save once to find the neurons to
        hold: `float()` of them does.  A weight row that becomes zero need not be noticed here.
        """

    def adapt(self, state: Any) -> None:
        """Line 6: Algorithm 2 on the buffers, which are emptied and kept for `counters`."""

    def counters(self, state: Any) -> Buffer:
        """Counts and peaks that the last adaptation used (before the first: so far), on the host."""

    def gradients(self, state: Any, x: DeviceArray) -> AnyParams:
        """The gradients at rows x (L, d) from `put`, on the host, nothing moved: how a backend is checked."""

    def encode(self, state: Any, x: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        """Pre-activations y and codes s of rows x (L, d) from `put`, each (L, M)."""

    def decode(self, state: Any, s: DeviceArray) -> DeviceArray:
        """Reconstructions f (L, d) of codes s (L, M)."""
