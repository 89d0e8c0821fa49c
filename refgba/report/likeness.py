"""Which neurons point nearly the same way: those near each neuron of a run, and its like in other runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refgba.report.run import Likeness
from refgba.types import Array, Float64, Int64

NEAR = 5  # neighbours of a neuron that its view lists
MOST = 2**41  # products of two numbers: more would take minutes, and are left out of the page
BLOCK = 2**24  # cosines in memory at a time


def likeness(mine: Array, others: Sequence[tuple[str, Array]]) -> tuple[Likeness, ...]:
    """The NEAR neurons nearest to each of `mine` (M, d) among themselves, and its nearest one in each other run.

    others: names of runs, and the directions of their neurons (any, d).  What would take more than MOST products is
    left out, and so are runs of another d.
    """
    found = []
    for name, theirs in (("", mine), *others):
        k = min(NEAR, len(mine) - 1) if theirs is mine else 1
        if k and theirs.shape[1] == mine.shape[1] and mine.size * len(theirs) <= MOST:
            found.append(Likeness(name, *nearest(mine, theirs, k, theirs is mine)))
    return tuple(found)


def nearest(A: Array, B: Array, k: int, others: bool = False) -> tuple[Int64, Float64]:
    """For each row of A (M, d) the k rows of B (n, d) of highest cosine, highest first: (M, k) numbers and cosines.

    others: A and B are the same, and no row is its own neighbour.  A row of zeros has the cosine 0 with all.
    """
    A, B = _unit(A), _unit(B)
    number, cosine = np.empty((len(A), k), np.int64), np.empty((len(A), k))
    size = max(1, BLOCK // len(B))
    for i in range(0, len(A), size):
        c = A[i : i + size] @ B.T
        if others:
            c[np.arange(len(c)), np.arange(i, i + len(c))] = -np.inf
        best = np.argpartition(-c, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(c, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        number[i : i + size], cosine[i : i + size] = best, np.take_along_axis(c, best, axis=1)
    return number, cosine


def _unit(A: Array) -> Array:
    norm = np.linalg.norm(A, axis=1, keepdims=True)
    return A / np.where(norm > 0, norm, 1)
