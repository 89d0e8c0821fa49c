"""Histograms of the activations of every neuron, in one pass over rows whose range is not known beforehand.

    histograms = Histograms(columns=512, bins=32)
    histograms.update(y, y.max(axis=0))

Bins begin at 0 and are equally wide.  Where a value is beyond the last bin, bins become twice as wide and neighbours
are added up: the counts stay exact, and in the end at least half of the bins lie below a column's highest value.
"""

from __future__ import annotations

import numpy as np

from refgba.types import Array


class Histograms:
    """counts: (columns, bins) of the positive values.  end: (columns,) of the last bin, 0 before any positive value."""

    def __init__(self, columns: int, bins: int) -> None:
        """bins: an even number."""
        self.counts = np.zeros((columns, bins), np.uint32)
        self.end = np.zeros(columns)

    def update(self, z: Array, highest: Array) -> None:
        """Take in rows z (L, columns) of finite values; highest: (columns,) their maxima."""
        bins = self.counts.shape[1]
        fresh = (highest > 0) & (self.end == 0)
        self.end[fresh] = highest[fresh]
        while (short := np.flatnonzero(highest > self.end)).size:
            halved = self.counts[short].reshape(len(short), bins // 2, 2).sum(axis=2)
            self.counts[short] = np.pad(halved, ((0, 0), (0, bins - bins // 2)))
            self.end[short] *= 2
        l, m = np.nonzero(z > 0)
        place = np.minimum((z[l, m] / self.end[m] * bins).astype(np.int64), bins - 1)
        np.add.at(self.counts.reshape(-1), m * bins + place, 1)
