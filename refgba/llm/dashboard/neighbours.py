"""Which decoder directions are near which: the neighbours of a neuron, and its counterpart in another seed's run."""

from __future__ import annotations

import numpy as np

from refgba.types import Array, Float64, Int64

ENTRIES = 2**24  # cosines worked on at once


def nearest(V: Array, others: Array | None, count: int) -> tuple[Int64, Float64]:
    """Of each direction V (M, d) the `count` nearest among others (n, d), or None for V without itself.

    Returns numbers and cosines, each (M, count), the nearest first; -1 and 0 where there are not so many.  Directions
    of zeros are near nothing.
    """
    own, M = others is None, len(V)
    U = _unit(V)
    to = U if others is None else _unit(others)
    found, kept = len(to) - own, min(count, len(to) - own)
    number, cosine = np.full((M, count), -1, np.int64), np.zeros((M, count))
    if kept < 1:
        return number, cosine
    step = max(1, ENTRIES // len(to))
    for start in range(0, M, step):
        c = U[start : start + step] @ to.T
        l = np.arange(len(c))
        if own:
            c[l, start + l] = -np.inf
        best = np.argpartition(-c, kept - 1, axis=1)[:, :kept] if kept < found else np.argsort(-c, axis=1)[:, :kept]
        values = np.take_along_axis(c, best, 1)
        order = np.lexsort((best, -values), axis=1)
        number[start : start + step, :kept] = np.take_along_axis(best, order, 1)
        cosine[start : start + step, :kept] = np.take_along_axis(values, order, 1)
    return number, cosine


def _unit(V: Array) -> Array:
    """Rows of unit norm in float32, which is exact enough to rank them; rows of zeros stay."""
    norm = np.linalg.norm(V, axis=1, keepdims=True)
    unit: Array = (V / np.where(norm == 0, 1, norm)).astype(np.float32)
    return unit
