"""Write a store of activations, shard by shard.

A shard is written under a temporary name, flushed to disk, renamed, and only then listed in `meta.json`, which says
`"complete": false` until the last one.  So at every moment the folder can be read up to its last whole shard, whatever
happens to the process that writes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.lib.format import dtype_to_descr, write_array_header_1_0

from refgba.data import files
from refgba.data.conversion import convert
from refgba.data.headers import SAFETENSORS, TENSOR
from refgba.data.store import DTYPES, FORMAT, META, Raw, checksum, stored
from refgba.errors import InputError, unwritten

ShardFormat = Literal["npy", "safetensors"]
SHARD = 2**28  # about how many bytes of rows are in a shard, if no number of rows is asked for
MOST = 2**40  # rows in a shard


class Writer:
    """Writes a store: `with Writer(...) as writer: writer.append(rows)`, as often as there are rows.

    The store is complete when the body ends.  When the body raises, the shards that are whole stay, and `meta.json`
    says that the store is not complete; where no shard is whole yet, nothing stays.
    """

    def __init__(
        self,
        out: Path,
        d: int,
        dtype: str,
        rows_per_shard: int | None = None,
        format: ShardFormat = "npy",
        about: dict[str, Any] | None = None,
    ) -> None:
        """A store of rows (any, d) in the folder `out`, which must be empty, or not exist.

        dtype: one of DTYPES.  rows_per_shard: None for SHARD bytes per shard.  format: of the shards; only safetensors
        has bfloat16.  about: what else meta.json should say.  InputError when `out` holds something, or when there are
        no such stores.  Nothing is written before the body begins.
        """
        _refuse(out, dtype, rows_per_shard, format)
        self.out, self.d, self.dtype, self.format, self.about = out, d, dtype, format, about or {}
        self.rows_per_shard = rows_per_shard or max(1, SHARD // (d * stored(dtype).itemsize))
        self.shards: list[dict[str, Any]] = []  # as meta.json lists them
        self.file: BinaryIO | None = None  # the shard that is being written
        self.rows = 0  # how many rows are in that shard
        self.made: list[Path] = []  # folders that this writer made, the innermost first

    def __enter__(self) -> Writer:
        try:
            self.made = files.missing(self.out)
            self.out.mkdir(parents=True, exist_ok=True)
            self._meta(complete=False)
        except OSError as error:
            self._abandon()
            raise self._unwritable(error) from None
        return self

    def append(self, rows: Raw, where: Callable[[int], str] | None = None) -> None:
        """Add rows (any, d), floating-point numbers or uint16, the bits of bfloat16, converted to the store's dtype.

        where: the name of a row, by its number in `rows`.  InputError as `convert`, and when the disk is full.
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
        """Write the header of a shard of `rows` rows, as long as that of a full shard, which it may overwrite."""
        assert self.file is not None
        if self.format == "safetensors":
            self.file.write(_safetensors_header(rows, self.rows_per_shard, self.d, self.dtype))
        else:  # NumPy leaves room for the first dimension to grow
            descr = dtype_to_descr(stored(self.dtype).newbyteorder("<"))
            write_array_header_1_0(self.file, {"descr": descr, "fortran_order": False, "shape": (rows, self.d)})

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
            files.remove_empty(self.made)

    def _unwritable(self, error: OSError) -> InputError:
        return unwritten(self.out, error)


def _refuse(out: Path, dtype: str, rows_per_shard: int | None, format: str) -> None:
    """InputError unless a store of this kind can be written to `out`."""
    files.refuse_full_folder(out)
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

    def header(n: int) -> bytes:
        tensor = {"dtype": code, "shape": [n, d], "data_offsets": [0, n * d * stored(dtype).itemsize]}
        return json.dumps({TENSOR: tensor}, separators=(",", ":")).encode()

    length = -(-len(header(most)) // 8) * 8  # the numbers begin at a multiple of 8 bytes
    return length.to_bytes(8, "little") + header(rows).ljust(length)
