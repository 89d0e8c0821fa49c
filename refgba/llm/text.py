"""Text, streamed: documents one after another, of files, folders, .jsonl, parquet and Hugging Face data sets.

    a file             one document; .jsonl one per line, .parquet and .arrow one per row
    a folder           the files in it that hold text, by their names in order, folders in it too.  What does not begin
                       with UTF-8 is no text; of the others each is looked through when its turn comes
    a data set folder  the Arrow files that its state.json lists

Memory holds a piece of a document, never all text: a document longer than PIECE characters comes in several pieces,
cut where a line ends.
"""

from __future__ import annotations

import codecs
import fnmatch
import hashlib
import importlib.util
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from refgba.data.files import read_json, regular_size
from refgba.errors import InputError, brief

PIECE = 2**19  # characters
TABLES = (".parquet", ".arrow")
HIDDEN = (".", "__pycache__")  # what names of files and folders that are skipped begin with


@dataclass(frozen=True)
class TextOptions:
    """Which text is read.

    paths: files and folders.  column: the field of .jsonl and the column of tables that holds text.  pattern: files of
    folders whose names match, such as "*.py"; all that hold text if it is None.  shuffle: a seed, to take all files
    in random order; None for the order in which they are given, and in folders that of their names.  per_document: at
    most so many contexts of each document, its first; None for all.

    left_out: told of each file in a folder that turns out not to be UTF-8, which is then left out; None refuses it.
    found: of text that is `resolved`, those of its files that lay in folders; None before.
    """

    paths: tuple[Path, ...]
    column: str = "text"
    pattern: str | None = None
    shuffle: int | None = None
    per_document: int | None = None
    left_out: Callable[[Path], object] | None = field(default=None, compare=False, repr=False)
    found: frozenset[Path] | None = field(default=None, compare=False, repr=False)

    def record(self) -> dict[str, Any]:
        """For meta.json: what decides which text is read."""
        given = {name: getattr(self, name) for name in ("column", "pattern", "shuffle", "per_document")}
        return {"paths": [str(path) for path in self.paths], **given}


@dataclass
class Fingerprint:
    """SHA-256 of all documents read so far, each with its number, whatever files they came from; bytes: of them."""

    digest: Any = field(default_factory=hashlib.sha256)
    bytes: int = 0

    def add(self, document: int, piece: str) -> None:
        """Take in a piece."""
        data = piece.encode()
        self.bytes += len(data)
        self.digest.update(document.to_bytes(8, "little") + len(data).to_bytes(8, "little") + data)

    def __str__(self) -> str:
        digits: str = self.digest.hexdigest()
        return digits


def pieces(options: TextOptions) -> Iterator[tuple[int, str]]:
    """All documents in order, in pieces: the number of the document, and text.  Empty ones count and give no piece.

    Files that are left out do not count.  InputError, naming file and line, for what cannot be read.
    """
    number, text = 0, resolved(options)
    for file in text.paths:
        if text.left_out is not None and file in (text.found or ()) and is_plain(file) and not is_utf8(file):
            text.left_out(file)
            continue
        for document in documents(file, options.column):
            for piece in document:
                if piece:
                    yield number, piece
            number += 1


def files(options: TextOptions) -> list[Path]:
    """All files that will be read, in order; InputError for a path that is not there, or a folder without text."""
    return list(resolved(options).paths)


def resolved(options: TextOptions) -> TextOptions:
    """The same text by its files, in order, so that folders are not looked through again; InputError as `files`."""
    if options.found is not None:
        return options
    listed: list[Path] = []
    found: set[Path] = set()
    for path in options.paths:
        if not os.path.isdir(path):
            regular_size(path)  # InputError for what is not there, or would be read without end
            listed.append(path)
        else:
            inside = _data_set(path) or _folder(path, options)
            listed += inside
            found.update(inside)
    if options.shuffle is not None:
        random.Random(options.shuffle).shuffle(listed)
    return replace(options, paths=tuple(listed), pattern=None, shuffle=None, found=frozenset(found))


def _folder(folder: Path, options: TextOptions) -> list[Path]:
    """The files of text in a folder and in those below."""
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        for name in sorted(names):
            wanted = options.pattern is None or fnmatch.fnmatch(name, options.pattern)
            path = Path(place) / name
            if wanted and not name.startswith(HIDDEN) and path.is_file() and (_is_table(path) or is_text(path)):
                found.append(path)
    if not found:
        among = f" named {options.pattern}" if options.pattern else ""
        raise InputError(f"{folder}: holds no files of text{among}")
    return found


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror or error})") from None


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES


def is_text(path: Path) -> bool:
    """Whether a file begins with UTF-8 that holds something, and no zero byte."""
    try:
        with path.open("rb") as file:
            start = file.read(8192)
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except (OSError, UnicodeDecodeError):
        return False
    return bool(start) and b"\0" not in start


def is_plain(path: Path) -> bool:
    """Whether a file is one document, neither a table nor lines of JSON."""
    return not _is_table(path) and path.suffix.lower() != ".jsonl"


def is_utf8(path: Path) -> bool:
    """Whether all of a file is UTF-8; it is read once, a MiB at a time, unless it has changed since.

    InputError for a file that cannot be read.
    """
    try:
        state = path.stat()
        return _is_utf8(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


@lru_cache(maxsize=2**16)
def _is_utf8(path: Path, _size: int, _changed: int) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while part := file.read(2**20):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def documents(file: Path, column: str) -> Iterator[Iterator[str]]:
    """The documents of a file, each in pieces."""
    if _is_table(file):
        yield from (iter(cut(text)) for text in _table(file, column))
    elif is_plain(file):
        yield _plain(file)
    else:
        yield from (iter(cut(text)) for text in _lines(file, column))


def cut(text: str) -> Iterator[str]:
    """A text in pieces of at most PIECE characters, cut after the last line that ends there, or else anywhere."""
    start = 0
    while start < len(text):
        stop = start + PIECE
        if stop < len(text):
            stop = max(text.rfind("\n", start, stop), text.rfind(" ", start, stop)) + 1 or stop
            stop = stop if stop > start else start + PIECE
        yield text[start:stop]
        start = stop


def _plain(file: Path) -> Iterator[str]:
    """A file of text in pieces; bytes that are not UTF-8 are refused."""
    held = ""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            while got := opened.read(PIECE):
                *whole, held = cut(held + got)
                yield from whole
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 ({error.reason}); convert it, or keep it out of the text") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    yield held


def _lines(file: Path, column: str) -> Iterator[str]:
    """The text of each line of a .jsonl file."""
    try:
        with file.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{file}: line {number}: not JSON ({brief(error)})") from None
                yield _text_of(value.get(column) if isinstance(value, dict) else None, f"{file}: line {number}", column)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None


def _text_of(value: Any, where: str, column: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: has no text in {column!r}; --column names the field that has")
    return value.encode("utf-8", "replace").decode()  # JSON may hold halves of surrogate pairs, which are no text


def _table(file: Path, column: str) -> Iterator[str]:
    """The text of each row of a table, decoded by pyarrow batch by batch."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{file}: reading it needs pyarrow: pip install pyarrow")
    import pyarrow as pa

    row = 0
    try:
        for batch in _batches(file, column):
            if column not in batch.schema.names:
                names = ", ".join(brief(name) for name in batch.schema.names[:8])
                raise InputError(f"{file}: has no column {column!r}; --column names one of {names}")
            for value in batch.column(column):
                yield _text_of(value.as_py(), f"{file}: row {row}", column)
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: damaged or cannot be read ({brief(error)})") from None


def _batches(file: Path, column: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet

    if file.suffix.lower() == ".parquet":
        opened = pyarrow.parquet.ParquetFile(file)
        names = [column] if column in opened.schema_arrow.names else None
        yield from opened.iter_batches(batch_size=256, columns=names)
        return
    with pa.OSFile(str(file)) as source:
        try:
            yield from pa.ipc.open_stream(source)  # what `datasets` writes
        except pa.ArrowInvalid:
            source.seek(0)
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(k) for k in range(reader.num_record_batches))


def _data_set(folder: Path) -> list[Path]:
    """The Arrow files of a data set that `datasets` wrote with save_to_disk; none where the folder is no such."""
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json").get("splits")
        listed = ", ".join(brief(name) for name in splits[:4]) if isinstance(splits, list) else "a split"
        raise InputError(f"{folder}: a Hugging Face data set with several splits; name one of the folders: {listed}")
    if not (folder / "state.json").is_file():
        return []
    state = read_json(folder / "state.json")
    entries, found = state.get("_data_files"), []
    if state.get("_indices_data_files") or not isinstance(entries, list) or not entries:
        raise InputError(f"{folder}: a selection of a data set; in Python, dataset.flatten_indices().save_to_disk(...)")
    for entry in entries:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not (isinstance(name, str) and Path(name).name == name and name.endswith(".arrow")):
            raise InputError(f"{folder / 'state.json'}: _data_files should name .arrow files in the folder")
        found.append(folder / name)
    return found
