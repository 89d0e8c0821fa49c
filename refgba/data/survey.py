"""One pass over all rows before training: which of them count, and what they are like.

`survey` reads every row once.  It refuses what cannot be trained on, by file and row, and finds what training needs to
know and a checksum of each block (`activations`).  `Check` is the same for rows that are read in order and once, as an
evaluation does.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from refgba.data.activations import Activations
from refgba.data.centre import Location
from refgba.data.dimensions import Spread, concentration
from refgba.data.prefetch import in_order
from refgba.data.remarks import FAINT, remarks
from refgba.data.repeats import COMPARED, RowHashes
from refgba.data.store import Shard, Store, stored, values
from refgba.data.unit_rows import norms
from refgba.errors import InputError
from refgba.types import Array, Float64, Int64, Mask


@dataclass(frozen=True)
class Survey:
    """What rows, each scaled to unit norm, are like.

    rows: how many count.  dropped: how many are left out.  variance: the mean of ||x - mean||², the denominator of FVU.

    median_norm: of the rows as they come, without those of zeros, to within 1%.  faint: how many rows, of those that
    count, have a norm under FAINT of it: at unit norm they weigh as much as any, and may be nothing but noise.
    faint_dropped: how many rows are left out for their norm, which is under the share drop_below of the median.
    offset, gamma: as in `refgba.data.centre.Location`, where that was asked.  centred: whether the centre is subtracted
    first; variance is then that of the unit rows of the rest.

    largest_norm: of the rows as they come; largest_in, largest_share: the dimension in which that row is largest, and
    the share of its squared length there.  compared, repeated, commonest: as `refgba.data.repeats.Repeats`.
    massive_dimensions, massive_share, massive: as `refgba.data.dimensions.massive`.
    """

    rows: int
    dropped: int
    variance: float
    median_norm: float
    faint: int
    faint_dropped: int
    drop_below: float = 0.0
    offset: float | None = None
    gamma: float | None = None
    centred: bool = False
    largest_norm: float | None = None
    largest_in: int | None = None
    largest_share: float | None = None
    compared: int = 0
    repeated: int = 0
    commonest: int = 0
    massive_dimensions: int = 0
    massive_share: float = 0.0
    massive: list[dict[str, Any]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """All but the number of rows, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "rows"}

    def remarks(self) -> Iterator[str]:
        """What a user should know of the rows before training."""
        yield from remarks(**self.record())


class _Norms:
    """How many norms there are of each size, 64 sizes per octave: enough for quantiles to within 1%."""

    PER_OCTAVE = 64

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()  # by the size

    def add(self, norm: Float64, sign: int = 1) -> None:
        """Count norms above 0, or with the sign -1 no longer."""
        sizes, counts = np.unique(np.floor(np.log2(norm) * self.PER_OCTAVE).astype(np.int64), return_counts=True)
        self.counts.update(dict(zip(sizes.tolist(), (sign * counts).tolist(), strict=True)))

    def median(self) -> float | None:
        """The median, as the middle of its size; of an even number the higher one; None where there are no norms."""
        if not self.counts.total():
            return None
        left = self.counts.total() // 2 + 1  # where half of the rows are noise, the median is of the others
        for size in sorted(self.counts):
            left -= self.counts[size]
            if left <= 0:
                break
        return float(2.0 ** ((size + 0.5) / self.PER_OCTAVE))

    def under(self, norm: float) -> int:
        """How many are smaller, by their sizes."""
        limit = math.floor(math.log2(norm) * self.PER_OCTAVE)
        return sum(count for size, count in self.counts.items() if size < limit)


class Check:
    """Refuses rows, given in the order of a store, that cannot be computed on in an arithmetic `dtype`.

    Rows of zeros have no direction; with `drop_zero_rows` they are left out instead of refused.  Rows with a norm less
    than `smallest_kept` are left out.  seen: how many rows of the store were given so far.  dropped: the sorted numbers
    of those left out.  zeros: how many of them are all zeros.  sizes: of the norms of those that count.
    """

    def __init__(self, store: Store, dtype: str, drop_zero_rows: bool = False, smallest_kept: float = 0.0) -> None:
        """Begin before the first row of `store`."""
        self.store, self.dtype, self.drop, self.smallest_kept = store, dtype, drop_zero_rows, smallest_kept
        self.smallest, self.largest = np.sqrt(np.finfo(dtype).tiny), np.sqrt(np.finfo(dtype).max)  # of norms
        self.seen = 0
        self.dropped, self.zeros, self.sizes = np.empty(0, np.int64), 0, _Norms()

    def fits(self, norm: Float64) -> Mask:
        """Which rows, by their norms, can be computed on: squares neither overflow nor vanish."""
        fits: Mask = (norm >= self.smallest) & (norm <= self.largest)  # False for NaN
        return fits

    def __call__(self, x: Array) -> Array:
        """The rows of x (L, d), the next ones, that count; InputError names the first that cannot be computed on."""
        norm = norms(x)
        fits = self.fits(norm)
        if not fits.all():
            for l in np.flatnonzero(~fits):
                zero = not x[l].any()
                if zero and self.drop:
                    continue
                where = self.store.place(self.seen + int(l))
                if zero:
                    raise InputError(f"{where} is all zeros and has no direction; --drop-zero-rows skips such rows")
                raise InputError(f"{where} holds a NaN, an infinity, or is too large or small for {self.dtype}")
            self.zeros += int((~fits).sum())
        kept = fits & (norm >= self.smallest_kept)
        if not kept.all():
            self.dropped = np.concatenate([self.dropped, self.seen + np.flatnonzero(~kept)])
            x, norm = x[kept], norm[kept]
        self.sizes.add(norm)
        self.seen += len(kept)
        return x

    def chunks(self, data: Activations, size: int) -> Iterator[Array]:
        """All rows of `data` that count, in order, at most `size` at a time; InputError as `__call__`."""
        for k in range(len(data.counts)):
            x = values(data.stored(k))
            yield from (self(x[l : l + size]) for l in range(0, len(x), size))

    def record(self, drop_below: float = 0.0, median_norm: float | None = None) -> dict[str, Any]:
        """What was left out so far, and what is near zero: numbers as in `Survey`, for JSON.

        drop_below, median_norm: where `smallest_kept` is that share of that median; else the median is of the rows that
        count, and None where none does.
        """
        median_norm = median_norm or self.sizes.median()
        return {
            "dropped": len(self.dropped),
            "faint_dropped": len(self.dropped) - self.zeros,
            "faint": 0 if median_norm is None else self.sizes.under(FAINT * median_norm),
            "median_norm": median_norm,
            "drop_below": drop_below,
        }

    def row(self, index: Int64) -> Int64:
        """The numbers in the store of rows given by their numbers among those that count."""
        return index + np.searchsorted(self.dropped - np.arange(len(self.dropped)), index, side="right")


def _sum(x: Array, norm: Float64, centre: Float64 | None) -> Float64:
    """The sum of the rows x (L, d), each over its norm, or less the centre and over the norm of the rest: (d,)."""
    if centre is not None:
        x = x - centre
        norm = norms(x)
    with np.errstate(divide="ignore", invalid="ignore"):  # where a row does not count, `Check` says so
        total: Float64 = np.einsum("l,ld->d", 1 / norm, x)  # not BLAS, whose threads would compete with `in_order`'s
    return total


def refuse_share(drop_below: float) -> None:
    """InputError unless rows can be left out below this share of the median norm."""
    if not 0 <= drop_below < 1:
        raise InputError(f"rows can be dropped below a share of the median norm from 0 to under 1, not {drop_below}")


def survey(
    data: Activations,
    dtype: str = "float64",
    drop_zero_rows: bool = False,
    tick: Callable[[int], object] = id,
    drop_below: float = 0.0,
    location: Location | None = None,
) -> tuple[Activations, Survey]:
    """Read every row once: the rows to train on in the arithmetic `dtype`, and what they are like.

    `tick` is called with the number of rows of each block read.  InputError names the first row that is not finite,
    whose squares `dtype` cannot hold, or that is all zeros, unless `drop_zero_rows` leaves those out; or the first
    shard whose checksum is not that of `meta.json`.  It also refuses rows that all point the same way.

    drop_below: rows are left out, too, if their norm is less than this share of the median norm.  At 0 none is; above,
    blocks that hold such rows are read twice.  location: what `refgba.data.centre.locate` said of them, for the record.
    """
    refuse_share(drop_below)
    check = Check(data.store, dtype, drop_zero_rows)
    starts = set(data.store.starts.tolist())
    crc = np.zeros(len(data.counts), np.uint32)
    total, count = np.zeros(data.d), 0
    sizes, smallest = check.sizes, np.full(len(data.counts), np.inf)
    spread, repeats = Spread(len(data.store), data.d), RowHashes(data.d, stored(data.store.dtype).itemsize)
    largest, farthest = 0.0, (0, 0.0)  # the largest norm, and where that row is largest

    def look(k: int) -> tuple[int, Float64, Float64, Any, Any, tuple[int, float]]:
        """Checksum, norms, the sum of the rows at unit norm, hashes, sampled sums, and where the longest row points."""
        raw = data.stored(k)
        with np.errstate(over="ignore", invalid="ignore"):  # what a caller ignores, this thread does not
            x = values(raw).astype(np.float64)  # a signalling NaN is cast
            norm = norms(x)
            sampled = spread.of(x, int(data.begins[k]), data.centre)
            concentrated = concentration(x[norm.argmax()])
        hashes = repeats.of(raw) if data.begins[k] < COMPARED else None
        return zlib.crc32(raw.data), norm, _sum(x, norm, data.centre), hashes, sampled, concentrated

    with (
        closing(in_order(Shard.verify, data.store.shards, ahead=2)) as verified,
        closing(in_order(look, range(len(crc)))) as seen,
    ):
        for k, (crc[k], norm, part, hashes, sampled, concentrated) in enumerate(seen):
            if int(data.begins[k]) in starts:
                next(verified)
            if check.fits(norm).all():
                check.seen += len(norm)
                total, count = total + part, count + len(norm)
                sizes.add(norm)
            else:
                x = check(values(data.stored(k)).astype(np.float64))
                total, count = total + _sum(x, norms(x), data.centre), count + len(x)
            smallest[k] = norm.min()
            if norm.max() > largest:
                largest, farthest = float(norm.max()), concentrated
            spread.add(sampled)
            repeats.add(hashes)
            tick(len(norm))
    if count == 0:
        raise InputError(f"{data.store.path}: every row is all zeros")
    data, median = replace(data, dropped=check.dropped, crc=crc), sizes.median()
    assert median is not None  # some rows count
    faint: list[Int64] = []
    for k in np.flatnonzero(smallest < drop_below * median).tolist():
        x = values(data.stored(k)).astype(np.float64)
        norm = norms(x)
        small = np.flatnonzero((norm < drop_below * median) & (norm > 0))
        total, count = total - _sum(x[small], norm[small], data.centre), count - len(small)
        sizes.add(norm[small], -1)
        faint.append(data.begins[k] + small)
    dropped = np.sort(np.concatenate([check.dropped, *faint]))
    if not np.isfinite(total).all():
        raise InputError(f"{data.store.path}: a row equals the centre of all and has no direction; try --centre off")
    variance = 1 - float(np.sum((total / count) ** 2))  # the mean of ||x||^2 is 1
    if variance < 1e-12:
        same = f"all {count} rows point the same way" if count > 1 else "there is one row"
        raise InputError(f"{data.store.path}: {same}; give rows that differ")
    massive_dimensions, massive_share, massive = spread.massive()
    return replace(data, dropped=dropped), Survey(
        count,
        len(dropped),
        variance,
        median,
        sizes.under(FAINT * median),
        len(dropped) - len(check.dropped),
        drop_below,
        None if location is None else location.offset,
        None if location is None else location.gamma,
        data.centre is not None,
        largest,
        *farthest,
        **asdict(repeats.count(dropped)),
        massive_dimensions=massive_dimensions,
        massive_share=massive_share,
        massive=massive,
    )
