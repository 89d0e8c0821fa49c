"""What is taken for rows of activations: an array, the path of a file or a store, or an opened store."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refgba.data.activations import Activations, open_activations, unchecked
from refgba.data.memory import held, matrix
from refgba.data.store import Store
from refgba.errors import InputError
from refgba.runs.judging import load_truth
from refgba.types import Array

FLAG = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
OUT = re.compile(r"; --drop[a-z-]* skips such rows")


@contextmanager
def in_python(dropping: bool = True) -> Iterator[None]:
    """While it lasts, messages name arguments of Python, not flags of the command line.

    dropping: whether rows that do not count can be dropped by an argument here.
    """
    try:
        yield
    except InputError as error:
        text = str(error) if dropping else OUT.sub("; leave such rows out", str(error))
        raise type(error)(FLAG.sub(lambda flag: flag[1].replace("-", "_"), text)) from None


def rows(X: Any) -> Activations:
    """The rows of X: an array (N, d), the path of a file or folder that `refgba train` takes, or a `Store`.

    InputError for anything else, and as `refgba.data.store.open_store`.
    """
    if isinstance(X, str | os.PathLike):
        return open_activations(Path(X))
    if isinstance(X, Store):
        return unchecked(X)
    return X if isinstance(X, Activations) else held(X)


def rows_of(X: Any, d: int, owner: str) -> Activations:
    """The same, if they have d dimensions; InputError, which names the owner, if not."""
    found = rows(X)
    if found.d != d:
        raise InputError(f"X has {found.d} features, but {owner} is expecting {d} features as input")
    return found


def features(V: Any, d: int) -> Array:
    """True features (n, d): an array, or the path of a file of them; InputError for any that do not fit."""
    if isinstance(V, str | os.PathLike):
        return load_truth(Path(V), d)
    truth: Array = matrix(V)
    if truth.shape[1] != d:
        raise InputError(f"the true features have d = {truth.shape[1]}, the network d = {d}")
    return truth
