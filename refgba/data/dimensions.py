"""Massive dimensions: coordinates in which rows are far larger than in the others, as residual streams have them.

They are measured on rows as training sees them, less their centre if there is one and at unit norm, where the mean of
the squares over all dimensions is 1 / d.  A sample of rows is enough for that: every n-th of a store, always the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refgba.data.unit_rows import norms
from refgba.types import Array, Float64

MASSIVE = 10.0  # times the median dimension's mean square: from there on a dimension is massive
ROWS = 2**13  # rows that dimensions are measured on, at least, where there are so many; fewer than twice as many
LISTED = 8  # massive dimensions that are listed, those with the largest mean square


@dataclass(frozen=True)
class Dimension:
    """A massive dimension.

    ratio: its mean square over that of the median dimension.  largest: its largest |value| over the root mean square of
    the median dimension.  share: of the total variance.
    """

    dimension: int
    ratio: float
    largest: float
    share: float


def massive(n: int, total: Float64, squares: Float64, largest: Float64) -> tuple[int, float, list[dict[str, Any]]]:
    """How many dimensions are massive, their share of the total variance, and the largest LISTED of them, for JSON.

    n: the number of rows measured.  total, squares, largest: (d,) sums of values and of squares, and maxima of |value|.
    """
    mean_square = squares / n
    typical = float(np.median(mean_square))
    if typical <= 0:  # most dimensions are not used at all, so nothing is typical
        return 0, 0.0, []
    variance = np.maximum(mean_square - (total / n) ** 2, 0)
    share = variance / (variance.sum() or 1)
    ratio = mean_square / typical
    found = np.flatnonzero(ratio >= MASSIVE)
    found = found[np.argsort(-ratio[found], kind="stable")]
    listed = [
        Dimension(int(j), _short(ratio[j]), _short(largest[j] / np.sqrt(typical)), _short(share[j]))
        for j in found[:LISTED]
    ]
    return len(found), _short(share[found].sum()), [asdict(dimension) for dimension in listed]


class Spread:
    """Sums over sampled rows, from which `massive` follows."""

    def __init__(self, rows: int, d: int) -> None:
        """rows: of the store, of which every `every`-th is measured."""
        self.every = max(1, rows // ROWS)
        self.n, self.total, self.squares, self.largest = 0, np.zeros(d), np.zeros(d), np.zeros(d)

    def of(self, x: Float64, begin: int, centre: Float64 | None) -> tuple[int, Float64, Float64, Float64] | None:
        """What the sampled ones of rows x (L, d), the first of which has the number `begin`, add to the sums."""
        x = x[-begin % self.every :: self.every]
        if centre is not None:
            x = x - centre
        norm = norms(x)
        fits = (norm > 0) & np.isfinite(norm)
        x = x[fits] / norm[fits, None]
        if not len(x):
            return None
        return len(x), x.sum(axis=0), np.einsum("ld,ld->d", x, x), np.abs(x).max(axis=0)

    def add(self, part: tuple[int, Float64, Float64, Float64] | None) -> None:
        """Take in what `of` gave."""
        if part is not None:
            n, total, squares, largest = part
            self.n += n
            self.total += total
            self.squares += squares
            np.maximum(self.largest, largest, out=self.largest)

    def massive(self) -> tuple[int, float, list[dict[str, Any]]]:
        """As the function `massive`."""
        return massive(self.n, self.total, self.squares, self.largest) if self.n else (0, 0.0, [])


def concentration(x: Array) -> tuple[int, float]:
    """The dimension in which a row x (d,) is largest, and that dimension's share of the row's squared length.

    The share is 0 for a row that has no finite length above 0.
    """
    x = x.astype(np.float64)
    j, square = int(np.abs(x).argmax()), float(np.einsum("d,d->", x, x))
    return j, _short(x[j] ** 2 / square) if 0 < square < np.inf else 0.0


def _short(x: Any) -> float:
    return float(f"{x:.4g}")
