"""Mistakes in line 3: the loss, and its factor in the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refgba import sae
from refgba.oracle.mistakes.formulas import Known, L, d, r, scaled
from refgba.oracle.stepwise import Step

PATHS = ("dW.detector", "dW.reconstructor")
GRADIENTS = (*PATHS, "da", "db_pre")

FACTORS: dict[str, Callable[[Step], Any]] = {
    "lacks its 1/2": lambda _: 2,
    "is summed over the batch, not its mean": L,
    "is summed over the batch and lacks its 1/2": lambda e: 2 * L(e),
    "divides by L - 1, not L": lambda e: L(e) / max(L(e) - 1, 1),
    "is the mean over the d entries too": lambda e: 1 / d(e),
    "is the mean over the d entries too and lacks its 1/2": lambda e: 2 / d(e),
}


def with_factor(text: str, factor: Callable[[Step], Any]) -> Known:
    """The factor in the loss, in its gradients, or in some of them."""
    loss = {"loss": scaled("loss", factor)}
    gradients = {name: scaled(name, factor) for name in GRADIENTS}
    return {
        f"the loss {text}": loss,
        f"the loss {text}, and so do the gradients": loss | gradients,
        f"the loss behind the gradients {text}": gradients,
        **{f"the loss behind {name} {text}": {name: gradients[name]} for name in GRADIENTS},
        f"the loss behind dW {text}": {name: gradients[name] for name in PATHS},
    }


MISTAKES: Known = {
    **{mistake: known for text, factor in FACTORS.items() for mistake, known in with_factor(text, factor).items()},
    "the reconstruction is compared with the rows as they come, not at unit norm": {
        "loss": lambda e: sae.loss(e["rows"], e["f"])
    },
    "the loss is the norm, not its square": {"loss": lambda e: 0.5 * np.mean(np.linalg.norm(r(e), axis=1))},
    "the residual of the gradients is x - f, not f - x": {name: scaled(name, lambda _: -1) for name in GRADIENTS},
}
