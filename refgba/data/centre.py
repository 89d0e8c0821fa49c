"""The centre of rows (ours): a constant that all of them share is no feature, and hides the features from GBA.

Rows are scaled to unit norm, so that rows with few active features count as much as those with many: with one factor
for all rows instead, GBA recovers next to nothing of the imbalanced set (benchmarks/recipe.md).  A constant that is
added to every row undoes that: all rows then have nearly one norm and one direction, and neurons compete for it.
Subtracting the mean takes the constant away, but with it the mean of the features, which are never negative; that mean
is large beside rows with few of them.  So the centre is the point c with

    Σ_l (x_l - c) / ||x_l - c||⁴ = 0 ,        where Σ_l 1 / ||x_l - c||² is largest nearby:

a mean whose weights 1 / ||x_l - c||⁴ favour rows with few active features, which lie next to where a row without any
would be.  A constant added to all rows is added to c, so that what training sees, (x - c) / ||x - c||, does not change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from refgba.data.activations import Activations
from refgba.data.unit_rows import norms
from refgba.types import Array, Float64

Centring = Literal["auto", "on", "off"]

ROWS = 2**14  # rows that the centre is found from, at most
BYTES = 2**28  # memory for them, at most
NEAREST = 0.05  # This share of the rows, the nearest, weigh as much as its farthest: no row alone pulls the centre.
STEPS, CLOSE = 100, 1e-4  # steps at most, and a move, over the median distance, that ends them

OFFSET = 0.45  # the `Location.offset` from which rows are centred unless the user says otherwise
TOLD = 0.18  # that from which it is told: on the imbalanced set, which is found whole, it is up to 0.16


@dataclass(frozen=True)
class Location:
    """Where rows lie, as a sample of them says.

    centre: c, (d,).  offset: ||c|| over the median of ||x - c||.  gamma: ||mean|| over the root of the total variance.
    """

    centre: Float64
    offset: float
    gamma: float


def centred(data: Activations, centring: Centring) -> tuple[Activations, Location]:
    """The rows less their centre if centring is "on", or if it is "auto" and they are offset by OFFSET or more."""
    location = locate(data)
    off = centring == "off" or (centring == "auto" and location.offset < OFFSET)
    return (data if off else replace(data, centre=location.centre)), location


def locate(data: Activations) -> Location:
    """Where the rows of the data lie, from at most ROWS of them, which are always the same.

    Rows that cannot be computed on, and those that all point the same way, lie nowhere; the survey will refuse them.
    """
    size = max(1, min(ROWS, BYTES // (8 * data.d)))
    parts = [x[np.isfinite(norms(x)) & (norms(x) > 0)].astype(np.float64) for x in data.sample(size, size)]
    x = np.concatenate(parts)[:size]
    if not len(x) or 1 - np.sum(np.mean(x / norms(x)[:, None], axis=0) ** 2) < 1e-12:
        return Location(np.zeros(data.d), 0.0, 0.0)
    mean = x.mean(axis=0)
    spread = float(np.sqrt(np.mean(norms(x - mean) ** 2)))
    c = centre(x)
    offset = float(np.linalg.norm(c) / np.median(norms(x - c)))
    return Location(c, offset, float(np.linalg.norm(mean)) / spread)


def centre(x: Array) -> Float64:
    """The centre c (d,) of rows x (L, d), not all equal, by steps to the weighted mean, from the mean on.

    Two rows out of three are near the origin, where the mean is not:

    >>> import numpy as np
    >>> from refgba.data.centre import centre
    >>> x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [8, 8], [8, 8]])
    >>> x.mean(axis=0).round(2), centre(x).round(2)
    (array([2.67, 2.67]), array([0.46, 0.46]))
    """
    c: Float64 = x.mean(axis=0)
    for _ in range(STEPS):
        r = norms(x - c)
        nearest = float(np.quantile(r, NEAREST)) or r[r > 0].min()  # many rows may be equal
        weight = np.maximum(r, nearest) ** -4.0
        step = np.einsum("l,ld->d", weight, x - c) / weight.sum()  # not BLAS, whose sums depend on its threads
        c = c + step
        if np.linalg.norm(step) <= CLOSE * np.median(r):
            break
    return c
