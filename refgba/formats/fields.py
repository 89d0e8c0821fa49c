"""Fields of the JSON files beside the arrays: those that anyone wrote, checked, and those that we add to ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from refgba.errors import InputError, brief
from refgba.formats.dictionary import Dictionary
from refgba.types import Float64

T = TypeVar("T")


def choice(path: Path, name: str, value: Any, choices: Mapping[str, T]) -> T:
    """What `choices` has for the value of a field; InputError, naming file and field, for any other value."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{path}: {name} is {shown(value)}; supported are {', '.join(choices)}")
    return choices[value]


def boolean(path: Path, name: str, value: Any) -> bool:
    """The value of a field that is true or false; InputError, naming file and field, for any other."""
    if not isinstance(value, bool):
        raise InputError(f"{path}: {name} should be true or false, not {shown(value)}")
    return value


def count(path: Path, name: str, value: Any) -> int:
    """The value of a field that is a positive whole number; InputError, naming file and field, for any other."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{path}: {name} should be a whole number of at least 1, not {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value from an untrusted file, for a message."""
    if value is None:
        return "missing"
    return brief(repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}")


def rows_taken(dictionary: Dictionary) -> str:
    """Which rows to give to a library that has opened the dictionary, for a person."""
    rows = "rows scaled to unit norm, which it reconstructs" if dictionary.input == "unit" else "raw activations"
    if dictionary.centre is not None:
        rows = "rows less refgba_centre, then scaled to unit norm, which it reconstructs"
    if dictionary.input == "sqrt_d":
        rows += "; leave out rows of zeros, which have no norm to be scaled to and become NaN"
    return f"takes {rows}"


def note(dictionary: Dictionary, provenance: dict[str, Any]) -> dict[str, Any]:
    """What files for other libraries say beside the numbers: which rows to give to the library, and the provenance."""
    unit = dictionary.input == "unit"
    centre = {} if dictionary.centre is None else {"refgba_centre": dictionary.centre.tolist()}
    rows = {"refgba_input": "unit" if unit else "raw", "refgba_note": rows_taken(dictionary)}
    return rows | centre | {"refgba": provenance}


def centre_field(path: Path, fields: Mapping[str, Any], input: str) -> Float64 | None:
    """The centre that `note` wrote; InputError for anything else in its place."""
    listed = fields.get("refgba_centre")
    if listed is None or input != "unit":
        return None
    if not isinstance(listed, list) or not all(type(value) in (int, float) for value in listed):
        raise InputError(f"{path}: refgba_centre should be a list of numbers, not {shown(listed)}")
    try:
        return np.array(listed, np.float64)
    except OverflowError:
        raise InputError(f"{path}: refgba_centre holds a number that is too large") from None


def k_field(dictionary: Dictionary) -> dict[str, int]:
    """The field `k`, which only a TopK has."""
    return {} if dictionary.k is None else {"k": dictionary.k}


def json_bytes(value: dict[str, Any]) -> bytes:
    """A JSON file's bytes."""
    return json.dumps(value, indent=2).encode() + b"\n"
