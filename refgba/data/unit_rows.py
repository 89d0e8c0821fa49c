"""Where a stored row becomes a unit row: its numbers, in the arithmetic of the run, divided by their norm.

`refgba.sae.unit_rows` is the same for rows in memory; here rows come as they are stored, in any dtype and any number.
"""

from __future__ import annotations

import numpy as np

from refgba.data.store import Raw, values
from refgba.sae import unit_rows
from refgba.types import Array, Float64, Int64

PIECE = 2**21  # bytes of rows scaled at a time: more would leave the cache, fewer would pass Python's lock to and fro


def norms(x: Array) -> Float64:
    """The norms of rows x (L, d) of any float dtype, (L,) in float64; infinite or NaN where they are."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths: Float64 = np.sqrt(np.einsum("ld,ld->l", x, x, dtype=np.float64, casting="same_kind"))
    return lengths


def prepared(x: Array, dtype: str, centre: Float64 | None = None) -> Array:
    """Rows of activations x (L, d) as a network takes them: less their centre (d,), if any, and at unit norm.

    Computed in `dtype`.  InputError for a row that is all zeros then.
    """
    x = x.astype(dtype)
    if centre is not None:
        x -= centre
    return unit_rows(x)


def write_unit_rows(rows: Raw, picked: Int64, into: Array, centre: Float64 | None = None) -> None:
    """Write the picked rows, of stored rows (any, d), at unit norm into the first of `into` (at least len(picked), d).

    Computed in the dtype of `into`, to the bit as `prepared`.  No picked row may be all zeros, less its centre (d,).
    """
    size = max(1, PIECE // (into.shape[1] * into.itemsize))
    for l in range(0, len(picked), size):
        x = into[l : min(l + size, len(picked))]
        x[:] = values(rows[picked[l : l + size]])
        if centre is not None:
            x -= centre
        x /= np.linalg.norm(x, axis=1, keepdims=True)
