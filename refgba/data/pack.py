"""`refgba data pack`: files and stores merged into one new store, split and converted on the way.

Memory holds a block of rows, never a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from refgba.data.activations import block_rows
from refgba.data.store import Raw, Store, open_store
from refgba.data.writer import ShardFormat, Writer
from refgba.errors import InputError


def pack(
    sources: list[Path],
    out: Path,
    *,
    dtype: str | None = None,
    rows_per_shard: int | None = None,
    format: ShardFormat = "npy",
    about: dict[str, Any] | None = None,
    tick: Callable[[int], object] = id,
) -> Store:
    """Merge files and stores, in this order, into a new store in the folder `out`, and open it.

    dtype: None for that of the sources.  rows_per_shard, format: as `Writer`.  about: what meta.json should say of
    model, layer, site; what is left out, or None, is taken from the sources where all of them agree.  `tick` is called
    with the number of rows of each block.  Of a source that is not complete, the shards it has are taken.

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
    about = _agreed(stores) | {name: value for name, value in (about or {}).items() if value is not None}
    with Writer(out, stores[0].d, dtype or stores[0].dtype, rows_per_shard, format, about) as writer:
        for store, first, rows in _blocks(stores):
            writer.append(rows, partial(_place, store, first))
            tick(len(rows))
    return open_store(out)


def _agreed(stores: list[Store]) -> dict[str, Any]:
    """The fields of `about` that all stores have, with the same value."""
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
