"""Mistakes in line 4: W and W_dec at unit norm, and the rows that are held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refgba.oracle.mistakes.formulas import OFFSETS, Known, divided, norm, plus
from refgba.oracle.mistakes.recipe import begins
from refgba.oracle.stepwise import FORMULAS, Formula, Step, kept
from refgba.sae import unit_rows

WITH_NORMS: dict[str, Callable[[Any], Any]] = {
    "{} is not renormalised after the step": lambda A: A,
    "the columns of {} are renormalised, not its rows": lambda A: unit_rows(A.T).T,
    "{} is divided by the norm of the whole matrix": lambda A: A / np.linalg.norm(A),
    "only rows of {} longer than 1 are renormalised": lambda A: A / np.maximum(norm(A), 1),
    "rows of {} are divided by the square of their norm": lambda A: A / norm(A) ** 2,
    "rows of {} are divided by the sum of absolute values, not the norm": lambda A: divided(A, 1),
    **{f"{tiny:g} is added to the norm of rows of {{}}": plus(tiny) for tiny in OFFSETS},
}


def renormalised(theta: str, unit: Callable[[Any], Any]) -> Formula:
    """W or W_dec with another renormalisation."""
    return lambda e: kept(e, theta, unit)


def turned(theta: str) -> Formula:
    """W or W_dec where held neurons turn as well."""
    return lambda e: unit_rows(e[f"moved.{theta}"])


def others_kept(theta: str) -> Formula:
    """W or W_dec where held neurons turn and the others do not."""
    return lambda e: np.where(e["held"][:, None], unit_rows(e[f"moved.{theta}"]), e.was(theta))


def by_norms_of_W(e: Step) -> Any:
    """W_dec over the norms that W has."""
    return kept(e, "W_dec", lambda V: V / norm(e["moved.W"]))


MISTAKES: Known = {
    "held neurons turn": {theta: turned(theta) for theta in ("W", "W_dec")},
    "the detectors of held neurons turn": {"W": turned("W")},
    "the decoders of held neurons turn": {"W_dec": turned("W_dec")},
    "the neurons that are not held are held": {theta: others_kept(theta) for theta in ("W", "W_dec")},
    **{
        text.format(theta): {theta: renormalised(theta, unit)}
        for text, unit in WITH_NORMS.items()
        for theta in ("W", "W_dec")
    },
    "W_dec is scaled by the norms of W": {"W_dec": by_norms_of_W},
    "the new decoder is a copy of W after the step, not before it": {
        "W_dec": lambda e: e["W"] if begins(e) else FORMULAS["W_dec"](e)
    },
    "W_dec is tied to W": {"W_dec": lambda e: e["W"]},
}
