"""Neurons that share a feature: sets of directions that agree, and what they cost on rows.

A set is greedy: neurons go from the most frequent to the rarest, and one that is within TAU of the first of a set joins
the earliest such set, else it begins one.  So every member is within TAU of the set's first neuron, which no chain of
neighbours could promise.  A copy is a member but the first.

To merge a set is to put one neuron in its place, with the first one's direction, active where any member is, that adds
what the members add in that direction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refgba.baselines.method import Groups
from refgba.runs.passes import Pass
from refgba.sae import unit_rows
from refgba.types import Array, Float64, Int64

TAU = 0.9  # neurons that agree to this cosine share a feature
MAX_PRODUCTS = 2**41  # What takes more products of two numbers takes minutes, and is not searched.
ROWS = 4096  # rows that the cost is measured on, at most
BLOCK = 1024  # neurons that may begin sets, looked at together
CELLS = 2**24  # cosines in memory at a time


@dataclass(frozen=True)
class Copies:
    """Which neurons share a feature.

    first: (M,) the first neuron of each neuron's set, its own number where it is that.  cosine: (M,) with it.
    summary: for JSON.  tau, sets, copies: how many sets have two neurons or more, and how many neurons they have but
    the first ones.  largest: the most neurons of a set.  groups: how many copies each group has, where there are
    groups.  rows: those that the rest is measured on.  l0: active neurons per row; l0_copies: as many of them as
    merging would take away.  fvu, fvu_merged: before and after.
    """

    first: Int64
    cosine: Float64
    summary: dict[str, Any]


def copies(
    V: Array, D: Array, frequency: Float64, groups: Groups | None, passes: Iterable[Pass]
) -> Copies | None:  # fmt: skip
    """The copies in a network, and their cost on the rows of some passes.

    V: (M, d) directions.  D: (M, d) what each neuron adds per unit of its code.  None where that takes more
    than MAX_PRODUCTS.
    """
    if V.size * len(V) > MAX_PRODUCTS:
        return None
    first = copy_sets(V, frequency)
    unit = unit_rows(V, otherwise=V)
    cosine = np.einsum("md,md->m", unit, unit[first]).astype(np.float64)
    is_copy = first != np.arange(len(V))
    sizes = np.bincount(first, minlength=len(V))
    summary: dict[str, Any] = {
        "tau": TAU,
        "sets": int(np.sum(sizes > 1)),
        "copies": int(is_copy.sum()),
        "largest": int(sizes.max()),
    }
    if groups is not None:
        summary["groups"] = np.bincount(groups.group[is_copy], minlength=len(groups.target)).tolist()
    return Copies(first, cosine, summary | _cost(first, unit, D, passes))


def copy_sets(V: Array, frequency: Float64, tau: float = TAU) -> Int64:
    """The first neuron of each neuron's set, its own number where it is the first: (M,).

    V: (M, d) directions, of any length; one of zeros is like no other.  frequency: (M,), ties go to the lower number.
    Blockwise: O(M² d) products, and no M x M numbers in memory.
    """
    unit = unit_rows(V, otherwise=V)
    first = np.arange(len(V))
    left = np.argsort(-frequency, kind="stable")  # neurons without a set, most frequent first
    while len(left):
        block, left = left[:BLOCK], left[BLOCK:]
        near = unit[block] @ unit[block].T >= tau
        begins: list[int] = []  # places in the block
        for i in range(len(block)):
            like = np.flatnonzero(near[i, begins])
            if like.size:
                first[block[i]] = block[begins[like[0]]]
            else:
                begins.append(i)
        heads = block[begins]
        joined = np.zeros(len(left), bool)
        size = max(1, CELLS // len(heads))
        for l in range(0, len(left), size):
            part = left[l : l + size]
            near = unit[part] @ unit[heads].T >= tau  # (size, heads)
            joined[l : l + size] = near.any(axis=1)
            mine = joined[l : l + size]
            first[part[mine]] = heads[near[mine].argmax(axis=1)]
        left = left[~joined]
    return first


def _cost(first: Int64, unit: Array, D: Array, passes: Iterable[Pass]) -> dict[str, Any]:
    """What copies cost on rows: names as in `Copies`; nothing where there are no rows."""
    sizes = np.bincount(first, minlength=len(first))
    members = np.flatnonzero(sizes[first] > 1)
    members = members[np.argsort(first[members], kind="stable")]  # set by set
    begins = np.flatnonzero(np.diff(first[members], prepend=-1))
    heads = unit[first[members]]
    along = np.einsum("md,md->m", D[members], heads)[:, None] * heads  # what merging keeps of each member, (members, d)
    shift = along - D[members]
    rows = active = spare = 0
    error = merged = 0.0
    total, squares = np.zeros(unit.shape[1]), 0.0
    for x, f, y, codes in passes:
        rows, active = rows + len(x), active + int(np.count_nonzero(y > 0))
        total, squares = total + x.sum(axis=0, dtype=np.float64), squares + _square(x)
        error += _square(f - x)
        if len(members):
            on = y[:, members] > 0
            spare += int(on.sum() - np.logical_or.reduceat(on, begins, axis=1).sum())
            f = f + codes()[:, members] @ shift
        merged += _square(f - x)
    if not rows:
        return {}
    spread = squares - float(total @ total) / rows
    fvu = {"fvu": error / spread, "fvu_merged": merged / spread} if spread > 0 else {}
    return {"rows": rows, "l0": active / rows, "l0_copies": spare / rows} | fvu


def _square(x: Array) -> float:
    return float(np.sum(x * x, dtype=np.float64))
