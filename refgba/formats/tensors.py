"""Tensors of .safetensors files of other libraries, in any of the float dtypes that these are written in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from refgba.data.store import values
from refgba.errors import InputError
from refgba.types import Array

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' codes of what weights may be


def tensor(path: Path, file: Any, name: str, shape: tuple[int, ...], index: str) -> Array:
    """A tensor that is there, of an open file; bfloat16 as float32.

    shape: by the JSON file `index`.  InputError when it has another shape, or holds no floating-point numbers.
    """
    stored = file.get_slice(name)
    actual = tuple(stored.get_shape())
    if actual != shape:
        raise InputError(f"{name} has shape {str(actual)[:60]}, by {index} it should be {shape}")
    if stored.get_dtype() not in FLOATS:
        raise InputError(f"{name} holds {stored.get_dtype()}; it should hold one of {', '.join(FLOATS)}")
    array: Array = _bfloat16(path, name).reshape(shape) if stored.get_dtype() == "BF16" else file.get_tensor(name)
    return array


def _bfloat16(path: Path, name: str) -> Array:
    """The values of a bfloat16 tensor, for which safetensors has no NumPy dtype, in a file that it has accepted."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        start, stop = json.loads(file.read(size))[name]["data_offsets"]
        file.seek(8 + size + start)
        return values(np.frombuffer(file.read(stop - start), np.uint16))
