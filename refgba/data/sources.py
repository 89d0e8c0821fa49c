"""What `refgba data pack` takes: each form of file or folder, as rows in blocks.

.npy .safetensors .pt .npz    read where their rows lie, as by `store`
.npz, compressed              decoded in order (`archives`)
.parquet .arrow .feather      decoded by pyarrow, batch by batch (`tables`)
a folder with a meta.json     a store
a Hugging Face data set       the Arrow files that its state.json lists
any other folder              the files of these kinds in it, which have to be of one kind, in the order of their
                              names, numbers in them as numbers: x_2.npy comes before x_10.npy
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refgba.data import archives, foreign, tables
from refgba.data.activations import block_rows
from refgba.data.files import PARTIAL, read_json
from refgba.data.headers import matrix_shape, pack_command
from refgba.data.store import META, READERS, Raw, Store, open_store
from refgba.errors import InputError, brief

LARGEST_STATE = 2**24  # bytes of state.json and dataset_dict.json
Block = tuple[Raw, Callable[[int], str]]  # rows as they are stored, and the name of a row by its number in them


@dataclass(frozen=True)
class Source:
    """Rows to pack.

    rows: how many, for a progress bar; about so many where a file does not say.  blocks: all rows in order, a new
    iterator at each call.  about: what its meta.json says.  arrays: what that of the new store should say of its
    arrays, file and shape of each.  nested: whether one of these is (batch, position, d).
    """

    path: Path
    rows: int
    d: int
    dtype: str
    blocks: Callable[[], Iterator[Block]]
    about: dict[str, Any] = field(default_factory=dict)
    arrays: list[Any] = field(default_factory=list)
    nested: bool = False


def open_sources(paths: list[Path], tensor: str | None = None) -> list[Source]:
    """Files, stores and folders in this order, by their headers; InputError names what cannot be read, and says how."""
    return [source for path in paths for source in _opened(path, tensor)]


def _opened(path: Path, tensor: str | None) -> list[Source]:
    if not os.path.isdir(path):  # unlike Path's, False for a name that no folder can have
        return [_file(path, tensor)]
    if os.path.exists(path / META):
        return [_store(open_store(path, tensor=tensor))]
    return [_file(file, tensor) for file in _files(path)]


def _file(path: Path, tensor: str | None) -> Source:
    suffix = path.suffix.lower()
    if os.path.isfile(path) and path.stat().st_size:
        if suffix in foreign.PACKED:
            return _table(tables.open_column(path, tensor))
        if suffix == ".npz" and archives.is_compressed(path, tensor):
            return _compressed(path, tensor)
    return _store(open_store(path, tensor=tensor))


def _store(store: Store) -> Source:
    """The shards of a store, each held against its checksum before the damage would get one of its own."""

    def blocks() -> Iterator[Block]:
        block = block_rows(store.d, store.dtype)
        for begin, shard in zip(store.starts.tolist(), store.shards, strict=False):
            shard.verify()
            for start in range(0, shard.rows, block):
                first = begin + start
                rows = shard.read(start, min(start + block, shard.rows))
                yield rows, lambda row, first=first: store.place(first + row)  # type: ignore[misc]

    listed = store.about.get("arrays")
    nested = isinstance(listed, list)
    arrays = listed if nested else [{"file": store.path.name, "shape": [len(store), store.d]}]
    return Source(store.path, len(store), store.d, store.dtype, blocks, store.about, list(arrays or []), nested)


def _compressed(path: Path, tensor: str | None) -> Source:
    shape, dtype = archives.shape_of(path, tensor)
    rows, d = matrix_shape(path, shape)

    def blocks() -> Iterator[Block]:
        first = 0
        for part in archives.decoded(path, tensor, d, block_rows(d, dtype)):
            yield part, lambda row, first=first: f"{path}: row {first + row}"  # type: ignore[misc]
            first += len(part)

    return Source(path, rows, d, dtype, blocks, {}, [{"file": path.name, "shape": list(shape)}], len(shape) == 3)


def _table(column: tables.Column) -> Source:
    shape = list(column.shape) or [column.rows, column.d]
    arrays = [{"file": column.path.name, "shape": [n or None for n in shape]}]
    return Source(column.path, column.rows, column.d, column.dtype, column.blocks, {}, arrays, nested=column.depth == 2)


# ---- folders ---------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    """The files of rows in a folder that is not a store, in order; InputError when there is not one kind of them."""
    if os.path.exists(folder / "dataset_dict.json"):
        splits = read_json(folder / "dataset_dict.json", LARGEST_STATE).get("splits")
        names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
        commands = ", or ".join(pack_command(folder / brief(name)) for name in names[:4])
        raise InputError(f"{folder}: a Hugging Face data set with several splits; pack one of them: {commands}")
    if os.path.exists(folder / "state.json"):
        return _hugging_face(folder)
    try:
        inside = sorted((p for p in folder.iterdir() if not p.name.startswith((".", PARTIAL))), key=_natural)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror or error})") from None
    known = {".npy", *READERS, *foreign.PACKED}
    found: dict[str, list[Path]] = {}
    for path in inside:
        if path.suffix.lower() in known and path.is_file():
            found.setdefault(path.suffix.lower(), []).append(path)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        kinds = " and ".join(f"{len(paths)} {suffix}" for suffix, paths in found.items())
        raise InputError(f"{folder}: holds {kinds} files; name those you mean, such as {folder}/*{next(iter(found))}")
    foreign.refuse(folder)
    for path in inside:
        if path.suffix.lower() not in (".json", ".txt"):  # they may tell of the data, and not be it
            foreign.refuse(path)
    deeper = next((path for path in inside if path.is_dir()), None)
    how = f"; do you mean {pack_command(deeper)}?" if deeper is not None else ""
    raise InputError(f"{folder}: holds no files of activations ({' '.join(sorted(known))}){how}")


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """A key to sort names by, numbers in them as numbers."""
    parts = re.split(r"([0-9]{1,18})", path.name)
    return [(1, int(part), "") if k % 2 else (0, 0, part) for k, part in enumerate(parts)]


def _hugging_face(folder: Path) -> list[Path]:
    """The Arrow files of a data set that `datasets` has written with save_to_disk, in order."""
    file = folder / "state.json"
    state = read_json(file, LARGEST_STATE)
    if state.get("_indices_data_files"):
        raise InputError(
            f"{folder}: a selection of a data set, whose rows are elsewhere; in Python, "
            "dataset.flatten_indices().save_to_disk(...)"
        )
    entries = state.get("_data_files")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file}: not of a Hugging Face data set, it lists no _data_files")
    paths = []
    for entry in entries:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not (isinstance(name, str) and name.isprintable() and Path(name).name == name and name.endswith(".arrow")):
            raise InputError(f"{file}: _data_files should name .arrow files in the folder")
        paths.append(folder / name)
    return paths
