"""Activations to train on or to evaluate: the rows of a store, block by block, checked.

A block is a run of rows of one shard, about a MiB: the unit that is read, checked and shuffled (`feed`).  `survey`
reads every row once.  It finds bad rows, what training needs to know, and a checksum of each block, against which a
block is held whenever it is read again: a run never trains on rows other than those it began with.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refgba.data.prefetch import in_order
from refgba.data.store import Raw, Shard, Store, open_store, stored, values
from refgba.errors import InputError
from refgba.streams import stream
from refgba.types import Array, Float64, Int64, Mask

BLOCK = 2**20  # bytes, about
WINDOW = 2**28  # bytes of rows that `feed` shuffles among themselves, about


@dataclass(frozen=True)
class Activations:
    """The rows of a store that count.

    block: rows in a block, at most.  windows: parts of an epoch, each shuffled as one (`feed`).  dropped: sorted rows
    of the store left out.  crc: (blocks,) CRC-32 of the stored rows of each block, None before a survey.
    """

    store: Store
    block: int
    windows: int
    dropped: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    crc: npt.NDArray[np.uint32] | None = None

    @property
    def d(self) -> int:
        """Input dimensions."""
        return self.store.d

    def __len__(self) -> int:
        """Rows that count."""
        return len(self.store) - len(self.dropped)

    @cached_property
    def begins(self) -> Int64:
        """(blocks + 1,) the row of the store that each block begins with, and the number of rows."""
        starts = self.store.starts
        parts = [np.arange(a, b, self.block) for a, b in pairwise(starts)]
        return np.concatenate([*parts, starts[-1:]])

    @cached_property
    def counts(self) -> Int64:
        """(blocks,) how many rows of each block count."""
        return np.diff(self.begins - np.searchsorted(self.dropped, self.begins))

    def stored(self, k: int, into: Raw | None = None) -> Raw:
        """Block k as it is stored, with all its rows, or written to `into`.

        InputError when it is not what the survey saw.
        """
        start, stop = int(self.begins[k]), int(self.begins[k + 1])
        i = int(np.searchsorted(self.store.starts, start, side="right")) - 1
        shard, first = self.store.shards[i], int(self.store.starts[i])
        raw = shard.read(start - first, stop - first, into)
        if self.crc is not None and zlib.crc32(raw.data) != self.crc[k]:
            raise InputError(
                f"{shard.path}: rows {start - first} to {stop - first - 1} are not those that were checked before "
                "training: the file is damaged, has been changed, or is of another data set"
            )
        return raw

    def read(self, blocks: Int64, room: Raw | None = None) -> Raw:
        """The rows that count of these blocks, as they are stored, (Σ counts[blocks], d).

        room: an array of more rows, the first of which they become; where there is none it is made.
        """
        ends = np.cumsum(self.counts[blocks])
        rows = np.empty((int(ends[-1]), self.d), stored(self.store.dtype)) if room is None else room[: ends[-1]]

        def place(i: int) -> None:
            k, n = int(blocks[i]), int(self.counts[blocks[i]])
            into = rows[ends[i] - n : ends[i]]
            if n == self.begins[k + 1] - self.begins[k]:
                self.stored(k, into)
            else:
                here = slice(*np.searchsorted(self.dropped, self.begins[k : k + 2]))
                into[:] = np.delete(self.stored(k), self.dropped[here] - self.begins[k], axis=0)

        deque(in_order(place, range(len(blocks))), 0)
        return rows

    def sample(self, rows: int, size: int) -> Iterator[Array]:
        """About that many rows, at most `size` at a time: whole blocks, picked at random but always the same ones."""
        picked = stream(0, "sample").permutation(len(self.counts))
        picked = picked[self.counts[picked] > 0]
        enough = np.searchsorted(np.cumsum(self.counts[picked]), rows, side="right")
        for k in np.sort(picked[: max(1, enough)]):
            x = values(self.read(np.array([k])))
            yield from (x[l : l + size] for l in range(0, len(x), size))

    @cached_property
    def fingerprint(self) -> str:
        """What tells these rows from others, after a survey: 64 hexadecimal digits."""
        assert self.crc is not None
        digest = hashlib.sha256(f"{self.store.dtype} {self.d} {self.block} {self.windows}".encode())
        for array in (self.begins, self.dropped, self.crc):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What `reopen` needs besides `dropped` and `crc`, for JSON."""
        return {
            "path": str(self.store.path.resolve()),
            "rows": len(self),
            "d": self.d,
            "dtype": self.store.dtype,
            "block": self.block,
            "windows": self.windows,
            "fingerprint": self.fingerprint,
            "shards": [[shard.path.name, shard.rows] for shard in self.store.shards],
        }


@dataclass(frozen=True)
class Survey:
    """What one pass over the rows, each scaled to unit norm, found.

    rows: how many count.  dropped: rows of zeros left out.  variance: mean of ||x - mean||^2, the denominator of FVU.
    """

    rows: int
    dropped: int
    variance: float


def open_activations(path: Path, d: int | None = None) -> Activations:
    """The rows of a store, not yet checked; InputError as `open_store`.

    `path`: a .npy file of float16, float32 or float64 rows, (N, d), or a folder of shards.  d: refuse other dimensions.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from refgba.data.activations import open_activations, survey
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "X.npy"
    ...     np.save(path, np.array([[1, 0], [0, 1], [3, 0], [0, 2]], np.float16))
    ...     data, found = survey(open_activations(path, d=2))
    >>> len(data), data.d, data.store.dtype
    (4, 2, 'float16')
    >>> round(found.variance, 12)  # of unit rows with the mean (1/2, 1/2)
    0.5
    """
    return unchecked(open_store(path, d))


def unchecked(store: Store) -> Activations:
    """All rows of a store, before a survey."""
    windows = -(-len(store) * store.d * stored(store.dtype).itemsize // WINDOW)
    return Activations(store, block_rows(store.d, store.dtype), windows)


def block_rows(d: int, dtype: str) -> int:
    """Rows in a block."""
    return max(1, BLOCK // (d * stored(dtype).itemsize))


def reopen(
    record: dict[str, Any], dropped: Int64, crc: npt.NDArray[np.uint32], path: Path | None = None
) -> Activations:
    """The rows that `Activations.record` is of, from where they were or from `path`.

    Shards that have come since are left out.  InputError names what is not as it was; single blocks are checked when
    they are read, the first and the last of them here.
    """
    store = open_store(Path(record["path"]) if path is None else path)
    for name in ("d", "dtype"):
        if getattr(store, name) != record[name]:
            raise InputError(f"{store.path}: {name} is {getattr(store, name)}, the run began with {record[name]}")
    if len(store.shards) < len(record["shards"]):
        raise InputError(f"{store.path}: has {len(store.shards)} shards, the run began with {len(record['shards'])}")
    store = replace(store, shards=store.shards[: len(record["shards"])])
    for shard, (name, rows) in zip(store.shards, record["shards"], strict=True):
        if shard.rows != rows:
            raise InputError(f"{shard.path}: has {shard.rows} rows, the run began with {rows} ({name})")
    data = Activations(store, record["block"], record["windows"], dropped, crc)
    if len(crc) != len(data.counts) or data.fingerprint != record["fingerprint"]:
        raise InputError(f"{store.path}: the run's record of its data does not fit: it is damaged")
    data.stored(0)
    data.stored(len(crc) - 1)
    return data


class Check:
    """Refuses rows, in the order of a store, that cannot be computed on in an arithmetic `dtype`."""

    def __init__(self, store: Store, dtype: str, drop_zero_rows: bool = False) -> None:
        """Rows of zeros have no direction; with drop_zero_rows they are left out instead of refused."""
        self.store, self.dtype, self.drop = store, dtype, drop_zero_rows
        self.tiny, self.largest = np.sqrt(np.finfo(dtype).tiny), np.sqrt(np.finfo(dtype).max)
        self.seen = 0  # rows of the store
        self.dropped = np.empty(0, np.int64)  # sorted

    def fits(self, norm: Float64) -> Mask:
        """Which rows of these norms can be computed on."""
        fits: Mask = (norm >= self.tiny) & (norm <= self.largest)  # False for NaN
        return fits

    def __call__(self, x: Array) -> Array:
        """The rows of x (rows, d) that count; InputError names the first that is not finite or squares out of range."""
        fits = self.fits(_norms(x))
        if not fits.all():
            for l in np.flatnonzero(~fits):
                zero = not x[l].any()
                if zero and self.drop:
                    continue
                where = self.store.place(self.seen + int(l))
                if zero:
                    raise InputError(f"{where} is all zeros and has no direction; --drop-zero-rows skips such rows")
                raise InputError(f"{where} holds a NaN, an infinity, or is too large or small for {self.dtype}")
            self.dropped = np.concatenate([self.dropped, self.seen + np.flatnonzero(~fits)])
            x = x[fits]
        self.seen += len(fits)
        return x

    def chunks(self, data: Activations, size: int) -> Iterator[Array]:
        """The rows of all of the data that count, in order, at most `size` at a time."""
        for k in range(len(data.counts)):
            x = values(data.stored(k))
            yield from (self(x[l : l + size]) for l in range(0, len(x), size))

    def row(self, index: Int64) -> Int64:
        """The rows of the store that the rows that count, by number, are."""
        return index + np.searchsorted(self.dropped - np.arange(len(self.dropped)), index, side="right")


def _norms(x: Array) -> Float64:
    """The norms of rows x (L, d), (L,) in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms: Float64 = np.sqrt(np.einsum("ld,ld->l", x, x, dtype=np.float64, casting="same_kind"))
    return norms


def _sum(x: Array, norm: Float64) -> Float64:
    """The sum of the rows x (L, d), each over its norm: (d,)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # rows that do not count are told by `Check`
        total: Float64 = np.einsum("l,ld->d", 1 / norm, x)  # not BLAS, whose threads would meet those of `in_order`
    return total


def survey(
    data: Activations, dtype: str = "float64", drop_zero_rows: bool = False, tick: Callable[[int], object] = id
) -> tuple[Activations, Survey]:
    """Read every row once: the rows to train on in the arithmetic `dtype`, and what they are like.

    `tick` is called with the number of rows of each block read.  InputError names the first row that is not finite, or
    whose squares are not in `dtype`, or that is all zeros, unless `drop_zero_rows` leaves those out; and a shard whose
    checksum is not that of `meta.json`.  It also refuses rows that all point the same way.
    """
    check = Check(data.store, dtype, drop_zero_rows)
    starts = set(data.store.starts.tolist())
    crc = np.zeros(len(data.counts), np.uint32)
    total, count = np.zeros(data.d), 0

    def look(k: int) -> tuple[int, Float64, Float64]:
        """Checksum, norms, and the sum of the rows at unit norm."""
        raw = data.stored(k)
        with np.errstate(invalid="ignore"):  # casting a signalling NaN; what a caller ignores, other threads do not
            x = values(raw).astype(np.float64)
        norm = _norms(x)
        return zlib.crc32(raw.data), norm, _sum(x, norm)

    with (
        closing(in_order(Shard.verify, data.store.shards, ahead=2)) as verified,
        closing(in_order(look, range(len(crc)))) as seen,
    ):
        for k, (crc[k], norm, part) in enumerate(seen):
            if int(data.begins[k]) in starts:
                next(verified)
            if check.fits(norm).all():
                check.seen += len(norm)
                total, count = total + part, count + len(norm)
            else:
                x = check(values(data.stored(k)).astype(np.float64))
                total, count = total + _sum(x, _norms(x)), count + len(x)
            tick(len(norm))
    if count == 0:
        raise InputError(f"{data.store.path}: every row is all zeros")
    variance = 1 - float(np.sum((total / count) ** 2))  # the mean of ||x||^2 is 1
    if variance < 1e-12:
        raise InputError(f"{data.store.path}: all {count} rows point the same way; there is nothing to learn from them")
    return replace(data, dropped=check.dropped, crc=crc), Survey(count, len(check.dropped), variance)
