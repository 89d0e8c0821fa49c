"""Gemma Scope's autoencoders: an .npz file, or a folder that holds it as params.npz; to read only.

The file has W_enc (d, M), b_enc (M,), threshold (M,), W_dec (M, d) and b_dec (d,): a JumpReLU of activations as they
are, z = x · W_enc + b_enc, of which what is above the threshold, and above 0, passes.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from refgba.errors import InputError
from refgba.formats.dictionary import ARRAYS, Dictionary
from refgba.formats.npz import read_arrays

WEIGHTS = "params.npz"


def recognises(path: Path) -> bool:
    """Whether `path` looks like such a file, or like a folder with one."""
    if os.path.isdir(path):
        return os.path.isfile(path / WEIGHTS)
    if path.suffix != ".npz" or not os.path.isfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return {"W_enc.npy", "threshold.npy"} <= set(archive.namelist())
    except Exception:  # damaged archives make zipfile raise nearly anything
        return False


def read(path: Path) -> Dictionary:
    """Read the file `path`, or that in the folder `path`, in its dtype.

    InputError, one line with file and array, for anything missing, damaged or inconsistent.
    """
    file = path / WEIGHTS if os.path.isdir(path) else path
    arrays: dict[str, Any] = read_arrays(file, ARRAYS)
    if arrays["W_enc"].ndim != 2:
        raise InputError(f"{file}: W_enc has shape {arrays['W_enc'].shape}, it should be (dimensions, neurons)")
    arrays |= {"W_enc": arrays["W_enc"].T, "threshold": np.maximum(arrays["threshold"], 0)}
    try:
        return Dictionary(**arrays, subtract_b_dec=False, input="raw")
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
