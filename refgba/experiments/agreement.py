"""How far two dictionaries agree, and what two random ones with the same spectrum would (ours).

The maximum cosine lets many neurons of one run point at the same neuron of another: copies agree with a single like.
Matching one to one forbids that.  Both are judged against `null`, since in few dimensions, or where a few directions
hold most of the variance, any two dictionaries have large cosines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refgba.metrics import match, mcs
from refgba.sae import unit_rows
from refgba.types import Array

LEVELS = (0.7, 0.9)  # cosines from which neurons agree


@dataclass(frozen=True)
class Agreement:
    """Of two dictionaries A and B of the same width M; mcs is a mean over both ways, A to B and B to A.

    mcs_mean: the mean of the maximum cosines.  mcs: the share at each of LEVELS or above.  matched_mean, matched: the
    same of neurons matched one to one, so that the sum of cosines is largest.
    """

    mcs_mean: float
    mcs: list[float]
    matched_mean: float
    matched: list[float]


def agreement(A: Array, B: Array) -> Agreement:
    """Of the neurons A and B, (M, d) each; holds M x M numbers.  InputError as `refgba.metrics.cosine`."""
    return Agreement(*_means(np.concatenate([mcs(A, B), mcs(B, A)])), *_means(match(A, B)[1]))


def _means(cosines: Array) -> tuple[float, list[float]]:
    return round(float(cosines.mean()), 5), [round(float((cosines >= level).mean()), 5) for level in LEVELS]


def mean(found: Sequence[Agreement]) -> Agreement:
    """The mean of several agreements."""
    parts = np.array([[a.mcs_mean, *a.mcs, a.matched_mean, *a.matched] for a in found]).mean(axis=0).round(5).tolist()
    n = len(LEVELS)
    return Agreement(parts[0], parts[1 : n + 1], parts[n + 1], parts[n + 2 :])


def random_like(V: Array, rng: np.random.Generator) -> Array:
    """As many Gaussian directions as V (M, d) has rows, whose second moments are those of V's at unit norm: (M, d)."""
    unit = unit_rows(V[np.linalg.norm(V, axis=1) > 0].astype(np.float64))
    size, axes = np.linalg.eigh(unit.T @ unit / len(unit))  # of Σ_m v_m v_mᵀ / M
    root = axes * np.sqrt(np.maximum(size, 0))  # (d, d)
    drawn: Array = unit_rows(rng.standard_normal((len(V), V.shape[1])) @ root.T)
    return drawn


def null(V: Array, seed: int = 0) -> Agreement:
    """What two random dictionaries with the spectrum of V (M, d) agree on."""
    rng = np.random.default_rng(seed)
    return agreement(random_like(V, rng), random_like(V, rng))
