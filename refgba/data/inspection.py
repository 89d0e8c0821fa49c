"""What is in a store: by its headers (`info`), or by reading all of it (`verify`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refgba.data.activations import unchecked
from refgba.data.centre import locate
from refgba.data.store import Store
from refgba.data.survey import survey
from refgba.errors import InputError


def info(store: Store) -> dict[str, Any]:
    """What the headers say, for JSON; InputError when a shard has gone since.

    rows_per_shard: the fewest and the most.  bytes: of all shards' files.  checksums: how many shards have one.  about:
    what else `meta.json` says, such as model, layer and site.
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
    store: Store,
    dtype: str = "float64",
    drop_zero_rows: bool = False,
    tick: Callable[[int], object] = id,
    drop_below: float = 0.0,
) -> dict[str, Any]:
    """Read all of a store once, as training in the arithmetic `dtype` does before it begins; the result, for JSON.

    rows: how many count.  shards: all; checksums, no_checksum: those with one and those without.  All others as
    `Survey`, of rows without a centre subtracted.  `tick` is called with the number of rows of each block.  InputError
    as `survey`: it names the first shard that does not match its checksum, or the file and the first row that cannot be
    computed on.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN may be cast
        data = unchecked(store)
        _, result = survey(data, dtype, drop_zero_rows, tick, drop_below, locate(data))
    checked = sum(shard.sha256 is not None for shard in store.shards)
    return {
        "rows": result.rows,
        "shards": len(store.shards),
        "checksums": checked,
        "no_checksum": len(store.shards) - checked,
    } | {name: value for name, value in result.record().items() if name not in ("drop_below", "centred")}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
