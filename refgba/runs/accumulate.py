"""A network judged over data of any length in one pass: the formulas of `refgba.metrics` as running sums.

`Evaluation` takes rows in chunks of any size and holds O(M + d) numbers; on request also the highest rows per neuron.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from refgba.backends.comm import ALONE, Ranks
from refgba.errors import InputError
from refgba.runs.histograms import Histograms
from refgba.types import Array, Float64, Int64

QUANTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}  # names and percents

_CACHED = 2**17  # Entries per block: it is passed over several times, and 1 MB in float64 stays in a core's cache.
_SENT = 2**16  # Neurons of each rank whose measurements travel at a time.
_FEWEST = 32  # Rows per block at least, which share the cost of its (M,) arrays.


class _Moments:
    """Mean and squared deviations of each column of a stream of rows, combined as Chan, Golub and LeVeque do.

    Everything is kept relative to the first row.  A constant column then has a deviation of exactly 0, not of rounding
    error, and a large common offset costs no precision.
    """

    def __init__(self, columns: int, name: str) -> None:
        self.name = name
        self.rows = 0
        self.first = np.zeros(columns)
        self.shift = np.zeros(columns)  # mean - first
        self.deviation = np.zeros(columns)  # sum over rows of (z - mean)^2

    def update(self, z: Array) -> None:
        """Take in rows z (L, columns), L > 0.  Raises InputError for values that are not finite."""
        first = self.first if self.rows else z[0].astype(np.float64)
        with np.errstate(invalid="ignore"):  # from infinities, which are refused below
            relative = z.astype(np.float64)  # (L, columns)
            relative -= first
            shift = relative.mean(axis=0)
        if not np.isfinite(shift).all():  # no sum over a NaN or an infinity is finite: this looks at every value
            _require_finite(self.name, z, self.rows)
        relative -= shift
        rows = self.rows + len(z)
        delta = shift - self.shift
        self.deviation += np.einsum("lm,lm->m", relative, relative) + delta**2 * (self.rows * len(z) / rows)
        self.shift += delta * (len(z) / rows)
        self.first, self.rows = first, rows


class _Top:
    """The k rows of a stream on which each column is highest, among those on which it is positive.

    An entry that exceeds the k-th highest of its column so far waits; once as many wait as are kept, all of them are
    sorted in.  Such entries soon become rare: the n-th row has one in a given column with probability k / n.
    """

    def __init__(self, columns: int, k: int) -> None:
        self.rows = np.full((columns, k), -1, np.int64)
        self.values = np.zeros((columns, k))  # 0 where there is no row yet: any positive value exceeds it
        self._waiting: list[tuple[Int64, Int64, Array]] = []  # column, row and value of entries, in the order of rows
        self._count = 0

    def update(self, z: Array, highest: Array, row: int) -> None:
        """Take in rows z (L, columns), the first of them number `row` of the stream; highest: (columns,) their maxima.

        Looks at all of z only where `highest` says that there is something to find.
        """
        bar = self.values[:, -1]
        columns = np.flatnonzero(highest > bar)
        if not columns.size:
            return
        z = z[:, columns]
        l, m = np.nonzero(z > bar[columns])
        self._waiting.append((columns[m], l + row, z[l, m]))
        self._count += len(l)
        if self._count >= self.values.size:
            self.merge()

    def merge(self) -> None:
        """Sort in the entries that wait."""
        if not self._count:
            return
        k = self.rows.shape[1]
        column, row, value = (np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True))
        touched = np.unique(column)
        column = np.concatenate([np.repeat(touched, k), column])
        row = np.concatenate([self.rows[touched].ravel(), row])
        value = np.concatenate([self.values[touched].ravel(), value])
        order = np.lexsort((-value, column))  # stable: of equal values in a column the earlier row stays first
        start = np.searchsorted(column[order], touched)
        best = order[start[:, None] + np.arange(k)]  # (touched, k)
        self.rows[touched], self.values[touched] = row[best], value[best]
        self._waiting.clear()
        self._count = 0


class Evaluation:
    """Reconstruction and sparsity of a network over data of any length, seen once, in chunks of any size.

    Two rows, at a squared distance of 1/2 from their mean.  The second is half reconstructed, and no neuron fires on
    it; the second neuron never fires:

    >>> import numpy as np
    >>> from refgba.runs.accumulate import Evaluation
    >>> evaluation = Evaluation(M=2, d=2)
    >>> evaluation.update(x=np.array([[1.0, 0.0]]), x_hat=np.array([[1.0, 0.0]]), y=np.array([[0.5, -1.0]]))
    >>> evaluation.update(x=np.array([[0.0, 1.0]]), x_hat=np.array([[0.0, 0.5]]), y=np.array([[-0.5, -1.0]]))
    >>> evaluation.fvu, evaluation.loss, evaluation.l0, evaluation.dead
    (0.25, 0.0625, 0.5, 0.5)

    Accumulates in float64 whatever comes in: the split into chunks changes sums by rounding only, and counts and
    comparisons not at all.  Each property defines what it reports, with f the reconstruction x_hat, y_m the
    pre-activations, and a neuron active where y_m > 0.  Every property raises InputError while no row has been seen.
    """

    def __init__(self, M: int, d: int, top: int = 0, bins: int = 0, ranks: Ranks = ALONE) -> None:
        """Start an evaluation of a network with M neurons on d-dimensional data, keeping `top` rows for each neuron.

        bins: of a histogram of each neuron's activations; 0 keeps none.  ranks: those that share the neurons; what is
        measured of a neuron is on its own rank, until `gather`.  Raises InputError unless M, d >= 1 and top >= 0.
        """
        if M < 1 or d < 1 or top < 0:
            raise InputError(f"M and d must be at least 1 and top at least 0, got {M}, {d} and {top}")
        own = ranks.count(M)
        self.top, self.bins, self._ranks = top, bins, ranks
        self._x = _Moments(d, "x")
        self._y = _Moments(own, "y")
        self._error = 0.0  # sum ||x - f||^2
        self._active = np.zeros(own, np.int64)
        self._l0 = np.zeros(M + 1, np.int64)
        self._peak = np.full(own, -np.inf)
        self._highest = _Top(own, top)
        self._histograms = Histograms(own, bins) if bins else None

    def update(self, x: Array, x_hat: Array, y: Array) -> None:
        """Take in L rows: data x (L, d), reconstructions x_hat (L, d), pre-activations y (L, M).  L may be 0.

        Several ranks take in the same rows together, each with the y of its own neurons.  Raises InputError for shapes
        that do not fit or values that are not finite, which end the evaluation.
        """
        d, M = len(self._x.first), len(self._y.first)
        if x.shape != (len(y), d) or x_hat.shape != x.shape or y.shape != (len(x), M):
            raise InputError(f"x and x_hat must be (L, {d}) and y (L, {M}), got {x.shape}, {x_hat.shape} and {y.shape}")
        for rows in _blocks(len(x), d):
            self._update_error(x[rows], x_hat[rows])
        count = np.empty(len(y), np.int64)  # (L,) active neurons per row
        for rows in _blocks(len(y), M):
            count[rows] = self._update_activity(y[rows])
        every = self._ranks.totals(count)[0].astype(np.int64)
        self._l0 += np.bincount(every, minlength=len(self._l0))

    def _update_error(self, x: Array, x_hat: Array) -> None:
        row = self._x.rows
        self._x.update(x)
        r = x_hat.astype(np.float64)
        r -= x
        error = float(np.vdot(r, r))
        if not np.isfinite(error):
            _require_finite("x_hat", x_hat, row)
        self._error += error

    def _update_activity(self, y: Array) -> Int64:
        """Take in pre-activations; how many are active per row."""
        row = self._y.rows
        self._y.update(y)
        on = (y > 0).view(np.int8)  # summing these is several times faster than counting booleans along an axis
        self._active += on.sum(axis=0, dtype=np.int32)
        highest = y.max(axis=0)
        np.maximum(self._peak, highest, out=self._peak)
        if self.top:
            self._highest.update(y, highest, row)
        if self._histograms is not None:
            self._histograms.update(y, highest)
        count: Int64 = on.sum(axis=1, dtype=np.int64)
        return count

    def gather(self) -> None:
        """Give rank 0 what was measured of all neurons; after that nothing more can be taken in.

        All ranks do so together, and those other than rank 0 are left without any.
        """
        if self._ranks.size == 1:
            return

        def whole(own: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.concatenate(list(self._ranks.gathered(own, _SENT)))

        y, highest = self._y, self._highest
        y.first, y.shift, y.deviation = whole(y.first), whole(y.shift), whole(y.deviation)
        self._active, self._peak = whole(self._active), whole(self._peak)
        if self.top:
            highest.merge()
            highest.rows, highest.values = whole(highest.rows), whole(highest.values)
        if self._histograms is not None:
            self._histograms.counts, self._histograms.end = whole(self._histograms.counts), whole(self._histograms.end)

    @property
    def rows(self) -> int:
        """The number of rows N seen."""
        self._require_rows()
        return self._x.rows

    @property
    def loss(self) -> float:
        """Reconstruction loss  L_rec = mean_l 1/2 ||f(x_l) - x_l||^2  (section 2)."""
        return self._error / 2 / self.rows

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained  sum_l ||x_l - f(x_l)||^2 / sum_l ||x_l - mean(x)||^2.

        Raises InputError where all rows are equal: they have no variance to explain, and no number would be right.
        """
        self._require_rows()
        if not self._x.deviation.any():
            same = "there is one row" if self._x.rows == 1 else "all rows of the data are equal"
            raise InputError(f"FVU is undefined: {same}; give rows that differ")
        return float(self._error / self._x.deviation.sum())

    @property
    def explained_variance(self) -> float:
        """1 - FVU: 1 is perfect, 0 no better than the mean, negative worse.  Raises InputError as `fvu`."""
        return 1 - self.fvu

    @property
    def l0(self) -> float:
        """Mean number of active neurons per row,  sum_m p_m."""
        return float(self._active.sum() / self.rows)

    @property
    def l0_histogram(self) -> Int64:
        """(M + 1,) the number of rows on which exactly 0, 1, .., M neurons were active."""
        self._require_rows()
        return self._l0.copy()

    @property
    def activation_fraction(self) -> float:
        """L0 / M."""
        return self.l0 / len(self._active)

    @property
    def dead(self) -> float:
        """The share of neurons that fired on no row."""
        return float(np.mean(self.frequency == 0))

    @property
    def frequency(self) -> Float64:
        """(M,) activation frequencies  p_m = mean_l 1{y_m > 0}."""
        return self._active / self.rows

    @property
    def peak(self) -> Float64:
        """(M,) peak pre-activations  max_l y_m, negative if it never fired; Algorithm 2's r_m = max(peak, 0)."""
        self._require_rows()
        return self._peak.copy()

    @property
    def mean(self) -> Float64:
        """(M,) means of the pre-activations."""
        self._require_rows()
        return self._y.first + self._y.shift

    @property
    def std(self) -> Float64:
        """(M,) standard deviations of the pre-activations (over N, not N - 1)."""
        return np.sqrt(self._y.deviation / self.rows)

    @property
    def z_score(self) -> Float64:
        """(M,) Z-scores  (peak_m - mean_m) / std_m  of the pre-activations (ours); 0 where std_m is 0."""
        std = self.std
        return np.where(std > 0, (self.peak - self.mean) / np.where(std > 0, std, 1), 0.0)

    @property
    def top_rows(self) -> Int64:
        """(M, top) the rows on which each neuron was active with the highest y_m, highest first (ours).

        Rows are counted from 0 in the order they came; of equal values the earlier goes first.  Where a neuron was
        active on fewer rows, -1 fills up.
        """
        self._require_rows()
        self._highest.merge()
        return self._highest.rows.copy()

    @property
    def top_values(self) -> Float64:
        """(M, top) the y_m on `top_rows`, 0 where there is none."""
        self._require_rows()
        self._highest.merge()
        return self._highest.values.copy()

    @property
    def activation_counts(self) -> Int64:
        """(M, bins) on how many rows the y_m of an active neuron was in each of equally wide bins (ours)."""
        assert self._histograms is not None
        return self._histograms.counts.astype(np.int64)

    @property
    def activation_end(self) -> Float64:
        """(M,) where the last of a neuron's bins ends, which begin at 0; 0 if it never fired."""
        assert self._histograms is not None
        return self._histograms.end.copy()

    def summary(self) -> dict[str, float]:
        """The scalars under the names that `--json` promises.  Raises InputError as `fvu`."""
        names = ("fvu", "explained_variance", "l0", "activation_fraction", "dead", "loss", "rows")
        return {name: getattr(self, name) for name in names}

    def _require_rows(self) -> None:
        if self._x.rows == 0:
            raise InputError("nothing to evaluate: no row of data was given")


def quantiles(histogram: Int64) -> dict[str, int]:
    """Quantiles of a count, by the names of QUANTILES, from the numbers of rows on which it was 0, 1, 2, ..

    All are exact, none is interpolated: the quantile q is the smallest count that occurs such that at least the share q
    of the rows have no more.
    """
    up_to = np.cumsum(histogram)
    rank = {name: max(1, -(-percent * int(up_to[-1]) // 100)) for name, percent in QUANTILES.items()}
    return {name: int(np.searchsorted(up_to, n)) for name, n in rank.items()}


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    size = max(_FEWEST, _CACHED // columns)
    return (slice(l, l + size) for l in range(0, rows, size))


def _require_finite(name: str, values: Array, row: int) -> None:
    """InputError for values (L, any) that are not finite, naming the first such row; row: the number of row 0."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row += int(np.argmin(finite))
        raise InputError(f"{name} holds a value that is not finite at row {row} of the data, counted from 0")
