"""An array in memory as a store: its rows are surveyed, fed and judged as those of a file, and come out the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refgba.data.activations import Activations, unchecked
from refgba.data.store import DTYPES, Raw, Shard, Store, stored
from refgba.errors import InputError

NAME = "the array"  # what stands in messages where a file's path would


@dataclass(frozen=True)
class HeldRows(Shard):
    """Rows of an array in memory, which is not copied: it must not change while it is in use.

    array: (rows, d), None once `forgotten`.
    """

    array: Raw | None = None

    def read(self, start: int, stop: int, into: Raw | None = None) -> Raw:
        """Rows start..stop (stop excluded), copied, as `Shard.read` has them."""
        assert self.array is not None
        rows = np.empty((stop - start, self.d), stored(self.dtype)) if into is None else into
        rows[:] = self.array[start:stop]
        return rows


def held(X: Any) -> Activations:
    """The rows of an array or of nested lists, of numbers (N, d), as `refgba.data.activations.open_activations`.

    float16, float32 and float64 stay as they are; other real numbers become float64.  InputError for anything else,
    and for an array of another shape or without rows.
    """
    array = matrix(X)
    rows, d = array.shape
    shard = HeldRows(Path(NAME), rows, d, array.dtype.name, offset=0, array=array)
    return unchecked(Store(Path(NAME), (shard,), in_memory=True))


def forgotten(data: Activations) -> Activations:
    """The same rows as far as a record needs them: an array in memory is let go of."""
    shards = tuple(replace(s, array=None) if isinstance(s, HeldRows) else s for s in data.store.shards)
    return replace(data, store=replace(data.store, shards=shards))


def matrix(X: Any) -> npt.NDArray[Any]:
    """X as an array (N, d) of one of the dtypes that rows are stored in; InputError as `held`."""
    if hasattr(X, "tocsr"):
        raise InputError(f"{NAME} is sparse; activations are dense: X.toarray() has them")
    array = np.asarray(X)
    if array.dtype.kind == "c":
        raise InputError(f"{NAME} holds {array.dtype}: Complex data not supported, activations are real numbers")
    if array.dtype.kind == "V":
        raise InputError(f"{NAME} has dtype {array.dtype}, bfloat16 it seems: X.astype('float32') has its numbers")
    if array.dtype.kind in "OUSbiu" or array.dtype.name not in DTYPES:
        array = np.asarray(array, np.float64)
    if array.ndim != 2:
        shape = f"{array.ndim}-D, shape {array.shape}"
        raise InputError(
            f"activations are a 2-D array (rows, d), {NAME} is {shape}. Reshape your data: X.reshape(-1, d) has a row "
            "of d numbers per token"
        )
    for axis, what in enumerate(("sample", "feature")):
        if not array.shape[axis]:
            raise InputError(f"{NAME} has 0 {what}(s) (shape={array.shape}) while a minimum of 1 is required.")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
