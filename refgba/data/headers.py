"""Where the rows of a file lie, by its header alone: `.npy` and `.safetensors` files.

Nothing in a header is believed: it is short, its numbers are such as a file can have, and Python objects are refused.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refgba.data.files import parse_json, quoted
from refgba.errors import InputError, brief

TENSOR = "activations"  # the name of the array that is meant where a file holds several
DTYPES = ("float16", "bfloat16", "float32", "float64")
SAFETENSORS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
LONGEST_NPY_HEADER = 2**20  # bytes: a matrix needs about a hundred
LONGEST_SAFETENSORS_HEADER = 10**8  # bytes, the format's own limit: a file may hold many tensors beside the matrix
LARGEST = 2**62  # of any number in a header; Python does not even print what is much larger
SHOWN = 6  # how many names a message lists


@dataclass(frozen=True)
class Layout:
    """An array in a file: its shape, one of DTYPES, its first byte, and whether it is in the other byte order."""

    shape: tuple[int, ...]
    dtype: str
    offset: int
    swapped: bool = False


def stored(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype in which rows of one of DTYPES are stored."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def pack_command(path: Path, more: str = "") -> str:
    """The command that makes a store of a file or folder; `more` goes before its -o."""
    name = path.resolve().name
    store = name.removesuffix(path.suffix) + "-store"
    return f"`refgba data pack {quoted(path)}{more} -o {quoted(Path(store))}`"


def pick(path: Path, arrays: Mapping[str, Any], tensor: str | None, describe: Callable[[Any], str]) -> str:
    """The name of the array that is meant, of those in a file by name.

    tensor: the name that was asked for; None takes the only one, or TENSOR.  InputError lists the names, each with what
    `describe` says of its array.
    """
    if tensor is not None:
        if tensor not in arrays:
            raise InputError(f"{path}: has no array {brief(tensor)!r}; it holds {listed(arrays, describe)}")
        return tensor
    if len(arrays) == 1:
        return next(iter(arrays))
    if TENSOR not in arrays:
        raise InputError(
            f"{path}: holds {len(arrays)} tensors, and none named {TENSOR!r}"
            + (f": {listed(arrays, describe)}; {pack_command(path, ' --tensor NAME')} takes one" if arrays else "")
        )
    return TENSOR


def listed(arrays: Mapping[str, Any], describe: Callable[[Any], str]) -> str:
    """Names, each with what `describe` says of its array, for a message: the first few."""
    shown = [f"{brief(name)} {brief(describe(arrays[name]))}" for name in islice(arrays, SHOWN)]
    return ", ".join(shown) + (f" and {len(arrays) - SHOWN} more" if len(arrays) > SHOWN else "")


def matrix_shape(where: object, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and d of an array: (rows, d) as it is, (batch, position, d) one batch after the other; else InputError."""
    if len(shape) not in (2, 3):
        shown = f"{len(shape)}-D {shape}" if len(shape) < 8 else f"{len(shape)}-D"
        how = "; save x.reshape(-1, x.shape[-1])" if len(shape) > 3 else ""
        raise InputError(
            f"{where}: activations are an array (rows, d) or (batch, position, d), this one is {shown}{how}"
        )
    if math.prod(shape) == 0:
        raise InputError(f"{where}: the array is empty, shape {shape}")
    return math.prod(shape[:-1]), shape[-1]


def not_a_float(where: object, dtype: str) -> InputError:
    """The refusal of a dtype that rows do not have."""
    how = ""
    if dtype.startswith(("int", "uint", "torch.int", "torch.uint")):
        how = "; if these numbers are activations and no token ids, save x.astype('float32')"
        how = how.replace("astype", "to").replace("'float32'", "torch.float32") if dtype.startswith("torch") else how
    return InputError(f"{where}: dtype is {dtype}; activations are {', '.join(DTYPES)}{how}")


def npy(where: object, file: BinaryIO, size: int) -> Layout:
    """Where the array of a `.npy` file lies; `where` is what messages call the file."""
    start = file.read(12)
    if start[:6] != b"\x93NUMPY":
        raise InputError(f"{where}: not a .npy file")
    version = tuple(start[6:8])
    if version not in ((1, 0), (2, 0)):
        raise InputError(f"{where}: version {version} of the .npy format; matrices are of version 1 or 2")
    length = int.from_bytes(start[8:10] if version == (1, 0) else start[8:12], "little")
    if length > min(size, LONGEST_NPY_HEADER):  # NumPy would allocate that much
        raise InputError(f"{where}: truncated or damaged (a header of {length} bytes)")
    file.seek(8)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except Exception as error:  # a damaged header makes NumPy raise nearly anything
        reason = (str(error).splitlines() or [""])[0][:80]
        raise InputError(f"{where}: truncated or damaged ({reason or type(error).__name__})") from None
    if dtype.hasobject:
        raise InputError(
            f"{where}: dtype is object; activations are {', '.join(DTYPES)}; where you trust the file, save "
            "numpy.stack(list(x)).astype('float32')"
        )
    if dtype.str in ("|V2", "<V2", ">V2"):
        raise InputError(
            f"{where}: dtype is {dtype}: bfloat16, it seems, of which NumPy saves only that it has 2 bytes; save "
            "x.astype('float32'), or x with safetensors.numpy.save_file"
        )
    if dtype.kind != "f" or dtype.name not in DTYPES:
        raise not_a_float(where, str(dtype))
    if fortran and len(shape) > 1:
        raise InputError(
            f"{where}: stored column by column; save numpy.ascontiguousarray(x), so that a row is one read"
        )
    if not all(type(n) is int and 0 <= n < LARGEST for n in shape):  # a bool counts as an integer
        raise InputError(f"{where}: truncated or damaged (its shape cannot be)")
    return Layout(shape, dtype.name, file.tell(), not dtype.isnative)


def safetensors(path: Path, file: BinaryIO, size: int, tensor: str | None) -> Layout:
    """Where an array of a safetensors file lies; `tensor` as `pick`.

    The library reads whole tensors or maps the file; only where the matrix lies is wanted here.
    """
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > size - 8:
        raise InputError(f"{path}: not a .safetensors file, or truncated or damaged (its header does not fit)")
    if length > LONGEST_SAFETENSORS_HEADER:
        raise InputError(
            f"{path}: its header has {length:,} bytes, the .safetensors format allows {LONGEST_SAFETENSORS_HEADER:,}"
        )
    header = parse_json(file.read(length), path)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    name = pick(path, tensors, tensor, _described)
    entry = tensors[name]
    entry = entry if isinstance(entry, dict) else {}
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise InputError(f"{path}: truncated or damaged (tensor {name[:80]!r} has no shape or place)")
    code = entry.get("dtype")
    code = code if isinstance(code, str) else ""
    if code not in SAFETENSORS:
        raise InputError(f"{path}: dtype is {code[:80]!r}; activations are {', '.join(SAFETENSORS)}")
    dtype = SAFETENSORS[code]
    if len(shape) in (2, 3) and offsets[1] - offsets[0] != math.prod(shape) * stored(dtype).itemsize:
        raise InputError(
            f"{path}: truncated or damaged (tensor {name[:80]!r} has a place of another size than its shape)"
        )
    return Layout(shape, dtype, 8 + length + offsets[0])


def _described(entry: Any) -> str:
    """The shape and dtype that a safetensors header gives to a tensor, for a message."""
    return f"{entry.get('dtype')} {entry.get('shape')}" if isinstance(entry, dict) else "(damaged)"


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A list of numbers that can be sizes, from JSON; None for anything else."""
    right = isinstance(value, list) and all(type(n) is int and 0 <= n < LARGEST for n in value)
    return tuple(value) if right else None
