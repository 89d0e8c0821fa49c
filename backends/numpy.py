"""The reference behind the contract: NumPy arrays on the host, `refgba.gba` and `refgba.sae` as they stand."""

from __future__ import annotations

from copy import deepcopy

from refgba import sae
from refgba.bias import Buffer
from refgba.gba import State, adapt, init, step
from refgba.sae import Params
from refgba.types import Array

__all__ = [
    "DTYPES", "adapt", "counters", "decode", "encode", "export", "get", "gradients", "init", "params", "put", "restore",
    "step", "unusable",
]  # fmt: skip

DTYPES = ("float64", "float32")


def unusable() -> str | None:
    """None: NumPy is always there."""
    return None


def params(state: State) -> Params:
    """A copy of the parameters."""
    return state.params.astype(state.config.master)


def export(state: State) -> State:
    """The state itself."""
    return state


def restore(state: State) -> State:
    """The state itself."""
    return state


def put(state: State, x: Array) -> Array:
    """The rows x (L, d) in the dtype of the run."""
    return x.astype(state.config.master, copy=False)


def get(array: Array) -> Array:
    """The array itself."""
    return array


def counters(state: State) -> Buffer:
    """Counts and peaks that the last adaptation used (before the first: so far), a copy."""
    return deepcopy(state.last or state.buffer)


def gradients(state: State, x: Array) -> Params:
    """The gradients at rows x (L, d); nothing moves."""
    return sae.gradients(state.params, x, sae.forward(state.params, x, state.config.activation))


def encode(state: State, x: Array) -> tuple[Array, Array]:
    """Pre-activations y and codes s of rows x (L, d), each (L, M)."""
    y, _, s = sae.encode(state.params, x, state.config.activation)
    return y, s


def decode(state: State, s: Array) -> Array:
    """Reconstructions f (L, d) of codes s (L, M)."""
    return sae.decode(state.params, s)
