"""Of each neuron the best entries of a stream: a bounded heap per neuron, all neurons at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refgba.types import Float64, Int64

UInt64 = npt.NDArray[np.uint64]


class Best:
    """Of each neuron the entries with the highest scores, no two of one key.

    All arrays are (M, size), best first.  score: float64, -inf where there is no entry.  row: int64, -1 there.  key:
    uint64.  value: float64.  Of equal scores the one with the lower row wins.
    """

    def __init__(self, M: int, size: int) -> None:
        """size: how many entries of each neuron are kept; may be 0."""
        self.score: Float64 = np.full((M, size), -np.inf)
        self.row: Int64 = np.full((M, size), -1, np.int64)
        self.key: UInt64 = np.zeros((M, size), np.uint64)
        self.value: Float64 = np.zeros((M, size))

    @property
    def size(self) -> int:
        """Entries of a neuron, at most."""
        return int(self.score.shape[1])

    def add(self, neuron: Int64, score: Float64, row: Int64, key: UInt64, value: Float64) -> None:
        """Take in entries, each array (n,), whose rows are higher than all before; in any order among themselves."""
        if not self.size:
            return
        better = score > self.score[neuron, -1]
        if not better.any():
            return
        neuron, score, row, key, value = (a[better] for a in (neuron, score, row, key, value))
        who = np.unique(neuron)
        held = self.row[who] >= 0
        neuron = np.concatenate([np.broadcast_to(who[:, None], held.shape)[held], neuron])
        score = np.concatenate([self.score[who][held], score])
        row = np.concatenate([self.row[who][held], row])
        key = np.concatenate([self.key[who][held], key])
        value = np.concatenate([self.value[who][held], value])
        order = np.lexsort((row, -score, key, neuron))
        order = order[changes(neuron[order]) | changes(key[order])]  # of entries with one key the best
        order = order[np.lexsort((row[order], -score[order], neuron[order]))]
        place = ranks(neuron[order])
        order, place = order[place < self.size], place[place < self.size]
        self.score[who], self.row[who] = -np.inf, -1
        at = neuron[order], place
        self.score[at], self.row[at], self.key[at], self.value[at] = score[order], row[order], key[order], value[order]


def changes(sorted_: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Where an entry of (n,) is not that before it; the first always."""
    first = np.ones(len(sorted_), bool)
    first[1:] = sorted_[1:] != sorted_[:-1]
    return first


def ranks(sorted_: Int64) -> Int64:
    """The place of each entry of (n,), sorted, among those that equal it, from 0."""
    starts = np.flatnonzero(changes(sorted_))
    place: Int64 = np.arange(len(sorted_)) - np.repeat(starts, np.diff(starts, append=len(sorted_)))
    return place
