"""What the tests of the oracle share: the kinds of trace they record, and small changes to dumps."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from refgba import recipe
from refgba.oracle import traces

SHIPPED = Path(__file__).parent / "traces"
KINDS = {
    "default": ("default", {}),
    "tied": ("default", {"untied": False}),
    "relu": ("default", {"activation": "relu"}),
    "paper": ("paper", {}),
}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_trace = pytest.mark.parametrize("kind", [*KINDS, "ties"])


def config_of(kind, **more):
    """The settings of a kind of trace."""
    name, settings = KINDS[kind]
    return recipe.RECIPES[name](5, **traces.SMALL | settings | more)


@cache
def recorded(kind="default"):
    """A trace of each kind, and that of ties, recorded once."""
    if kind == "ties":
        return traces.ties()
    return traces.example(config_of(kind), 5)


def halved(arrays):
    """What a port in float32 writes."""
    return {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in arrays.items()}
