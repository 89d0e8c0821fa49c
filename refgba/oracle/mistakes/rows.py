"""Mistakes in line 1: rows at unit norm."""

from __future__ import annotations

from typing import Any

import numpy as np

from refgba.oracle.mistakes.formulas import OFFSETS, Known, L, d, divided, plus
from refgba.oracle.stepwise import Formula
from refgba.sae import unit_rows


def centred(A: Any) -> Any:
    """Columns less their means."""
    return A - A.mean(axis=0)


def standardised(ddof: int) -> Formula:
    """The rows by the batch's mean and deviation."""
    return lambda e: centred(e["rows"]) / np.sqrt(np.sum(centred(e["rows"]) ** 2, axis=0) / (L(e) - ddof))


def within(A: Any) -> Any:
    """Rows less the mean of their own entries."""
    return A - A.mean(axis=1, keepdims=True)


def layer_norm(tiny: float) -> Formula:
    """Rows by their own means and deviations, with a small number beside the variance."""
    return lambda e: within(e["rows"]) / np.sqrt(np.mean(within(e["rows"]) ** 2, axis=1, keepdims=True) + tiny)


def over_norm(tiny: float) -> Formula:
    """The rows over their norm plus a small number."""
    return lambda e: plus(tiny)(e["rows"])


MISTAKES: Known = {
    "rows are not scaled to unit norm": {"x": lambda e: e["rows"]},
    "rows are scaled to norm sqrt(d), not 1": {"x": lambda e: unit_rows(e["rows"]) * np.sqrt(d(e))},
    "columns are scaled to unit norm, not rows": {"x": lambda e: unit_rows(e["rows"].T).T},
    "rows are divided by the norm of the whole batch": {"x": lambda e: e["rows"] / np.linalg.norm(e["rows"])},
    "rows are divided by the sum of absolute values, not the norm": {"x": lambda e: divided(e["rows"], 1)},
    "rows are divided by their largest entry, not the norm": {"x": lambda e: divided(e["rows"], np.inf)},
    "rows are centred on the batch before they are scaled": {"x": lambda e: unit_rows(centred(e["rows"]))},
    "the entries of a row are centred on their mean before it is scaled": {"x": lambda e: unit_rows(within(e["rows"]))},
    "rows are standardised each by its own mean and deviation, not scaled to unit norm": {"x": layer_norm(0.0)},
    "rows are standardised each by its own mean and variance plus 1e-05, not scaled to unit norm": {
        "x": layer_norm(1e-5)
    },
    "softmax is taken of the rows": {
        "x": lambda e: divided(np.exp(e["rows"] - e["rows"].max(axis=1, keepdims=True)), 1)
    },
    **{
        f"rows are standardised by the batch's mean and {kind} deviation, not scaled to unit norm": {
            "x": standardised(ddof)
        }
        for ddof, kind in ((0, "population"), (1, "sample"))
    },
    **{f"{tiny:g} is added to the norm of the rows": {"x": over_norm(tiny)} for tiny in OFFSETS},
}
