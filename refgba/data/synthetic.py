"""Synthetic data on disk: `X.npy`, `V.npy`, if wanted `H.npy`, and `model.json`, written in chunks of rows."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.format import dtype_to_descr, write_array_header_1_0

from refgba.data.files import PARTIAL, made
from refgba.data.laws import Hierarchy, Pairs, zipf_frequencies
from refgba.errors import InputError, unwritten
from refgba.model import Independent, Rows, SyntheticModel, Uniform

CHUNK = 8192  # rows held at a time
USED = {  # of the settings of laws, those that each kind uses
    "imbalanced": {"sparsity"},
    "uniform": {"sparsity"},
    "independent": {"frequency"},
    "zipf": {"frequency", "exponent"},
    "pairs": {"frequency", "rho_2"},
    "hierarchy": {"frequency", "children", "p_child"},
}
KINDS = tuple(USED)


def unused(kind: str) -> set[str]:
    """The settings of other laws than that of a kind."""
    return set().union(*USED.values()) - USED[kind]


def described(settings: Mapping[str, Any]) -> SyntheticModel:
    """The model that settings describe, under the names of the flags of `synth`, which model.json has too.

    InputError for what cannot be.
    """
    names = ("d", "weights", "features", "noise", "seed", "dtype")
    return SyntheticModel(_law(settings), **{name: settings[name] for name in names})


def _law(settings: Mapping[str, Any]) -> Rows:
    """The law of the supports, by its `kind`, one of KINDS."""
    kind, n, f = settings["kind"], settings["n"], settings["frequency"]
    if kind in ("imbalanced", "uniform"):
        return Uniform(n, tuple(settings["sparsity"]) or ((3, 20) if kind == "imbalanced" else (3,)))
    if kind == "pairs":
        return Pairs(n, f, settings["rho_2"])
    if kind == "hierarchy":
        family = 1 + settings["children"]
        parents, rest = divmod(n, family)
        if rest or parents < 1:
            raise InputError(f"--n {n} must be a multiple of 1 + --children = {family}")
        return Hierarchy(parents, settings["children"], f, settings["p_child"])
    return Independent(np.full(n, f) if kind == "independent" else zipf_frequencies(n, f, settings["exponent"]))


def write(
    model: SyntheticModel, N: int, out: Path, about: dict[str, Any], keep_H: bool, tick: Callable[[int], object] = id
) -> None:
    """Write the first N rows of `model`, its features, and if `keep_H` its coefficients, into the folder `out`.

    X.npy: (N, d), the rows, and H.npy: (N, n), the coefficients, both in the model's dtype.  V.npy: (n, d) float64, the
    features.  model.json: `about`, and N.  All are written under temporary names and renamed at the end.  `tick` is
    called with the number of rows of each chunk.  InputError when one of the files exists or cannot be written, for an
    N below 1 or above 2^40, and for rows that would not be finite.
    """
    names = ["V.npy", "model.json", "X.npy"] + (["H.npy"] if keep_H else [])
    for name in names:
        if os.path.lexists(out / name):
            raise InputError(f"{out}: already holds {name}; choose another folder or remove it")
    if not 1 <= N <= 2**40:
        raise InputError(f"rows must be between 1 and {2**40:,}, not {N}")
    V = model.V  # drawn before anything is written, since this may be refused
    try:
        with made(out), tempfile.TemporaryDirectory(prefix=PARTIAL, dir=out) as name, ExitStack() as files:
            partial = Path(name)
            dtype = np.dtype(model.dtype)
            X = _start(files.enter_context((partial / "X.npy").open("wb")), (N, model.d), dtype)
            H = _start(files.enter_context((partial / "H.npy").open("wb")), (N, model.n), dtype) if keep_H else None
            for draw in model.chunks(N, CHUNK):
                if not np.isfinite(draw.X).all():
                    raise InputError(f"noise {model.noise}: the rows would not be finite; choose less")
                X.write(draw.X.tobytes())
                if H is not None:
                    H.write(draw.H.tobytes())
                tick(len(draw.X))
            files.close()  # and so flush, before anything is renamed
            with (partial / "V.npy").open("wb") as file:  # not np.save, whose error does not say that a disk is full
                _start(file, V.shape, V.dtype).write(V.tobytes())
            (partial / "model.json").write_text(json.dumps(about | {"rows": N}, indent=2) + "\n", encoding="utf-8")
            for final in names:
                (partial / final).rename(out / final)
    except OSError as error:
        raise unwritten(out, error) from None


def _start(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> BinaryIO:
    """Write the header of a .npy file.  Ordinary writes: on a full disk a memory map would end in SIGBUS."""
    write_array_header_1_0(file, {"descr": dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return file
