"""Mistakes in line 5: what is added to the buffers, and to which."""

from __future__ import annotations

from typing import Any

import numpy as np

from refgba import sae
from refgba.oracle.mistakes.formulas import BUFFER, Known, L, before, fed
from refgba.oracle.mistakes.recipe import begins
from refgba.oracle.stepwise import FORMULAS, Step
from refgba.sae import Params


def y_after(e: Step) -> Any:
    """Pre-activations of the batch with the parameters after the step, (L, M)."""
    after_step = Params(e["W"], e["a"], e.was("b"), e["b_pre"])
    return sae.encode(after_step, e["x"], e.config.activation)[0]


MISTAKES: Known = {
    "the buffers were not emptied after the last adaptation": {
        "seen": lambda e: FORMULAS["seen"](e) + (e.last["seen"] if e.last else 0),
        "counts": lambda e: FORMULAS["counts"](e) + (e.last["counts"] if e.last else 0),
        "peaks": lambda e: np.maximum(FORMULAS["peaks"](e), e.last["peaks"] if e.last else 0),
    },
    "the peaks were not emptied after the last adaptation": {
        "peaks": lambda e: np.maximum(FORMULAS["peaks"](e), e.last["peaks"] if e.last else 0)
    },
    "the counts were not emptied after the last adaptation": {
        "counts": lambda e: FORMULAS["counts"](e) + (e.last["counts"] if e.last else 0)
    },
    "the buffers hold only the last batch": {
        "seen": lambda e: L(e),
        "counts": lambda e: e["on"].sum(axis=0),
        "peaks": lambda e: np.maximum(e["y"].max(axis=0), 0),
    },
    "the buffers are emptied when fitting begins": {
        "seen": lambda e: L(e) if begins(e) else FORMULAS["seen"](e),
        "counts": lambda e: e["on"].sum(axis=0) if begins(e) else FORMULAS["counts"](e),
        "peaks": lambda e: np.maximum(e["y"].max(axis=0), 0) if begins(e) else FORMULAS["peaks"](e),
    },
    "the batch is not added to the buffers": {name: before(f"left.{name}") for name in BUFFER},
    "the buffers count batches, not rows": {"seen": lambda e: e.was("left.seen") + 1},
    "the buffers take y of the parameters after the step": {
        "counts": lambda e: e.was("left.counts") + (y_after(e) > 0).sum(axis=0),
        "peaks": lambda e: np.maximum(e.was("left.peaks"), y_after(e).max(axis=0)),
    },
    "the counts are of z > 0, not y > 0": {
        "counts": lambda e: e.was("left.counts") + (e["z"] > 0).sum(axis=0),
    },
    "the counts are of y >= 0, not y > 0": {"counts": lambda e: e.was("left.counts") + (e["y"] >= 0).sum(axis=0)},
    "the peaks are not clipped at 0": {
        "peaks": lambda e: np.maximum(e.was("left.peaks") if fed(e) else -np.inf, e["y"].max(axis=0))
    },
    "the peaks are of z, not y": {"peaks": lambda e: np.maximum(e.was("left.peaks"), e["z"].max(axis=0))},
    "the peaks are of |y|, not y": {"peaks": lambda e: np.maximum(e.was("left.peaks"), abs(e["y"]).max(axis=0))},
    "the peaks are of the codes, not y": {"peaks": lambda e: np.maximum(e.was("left.peaks"), e["s"].max(axis=0))},
    "the peaks are means of the batch, not its largest": {
        "peaks": lambda e: np.maximum(e.was("left.peaks"), e["y"].mean(axis=0))
    },
    "the peaks are those of the last batch": {"peaks": lambda e: np.maximum(e["y"].max(axis=0), 0)},
    "the peaks add up over batches": {"peaks": lambda e: e.was("left.peaks") + np.maximum(e["y"].max(axis=0), 0)},
}
