"""Rows of activations on disk: a file that holds them as they are, or a folder of shards with a `meta.json`.

    meta.json   {"format": "refgba-activations", "d": 384, "dtype": "float16", "complete": true,
                 "shards": [{"file": "00000.npy", "rows": 65536, "sha256": "..."}, ...],
                 "model": ..., "layer": ..., "site": ...}

A shard is complete once `meta.json` lists it: a store that is still being written (`complete` false) can be read up to
its last such shard, and other files in the folder are not looked at.

The files are `.npy`, `.safetensors`, `.npz` (written by `numpy.savez`) and `.pt` (by `torch.save`), whose arrays lie in
them as plain numbers; what has to be decoded is packed into a store first (`sources`).  A file holds one array, or one
of several under the name `activations`.  An array (batch, position, d) is read as its rows in order: row b * positions
+ p is position p of batch b.  `meta.json` says so of a store that was packed from such: its `arrays` lists file and
shape of each, in order.

Nothing is loaded whole, and nothing is memory-mapped: rows come by ordinary reads of a range.  Under a memory map, a
file that is truncated by someone else kills the process, and every page that was read counts as resident.

bfloat16, which NumPy lacks, is kept as its bits (uint16) until `values` makes float32 of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from refgba.data import archives, foreign, headers
from refgba.data.files import read_json, regular_size

# What a row's dtype may be is said beside the headers, and imported from here.
from refgba.data.headers import DTYPES as DTYPES
from refgba.data.headers import LARGEST as LARGEST
from refgba.data.headers import Layout, matrix_shape, pack_command
from refgba.data.headers import stored as stored
from refgba.errors import InputError
from refgba.types import Array, Int64

META, FORMAT = "meta.json", "refgba-activations"
LONGEST_META = 2**28  # bytes of meta.json: a million shards need a tenth of it

Raw = npt.NDArray[Any]  # rows as they are stored


@dataclass(frozen=True)
class Shard:
    """A file of rows, (rows, d) of dtype, from byte `offset` on."""

    path: Path
    rows: int
    d: int
    dtype: str
    offset: int
    shape: tuple[int, ...] = ()  # of the array in the file
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

    @property
    def unfinished(self) -> str | None:
        """A remark for a user of a store that is not whole yet; None for one that is."""
        if self.complete:
            return None
        return f"{self.path}: has not been written to its end; these are the {len(self)} rows that it has so far"

    def place(self, row: int) -> str:
        """A row's place, for people: its file and its number there, and its number in the store if that differs."""
        k = int(np.searchsorted(self.starts, row, side="right")) - 1
        shard, inside = self.shards[k], row - int(self.starts[k])
        return f"{shard.path}: row {inside}" + (f" (row {row} of {self.path})" if k else "")


def open_store(path: Path, d: int | None = None, tensor: str | None = None) -> Store:
    """A file of rows or a folder of shards, by their headers alone.

    d: None, or the only number of dimensions that is accepted.  tensor: of a file that holds several arrays, the name
    of the one that is meant.  InputError when there is no such file, when it is empty, truncated or of another format,
    when an array is neither 2-D nor 3-D or has no rows, or when its dtype is not in DTYPES; it says how to get there.
    """
    if os.path.isdir(path):  # unlike Path's, False for a name that no folder can have
        if tensor is not None:
            raise InputError(f"{path}: its shards hold one array each, --tensor picks one of several in a file")
        store = _open_folder(path)
    else:
        shard = open_shard(path, tensor)
        store = Store(path, (shard,), about={"arrays": [arrays_entry(shard)]} if len(shard.shape) == 3 else {})
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


def arrays_entry(shard: Shard) -> dict[str, Any]:
    """What `arrays` in `meta.json` says of the array in a file."""
    return {"file": shard.path.name, "shape": list(shard.shape)}


def open_shard(path: Path, tensor: str | None = None) -> Shard:
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
            layout = _layout(path, file, size, tensor)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    rows, d = matrix_shape(path, layout.shape)
    needed = layout.offset + rows * d * stored(layout.dtype).itemsize
    if size < needed:
        raise InputError(
            f"{path}: truncated or damaged: shape {layout.shape} in {layout.dtype} takes {needed} bytes, it has {size}"
        )
    return Shard(path, rows, d, layout.dtype, layout.offset, layout.shape, layout.swapped)


def _layout(path: Path, file: BinaryIO, size: int, tensor: str | None) -> Layout:
    """Where the rows of a file lie, by the reader for its kind."""
    reader = READERS.get(path.suffix.lower())
    if reader is not None:
        return reader(path, file, size, tensor)
    foreign.refuse(path)
    if tensor is not None:
        raise InputError(f"{path}: holds one array, --tensor picks one of several in a file")
    return headers.npy(path, file, size)


READERS: dict[str, Callable[[Path, BinaryIO, int, str | None], Layout]] = {
    ".safetensors": headers.safetensors,
    ".npz": archives.npz,
    **dict.fromkeys(archives.TORCH, archives.pt),
}


def read_meta(path: Path) -> dict[str, Any]:
    """The checked `meta.json` of the folder `path`; InputError names the field that cannot be."""
    file = path / META
    if not os.path.exists(file):
        raise InputError(
            f"{path}: a folder without {META}; {pack_command(path)} makes a store of the files in it, in the order of "
            "their names"
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
