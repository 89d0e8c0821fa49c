"""Writes a harvest's store, shard by shard, so that it can go on after a kill at any moment.

Activations and tokens of a shard are written under temporary names, flushed, renamed, and only then listed in
`meta.json`.  A shard ends where a batch ends: a harvest that goes on starts with the batch after its last whole shard,
and ends in the same bytes as one that was never stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refgba.data import files
from refgba.data.store import FORMAT, META, Raw, read_meta
from refgba.data.writer import Writer
from refgba.errors import InputError, unwritten
from refgba.llm.contexts import Context
from refgba.llm.records import SUFFIX, WHY, Tokens
from refgba.runs.schema import Table, optional, require, text, whole
from refgba.types import Int64

Format = Literal["npy", "safetensors"]
FILES, LINES = "files_left_out", "lines_left_out"  # A shard counts these where there are any.
SHARD: Table = {  # What meta.json says of a shard, which a harvest that goes on adds up.
    "rows": whole(0),
    "contexts": whole(1),
    "read": whole(1),
    "text_sha256": text,
    "dropped": {why: optional(whole(0)) for why in WHY},
    FILES: optional(whole(0)),
    LINES: optional(whole(0)),
}
OWN = ("format", "d", "dtype", "complete", "shards")  # Other fields of meta.json say what the store is.


@dataclass(frozen=True)
class Seen:
    """What came before a place in a harvest: contexts, tokens in them, and the fingerprint of the text.

    left_out: how many FILES were left out, since they are not UTF-8, and LINES, of .jsonl or rows of tables, since they
    have no text.
    """

    contexts: int
    tokens: int
    text: str
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass
class Pending:
    """Tokens of the shard that is being written, batch by batch."""

    rows: dict[str, list[Any]] = field(default_factory=dict)
    contexts: list[Context] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, batch: list[Context], context: Int64, position: Int64, norm: Any, dropped: dict[str, int]) -> None:
        """A batch, and of each row that is kept its context in the batch and its position there, each (rows,)."""
        at = np.cumsum([0, *(len(c) for c in batch)])[context] + position  # places among the batch's tokens
        parts = {
            "token": np.concatenate([c.ids for c in batch])[at],
            "document": np.concatenate([c.document for c in batch])[at],
            "position": position,
            "context": context + len(self.contexts),
            "norm": norm,
        }
        for name, values in parts.items():
            self.rows.setdefault(name, []).append(values)
        self.contexts += batch
        self.dropped.update(dropped)

    def tokens(self) -> Tokens:
        """All of them."""
        rows = {name: np.concatenate(parts) for name, parts in self.rows.items()}
        lengths = [len(context) for context in self.contexts]
        sizes = [len(context.text) for context in self.contexts]
        return Tokens(
            rows["token"].astype(np.int32),
            rows["document"].astype(np.int64),
            rows["position"].astype(np.int32),
            rows["context"].astype(np.int64),
            rows["norm"].astype(np.float32),
            ids=np.concatenate([context.ids for context in self.contexts]).astype(np.int32),
            starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            text=np.frombuffer(b"".join(context.text for context in self.contexts), np.uint8),
            text_starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            ends=np.concatenate([context.ends for context in self.contexts]).astype(np.int32),
            first_document=np.array([context.document[0] for context in self.contexts], np.int64),
            offset=np.array([context.index[0] for context in self.contexts], np.int64),
        )


class Site:
    """The store of one site while it is written."""

    def __init__(self, out: Path, about: dict[str, Any]) -> None:
        """out: a folder that is empty, or not there, or holds a store that was begun with the same settings.

        about: what meta.json says beside the shards, with all that decides the bytes.  InputError for any other folder.
        """
        self.out, self.about = out, about
        self.shards: list[dict[str, Any]] = []
        self.complete = False
        self.writer: Writer | None = None
        self.pending = Pending()
        self.d, self.dtype = 0, ""
        self.handle: int | None = None  # of the folder, which is locked while it is open
        if (out / META).exists():
            self._lock()
            try:
                self._continue(read_meta(out))
            except BaseException:
                self.unlock()
                raise
        elif not (out.is_dir() and all(path.name.startswith(files.PARTIAL) for path in out.iterdir())):
            files.refuse_full_folder(out)  # what a harvest left that was killed before its meta.json does not count

    def _lock(self) -> None:
        """Keep other harvests out of the folder; InputError where one is at work."""
        self.handle = os.open(self.out, os.O_RDONLY)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            raise InputError(f"{self.out}: another harvest is writing to this folder") from None

    def unlock(self) -> None:
        """Let others write to the folder."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None

    def _continue(self, meta: dict[str, Any]) -> None:
        """Take over what is there, if it was begun alike."""
        begun, mine = meta.get("harvest"), self.about["harvest"]
        if not isinstance(begun, dict) or not isinstance(begun.get("settings"), dict):
            raise InputError(f"{self.out}: holds a store that no harvest wrote; choose another folder or remove it")
        for name in {**begun["settings"], **mine["settings"]}:
            before, now = (json.dumps(about["settings"].get(name)) for about in (begun, mine))
            if before != now:
                raise InputError(
                    f"{self.out}: was begun with {name} = {before}, not {now}; give the same, or choose another folder"
                )
        for name in ("tokenizer", "weights"):
            if begun.get(name) != mine[name]:
                raise InputError(f"{self.out}: was begun with another model: its {name} differ")
        for k, shard in enumerate(meta["shards"]):
            require(self.out / META, shard, SHARD, f"shard {k}: ")
        self.about = {name: value for name, value in meta.items() if name not in OWN}
        self.d, self.dtype, self.shards, self.complete = meta["d"], meta["dtype"], meta["shards"], meta["complete"]

    @property
    def begun(self) -> bool:
        """Whether meta.json is there."""
        return bool(self.d)

    def begin(self, d: int, dtype: str, about: dict[str, Any]) -> None:
        """Make the store; about: what is known of the site only now, for `harvest` of meta.json."""
        self.d, self.dtype = d, dtype
        self.about = self.about | {"harvest": self.about["harvest"] | about}
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock()
            self._meta(False)
        except OSError as error:
            raise unwritten(self.out, error) from None

    def seen(self, shards: int) -> Seen:
        """What came before the shard of this number."""
        part = self.shards[:shards]
        digest = part[-1]["text_sha256"] if part else ""
        left_out = Counter({name: sum(s.get(name, 0) for s in part) for name in (FILES, LINES)})
        return Seen(sum(s["contexts"] for s in part), sum(s["read"] for s in part), digest, left_out)

    @property
    def rows(self) -> int:
        """In the shard that is being written."""
        return 0 if self.writer is None else self.writer.rows

    def has_rows(self) -> bool:
        """Whether the shard that is being written has rows; InputError if all were left out for their norms."""
        if not self.rows and self.pending.dropped["norm"]:
            raise InputError(f"{self.out}: all rows of a shard are beyond --max-norm; give a larger one, or 0")
        return self.rows > 0

    def add(
        self, batch: list[Context], rows: Raw, context: Int64, position: Int64, norm: Any, dropped: dict[str, int]
    ) -> None:
        """Rows of a batch that are kept, (rows, d), and as `Pending.add`."""
        if self.writer is None:
            with suppress(OSError):
                files.sweep(self.out)
            partial = self.out / f"{files.PARTIAL}shard"
            self.writer = Writer(partial, self.d, self.dtype, 2**40, self.format).__enter__()
        first = sum(shard["rows"] for shard in self.shards) + self.rows
        self.pending.add(batch, context, position, norm, dropped)
        if len(rows):
            self.writer.append(rows, lambda row: f"{self.out}: row {first + row}")

    @property
    def format(self) -> Format:
        """Of the files of activations."""
        return "safetensors" if self.dtype == "bfloat16" else "npy"

    def close(self, seen: Seen, complete: bool) -> None:
        """End the shard: from here on it is part of the store.  seen: what came before its end."""
        before = self.seen(len(self.shards))
        assert self.writer is not None
        writer, self.writer = self.writer, None
        if not writer.rows:
            return self._end_without_rows(writer, complete)
        writer.__exit__(None, None, None)
        [shard] = writer.shards
        name = f"{len(self.shards):05d}"
        file, data = f"{name}.{self.format}", self.pending.tokens().to_bytes()
        try:
            files.write(self.out / f"{name}{SUFFIX}", data)
            (writer.out / shard["file"]).replace(self.out / file)
            files.flush(self.out)
            listed = {
                "file": file,
                "rows": shard["rows"],
                "sha256": shard["sha256"],
                "tokens": {"file": f"{name}{SUFFIX}", "sha256": hashlib.sha256(data).hexdigest()},
                "contexts": seen.contexts - before.contexts,
                "read": seen.tokens - before.tokens,
                "dropped": {why: self.pending.dropped[why] for why in sorted(self.pending.dropped)},
                "text_sha256": seen.text,
            }
            left_out = {name: seen.left_out[name] - before.left_out[name] for name in (FILES, LINES)}
            listed |= {name: count for name, count in left_out.items() if count}
            self.shards.append(listed)
            self.complete, self.pending = complete, Pending()
            self._meta(complete)
            files.sweep(self.out)
        except OSError as error:
            raise unwritten(self.out, error) from None
        return None

    def _end_without_rows(self, writer: Writer, complete: bool) -> None:
        """The last batches may hold no row that is kept."""
        writer.__exit__(InputError, None, None)
        if not self.shards or not complete:
            raise InputError(f"{self.out}: all rows of the text were left out; look at the flags that leave rows out")
        self.complete = True
        self._meta(True)

    def abandon(self) -> None:
        """Leave the shard that is being written; those that are whole stay."""
        if self.writer is not None:
            writer, self.writer = self.writer, None
            writer.__exit__(InputError, None, None)
        with suppress(OSError):
            files.sweep(self.out)
            if not self.shards and self.begun:
                (self.out / META).unlink(missing_ok=True)
                self.out.rmdir()

    def _meta(self, complete: bool) -> None:
        own = dict(zip(OWN, (FORMAT, self.d, self.dtype, complete, self.shards), strict=True))
        files.write(self.out / META, json.dumps(own | self.about).encode())
