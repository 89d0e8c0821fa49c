"""The baselines of `refgba.baselines` behind the contract: the reference as it stands."""

from __future__ import annotations

from refgba import baselines
from refgba.backends.numpy import DTYPES, counters, export, get, params, put, unusable
from refgba.baselines import Params, State, adapt, init, step
from refgba.types import Array

__all__ = [
    "DTYPES", "adapt", "counters", "decode", "encode", "export", "get", "gradients", "init", "params", "put", "restore",
    "step", "unusable",
]  # fmt: skip


def restore(state: State) -> State:
    """The state itself."""
    return state


def gradients(state: State, x: Array) -> Params:
    """The gradients at rows x (L, d), without AuxK; nothing moves."""
    fwd = baselines.forward(state.params, x, state.config)
    return baselines.gradients(state.params, x, fwd, state.config)


def encode(state: State, x: Array) -> tuple[Array, Array]:
    """By how much rows x (L, d) exceed what makes a neuron active, and codes s, each (L, M)."""
    return baselines.evaluation_codes(state.params, x, state.config)


def decode(state: State, s: Array) -> Array:
    """Reconstructions f (L, d) of codes s (L, M)."""
    return baselines.decode(state.params, s)
