"""Activations to train on or to evaluate: the rows of a store that count, block by block.

A block is a run of rows of one shard, about a MiB: the unit that is read, checked and shuffled (`feed`).  After a
`survey`, which checks every row once, each block has a checksum, which is compared whenever the block is read again: a
run never trains on rows other than those it began with.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refgba.data.prefetch import in_order
from refgba.data.store import Raw, Store, open_store, stored, values
from refgba.errors import InputError
from refgba.streams import stream
from refgba.types import Array, Float64, Int64

BLOCK = 2**20  # about how many bytes of rows are in a block
WINDOW = 2**28  # about how many bytes of rows `feed` shuffles among themselves
PLACE = ("model", "site", "of")  # where rows of a harvest come from, by its settings


@dataclass(frozen=True)
class Activations:
    """The rows of a store that count.

    block: the most rows in a block.  windows: parts of an epoch, each shuffled as one (`feed`).  dropped: the sorted
    numbers of those rows of the store that are left out.  crc: (blocks,) CRC-32 of the stored rows of each block, None
    before a survey.  held_out: the sorted numbers of those among `dropped` that are kept to judge a run on.  centre:
    (d,) what is subtracted from each row before it is scaled to unit norm, if anything is.
    """

    store: Store
    block: int
    windows: int
    dropped: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    crc: npt.NDArray[np.uint32] | None = None
    held_out: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    centre: Float64 | None = None

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
        """Block k as it is stored, with all its rows; written to `into` if that is given.

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

    def read(self, blocks: Int64, into: Raw | None = None) -> Raw:
        """The rows that count of these blocks, as they are stored, (Σ counts[blocks], d).

        into: an array of at least as many rows, the first of which they become; None makes one.  InputError as
        `stored`.
        """
        ends = np.cumsum(self.counts[blocks])
        rows = np.empty((int(ends[-1]), self.d), stored(self.store.dtype)) if into is None else into[: ends[-1]]

        def place(i: int) -> None:
            k, n = int(blocks[i]), int(self.counts[blocks[i]])
            part = rows[ends[i] - n : ends[i]]
            if n == self.begins[k + 1] - self.begins[k]:
                self.stored(k, part)
            else:
                here = slice(*np.searchsorted(self.dropped, self.begins[k : k + 2]))
                part[:] = np.delete(self.stored(k), self.dropped[here] - self.begins[k], axis=0)

        deque(in_order(place, range(len(blocks))), 0)
        return rows

    def sample(self, rows: int, size: int) -> Iterator[Array]:
        """About `rows` rows, at most `size` at a time: whole blocks, picked at random but always the same ones."""
        picked = stream(0, "sample").permutation(len(self.counts))
        picked = picked[self.counts[picked] > 0]
        enough = np.searchsorted(np.cumsum(self.counts[picked]), rows, side="right")
        for k in np.sort(picked[: max(1, enough)]):
            x = values(self.read(np.array([k])))
            yield from (x[l : l + size] for l in range(0, len(x), size))

    def held(self, size: int) -> Iterator[Array]:
        """The rows that are held out, in order, at most `size` at a time; InputError as `stored`."""
        block = np.searchsorted(self.begins, self.held_out, side="right") - 1
        for k in np.unique(block).tolist():
            x = values(self.stored(k))[self.held_out[block == k] - self.begins[k]]
            yield from (x[l : l + size] for l in range(0, len(x), size))

    @cached_property
    def fingerprint(self) -> str:
        """What tells these rows, after a survey, from any others: 64 hexadecimal digits."""
        assert self.crc is not None
        digest = hashlib.sha256(f"{self.store.dtype} {self.d} {self.block} {self.windows}".encode())
        for array in (self.begins, self.dropped, self.crc):
            digest.update(array.astype("<i8").tobytes())
        if self.centre is not None:
            digest.update(self.centre.astype("<f8").tobytes())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What `reopen` needs besides `dropped` and `crc`, for JSON."""
        return {
            "path": "" if self.store.in_memory else str(self.store.path.resolve()),
            "rows": len(self),
            "d": self.d,
            "dtype": self.store.dtype,
            "block": self.block,
            "windows": self.windows,
            "fingerprint": self.fingerprint,
            "shards": [[shard.path.name, shard.rows] for shard in self.store.shards],
        } | self._harvested()

    def _harvested(self) -> dict[str, Any]:
        """Of which side of which site of a model the rows are, where the store is of `refgba harvest`."""
        harvest = self.store.about.get("harvest")
        settings = harvest.get("settings") if isinstance(harvest, dict) else None
        place = {name: settings.get(name) for name in PLACE} if isinstance(settings, dict) else {}
        known = place and all(isinstance(value, str) for value in place.values())
        return {"harvest": place} if known else {}


def open_activations(path: Path, d: int | None = None) -> Activations:
    """The rows of a store, not yet checked; InputError as `open_store`.

    path: a file of rows (N, d) or (batch, position, d), or a folder of shards.  d: None, or the only number of
    dimensions that is accepted.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from refgba.data.activations import open_activations
    >>> from refgba.data.survey import survey
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
    """The most rows in a block."""
    return max(1, BLOCK // (d * stored(dtype).itemsize))


def reopen(
    record: dict[str, Any],
    dropped: Int64,
    crc: npt.NDArray[np.uint32],
    path: Path | None = None,
    held_out: Int64 | None = None,
    centre: Float64 | None = None,
) -> Activations:
    """The rows that `record`, by `Activations.record`, describes, from where they were or from `path`.

    held_out: the numbers of those among `dropped` that are held out.  Shards that have come since are left out.
    InputError names what is not as it was: here that is checked for headers and for the first and the last block, and
    for any other block when it is read.
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
    held_out = np.empty(0, np.int64) if held_out is None else held_out
    data = Activations(store, record["block"], record["windows"], dropped, crc, held_out, centre)
    left_out = np.isin(held_out, dropped, assume_unique=True).all()
    if len(crc) != len(data.counts) or not left_out or data.fingerprint != record["fingerprint"]:
        raise InputError(f"{store.path}: the run's record of its data does not fit: it is damaged")
    data.stored(0)
    data.stored(len(crc) - 1)
    return data
