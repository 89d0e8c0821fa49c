"""Rows of activations on disk: a `.npy` file, or a folder of `.npy` and `.safetensors` shards with a `meta.json`.

    meta.json   {"format": "refgba-activations", "d": 384, "dtype": "float16", "complete": true,
                 "shards": [{"file": "00000.npy", "rows": 65536, "sha256": "..."}, ...],
                 "model": ..., "layer": ..., "site": ...}

A shard is complete once `meta.json` lists it: a store that is still being written (`complete` false) can be read up to
its last such shard, and other files in the folder are not looked at.  A safetensors shard holds one matrix, or one of
several under the name `activations`.

Nothing is loaded whole, and nothing is memory-mapped: rows come by ordinary reads of a range.  Under a memory map, a
file that is truncated by someone else kills the process, and every page that was read counts as resident.

bfloat16, which NumPy lacks, is kept as its bits (uint16) until `values` makes float32 of it.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from refgba.data.files import parse_json, read_json, regular_size
from refgba.errors import InputError
from refgba.types import Array, Int64

META, FORMAT, TENSOR = "meta.json", "refgba-activations", "activations"
DTYPES = ("float16", "bfloat16", "float32", "float64")
SAFETENSORS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
LONGEST_NPY_HEADER = 2**20  # bytes: a matrix needs about a hundred
LONGEST_SAFETENSORS_HEADER = 10**8  # bytes, the format's own limit: a file may hold many tensors beside the matrix
LONGEST_META = 2**28  # bytes of meta.json: a million shards need a tenth of it
LARGEST = 2**62  # of any number in a header; Python does not even print what is much larger

Raw = npt.NDArray[Any]  # rows as they are stored


@dataclass(frozen=True)
class Shard:
    """A file of rows, (rows, d) of dtype, from byte `offset` on."""

    path: Path
    rows: int
    d: int
    dtype: str
    offset: int
    swapped: bool = False  # whether numbers are stored in the byte order that is not this machine's
    sha256: str | None = None  # of the whole file, if meta.json has it

    def read(self, start: int, stop: int, into: Raw | None = None) -> Raw:
        """Rows start..stop (stop excluded) as they are stored, (stop - start, d) of `stored(dtype)`.

        into: an array of that shape and dtype that they are written to; None makes one.  InputError when they are not
        there any more.
        """
        rows = np.empty((stop - start, self.d), stored(self.dtype)) if into is None else into
        view = rows.reshape(-1).view(np.uint8).data
        done = 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + start * self.d * rows.itemsize)
                while done < len(view):
                    got = file.readinto(view[done:])
                    if not got:
                        row = start + done // (self.d * rows.itemsize)
                        raise InputError(f"{self.path}: truncated: it ends in row {row} of {self.rows}")
                    done += got
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        return rows.byteswap(inplace=True) if self.swapped else rows

    def verify(self) -> None:
        """InputError when the file has a checksum and it is not that."""
        if self.sha256 is not None and checksum(self.path) != self.sha256:
            raise InputError(f"{self.path}: does not match its checksum in {META}: the file is damaged or was changed")


def checksum(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal; InputError when it cannot be read."""
    if os.path.exists(path):
        regular_size(path)  # a pipe or a device would be read without end
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # a ValueError for a name that no file can have
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def stored(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype in which rows of one of DTYPES are stored."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def values(raw: Raw) -> Array:
    """The numbers that stored rows stand for: bfloat16 becomes float32, all else stays as it is."""
    if raw.dtype != np.uint16:
        return raw
    wide = raw.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


@dataclass(frozen=True)
class Store:
    """Shards of rows of the same d and dtype, in order; at least one.

    path: of the one file, or of the folder.  complete: false if more shards are to come.  about: what else `meta.json`
    says.  in_memory: whether the rows lie in no file (`refgba.data.memory`).
    """

    path: Path
    shards: tuple[Shard, ...]
    complete: bool = True
    about: dict[str, Any] = field(default_factory=dict)
    in_memory: bool = False

    @property
    def d(self) -> int:
        """Input dimensions."""
        return self.shards[0].d

    @property
    def dtype(self) -> str:
        """One of DTYPES."""
        return self.shards[0].dtype

    @cached_property
    def starts(self) -> Int64:
        """(shards + 1,) the row of the store that each shard begins with, and the number of rows."""
        return np.concatenate([[0], np.cumsum([shard.rows for shard in self.shards])]).astype(np.int64)

    def __len__(self) -> int:
        """Rows."""
        return int(self.starts[-1])

    def place(self, row: int) -> str:
        """A row's place, for people: its file and its number there, and its number in the store if that differs."""
        k = int(np.searchsorted(self.starts, row, side="right")) - 1
        shard, inside = self.shards[k], row - int(self.starts[k])
        return f"{shard.path}: row {inside}" + (f" (row {row} of {self.path})" if k else "")


def open_store(path: Path, d: int | None = None) -> Store:
    """A file of rows or a folder of shards, by their headers alone.

    d: None, or the only number of dimensions that is accepted.  InputError when there is no such file, when it is
    empty, truncated or of another format, when an array is not 2-D or has no rows, or when its dtype is not in DTYPES.
    """
    if os.path.isdir(path):  # unlike Path's, False for a name that no folder can have
        store = _open_folder(path)
    else:
        store = Store(path, (open_shard(path),))
    if d not in (None, store.d):
        raise InputError(f"{path}: its rows have d = {store.d}, the network d = {d}")
    return store


def load_matrix(path: Path, d: int | None = None) -> Array:
    """All rows of a store in memory, (rows, d) float64: for what is small, such as true features.

    InputError as `open_store`, and when rows cannot be read.
    """
    store = open_store(path, d)
    parts = [values(shard.read(0, shard.rows)) for shard in store.shards]
    return np.concatenate(parts).astype(np.float64)


def open_shard(path: Path) -> Shard:
    """A file of rows by its header; InputError as `open_store`."""
    if not os.path.exists(path):  # unlike Path's, False for a name that no file can have
        raise InputError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise InputError(f"{path}: not a file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise InputError(f"{path}: the file is empty")
            reader = _safetensors if path.suffix == ".safetensors" else _npy
            shape, dtype, offset, swapped = reader(path, file, size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(shape) != 2:
        shown = f"{len(shape)}-D {shape}" if len(shape) < 8 else f"{len(shape)}-D"
        raise InputError(f"{path}: activations are a 2-D array (rows, d), this one is {shown}")
    rows, d = shape
    if rows * d == 0:
        raise InputError(f"{path}: the array is empty, shape {shape}")
    needed = offset + rows * d * stored(dtype).itemsize
    if size < needed:
        raise InputError(f"{path}: truncated or damaged: shape {shape} in {dtype} takes {needed} bytes, it has {size}")
    return Shard(path, rows, d, dtype, offset, swapped)


def _npy(path: Path, file: BinaryIO, size: int) -> tuple[tuple[int, ...], str, int, bool]:
    """Shape, dtype, offset and byte order in the header of a `.npy` file."""
    start = file.read(12)
    if start[:6] != b"\x93NUMPY":
        raise InputError(f"{path}: not a .npy file")
    version = tuple(start[6:8])
    if version not in ((1, 0), (2, 0)):
        raise InputError(f"{path}: version {version} of the .npy format; matrices are of version 1 or 2")
    length = int.from_bytes(start[8:10] if version == (1, 0) else start[8:12], "little")
    if length > min(size, LONGEST_NPY_HEADER):  # NumPy would allocate that much
        raise InputError(f"{path}: truncated or damaged (a header of {length} bytes)")
    file.seek(8)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except Exception as error:  # a damaged header makes NumPy raise nearly anything
        reason = (str(error).splitlines() or [""])[0][:80]
        raise InputError(f"{path}: truncated or damaged ({reason or type(error).__name__})") from None
    if dtype.hasobject:
        raise InputError(f"{path}: dtype is object; activations are {', '.join(DTYPES)}")
    if dtype.str in ("|V2", "<V2", ">V2"):
        raise InputError(
            f"{path}: dtype is {dtype}: bfloat16, it seems, of which NumPy saves only that it has 2 bytes; save "
            "x.astype('float32'), or x with safetensors.numpy.save_file"
        )
    if dtype.kind != "f" or dtype.name not in DTYPES:
        raise InputError(f"{path}: dtype is {dtype}; activations are {', '.join(DTYPES)}")
    if fortran and len(shape) == 2:
        raise InputError(f"{path}: stored column by column; save numpy.ascontiguousarray(x), so that a row is one read")
    if not all(type(n) is int and 0 <= n < LARGEST for n in shape):  # a bool counts as an integer
        raise InputError(f"{path}: truncated or damaged (its shape cannot be)")
    return shape, dtype.name, file.tell(), not dtype.isnative


def _safetensors(path: Path, file: BinaryIO, size: int) -> tuple[tuple[int, ...], str, int, bool]:
    """Shape, dtype and offset of the matrix in a safetensors file.

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
    if len(tensors) != 1 and TENSOR not in tensors:
        raise InputError(f"{path}: holds {len(tensors)} tensors, and none named {TENSOR!r}: which are the activations?")
    name, entry = (TENSOR, tensors[TENSOR]) if TENSOR in tensors else next(iter(tensors.items()))
    entry = entry if isinstance(entry, dict) else {}
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise InputError(f"{path}: truncated or damaged (tensor {name[:80]!r} has no shape or place)")
    code = entry.get("dtype")
    code = code if isinstance(code, str) else ""
    if code not in SAFETENSORS:
        raise InputError(f"{path}: dtype is {code[:80]!r}; activations are {', '.join(SAFETENSORS)}")
    dtype = SAFETENSORS[code]
    if len(shape) == 2 and offsets[1] - offsets[0] != math.prod(shape) * stored(dtype).itemsize:
        raise InputError(
            f"{path}: truncated or damaged (tensor {name[:80]!r} has a place of another size than its shape)"
        )
    return shape, dtype, 8 + length + offsets[0], False


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A list of numbers that can be sizes, from JSON; None for anything else."""
    right = isinstance(value, list) and all(type(n) is int and 0 <= n < LARGEST for n in value)
    return tuple(value) if right else None


def read_meta(path: Path) -> dict[str, Any]:
    """The checked `meta.json` of the folder `path`; InputError names the field that cannot be."""
    file = path / META
    if not os.path.exists(file):
        raise InputError(
            f"{path}: a folder without {META}; `refgba data pack FILES -o STORE` makes a store of .npy files"
        )
    meta = read_json(file, LONGEST_META)
    shards = meta.get("shards")
    for right, complaint in (
        (meta.get("format") == FORMAT, f"format should be {FORMAT!r}"),
        (type(meta.get("d")) is int and 0 < meta["d"] < LARGEST, "d should be a positive whole number"),
        (meta.get("dtype") in DTYPES, f"dtype should be one of {', '.join(DTYPES)}"),
        (isinstance(meta.get("complete"), bool), "complete should be true or false"),
        (isinstance(shards, list), "shards should be a list"),
    ):
        if not right:
            raise InputError(f"{file}: {complaint}")
    names: set[str] = set()
    for k, entry in enumerate(meta["shards"]):
        fields = entry if isinstance(entry, dict) else {}
        name, rows = fields.get("file"), fields.get("rows")
        if not (isinstance(name, str) and name.isprintable() and 0 < len(name) < 256 and Path(name).name == name):
            raise InputError(f"{file}: shard {k}: file should be a name in the folder")
        for right, complaint in (
            (name not in names, f"file {name!r} is listed twice"),
            (type(rows) is int and 0 < rows < LARGEST, "rows should be a positive whole number"),
            (isinstance(fields.get("sha256"), str | None), "sha256 should be a string"),
        ):
            if not right:
                raise InputError(f"{file}: shard {k}: {complaint}")
        names.add(name)
    return meta


def _open_folder(path: Path) -> Store:
    meta = read_meta(path)
    shards = []
    for entry in meta["shards"]:
        shard = open_shard(path / entry["file"])
        for name, actual, listed in (
            ("rows", shard.rows, entry["rows"]),
            ("d", shard.d, meta["d"]),
            ("dtype", shard.dtype, meta["dtype"]),
        ):
            if actual != listed:
                raise InputError(f"{shard.path}: {name} is {actual}, {path / META} says {listed}")
        shards.append(Shard(**vars(shard) | {"sha256": entry.get("sha256")}))
    if not shards:
        raise InputError(f"{path}: no shard is complete yet")
    about = {key: value for key, value in meta.items() if key not in ("format", "d", "dtype", "complete", "shards")}
    return Store(path, tuple(shards), meta["complete"], about)
