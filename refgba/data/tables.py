"""Rows in parquet and Arrow files: a column of lists of numbers, decoded by pyarrow, batch by batch.

A list per row is one row of activations; a list of lists per row is (position, d), as many positions as it holds.
Nothing else of the table is read.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refgba.data.headers import listed, not_a_float, pick
from refgba.errors import InputError, brief

BLOCK = 2**20  # about how many bytes of rows are decoded at a time
MOST = 2**16  # rows of a table that are decoded at a time
FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}

Rows = npt.NDArray[Any]
Place = Callable[[int], str]  # the name of a row, by its number in a block


@dataclass(frozen=True)
class Column:
    """A column of lists in a file.

    rows: about how many rows of activations.  depth: 1 for a list per row, 2 for a list of lists.  shape: of what it
    holds if it is (batch, position, d), 0 for what the file does not say, or what differs from row to row.
    """

    path: Path
    name: str
    rows: int
    d: int
    dtype: str
    depth: int
    shape: tuple[int, ...]

    def blocks(self) -> Iterator[tuple[Rows, Place]]:
        """All rows (any, d) in order, about BLOCK bytes at a time, each block with the names of its rows."""
        with _damage(self.path):
            for first, chunk in _chunks(self.path, self.name, self.d):
                yield from self._blocks(first, chunk)

    def _blocks(self, first: int, chunk: Any) -> Iterator[tuple[Rows, Place]]:
        step = 1 if self.depth == 2 else max(1, BLOCK // (8 * self.d))
        for start in range(0, len(chunk), step):
            where = f"{self.path}: column {brief(self.name)!r}, row"
            part, number = _plain(chunk.slice(start, step)), first + start
            if self.depth == 2:
                where, part, number = f"{where} {number}, position", _inner(part, where, number), 0
            lengths = _lengths(part, where, number)
            wrong = np.flatnonzero(lengths != self.d)
            if len(wrong):
                raise InputError(
                    f"{where} {number + wrong[0]} holds {lengths[wrong[0]]} numbers, the first row {self.d}: rows of "
                    "activations are all as long"
                )
            values = part.flatten()
            if values.null_count:
                bad = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))) // self.d
                raise InputError(f"{where} {number + bad} holds a null")
            if len(values):
                rows = np.array(values.to_numpy(zero_copy_only=False)).reshape(-1, self.d)
                yield rows, _placed(where, number)


def _placed(where: str, first: int) -> Place:
    return lambda row: f"{where} {first + row}"


def _lengths(part: Any, where: str, first: int) -> npt.NDArray[np.int64]:
    """How many items each list holds; InputError where there is none."""
    if part.null_count:
        bad = int(np.argmax(part.is_null().to_numpy(zero_copy_only=False)))
        raise InputError(f"{where} {first + bad} is null: every row needs its numbers")
    size = getattr(part.type, "list_size", None)
    if size is not None:
        return np.full(len(part), size, np.int64)
    return np.array(part.value_lengths().to_numpy(zero_copy_only=False), np.int64)


def _inner(part: Any, where: str, first: int) -> Any:
    """The lists in lists."""
    _lengths(part, where, first)
    return _plain(part.flatten())


def _plain(array: Any) -> Any:
    """An array as it is stored, without the name that another library gave to its type."""
    while hasattr(array, "storage"):
        array = array.storage
    return array


def open_column(path: Path, tensor: str | None) -> Column:
    """The column of a parquet or Arrow file that holds rows of activations.

    tensor: its name; None takes the only column of lists of floats, or the one that is named `activations`.  InputError
    when there is no pyarrow, for anything damaged, and for columns of anything else, with how to get there.
    """
    arrow = _arrow(path)
    with _damage(path):
        schema = _schema(arrow, path)
        columns = {field.name: _kind(field.type) for field in schema}
        fitting = {name: kind for name, kind in columns.items() if kind[0] in (1, 2) and kind[1] in FLOATS}
        if tensor is None and not fitting:
            raise InputError(_no_lists(path, schema, columns))
        types = {field.name: field.type for field in schema}
        candidates = {name: types[name] for name in (types if tensor is not None else fitting)}
        name = pick(path, candidates, tensor, lambda kind: f"({kind})")
        depth, number, sizes = columns[name]
        if number not in FLOATS:
            raise not_a_float(f"{path}: column {brief(name)!r}", brief(types[name]))
        if depth not in (1, 2):
            raise InputError(
                f"{path}: column {brief(name)!r} is {brief(types[name])}; activations are a list of d numbers per row, "
                "or a list of such lists"
            )
        d = sizes[-1] or _first_length(path, name, depth)
        outer, leaves = _counts(arrow, path, name, d)
        rows = outer if depth == 1 else leaves // d
        shape = (outer if _is_parquet(path) else 0, sizes[0], d) if depth == 2 else ()
        return Column(path, name, max(1, rows), d, FLOATS[number], depth, shape)


def _kind(kind: Any) -> tuple[int, str, list[int]]:
    """How deep lists are nested in a column, of what type the numbers are, and each level's fixed size, 0 for none."""
    sizes: list[int] = []
    while True:
        while hasattr(kind, "storage_type"):
            kind = kind.storage_type
        if "list" not in str(kind).partition("<")[0] or not hasattr(kind, "value_type"):
            return len(sizes), str(kind), sizes or [0]
        sizes.append(int(getattr(kind, "list_size", 0)))
        kind = kind.value_type


def _no_lists(path: Path, schema: Any, columns: dict[str, tuple[int, str, list[int]]]) -> str:
    """The message for a file without a column of lists of floats."""
    types = {field.name: field.type for field in schema}
    message = f"{path}: has no column of lists of floats; it holds {listed(types, lambda kind: f'({kind})')}"
    if sum(depth == 0 and number in FLOATS for depth, number, _ in columns.values()) > 1:
        message += (
            f"; where each column is a dimension, numpy.save('x.npy', pandas.read_parquet({str(path)!r})"
            ".to_numpy('float32'))"
        )
    return message


def _first_length(path: Path, name: str, depth: int) -> int:
    """How many numbers the first row of activations holds."""
    for first, chunk in _chunks(path, name, 0):
        part, where = _plain(chunk), f"{path}: column {brief(name)!r}, row"
        if depth == 2:
            part = _inner(part, where, first)
        if len(part):
            length = int(_lengths(part.slice(0, 1), where, first)[0])
            if length == 0:
                raise InputError(f"{where} {first} holds no numbers")
            return length
    raise InputError(f"{path}: column {brief(name)!r} holds no rows")


# ---- files -----------------------------------------------------------------------------------------------------------


def _arrow(path: Path) -> Any:
    """The library; InputError when it is not there."""
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise InputError(
            f"{path}: {path.suffix} files are read by pyarrow, which is not installed: pip install pyarrow"
        ) from None


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Make an InputError of whatever pyarrow raises."""
    try:
        yield
    except (InputError, GeneratorExit):
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # pyarrow raises nearly anything
        raise InputError(f"{path}: truncated or damaged ({brief(error)})") from None


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _parquet(path: Path) -> Any:
    return importlib.import_module("pyarrow.parquet").ParquetFile(str(path), pre_buffer=False, buffer_size=2**20)


def _batches(file: Any) -> tuple[Any, Iterator[Any]]:
    """The schema and the record batches of an open Arrow file, of its form with a directory or without one."""
    ipc = importlib.import_module("pyarrow.ipc")
    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        opened = ipc.open_file(file)
        return opened.schema, (opened.get_batch(k) for k in range(opened.num_record_batches))
    opened = ipc.open_stream(file)
    return opened.schema, iter(opened)


def _schema(arrow: Any, path: Path) -> Any:
    if _is_parquet(path):
        with _parquet(path) as file:
            return file.schema_arrow
    with arrow.OSFile(str(path)) as file:
        return _batches(file)[0]


def _counts(arrow: Any, path: Path, name: str, d: int) -> tuple[int, int]:
    """How many rows a table has, and how many numbers its column; estimates for Arrow files, which do not say."""
    if _is_parquet(path):
        with _parquet(path) as file:
            return int(file.metadata.num_rows), _leaves(file.metadata, name)
    with arrow.OSFile(str(path)) as file:
        size = file.size()
        for batch in _batches(file)[1]:
            if batch.num_rows:
                column = _sound(batch.column(name))
                share = size / max(1, batch.nbytes)
                leaves = len(_leaf(column))
                return max(1, round(batch.num_rows * share)), max(d, round(leaves * share))
    return 0, 0


def _sound(column: Any) -> Any:
    """The column, whose lists lie within its numbers: pyarrow takes a file's word for that unless it is asked."""
    column.validate(full=True)
    return column


def _leaf(array: Any) -> Any:
    array = _plain(array)
    while hasattr(array.type, "value_type"):
        array = _plain(array.flatten())
    return array


def _leaves(metadata: Any, name: str) -> int:
    """How many numbers the column of a parquet file holds, by its directory."""
    total = 0
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        for k in range(chunks.num_columns):
            if chunks.column(k).path_in_schema.startswith(name + "."):
                total += chunks.column(k).num_values
    return total


def _chunks(path: Path, name: str, d: int) -> Iterator[tuple[int, Any]]:
    """The column, some rows at a time, each with the number of its first row in the table."""
    arrow, first = _arrow(path), 0
    if _is_parquet(path):
        with _parquet(path) as file:
            per_row = max(1, d, _leaves(file.metadata, name) // max(1, file.metadata.num_rows))
            size = min(MOST, max(1, BLOCK // (8 * per_row)))
            for batch in file.iter_batches(batch_size=size, columns=[name]):
                yield first, _sound(batch.column(name))
                first += batch.num_rows
    else:
        with arrow.OSFile(str(path)) as file:
            for batch in _batches(file)[1]:
                yield first, _sound(batch.column(name))
                first += batch.num_rows
