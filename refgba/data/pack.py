"""Write stores of activations: `Writer` shard by shard, `pack` from other files; and say what is in one.

A shard is written under a temporary name, flushed to disk, renamed, and only then listed in `meta.json`, which says
`"complete": false` until the last.  So at every moment the folder can be read up to its last whole shard, whatever
happens to the process that writes it.  Memory holds a block of rows, never a shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib.format import dtype_to_descr, write_array_header_1_0

from refgba.data import files
from refgba.data.activations import block_rows, survey, unchecked
from refgba.data.store import (
    DTYPES,
    FORMAT,
    META,
    SAFETENSORS,
    TENSOR,
    Raw,
    Store,
    checksum,
    open_store,
    stored,
    values,
)
from refgba.errors import InputError
from refgba.types import Array

Format = Literal["npy", "safetensors"]
SHARD = 2**28  # bytes of rows in a shard, about, unless it is asked for others
MOST = 2**40  # rows in a shard
QUIET = 0x7FC0  # the bits that every NaN of bfloat16 gets


# ---- what is in a store ----------------------------------------------------------------------------------------------


def info(store: Store) -> dict[str, Any]:
    """What the headers say, for JSON; InputError when a shard has gone since.

    rows_per_shard has the fewest and the most; bytes are those of the shards' files; checksums says how many shards
    have one; about is what else `meta.json` tells, such as model, layer and site.
    """
    rows = [shard.rows for shard in store.shards]
    return {
        "path": str(store.path),
        "rows": len(store),
        "d": store.d,
        "dtype": store.dtype,
        "complete": store.complete,
        "shards": len(rows),
        "rows_per_shard": [min(rows), max(rows)],
        "bytes": sum(_size(shard.path) for shard in store.shards),
        "checksums": sum(shard.sha256 is not None for shard in store.shards),
        "about": store.about,
    }


def verify(
    store: Store, dtype: str = "float32", drop_zero_rows: bool = False, tick: Callable[[int], object] = id
) -> dict[str, Any]:
    """Read all of a store once, as training in the arithmetic `dtype` would before it begins; what it found, for JSON.

    rows that count and rows of zeros dropped; shards with and without a checksum; variance of the unit rows.  `tick` is
    called with the number of rows of each block.  InputError as `activations.survey`: it names the first shard that
    does not match its checksum, or the file and the first row that cannot be computed on.
    """
    with np.errstate(invalid="ignore"):  # casting a signalling NaN
        _, found = survey(unchecked(store), dtype, drop_zero_rows, tick)
    checked = sum(shard.sha256 is not None for shard in store.shards)
    return {
        "rows": found.rows,
        "dropped": found.dropped,
        "shards": len(store.shards),
        "checksums": checked,
        "no_checksum": len(store.shards) - checked,
        "variance": found.variance,
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


# ---- writing one -----------------------------------------------------------------------------------------------------


class Writer:
    """Writes a store: `with Writer(...) as writer: writer.append(rows)`, as often as there are rows.

    It is complete when the body ends.  When the body raises, the shards that are whole stay, and `meta.json` says that
    the store is not complete; where there is none yet, nothing stays.
    """

    def __init__(
        self,
        out: Path,
        d: int,
        dtype: str,
        rows_per_shard: int | None = None,
        format: Format = "npy",
        about: dict[str, Any] | None = None,
    ) -> None:
        """A store of rows (any, d) in the folder `out`, which must be empty, or not exist; None: SHARD bytes a shard.

        about: what else meta.json should say.  InputError when `out` holds something or the rest cannot be.  Nothing is
        written before the body begins.
        """
        _refuse(out, dtype, rows_per_shard, format)
        self.out, self.d, self.dtype, self.format, self.about = out, d, dtype, format, about or {}
        self.rows_per_shard = rows_per_shard or max(1, SHARD // (d * stored(dtype).itemsize))
        self.shards: list[dict[str, Any]] = []  # as meta.json lists them
        self.file: BinaryIO | None = None  # the shard that is being written
        self.rows = 0  # in it
        self.made = False  # whether the folder is of our making

    def __enter__(self) -> Writer:
        try:
            self.made = not self.out.exists()
            self.out.mkdir(parents=True, exist_ok=True)
            self._meta(complete=False)
        except OSError as error:
            self._abandon()
            raise self._unwritable(error) from None
        return self

    def append(self, rows: Raw, where: Callable[[int], str] | None = None) -> None:
        """Add rows (any, d): floating-point numbers, or uint16, the bits of bfloat16; converted to the store's dtype.

        InputError as `convert`, which calls `where` to name a row, by its number in `rows`; and when the disk is full.
        ValueError for rows of another shape or dtype.
        """
        if rows.ndim != 2 or rows.shape[1] != self.d or (rows.dtype.kind != "f" and rows.dtype != np.uint16):
            raise ValueError(f"rows of shape {rows.shape} in {rows.dtype}, they should be floats (any, {self.d})")
        before = sum(shard["rows"] for shard in self.shards) + self.rows
        rows = convert(rows, self.dtype, where or (lambda row: f"{self.out}: row {before + row}"))
        rows = np.ascontiguousarray(rows, stored(self.dtype).newbyteorder("<"))
        try:
            while len(rows):
                if self.file is None:
                    self.file = self._partial.open("wb")
                    self._header(self.rows_per_shard)
                elif self.rows == self.rows_per_shard:  # only now: the last one is closed together with the store
                    self._close(complete=False)
                    continue
                part = rows[: self.rows_per_shard - self.rows]
                self.file.write(part.data)
                self.rows += len(part)
                rows = rows[len(part) :]
        except OSError as error:
            raise self._unwritable(error) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self.file is None:
                    raise InputError(f"{self.out}: there are no rows to write")
                self._close(complete=True)
        except OSError as unwritable:
            raise self._unwritable(unwritable) from None
        finally:
            self._abandon()

    @property
    def _name(self) -> str:
        return f"{len(self.shards):05d}.{self.format}"

    @property
    def _partial(self) -> Path:
        return self.out / (files.PARTIAL + self._name)

    def _header(self, rows: int) -> None:
        """Write the header of a shard; as long for fewer rows as for a full shard, whose header is overwritten then."""
        assert self.file is not None
        if self.format == "safetensors":
            self.file.write(_safetensors_header(rows, self.rows_per_shard, self.d, self.dtype))
        else:  # NumPy leaves room for the first dimension to grow
            descr = dtype_to_descr(stored(self.dtype).newbyteorder("<"))
            said = {"descr": descr, "fortran_order": False, "shape": (rows, self.d)}
            write_array_header_1_0(self.file, said)

    def _close(self, complete: bool) -> None:
        """End the shard that is being written: from here on it is part of the store."""
        assert self.file is not None
        if self.rows < self.rows_per_shard:
            self.file.seek(0)
            self._header(self.rows)
        with self.file:
            self.file.flush()
            os.fsync(self.file.fileno())
        shard = {"file": self._name, "rows": self.rows, "sha256": checksum(self._partial)}  # of what can be read back
        self._partial.replace(self.out / self._name)
        files.flush(self.out)
        self.file, self.rows = None, 0
        self.shards.append(shard)
        self._meta(complete)

    def _meta(self, complete: bool) -> None:
        own = {"format": FORMAT, "d": self.d, "dtype": self.dtype, "complete": complete, "shards": self.shards}
        files.write(self.out / META, json.dumps(own | {k: v for k, v in self.about.items() if k not in own}).encode())

    def _abandon(self) -> None:
        """Remove what is not part of the store."""
        with suppress(OSError):
            if self.file is not None:
                self._partial.unlink(missing_ok=True)
                file, self.file = self.file, None
                file.close()  # last: what is still buffered may not fit on the disk
        if not self.shards:
            with suppress(OSError):
                (self.out / META).unlink(missing_ok=True)
                if self.made:
                    self.out.rmdir()

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.out}: cannot be written ({error.strerror or error})")


def _refuse(out: Path, dtype: str, rows_per_shard: int | None, format: str) -> None:
    """InputError unless a store of this kind can be written to `out`."""
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: exists and is not a folder")
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out}: is not empty; choose another folder or remove it")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    for right, complaint in (
        (dtype in DTYPES, f"dtype should be one of {', '.join(DTYPES)}, not {dtype}"),
        (format in ("npy", "safetensors"), f"format should be npy or safetensors, not {format}"),
        (dtype != "bfloat16" or format != "npy", ".npy has no bfloat16: choose --format safetensors, or another dtype"),
        (
            rows_per_shard is None or 1 <= rows_per_shard <= MOST,
            f"rows per shard must be between 1 and {MOST:,}, not {rows_per_shard}",
        ),
    ):
        if not right:
            raise InputError(complaint)


def _safetensors_header(rows: int, most: int, d: int, dtype: str) -> bytes:
    """The header of a safetensors file with one tensor (rows, d), as long as for `most` rows."""
    code = next(code for code, name in SAFETENSORS.items() if name == dtype)

    def said(n: int) -> bytes:
        place = [0, n * d * stored(dtype).itemsize]
        tensor = {"dtype": code, "shape": [n, d], "data_offsets": place}
        return json.dumps({TENSOR: tensor}, separators=(",", ":")).encode()

    length = -(-len(said(most)) // 8) * 8  # the numbers begin at a multiple of 8 bytes
    return length.to_bytes(8, "little") + said(rows).ljust(length)


# ---- conversion ------------------------------------------------------------------------------------------------------


def convert(raw: Raw, dtype: str, where: Callable[[int], str] = lambda row: f"row {row}") -> Raw:
    """Rows (any, d) as they are stored in `dtype`, rounded to the nearest, ties to even; NaN and infinity stay.

    raw: floating-point numbers, or uint16, the bits of bfloat16.  InputError names the first row with a number that
    would become infinite, or that would become all zeros, and a dtype that holds it.
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
    """What to say of a row that `dtype` cannot hold."""
    size = np.abs(row[np.isfinite(row)].astype(np.float64)).max()
    for wider in ("float32", "float64"):
        said = np.finfo(wider)
        if float(said.smallest_subnormal) <= size <= float(said.max):
            break
    if size > 1:
        return f"{where} holds {size:g}, too large for {dtype}; --dtype {wider} would hold it"
    return f"{where} holds no more than {size:g}, too small for {dtype}: all would be 0; --dtype {wider} would hold it"


def _bfloat16(x: Array) -> npt.NDArray[np.uint16]:
    """The bits of the bfloat16 nearest to each number, ties to even; NaN stays NaN."""
    single = np.ascontiguousarray(x, np.float32)
    bits = single.view(np.uint32)
    if x.dtype.itemsize > 4:  # rounded twice: what the first rounding made a tie was none
        tie = (bits & 0xFFFF) == 0x8000
        wide, narrow = np.abs(x), np.abs(single).astype(x.dtype)
        bits = np.where(tie, bits + (wide > narrow) - (wide < narrow), bits).astype(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # carries into the exponent where it should
    return np.where(np.isnan(x), (bits >> 16) | QUIET, rounded).astype(np.uint16)


# ---- packing ---------------------------------------------------------------------------------------------------------


def pack(
    sources: list[Path],
    out: Path,
    *,
    dtype: str | None = None,
    rows_per_shard: int | None = None,
    format: Format = "npy",
    about: dict[str, Any] | None = None,
    tick: Callable[[int], object] = id,
) -> Store:
    """Merge files and stores, in this order, into a new store in the folder `out`, and open it.

    dtype: None for that of the sources.  rows_per_shard: None for SHARD bytes a shard.  about: what meta.json should
    say of model, layer, site; what is left out, or None, is taken from the sources where all of them agree.  `tick` is
    called with the number of rows of each block.  Of a source that is not complete, the shards it has are taken.

    InputError when a source cannot be read, does not match its checksum, or has another d than the first; when their
    dtypes differ and none is asked for; as `convert`, naming the row of the source; and as `Writer`.
    """
    stores = [open_store(source) for source in sources]
    if not stores:
        raise InputError("no files to pack")
    for store in stores:
        if store.d != stores[0].d:
            raise InputError(f"{store.path}: its rows have d = {store.d}, those of {stores[0].path} d = {stores[0].d}")
        if dtype is None and store.dtype != stores[0].dtype:
            raise InputError(
                f"{store.path}: dtype is {store.dtype}, that of {stores[0].path} is {stores[0].dtype}; "
                "choose one for all with --dtype"
            )
    said = _agreed(stores) | {name: value for name, value in (about or {}).items() if value is not None}
    with Writer(out, stores[0].d, dtype or stores[0].dtype, rows_per_shard, format, said) as writer:
        for store, first, rows in _blocks(stores):
            writer.append(rows, partial(_place, store, first))
            tick(len(rows))
    return open_store(out)


def _agreed(stores: list[Store]) -> dict[str, Any]:
    """What all stores say about themselves."""
    first, *others = (store.about for store in stores)
    return {name: value for name, value in first.items() if all(name in o and o[name] == value for o in others)}


def _blocks(stores: list[Store]) -> Iterator[tuple[Store, int, Raw]]:
    """All rows as they are stored, block by block: the store, the number of the first row in it, the rows."""
    for store in stores:
        block = block_rows(store.d, store.dtype)
        for begins, shard in zip(store.starts.tolist(), store.shards, strict=False):
            shard.verify()  # before its damage gets a checksum of its own
            for start in range(0, shard.rows, block):
                yield store, begins + start, shard.read(start, min(start + block, shard.rows))


def _place(store: Store, first: int, row: int) -> str:
    return store.place(first + row)
