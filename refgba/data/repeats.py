"""Rows that equal an earlier row: counted by hashes of their bytes, up to a bound on memory.

The hash of a row of 64-bit words w_i is Σ r_i w_i modulo 2^64 for random odd r_i.  Rows that differ in one word never
have the same hash, others by a chance of about 2^-64; but that rises where they differ in nothing except the upper bits
of several words, to certainty where they differ in two words' signs alone: such rows count as equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refgba.data.store import Raw
from refgba.types import Int64

COMPARED = 2**20  # rows of a store, the first ones, that are compared with one another

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Repeats:
    """How rows repeat.

    compared: how many rows were compared, the first ones that count.  repeated: how many of them equal an earlier one.
    commonest: how often the row that occurs most often does.
    """

    compared: int
    repeated: int
    commonest: int


class RowHashes:
    """Hashes rows of the dimension d as they are stored, and counts those that are alike."""

    def __init__(self, d: int, itemsize: int) -> None:
        """itemsize: bytes of a number."""
        self.words = -(-d * itemsize // 8)  # of 8 bytes, per row; the last one may be part of the padding
        rng = np.random.default_rng(0)  # a table that never changes, no draw of a run
        self.factors = rng.integers(0, 2**63, self.words, np.uint64) * np.uint64(2) + np.uint64(1)
        self.parts: list[Hashes] = []

    def of(self, raw: Raw) -> Hashes:
        """(L,) hashes of stored rows (L, d)."""
        rows = np.ascontiguousarray(raw).reshape(len(raw), -1).view(np.uint8)  # (L, bytes)
        if rows.shape[1] < 8 * self.words:
            rows = np.pad(rows, ((0, 0), (0, 8 * self.words - rows.shape[1])))
        hashes: Hashes = np.einsum("lw,w->l", rows.view(np.uint64), self.factors)
        return hashes

    def add(self, hashes: Hashes | None) -> None:
        """Take the hashes of the next rows of the store, whether they count or not; None beyond COMPARED rows."""
        if hashes is not None:
            self.parts.append(hashes)

    def count(self, dropped: Int64) -> Repeats:
        """What was found, but for the rows with these sorted numbers, which do not count."""
        hashes = np.concatenate(self.parts) if self.parts else np.empty(0, np.uint64)
        hashes = np.delete(hashes, dropped[dropped < len(hashes)])
        times = np.unique(hashes, return_counts=True)[1]
        return Repeats(len(hashes), len(hashes) - len(times), int(times.max(initial=0)))
