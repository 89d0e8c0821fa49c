"""Activations in: a `.npy` file of rows, memory-mapped, checked before anything is trained on it.

`Activations` behaves like the array it maps (length, rows by index, chunks) and never loads it whole.  `survey` reads
it once, start to end, and gives what training needs to know of it; it is also what finds bad rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refgba.errors import InputError
from refgba.sae import unit_rows
from refgba.streams import stream
from refgba.types import Array, Int64

MAGIC = b"\x93NUMPY"
CHUNK = 8192  # rows read at a time


@dataclass(frozen=True)
class Activations:
    """Rows of a memory-mapped array X (rows, d); `keep` has the indices of those that count, None if all do."""

    path: Path
    X: Array
    keep: Int64 | None = None

    @property
    def d(self) -> int:
        """Input dimensions."""
        return int(self.X.shape[1])

    def __len__(self) -> int:
        """Rows that count."""
        return len(self.X) if self.keep is None else len(self.keep)

    def __getitem__(self, rows: Int64) -> Array:
        """The rows of these indices, (len(rows), d), read from disk."""
        picked: Array = self.X[rows if self.keep is None else self.keep[rows]]
        return picked

    def sample(self, rows: int) -> Activations:
        """At most that many of the rows, picked at random (always the same ones), in their order."""
        if rows >= len(self):
            return self
        picked = np.sort(stream(0, "sample").choice(len(self), rows, replace=False))
        return Activations(self.path, self.X, picked if self.keep is None else self.keep[picked])

    def chunks(self, size: int = CHUNK) -> Iterator[Array]:
        """All rows in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self[np.arange(start, min(start + size, len(self)))]


@dataclass(frozen=True)
class Survey:
    """What one pass over the rows, each scaled to unit norm, found.

    rows: how many count.  dropped: rows of zeros left out.  variance: mean of ||x - mean||^2, the denominator of FVU.
    """

    rows: int
    dropped: int
    variance: float


def open_npy(path: Path, d: int | None = None) -> Activations:
    """Memory-map a `.npy` file of activations (N, d); any d, or the one a network needs.

    InputError when there is no such file, when it is empty, truncated or no `.npy`, when the array is not 2-D or has
    no rows or another d, or when its dtype is not float16, float32 or float64.  Nothing is unpickled.
    """
    array = _map(path)
    if array.ndim != 2:
        raise InputError(f"{path}: activations are a 2-D array (rows, d), this one is {array.ndim}-D {array.shape}")
    if array.size == 0:
        raise InputError(f"{path}: the array is empty, shape {array.shape}")
    if d not in (None, array.shape[1]):
        raise InputError(f"{path}: its rows have d = {array.shape[1]}, the network d = {d}")
    return Activations(path, array)


def load_truth(path: Path, d: int) -> Array:
    """True features V (n, d) from a `.npy` file, float64; InputError as `open_npy`, or for rows without a direction."""
    V = np.asarray(open_npy(path, d).X, np.float64)
    norm = np.linalg.norm(V, axis=1)
    bad = np.flatnonzero(~((norm > 0) & np.isfinite(norm)))
    if bad.size:
        raise InputError(f"{path}: row {bad[0]} is zero or not finite; every feature needs a direction")
    return V


def _map(path: Path) -> Array:
    """Memory-map an array of floats; InputError, naming the file, for anything else."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: not a file; give a .npy file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise InputError(f"{path}: not a .npy file")
        with np.errstate(all="ignore"):  # a header may declare a shape whose size overflows
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, OverflowError, MemoryError, EOFError) as error:
        if "Python objects" in str(error) or "Object arrays" in str(error):
            raise InputError(f"{path}: dtype is object; activations are float16, float32 or float64") from None
        raise InputError(f"{path}: truncated or damaged ({str(error).splitlines()[0][:80]})") from None
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise InputError(f"{path}: dtype is {array.dtype}; activations are float16, float32 or float64")
    return array


def survey(
    data: Activations, dtype: str = "float64", drop_zero_rows: bool = False, tick: Callable[[int], object] = id
) -> tuple[Activations, Survey]:
    """Read every row once: the rows to train on in the arithmetic `dtype`, and what they are like.

    `tick` is called with the number of rows of each chunk read.  InputError names the first row that is not finite, or
    whose squares are not in `dtype`; so it does the first row of zeros, which has no direction, and how many there are,
    unless `drop_zero_rows` leaves them out.  It also refuses rows that all point the same way.
    """
    tiny, largest = np.sqrt(np.finfo(dtype).tiny), np.sqrt(np.finfo(dtype).max)
    zero: list[Int64] = []
    first: Array = np.zeros(data.d)
    total, squares, count, start = np.zeros(data.d), 0.0, 0, 0
    for chunk in data.chunks():
        x: Array = chunk.astype(np.float64)
        with np.errstate(over="ignore"):
            norm = np.linalg.norm(x, axis=1)
        fits = ~x.any(axis=1) | ((norm >= tiny) & (norm <= largest))  # False for NaN
        bad = np.flatnonzero(~fits)
        if bad.size:
            raise InputError(
                f"{data.path}: row {start + bad[0]} holds a NaN, an infinity, or is too large or small for {dtype}"
            )
        zero.append(start + np.flatnonzero(norm == 0))
        x = unit_rows(x[norm > 0])
        if count == 0 and len(x):
            first = x[0].copy()
        x -= first  # moments about a row of the data: a small variance is not lost in rounding
        total += x.sum(axis=0)
        squares += float(np.sum(x * x))
        count += len(x)
        start += len(chunk)
        tick(len(chunk))
    dropped = np.concatenate(zero)
    if dropped.size and not drop_zero_rows:
        raise InputError(
            f"{data.path}: row {dropped[0]} is all zeros, {dropped.size} such rows in all; --drop-zero-rows skips them"
        )
    if count == 0:
        raise InputError(f"{data.path}: every row is all zeros")
    variance = squares / count - float(np.sum((total / count) ** 2))
    if variance < 1e-12:
        raise InputError(f"{data.path}: all {count} rows point the same way; there is nothing to learn from them")
    keep = np.setdiff1d(np.arange(start), dropped) if dropped.size else None
    return Activations(data.path, data.X, keep), Survey(count, int(dropped.size), variance)
