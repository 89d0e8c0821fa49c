"""`refgba data pack`: files, folders and stores merged into one new store, split and converted on the way.

Memory holds a block of rows, never a shard; of an Arrow file, one of its record batches.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from refgba.data.sources import Source, open_sources
from refgba.data.store import Store, open_store
from refgba.data.writer import ShardFormat, Writer
from refgba.errors import InputError


def pack(
    sources: list[Path],
    out: Path,
    *,
    dtype: str | None = None,
    rows_per_shard: int | None = None,
    format: ShardFormat = "npy",
    tensor: str | None = None,
    about: dict[str, Any] | None = None,
    tick: Callable[[int], object] = id,
) -> Store:
    """Merge files, folders and stores (`sources`), in this order, into a new store in the folder `out`, and open it.

    dtype: None for that of the sources.  rows_per_shard, format: as `Writer`.  tensor: of files that hold several
    arrays or columns, the name of the one that is meant.  about: what meta.json should say of
    model, layer, site; what is left out, or None, is taken from the sources where all of them agree.  `tick` is called
    with the number of rows of each block.  Of a source that is not complete, the shards it has are taken.

    InputError when a source cannot be read, does not match its checksum, or has another d than the first; when their
    dtypes differ and none is asked for; as `convert`, naming the row of the source; and as `Writer`.
    """
    opened = open_sources(sources, tensor)
    if not opened:
        raise InputError("no files to pack")
    first = opened[0]
    for source in opened:
        if source.d != first.d:
            raise InputError(f"{source.path}: its rows have d = {source.d}, those of {first.path} d = {first.d}")
        if dtype is None and source.dtype != first.dtype:
            raise InputError(
                f"{source.path}: dtype is {source.dtype}, that of {first.path} is {first.dtype}; "
                "choose one for all with --dtype"
            )
    about = _agreed(opened) | {name: value for name, value in (about or {}).items() if value is not None}
    with Writer(out, first.d, dtype or first.dtype, rows_per_shard, format, about) as writer:
        for source in opened:
            for rows, where in source.blocks():
                writer.append(rows, where)
                tick(len(rows))
    return open_store(out)


def count(sources: list[Path], tensor: str | None = None) -> int:
    """About how many rows `pack` will pack, for a progress bar; InputError as `open_sources`."""
    return sum(source.rows for source in open_sources(sources, tensor))


def _agreed(sources: list[Source]) -> dict[str, Any]:
    """The fields of `about` that all sources have, with the same value; and their arrays, if some are nested."""
    first, *others = (source.about for source in sources)
    agreed = {name: value for name, value in first.items() if all(name in o and o[name] == value for o in others)}
    agreed.pop("arrays", None)
    if any(source.nested for source in sources):
        agreed["arrays"] = [array for source in sources for array in source.arrays]
    return agreed
