"""Which neurons point nearly the same way: those near each neuron of a run, and its like in other runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refgba.report.run import Likeness
from refgba.runs.copies import MAX_PRODUCTS
from refgba.sae import unit_rows
from refgba.types import Array, Float64, Int64

NEAR = 5  # neighbours of a neuron that its view lists
CELLS = 2**24  # cosines in memory at a time
GROUPS = 512  # A row's cosines are in this many groups, whose largest are compared first.


def likeness(mine: Array, others: Sequence[tuple[str, Array]]) -> tuple[Likeness, ...]:
    """The NEAR neurons nearest to each of `mine` (M, d) among themselves, and its nearest one in each other run.

    others: names of runs, and the directions of their neurons (any, d).  What would take more than MAX_PRODUCTS is left
    out, and so are runs of another d.
    """
    unit, found = unit_rows(mine, otherwise=mine), []
    for name, theirs in (("", None), *others):
        to = mine if theirs is None else theirs
        count = min(NEAR, len(mine) - 1) if theirs is None else 1
        if count and to.shape[1] == mine.shape[1] and mine.size * len(to) <= MAX_PRODUCTS:
            there = None if theirs is None else unit_rows(theirs, otherwise=theirs)
            found.append(Likeness(name, *nearest(unit, there, count)))
    return tuple(found)


def nearest(U: Array, others: Array | None, count: int) -> tuple[Int64, Float64]:
    """Of each row of U (M, d) the `count` rows of highest cosine among others (n, d), or None for U without itself.

    Rows have unit norm; a row of zeros has the cosine 0 with all.  Computed in the dtype of the arrays.  Returns
    numbers and cosines, each (M, count), the highest first and of equals the lower number; -1 and 0 where there are not
    so many.
    """
    to, M = U if others is None else others, len(U)
    kept = min(count, len(to) - (others is None))
    number, cosine = np.full((M, count), -1, np.int64), np.zeros((M, count))
    if kept < 1:
        return number, cosine
    size = max(1, CELLS // len(to))
    for start in range(0, M, size):
        c = U[start : start + size] @ to.T  # (size, n)
        if others is None:
            l = np.arange(len(c))
            c[l, start + l] = -np.inf
        l, i = np.nonzero(c >= _floor(c, kept)[:, None])
        order = np.lexsort((i, -c[l, i], l))
        l, i = l[order], i[order]
        place = np.arange(len(l)) - np.searchsorted(l, l)  # among the candidates of the same row
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
