"""What a harvest writes: a store of activations that `refgba train` takes, and beside each shard its tokens.

    STORE/meta.json            a store of `refgba.data.store`; each shard's entry also names its file of tokens
    STORE/00000.npy            activations (rows, d); .safetensors where they are bfloat16
    STORE/00000.tokens.safetensors   where each of these rows comes from, and the contexts that hold them

`meta.json` beyond what every store has:

    "model": "...", "site": "model.layers.15.mlp", "layer": 15
    "shards": [{"file": "00000.npy", "rows": 32512, "sha256": "...",
                "tokens": {"file": "00000.tokens.safetensors", "sha256": "..."},
                "contexts": 256, "read": 32768, "dropped": {"first": 256, "special": 0, "norm": 0},
                "text_sha256": "...", "files_left_out": 1, "lines_left_out": 2}, ...]
                                                   contexts, read (tokens), dropped (rows) and what was left out count
                                                   this shard alone: files that are not UTF-8, and lines of .jsonl and
                                                   rows of tables without text, each there only if there were some
    "harvest": {"version": 1, "settings": {...}, "tokenizer": {...}, "weights": "...", "d": 576,
                "median_norm": 1.9, "largest_norm": 19.0}

A context is a run of tokens that the model saw at once, and lies whole in one shard: so a shard can be understood from
its own two files.  Files hold no pickles, no file is memory-mapped (see `refgba.data.store`), and this module imports
NumPy alone: a dashboard needs neither torch nor a tokenizer, since the text of every token is in the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from refgba.data.files import read_file
from refgba.data.store import META, Raw, Store, open_store, read_meta, values
from refgba.errors import InputError, brief
from refgba.runs.schema import Table, each, has, number, one_of, optional, require, text, whole
from refgba.types import Array, Int64

VERSION = 1
LARGEST = 2**32  # bytes of a shard's tokens
SUFFIX = ".tokens.safetensors"
WHY = ("first", "special", "norm")  # why rows are left out, in the order in which it is asked

Int32 = npt.NDArray[np.int32]


def _name(value: Any) -> bool:
    """The name of a submodule, which names files of others and a folder, too: nothing that leads elsewhere."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\\0")


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


# `harvest` of meta.json, as far as anything here reads it; whoever needs what may be missing says so.
ABOUT: Table = {
    "median_norm": optional(number(0, 1e300)),
    "largest_norm": optional(number(0, 1e300)),
    "settings": {
        "model": text,
        "site": _name,
        "of": one_of("output", "input"),
        "kind": optional(text),
        "computed_in": optional(text),
        "context": optional(whole(1)),
        "batch": optional(whole(1)),
        "drop_first": optional(whole(0)),
        "keep_special": optional(_flag),
        "pack": optional(_flag),
        "text": optional(has({"paths": optional(each(text)), "column": optional(text)})),
    },
    "tokenizer": {"prefix": optional(each(whole(0)))},
}


@dataclass(frozen=True, eq=False)
class Tokens:
    """Where the rows of one shard come from: R rows, and C contexts of T tokens altogether.

    Row by row, in the order of the activations, each (R,):

    token: int32 ids.  document: int64 numbers of the documents in the text.  position: int32 positions in the context,
    special tokens counted.  context: int64 numbers of the contexts in this shard.  norm: float32 norms of the rows as
    the model had them, before they were rounded to the store's dtype.

    Context by context:

    ids: (T,) int32, all tokens that the model saw, also those whose rows were left out.  starts: (C + 1,) int64 places
    in `ids` where contexts begin.  text: (bytes,) uint8, UTF-8 of the contexts' text.  text_starts: (C + 1,) int64
    places in `text` where that of each context begins.  ends: (T,) int32, where each token's text ends, counted in
    bytes from the start of its context's text; it begins where that of the token before ends.  A special token that
    the text does not hold has none, and of a character in several tokens one has the whole.  first_document:
    (C,) int64, the document that the context begins with.  offset: (C,) int64, how many tokens of that document came
    before.
    """

    token: Int32
    document: Int64
    position: Int32
    context: Int64
    norm: npt.NDArray[np.float32]
    ids: Int32
    starts: Int64
    text: npt.NDArray[np.uint8]
    text_starts: Int64
    ends: Int32
    first_document: Int64
    offset: Int64

    @property
    def rows(self) -> int:
        """R."""
        return len(self.token)

    @property
    def contexts(self) -> int:
        """C."""
        return len(self.starts) - 1

    @cached_property
    def at(self) -> Int64:
        """(R,) the place of each row's token in `ids`."""
        return self.starts[self.context] + self.position

    def pieces(self, context: int) -> list[str]:
        """The text of each token of a context of this shard: joined, they are the context's text."""
        low, high = int(self.starts[context]), int(self.starts[context + 1])
        data = self.text[int(self.text_starts[context]) : int(self.text_starts[context + 1])].tobytes()
        ends = self.ends[low:high].tolist()
        return [data[a:b].decode("utf-8", "replace") for a, b in zip([0, *ends], ends, strict=False)]

    def to_bytes(self) -> bytes:
        """The file."""
        return save({f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)})


DTYPES = {
    "token": "int32", "document": "int64", "position": "int32", "context": "int64", "norm": "float32", "ids": "int32",
    "starts": "int64", "text": "uint8", "text_starts": "int64", "ends": "int32", "first_document": "int64",
    "offset": "int64",
}  # fmt: skip


def read_tokens(path: Path, rows: int, sha256: str | None = None) -> Tokens:
    """The tokens of a shard of so many rows; InputError, naming the file, for one that cannot be right.

    sha256: the file's checksum, if it is known.
    """
    data = read_file(path, LARGEST)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{path}: does not match its checksum in {META}: the file is damaged or was changed")
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, MemoryError) as error:
        raise InputError(f"{path}: damaged or cannot be read ({brief(error)})") from None
    for name, dtype in DTYPES.items():
        if name not in arrays or arrays[name].dtype != dtype or arrays[name].ndim != 1:
            raise InputError(f"{path}: {name} should be there, of one dimension and {dtype}")
    tokens = Tokens(**{name: arrays[name] for name in DTYPES})
    contexts, total = tokens.contexts, len(tokens.ids)
    lengths = {"token": rows, "document": rows, "position": rows, "context": rows, "norm": rows, "ends": total}
    lengths |= {"text_starts": contexts + 1, "first_document": contexts, "offset": contexts}
    for name, length in lengths.items():
        if len(arrays[name]) != length:
            raise InputError(f"{path}: {name} has {len(arrays[name])} entries, it should have {length}")
    for name, starts, stop in (
        ("starts", tokens.starts, total),
        ("text_starts", tokens.text_starts, len(tokens.text)),
    ):
        if contexts < 1 or starts[0] != 0 or starts[-1] != stop or (np.diff(starts) < 0).any():
            raise InputError(f"{path}: {name} should rise from 0 to {stop}")
    if rows and not (tokens.context.min() >= 0 and tokens.context.max() < contexts):
        raise InputError(f"{path}: context should be from 0 to {contexts - 1}")
    lasting = np.diff(tokens.starts)[tokens.context]
    if ((tokens.position < 0) | (tokens.position >= lasting)).any() or (tokens.ids[tokens.at] != tokens.token).any():
        raise InputError(f"{path}: rows do not fit the contexts")
    if not (np.isfinite(tokens.norm) & (tokens.norm >= 0)).all():
        raise InputError(f"{path}: norm should be finite and not negative")
    for name in ("ids", "document", "first_document", "offset"):
        if (arrays[name] < 0).any():
            raise InputError(f"{path}: {name} should not be negative")
    if (tokens.ends < 0).any() or (tokens.ends > np.repeat(np.diff(tokens.text_starts), np.diff(tokens.starts))).any():
        raise InputError(f"{path}: ends should lie in the text")
    return tokens


@dataclass(frozen=True)
class Context:
    """A context around one of its rows.

    number: of the context in the whole store.  ids: (length,) int32.  pieces: the text of each token.  position: of the
    row in the context.  document: of the row.
    """

    number: int
    ids: Int32
    pieces: list[str]
    position: int
    document: int


@dataclass(frozen=True, eq=False)
class Harvest:
    """A store that a harvest wrote.

    store: the activations.  about: `harvest` of meta.json.  files: of tokens, one per shard.  sums: their checksums.
    context_starts: (shards + 1,) the number, in the whole store, of the first context of each shard.
    """

    store: Store
    about: dict[str, Any]
    files: tuple[Path, ...]
    sums: tuple[str, ...]
    context_starts: Int64

    @property
    def settings(self) -> dict[str, Any]:
        """With which settings the harvest was made."""
        settings: dict[str, Any] = self.about["settings"]
        return settings

    @property
    def special(self) -> dict[int, str]:
        """Names of special tokens by their ids."""
        return {int(id): str(name) for id, name in self.about["tokenizer"]["special"].items()}

    def __len__(self) -> int:
        """Rows."""
        return len(self.store)

    def tokens(self, shard: int) -> Tokens:
        """Where the rows of a shard come from; the last few that were asked for are kept."""
        return _tokens(self.files[shard], self.store.shards[shard].rows, self.sums[shard])

    def rows(self, shard: int, start: int = 0, stop: int | None = None) -> Array:
        """Rows start..stop of a shard as numbers, (stop - start, d); bfloat16 as float32."""
        held = self.store.shards[shard]
        raw: Raw = held.read(start, held.rows if stop is None else stop)
        return values(raw)

    def blocks(self, size: int) -> Iterator[tuple[int, int, Array]]:
        """All rows in order, at most `size` at a time: shard, number of the first row in the shard, and rows."""
        for k, shard in enumerate(self.store.shards):
            for start in range(0, shard.rows, size):
                yield k, start, self.rows(k, start, min(start + size, shard.rows))

    def place(self, row: int) -> tuple[int, int]:
        """The shard that holds a row of the store, and the row's number there."""
        if not 0 <= row < len(self):
            raise InputError(f"{self.store.path}: there is no row {row}, it has {len(self)}")
        shard = int(np.searchsorted(self.store.starts, row, side="right")) - 1
        return shard, row - int(self.store.starts[shard])

    def context(self, row: int) -> Context:
        """The context that a row of the store lies in."""
        shard, inside = self.place(row)
        tokens = self.tokens(shard)
        c = int(tokens.context[inside])
        return Context(
            int(self.context_starts[shard]) + c,
            tokens.ids[tokens.starts[c] : tokens.starts[c + 1]],
            tokens.pieces(c),
            int(tokens.position[inside]),
            int(tokens.document[inside]),
        )

    def verify(self) -> None:
        """InputError unless all activations match their checksums, and as `verify_tokens`."""
        for shard in self.store.shards:
            shard.verify()
        self.verify_tokens()

    def verify_tokens(self) -> int:
        """How many contexts there are; InputError for a file of tokens that `read_tokens` refuses, or of other numbers.

        Checksums, and the length, dtype and range of every array against the rows of its shard.
        """
        for k, (shard, file, expected) in enumerate(zip(self.store.shards, self.files, self.sums, strict=True)):
            contexts, listed = read_tokens(file, shard.rows, expected).contexts, int(np.diff(self.context_starts)[k])
            if contexts != listed:
                raise InputError(f"{file}: holds {contexts} contexts, {META} lists {listed}")
        return int(self.context_starts[-1])

    def __repr__(self) -> str:
        shape = f"{len(self)} rows of d = {self.store.d} in {self.store.dtype}"
        return f"Harvest({str(self.store.path)!r}): {shape}, {self.settings['site']} of {self.settings['model']}"


@lru_cache(maxsize=4)
def _tokens(path: Path, rows: int, sha256: str) -> Tokens:
    return read_tokens(path, rows, sha256)


def is_harvest(path: Path) -> bool:
    """Whether the folder `path` is a store that a harvest wrote; InputError for a store that is damaged."""
    return (path / META).is_file() and "harvest" in read_meta(path)


def open_harvest(path: Path, d: int | None = None) -> Harvest:
    """The store in the folder `path`, by its headers.

    d: None, or the only number of dimensions that is accepted.  InputError, naming the field, for a store that no
    harvest wrote, and as `refgba.data.store.open_store`.
    """
    store = open_store(path, d)
    if not store.path.is_dir() or "harvest" not in store.about:
        raise InputError(f"{path}: not of `refgba harvest`: it does not say which token each row comes from")
    meta = read_meta(path)
    about = check_about(path, meta["harvest"])
    names, sums, counts = [], [], []
    for k, entry in enumerate(meta["shards"]):
        tokens, contexts = entry.get("tokens"), entry.get("contexts")
        name = f"{Path(entry['file']).stem}{SUFFIX}"
        if not isinstance(tokens, dict) or tokens.get("file") != name or not isinstance(tokens.get("sha256"), str):
            raise InputError(f"{path / META}: shard {k}: tokens should have the file {name} and its sha256")
        if type(contexts) is not int or contexts < 1:
            raise InputError(f"{path / META}: shard {k}: contexts should be a positive whole number")
        names.append(path / name)
        sums.append(tokens["sha256"])
        counts.append(contexts)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Harvest(store, about, tuple(names), tuple(sums), starts)


def check_about(path: Path, about: Any) -> dict[str, Any]:
    """`harvest` of the meta.json in the folder `path`, if it can be right; InputError, naming the field, if not."""
    file = path / META
    if not isinstance(about, dict) or about.get("version") != VERSION:
        raise InputError(f"{file}: harvest should have the version {VERSION}")
    settings, tokenizer = about.get("settings"), about.get("tokenizer")
    for name in ("model", "site", "of"):
        if not isinstance(settings, dict) or not isinstance(settings.get(name), str):
            raise InputError(f"{file}: harvest: settings: {name} should be a string")
    special = tokenizer.get("special") if isinstance(tokenizer, dict) else None
    if not isinstance(special, dict) or not all(str(id).isdecimal() for id in special):
        raise InputError(f"{file}: harvest: tokenizer: special should name special tokens by their ids")
    require(file, {"harvest": about}, {"harvest": ABOUT})
    return about
