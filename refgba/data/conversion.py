"""Rows converted from the dtype they come in to the one they are stored in, each rounded once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from refgba.data.store import Raw, stored, values
from refgba.errors import InputError
from refgba.types import Array

QUIET = 0x7FC0  # the bits that every NaN of bfloat16 gets


def convert(raw: Raw, dtype: str, where: Callable[[int], str] = lambda row: f"row {row}") -> Raw:
    """Rows (any, d) as they are stored in `dtype`, rounded to the nearest, ties to even; NaN and infinity stay.

    raw: floating-point numbers, or uint16, the bits of bfloat16.  where: the name of a row, by its number in `raw`.
    InputError names the first row in which a number would become infinite, or all would become zeros, and a dtype that
    holds it.
    """
    target = stored(dtype)
    if raw.dtype == target:
        return raw
    x = values(raw)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        converted: Raw = _bfloat16(x) if dtype == "bfloat16" else x.astype(target)
        if x.dtype.itemsize > target.itemsize:  # the range of bfloat16 includes float16's
            back = values(converted)
            bad = (np.isinf(back) & np.isfinite(x)).any(axis=1) | (x.any(axis=1) & ~back.any(axis=1))
            if bad.any():
                raise InputError(_lost(x[np.argmax(bad)], dtype, where(int(np.argmax(bad)))))
    return converted


def _lost(row: Array, dtype: str, where: str) -> str:
    """The message for a row that `dtype` cannot hold, with a dtype that can."""
    size = np.abs(row[np.isfinite(row)].astype(np.float64)).max()
    for wider in ("float32", "float64"):
        limits = np.finfo(wider)
        if float(limits.smallest_subnormal) <= size <= float(limits.max):
            break
    if size > 1:
        return f"{where} holds {size:g}, too large for {dtype}; --dtype {wider} would hold it"
    return f"{where} holds no more than {size:g}, too small for {dtype}: all would be 0; --dtype {wider} would hold it"


def _bfloat16(x: Array) -> npt.NDArray[np.uint16]:
    """The bits of the bfloat16 nearest to each number, ties to even; NaN stays NaN."""
    single = np.ascontiguousarray(x, np.float32)
    bits = single.view(np.uint32)
    if x.dtype.itemsize > 4:  # rounding twice: what the first rounding made a tie was none
        tie = (bits & 0xFFFF) == 0x8000
        wide, narrow = np.abs(x), np.abs(single).astype(x.dtype)
        bits = np.where(tie, bits + (wide > narrow) - (wide < narrow), bits).astype(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # carries into the exponent where it should
    return np.where(np.isnan(x), (bits >> 16) | QUIET, rounded).astype(np.uint16)
