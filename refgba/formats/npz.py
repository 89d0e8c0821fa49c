"""Our own format, exact: the arrays of a `Dictionary` in dictionary.npz, the rest in dictionary.json.

`read` believes nothing: no array is made before the archive is known to be as large as the array, and of the .npy
headers in it only the one form is parsed in which NumPy writes a plain array.
"""

from __future__ import annotations

import io
import math
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from refgba.data.files import read_json, regular_size, write_new_folder
from refgba.errors import InputError, brief
from refgba.formats.dictionary import ARRAYS, Dictionary, Input
from refgba.formats.fields import boolean, choice, count, json_bytes, k_field
from refgba.types import Array

INDEX, WEIGHTS = "dictionary.json", "dictionary.npz"
MAGIC = b"\x93NUMPY\x01\x00"  # how a .npy file of version 1 begins
# The one form in which NumPy writes a plain array: anything else, Python objects above all, is not parsed at all.
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '<f([48])', 'fortran_order': (True|False), "
    rb"'shape': \(([1-9][0-9]{0,17})(?:,|, ([1-9][0-9]{0,17}))\), \} *\n",
    re.DOTALL,
)


def form(dictionary: Dictionary) -> Dictionary:
    """The dictionary itself: this format holds any, as it is."""
    return dictionary


NAMES = {"npz": form}


def require() -> None:
    """Nothing: what writes this format is always installed."""


def recognises(path: Path) -> bool:
    """Whether the folder `path` looks like one of this format."""
    return os.path.isfile(path / INDEX)  # Path's own raises for a folder that may not be looked into


def read(path: Path) -> Dictionary:
    """Read the folder `path`.

    InputError, one line with file and field, for anything missing, damaged or inconsistent.
    """
    index, weights = path / INDEX, path / WEIGHTS
    fields = read_json(index)
    subtract_b_dec = boolean(index, "subtract_b_dec", fields.get("subtract_b_dec"))
    input = choice(index, "input", fields.get("input"), {name: name for name in get_args(Input)})
    k = count(index, "k", fields["k"]) if "k" in fields else None
    arrays = read_arrays(weights, ARRAYS, optional=("centre",))
    try:
        centre: Any = arrays.pop("centre", None)
        return Dictionary(**arrays, subtract_b_dec=subtract_b_dec, input=input, k=k, centre=centre)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from None


def write(dictionary: Dictionary, provenance: dict[str, Any], out: Path) -> None:
    """Write any dictionary to the folder `out`, exactly, whole or not at all; InputError as `write_new_folder`.

    provenance: anything JSON can hold.
    """
    weights = io.BytesIO()
    arrays: dict[str, Any] = {**dictionary.arrays()}
    if dictionary.centre is not None:
        arrays["centre"] = dictionary.centre
    np.savez(weights, **arrays)
    fields = {
        "activation": dictionary.activation,
        "subtract_b_dec": dictionary.subtract_b_dec,
        "input": dictionary.input,
        "provenance": provenance,
    } | k_field(dictionary)
    write_new_folder(out, {WEIGHTS: weights.getvalue(), INDEX: json_bytes(fields)})


def read_arrays(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Array]:
    """Arrays of an .npz file by name, those that are `optional` where they are there.

    InputError, one line with file and array, for anything missing, damaged, compressed or not plain.
    """
    size = regular_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            there = {member.removesuffix(".npy") for member in archive.namelist()}
            return {name: _member(archive, name, size) for name in (*names, *(n for n in optional if n in there))}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # damaged archives make zipfile raise nearly anything
        raise InputError(f"{path}: damaged or cannot be read ({brief(error)})") from None


def _member(archive: zipfile.ZipFile, name: str, size: int) -> Array:
    """The array of this name in an archive of `size` bytes; InputError if it is not there, uncompressed and plain."""
    if f"{name}.npy" not in archive.namelist():
        raise InputError(f"{name} is missing")
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED or max(info.file_size, info.compress_size) > size:
        raise InputError(f"{name} is compressed or larger than the file; numpy.savez stores arrays as they are")
    data = archive.read(info)
    header = HEADER.match(data)
    if header is None or int.from_bytes(header[1], "little") + len(MAGIC) + 2 != header.end():
        raise InputError(f"{name} is not a plain array of float32 or float64, 1-D or 2-D")
    dtype, fortran = np.dtype(f"<f{int(header[2])}"), header[3] == b"True"
    shape = tuple(int(n) for n in header.groups()[3:] if n is not None)
    if math.prod(shape) * dtype.itemsize != len(data) - header.end():
        raise InputError(f"{name} has shape {shape} and {len(data) - header.end()} bytes, which do not agree")
    return np.frombuffer(data, dtype, offset=header.end()).reshape(shape, order="F" if fortran else "C")
