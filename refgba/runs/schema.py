"""What the fields of a run's records may hold: each record is checked once, where it is read, against one table.

    require(path, record, {"backend": text, "checkpoints": {"every": whole(0), "keep": whole(1)}})

A table names the fields of an object; each has a check of its value or, for an object, a table.  A missing field is
None to its check; fields that no table names may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from refgba.errors import InputError

Check: TypeAlias = Callable[[Any], bool]
Table: TypeAlias = Mapping[str, "Check | Table"]


class Damaged(InputError):
    """A folder or file of a run is not as it was written."""


def require_file(path: Path, most: int | None = None) -> None:
    """Damaged for a path that is there but no regular file, or one of more than `most` bytes.

    A pipe or a device would be read without end, and a file with a hole in it can be larger than any memory.
    """
    if path.exists() and not path.is_file():
        raise Damaged(f"{path}: damaged: it is not a regular file")
    if most is not None and path.exists() and path.stat().st_size > most:
        raise Damaged(f"{path}: damaged: it is larger than {most:,} bytes")


def require(path: Path, record: Any, table: Table, where: str = "") -> None:
    """Damaged, naming the file and the first field that is wrong, unless a record is as its table says.

    where: where in the file the record is, such as "line 3: ".
    """
    name = _wrong(record, table)
    if name is not None:
        raise Damaged(f"{path}: {where}damaged: {name} is not as it was written")


def _wrong(record: Any, table: Table) -> str | None:
    """The dotted name of the first field that is wrong, None where none is."""
    for name, check in table.items():
        value = record.get(name)
        if not isinstance(check, Mapping):
            if not check(value):
                return name
        elif not isinstance(value, dict):
            return name
        elif (inner := _wrong(value, check)) is not None:
            return f"{name}.{inner}"
    return None


def text(value: Any) -> bool:
    """Any text."""
    return isinstance(value, str)


def one_of(*values: Any) -> Check:
    """One of these texts."""
    return lambda value: isinstance(value, str) and value in values


def whole(low: int, high: int = 2**62) -> Check:
    """A whole number from low to high."""
    return lambda value: type(value) is int and low <= value <= high


def number(low: float, high: float) -> Check:
    """A number from low to high, which a float can hold where it can hold these."""
    return lambda value: type(value) in (int, float) and low <= value <= high  # false for NaN


def optional(check: Check) -> Check:
    """What `check` passes, or nothing."""
    return lambda value: value is None or check(value)


def each(check: Check, fewest: int = 0) -> Check:
    """A list of at least so many values that `check` passes."""
    return lambda value: isinstance(value, list) and len(value) >= fewest and all(map(check, value))


def entries(*checks: Check) -> Check:
    """A list of one value for each check."""
    return lambda value: (
        isinstance(value, list)
        and len(value) == len(checks)
        and all(check(entry) for check, entry in zip(checks, value, strict=True))
    )


def has(table: Table) -> Check:
    """An object with these fields, where it is optional or in a list: else a table within the table says the same."""
    return lambda value: isinstance(value, dict) and _wrong(value, table) is None
