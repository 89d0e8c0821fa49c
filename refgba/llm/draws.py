"""Random numbers of this room: a generator for each purpose, so that none shifts what another draws."""

from __future__ import annotations

import numpy as np

PURPOSES = ("masked", "bootstrap", "random", "peaks", "writing")


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """The generator of one of PURPOSES, and of its part `index` where it has parts; seed: nonnegative."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose), *index)))
