"""The bare parameters of GBA, as a port or a script saves them: W, a, b, b_pre and, where untied, W_dec in one file.

The file is an .npz, as `numpy.savez` writes it, or a .safetensors.  W: (M, d) unit rows w_m.  a, b: (M,).  b_pre: (d,).
W_dec: (M, d) unit rows v_m, so that the decoder adds a_m v_m.  All float32 or all float64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from refgba.config import GBAConfig
from refgba.data.files import regular_size
from refgba.errors import InputError, brief
from refgba.formats import npz
from refgba.formats.dictionary import Dictionary
from refgba.formats.trained import from_params
from refgba.sae import Params
from refgba.types import Activation, Array

NAMES, OPTIONAL = ("W", "a", "b", "b_pre"), ("W_dec",)
READS = (".npz", ".safetensors")


def read(path: Path, activation: Activation = "jumprelu") -> Dictionary:
    """The network of these parameters as a `Dictionary` of unit rows.

    InputError, one line with file and array, for anything missing, damaged or inconsistent, and where a JumpReLU has a
    bias above 0 (`Method.exported`).
    """
    if path.suffix not in READS:
        raise InputError(f"{path}: parameters are read from {' and '.join(READS)} files")
    arrays = npz.read_arrays(path, NAMES, OPTIONAL) if path.suffix == ".npz" else _safetensors(path)
    W = arrays["W"]
    if W.ndim != 2 or not W.size:
        raise InputError(f"{path}: W has shape {W.shape}, it should be (neurons, dimensions)")
    M, d = W.shape
    for name, shape in {"a": (M,), "b": (M,), "b_pre": (d,), "W_dec": (M, d)}.items():
        if name in arrays and arrays[name].shape != shape:
            raise InputError(f"{path}: {name} has shape {arrays[name].shape}, with this W it should be {shape}")
    try:
        return from_params(Params(**arrays), GBAConfig(width=M, groups=1, activation=activation))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _safetensors(path: Path) -> dict[str, Array]:
    regular_size(path)
    try:
        with safe_open(path, framework="numpy") as file:
            there = set(file.keys())
            missing = [name for name in NAMES if name not in there]
            if missing:
                raise InputError(f"{path}: {missing[0]} is missing")
            arrays = {name: file.get_tensor(name) for name in (*NAMES, *OPTIONAL) if name in there}
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: dtypes unknown to NumPy
        raise InputError(f"{path}: damaged or cannot be read ({brief(error)})") from None
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise InputError(f"{path}: {name} holds {array.dtype}; it should hold float32 or float64")
    return arrays
