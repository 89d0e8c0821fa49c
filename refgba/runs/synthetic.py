"""Synthetic data on disk: `X.npy`, `V.npy`, if wanted `H.npy`, and `model.json`, written in chunks of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from refgba.errors import InputError
from refgba.model import Draw, SyntheticModel

CHUNK = 8192  # rows held at a time


def write(
    model: SyntheticModel, N: int, out: Path, about: dict[str, Any], keep_H: bool, tick: Callable[[int], object] = id
) -> None:
    """Write the first N rows of `model`, its V, and H if `keep_H`, in the model's dtype, into the folder `out`.

    X.npy is (N, d), V.npy (n, d) float64, H.npy (N, n); `about` goes to model.json.  X.npy, which is renamed into
    place last, is never half a file.  InputError when `out` already holds one, or cannot be written.
    """
    if (out / "X.npy").exists():
        raise InputError(f"{out}: already holds X.npy; choose another folder or remove it")
    if N < 1:
        raise InputError(f"rows must be at least 1, not {N}")
    V = model.V  # before anything is written: it may refuse
    try:
        out.mkdir(parents=True, exist_ok=True)
        X = open_memmap(out / ".X.partial", "w+", np.dtype(model.dtype), (N, model.d))
        H = open_memmap(out / "H.npy", "w+", np.dtype(model.dtype), (N, model.n)) if keep_H else None
        start = 0
        for draw in model.chunks(N, CHUNK):
            stop = start + len(draw.X)
            X[start:stop] = draw.X
            if H is not None:
                H[start:stop] = draw.H
            tick(stop - start)
            start = stop
        X.flush()
        np.save(out / "V.npy", V)
        (out / "model.json").write_text(json.dumps(about | {"rows": N}, indent=2) + "\n", encoding="utf-8")
        (out / ".X.partial").rename(out / "X.npy")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None


def rows_between(model: SyntheticModel, start: int, stop: int) -> Iterator[Draw]:
    """Rows start .. stop - 1 of `model`, in chunks."""
    for first in range(start, stop, CHUNK):
        yield model.draw(first, min(first + CHUNK, stop))
