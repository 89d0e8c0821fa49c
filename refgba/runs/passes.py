"""What a network of any kind makes of rows, on the host: a run's on its backend, or a dictionary's."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from refgba import backends
from refgba.backends.base import AnyConfig, AnyParams, Backend
from refgba.backends.comm import ALONE, Ranks
from refgba.data.unit_rows import prepared
from refgba.types import Array, Float64


class Dictionary(Protocol):
    """Any sparse autoencoder on the host: M neurons, which most call latents, d dimensions, L rows at a time."""

    @property
    def W_enc(self) -> Array:
        """The encoder rows, (M, d)."""

    @property
    def centre(self) -> Float64 | None:
        """What `prepare` subtracts from rows before it scales them, (d,); None if nothing."""

    def prepare(self, x: Array, /) -> Array:
        """Rows of data (L, d) as the network sees them."""

    def encode(self, x: Array, /) -> tuple[Array, Array]:
        """Pre-activations y and codes s of prepared rows x (L, d), each (L, M); y > 0 exactly where active."""

    def decode(self, s: Array, /) -> Array:
        """Reconstructions (L, d) of codes s (L, M), to be compared with the prepared rows."""


class Pass(NamedTuple):
    """What a network makes of rows: as it sees them x (L, d), reconstructions f (L, d), pre-activations y (L, M).

    codes: gives s (L, M), which not every pass needs on the host.
    """

    x: Array
    f: Array
    y: Array
    codes: Callable[[], Array]


def passing(
    params: AnyParams, config: AnyConfig, backend: Backend, centre: Float64 | None = None, ranks: Ranks = ALONE
) -> Callable[[Array], Pass]:  # fmt: skip
    """What makes a `Pass` of rows (L, d), as `evaluate` does."""
    state = backends.given(backend, params, config, ranks)

    def forward(chunk: Array) -> Pass:
        x = prepared(chunk, config.master, centre)
        y, s = backend.encode(state, backend.put(state, x))
        return Pass(x, backend.get(backend.decode(state, s)), backend.get(y), lambda: backend.get(s))

    return forward


def passing_dictionary(dictionary: Dictionary) -> Callable[[Array], Pass]:
    """The same of any dictionary, on rows as it prepares them."""

    def forward(chunk: Array) -> Pass:
        x = dictionary.prepare(chunk)
        y, s = dictionary.encode(x)
        return Pass(x, dictionary.decode(s), y, lambda: s)

    return forward


def added(params: AnyParams) -> Array:
    """What each neuron adds to the reconstruction per unit of its code, (M, d): a_m v_m, or v_m where there is no a."""
    a = params.arrays().get("a")
    return params.V if a is None else a[:, None] * params.V
