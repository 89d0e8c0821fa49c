"""What the tables of mistakes share: the sizes and pieces of a step, and ways to write a wrong formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from refgba.bias import Buffer
from refgba.bias import adapt as algorithm_2
from refgba.oracle.stepwise import FORMULAS, Formula, Step

Known: TypeAlias = dict[str, dict[str, Formula]]  # what another implementation does: the formulas it has instead

OFFSETS = (1e-12, 1e-8, 1e-6, 1e-5)  # usual numbers beside a norm against division by zero
BUFFER = ("seen", "counts", "peaks")


# ---- sizes and pieces ------------------------------------------------------------------------------------------------


def L(e: Step) -> int:
    """Rows of the batch."""
    return len(e["rows"])


def d(e: Step) -> int:
    """Dimensions."""
    return int(e["rows"].shape[1])


def M(e: Step) -> int:
    """Neurons."""
    return e.config.width


def K(e: Step) -> int:
    """Groups."""
    return e.config.groups


def a(e: Step) -> Any:
    """Output scales, (M, 1)."""
    return e.was("a")[:, None]


def r(e: Step) -> Any:
    """The residual f - x, (L, d)."""
    return e["f"] - e["x"]


def vr(e: Step) -> Any:
    """v_m . r of every row and neuron, not gated, (L, M)."""
    return r(e) @ e.params.V.T


def to_bias(e: Step, gate: Any) -> Any:
    """The gradient (M,) that b, which has none, would get through a gate (L, M)."""
    return np.mean(e.was("a") * vr(e) * gate, axis=0)


def fed(e: Step) -> bool:
    """Whether the buffers held something before the step."""
    return bool(e.was("left.seen") > 0)


def algorithm(e: Step, seen: Any, counts: Any, peaks: Any) -> Any:
    """The biases (M,) after Algorithm 2 on these buffers, whatever the step."""
    buffer, c = Buffer(M(e), int(seen)), e.config
    buffer.counts, buffer.peaks = counts, peaks
    return algorithm_2(e.was("b"), buffer, c.group(), c.target(), c.gamma_minus, c.gamma_plus, c.eps, c.floor)


def early_bias(e: Step) -> Any:
    """The biases (M,) after Algorithm 2 on the buffers as the step found them."""
    return algorithm(e, e.was("left.seen"), e.was("left.counts"), e.was("left.peaks")) if fed(e) else e.was("b")


# ---- rows of matrices ------------------------------------------------------------------------------------------------


def norm(A: Any) -> Any:
    """The norm of each row, (rows, 1)."""
    return np.linalg.norm(A, axis=1, keepdims=True)


def divided(A: Any, order: float) -> Any:
    """Rows over another norm of theirs."""
    return A / np.linalg.norm(A, ord=order, axis=1, keepdims=True)


def plus(tiny: float) -> Callable[[Any], Any]:
    """Division of rows by their norm plus a small number."""
    return lambda A: A / (norm(A) + tiny)


# ---- wrong formulas --------------------------------------------------------------------------------------------------


def before(name: str) -> Formula:
    """A quantity of the state as the step found it."""
    return lambda e: e.was(name)


def same(name: str) -> Formula:
    """Another quantity as it is."""
    return lambda e: e[name]


def scaled(name: str, factor: Callable[[Step], Any]) -> Formula:
    """A quantity times a factor."""
    return lambda e: FORMULAS[name](e) * factor(e)
