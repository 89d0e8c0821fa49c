"""Files of a network whose neurons lie on several ranks: a shard per rank, or one file of all, a block at a time.

Shard r of P, named NAME-r-of-P.safetensors, has the neurons r, r + P, r + 2 P, .. and copies of b_pre and the centre of
the rows.  Shards that P ranks wrote are read by any number of ranks, each of which reads the rows that are its own, a
block at a time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from refgba.backends.comm import Ranks
from refgba.data import files
from refgba.errors import brief
from refgba.runs.parallel import entered
from refgba.runs.schema import Damaged, require_file

ROWS = 2**22  # bytes of an array that are moved at a time
SHARD = re.compile(r"-(\d+)-of-(\d+)(?=\.safetensors$)")
CODES = {"float64": "F64", "float32": "F32", "int64": "I64", "bool": "BOOL"}  # of dtypes in a header


def shard(name: str, rank: int, size: int) -> str:
    """The name of a rank's shard of a file, the file's own where there is one rank.

    >>> from refgba.runs.parts import shard
    >>> shard("params.safetensors", 1, 4)
    'params-1-of-4.safetensors'
    """
    return name if size == 1 else name.replace(".safetensors", f"-{rank}-of-{size}.safetensors")


def whole_name(name: str) -> str:
    """The name of the file that a shard is a part of."""
    return SHARD.sub("", name)


def common(name: str) -> bool:
    """Whether an array is every rank's, not a neuron's: b_pre and its moments, and the centre of the rows."""
    return name.split(".")[-1] in ("b_pre", "centre")


def needed(of: int, ranks: Ranks) -> list[int]:
    """Which of so many shards hold neurons of this rank."""
    return [r for r in range(of) if (ranks.rank - r) % gcd(of, ranks.size) == 0]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A .safetensors file to read; Damaged, naming it, when something in it is not there or not as it should be."""
    require_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: dtypes unknown to NumPy
        readable = os.access(path, os.R_OK)
        what = "damaged or not a run's" if readable else "cannot be read"
        raise Damaged(f"{path}: {what} ({brief(error)})") from None


def load(
    folder: Path, name: str, arrays: list[str] | tuple[str, ...], of: int, M: int, ranks: Ranks
) -> dict[str, npt.NDArray[Any]]:  # fmt: skip
    """This rank's rows of arrays of M neurons that lie in `of` shards; Damaged, naming the shard."""
    own: dict[str, npt.NDArray[Any]] = {}
    for r in needed(of, ranks):
        path, rows = folder / shard(name, r, of), len(range(r, M, of))
        with opened(path) as file:
            for array in arrays:
                part = file.get_slice(array)
                shape = part.get_shape()
                if common(array):
                    own[array] = file.get_tensor(array)
                elif shape[:1] != [rows]:
                    raise Damaged(f"{path}: {array} has shape {tuple(shape)}, it should have {rows} rows")
                else:
                    _place(own, array, part, shape, r, of, M, ranks)
    return own


def _place(
    own: dict[str, npt.NDArray[Any]], name: str, part: Any, shape: list[int], r: int, of: int, M: int, ranks: Ranks
) -> None:  # fmt: skip
    """Put the rows of a shard's array that are this rank's where they belong."""
    size = max(1, ROWS // (8 * int(np.prod(shape[1:], dtype=np.int64) or 1)))
    for start in range(0, shape[0], size):
        block = part[start : min(start + size, shape[0])]
        if name not in own:
            own[name] = np.empty((ranks.count(M), *shape[1:]), block.dtype)
        neuron = r + of * np.arange(start, start + len(block))
        mine = neuron % ranks.size == ranks.rank
        own[name][neuron[mine] // ranks.size] = block[mine]


@contextmanager
def shared_folder(path: Path, ranks: Ranks) -> Iterator[Path]:
    """Make or replace a folder that all ranks fill, as `refgba.data.files.new_folder`: whole or not at all."""
    with ExitStack() as stack:
        place: list[str] = []

        @contextmanager
        def new_folder() -> Iterator[None]:
            with files.new_folder(path) as partial:
                place.append(str(partial))
                yield

        entered(ranks, stack, new_folder)
        partial = Path(ranks.first(lambda: place[0]))
        error: OSError | None = None
        try:
            yield partial
        except OSError as failure:
            error = failure
        failures = ranks.everyone(None if error is None else [error.errno, error.strerror or str(error)])
        if error is not None:
            raise error
        for rank, failed in enumerate(failures):
            if failed is not None:
                raise OSError(failed[0], f"{failed[1]} (rank {rank} of {ranks.size})")
        ranks.first(stack.close)


def write_whole(path: Path, arrays: Mapping[str, npt.NDArray[Any]], M: int, ranks: Ranks) -> None:
    """Write arrays of M neurons, of which each rank has its own, to one .safetensors file, a block at a time.

    The bytes are those that safetensors would write.  OSError on rank 0, which writes, when it cannot.
    """
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header, at = {}, 0
    for name in names:
        array = arrays[name]
        shape = list(array.shape) if common(name) else [M, *array.shape[1:]]
        end = at + int(np.prod(shape, dtype=np.int64)) * array.dtype.itemsize
        header[name] = {"dtype": CODES[str(array.dtype)], "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with ExitStack() as stack:
        file = stack.enter_context(path.open("wb")) if ranks.rank == 0 else None
        if file:
            file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = arrays[name]
            size = max(1, ROWS // max(1, array[:1].nbytes * ranks.size))
            for block in iter([array]) if common(name) else ranks.gathered(array, size):
                if file:
                    file.write(np.ascontiguousarray(block).data)
