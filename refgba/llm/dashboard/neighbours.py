"""Which decoder directions are near which: the neighbours of a neuron, and its counterpart in another seed's run."""

from __future__ import annotations

import numpy as np

from refgba.llm.dashboard.best import ranks
from refgba.types import Array, Float64, Int64

ENTRIES = 2**24  # cosines worked on at once
GROUPS = 512  # of a row's cosines, of which the largest are compared first


def nearest(V: Array, others: Array | None, count: int) -> tuple[Int64, Float64]:
    """Of each direction V (M, d) the `count` nearest among others (n, d), or None for V without itself.

    Returns numbers and cosines, each (M, count), the nearest first; -1 and 0 where there are not so many.  Directions
    of zeros are near nothing.
    """
    own, M = others is None, len(V)
    U = _unit(V)
    to = U if others is None else _unit(others)
    kept = min(count, len(to) - own)
    number, cosine = np.full((M, count), -1, np.int64), np.zeros((M, count))
    if kept < 1:
        return number, cosine
    step = max(1, ENTRIES // len(to))
    for start in range(0, M, step):
        c = U[start : start + step] @ to.T
        if own:
            l = np.arange(len(c))
            c[l, start + l] = -np.inf
        l, i = np.nonzero(c >= _floor(c, kept)[:, None])
        order = np.lexsort((i, -c[l, i], l))
        l, i, place = l[order], i[order], ranks(l[order])
        l, i, place = (a[place < kept] for a in (l, i, place))
        number[start + l, place], cosine[start + l, place] = i, c[l, i]
    return number, cosine


def _floor(c: Array, count: int) -> Array:
    """Of each row of c (any, n) a number that at least `count` entries reach, and few more.

    The largest of each of some groups of entries are found, and of these the count-th: far faster than to sort rows.
    """
    n = c.shape[1]
    groups = min(n, max(count, GROUPS))
    whole = n // groups * groups
    largest = c[:, :whole].reshape(len(c), -1, groups).max(axis=1)
    floor: Array = np.partition(largest, groups - count, axis=1)[:, groups - count]
    return floor


def _unit(V: Array) -> Array:
    """Rows of unit norm in float32, which is exact enough to rank them; rows of zeros stay."""
    norm = np.linalg.norm(V, axis=1, keepdims=True)
    unit: Array = (V / np.where(norm == 0, 1, norm)).astype(np.float32)
    return unit
