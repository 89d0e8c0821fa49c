"""Text, streamed: documents one after another, of files, folders, .jsonl, parquet and Hugging Face data sets.

    a file             one document; .jsonl one per line, .parquet and .arrow one per row
    a folder           the files in it that hold text, by their names in order, folders in it too.  What does not begin
                       with UTF-8 is no text; of the others each is looked through when its turn comes
    a data set folder  the Arrow files that its state.json lists

What turns out to be no text only late, a file or a line, need not end what took hours to come so far: who reads the
text may ask to be told of it instead (`Omitted`).  That it begins as it should is seen first, by `refuse_beginnings`.

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
from typing import Any, NamedTuple

from refgba.data.files import read_json, regular_size
from refgba.errors import InputError, brief

PIECE = 2**19  # So many characters are read at a time.
TABLES = (".parquet", ".arrow")
HIDDEN = (".", "__pycache__")  # what names of files and folders that are skipped begin with


class Omitted(NamedTuple):
    """Something that was left out of a text: a file, or, with a number, a line of .jsonl or a row of a table.

    number: of lines from 1 on, of rows from 0 on; None of a whole file.  why: in words.
    """

    file: Path
    number: int | None
    why: str


class Omissions:
    """All that was left out of a text, however often it is read: call it with each.

    files: those left out, in order.  lines: how many lines and rows of each other file.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self.files: dict[Path, str] = {}
        self.lines: dict[Path, int] = {}
        self._first: dict[Path, Omitted] = {}
        self._last: dict[Path, int] = {}  # numbers up to which lines have been counted

    def __call__(self, omitted: Omitted) -> None:
        """Take note of one."""
        file, number, why = omitted
        if number is None:
            self.files.setdefault(file, why)
        elif number > self._last.get(file, -1):
            self._first.setdefault(file, omitted)
            self._last[file], self.lines[file] = number, self.lines.get(file, 0) + 1

    def remarks(self) -> list[str]:
        """A line on all files, and one on each file of which lines were left out."""
        lines = []
        if self.files:
            more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
            file, why = next(iter(self.files.items()))
            lines.append(f"{file}{more}: {why}, left out")
        for file, count in self.lines.items():
            more = f" and {count - 1} more" if count > 1 else ""
            lines.append(f"{file}: {_unit(file)} {self._first[file].number}{more}: {self._first[file].why}, left out")
        return lines


@dataclass(frozen=True)
class TextOptions:
    """Which text is read.

    paths: files and folders.  column: the field of .jsonl and the column of tables that holds text.  pattern: files of
    folders whose names match, such as "*.py"; all that hold text if it is None.  shuffle: a seed, to take all files
    in random order; None for the order in which they are given, and in folders that of their names.  per_document: at
    most so many contexts of each document, its first; None for all.

    left_out: told of each file in a folder that turns out not to be UTF-8, and of each line and row without text after
    the first of its file, which are then left out; None refuses them.
    found: of text that is `resolved`, those of its files that lay in folders; None before.
    """

    paths: tuple[Path, ...]
    column: str = "text"
    pattern: str | None = None
    shuffle: int | None = None
    per_document: int | None = None
    left_out: Callable[[Omitted], object] | None = field(default=None, compare=False, repr=False)
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

    What is left out does not count.  InputError, naming file and line, for what cannot be read.
    """
    number, text = 0, resolved(options)
    for file in text.paths:
        if text.left_out is not None and file in (text.found or ()) and is_plain(file) and not is_utf8(file):
            text.left_out(Omitted(file, None, "not UTF-8"))
            continue
        for document in documents(file, options.column, text.left_out):
            for piece in document:
                if piece:
                    yield number, piece
            number += 1


def files(options: TextOptions) -> list[Path]:
    """All files that will be read, in order.

    InputError for a path that is not there, for a folder without text, and as `refuse_beginnings`.
    """
    text = resolved(options)
    refuse_beginnings(text)
    return list(text.paths)


def refuse_beginnings(text: TextOptions, whole: bool = False) -> None:
    """InputError for a file of lines or rows, of a text that is `resolved`, whose first has no text.

    whole: whether all of the text will be read: then for a file, too, that lay in no folder and is not UTF-8.
    """
    for file in text.paths:
        if not is_plain(file):
            next(documents(file, text.column), None)
        elif whole and file not in (text.found or ()) and not is_utf8(file):
            for _ in _plain(file):  # says where it is not
                pass


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


def documents(file: Path, column: str, left_out: Callable[[Omitted], object] | None = None) -> Iterator[Iterator[str]]:
    """The documents of a file, each in pieces.

    left_out: told of each line or row without text after the first, which is then left out; None refuses it, as the
    first always is.
    """
    if is_plain(file):
        yield _plain(file)
        return
    first = True
    for number, text in (_table if _is_table(file) else _lines)(file, column):
        if isinstance(text, str):
            yield iter(cut(text))
        elif left_out is None or first:
            raise InputError(f"{file}: {_unit(file)} {number}: {text.why}{text.remedy}")
        else:
            left_out(Omitted(file, number, text.why))
        first = False


class Wrong(NamedTuple):
    """What a line or a row has instead of text.  remedy: words after that for a person who can do something."""

    why: str
    remedy: str = ""


def _unit(file: Path) -> str:
    """What the parts of a file are called."""
    return "row" if _is_table(file) else "line"


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


def _lines(file: Path, column: str) -> Iterator[tuple[int, str | Wrong]]:
    """Number and text of each line of a .jsonl file that is not empty."""
    try:
        with file.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, Wrong(f"not JSON ({brief(error)})")
                    continue
                fields = value if isinstance(value, dict) else {}
                named = [brief(name) for name, held in fields.items() if isinstance(held, str)][:8]
                yield number, _text_of(fields.get(column), column, named)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None


def _text_of(value: Any, column: str, named: list[str]) -> str | Wrong:
    """A text; named: fields or columns that may have one instead."""
    if not isinstance(value, str):
        remedy = f"; --column names one of {', '.join(named)}" if named else "; --column names the field that has"
        return Wrong(f"has no text in {column!r}", remedy)
    return value.encode("utf-8", "replace").decode()  # JSON may hold halves of surrogate pairs, which are no text


def _table(file: Path, column: str) -> Iterator[tuple[int, str | Wrong]]:
    """Number and text of each row of a table, decoded by pyarrow batch by batch."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{file}: reading it needs pyarrow: pip install pyarrow")
    import pyarrow as pa

    row = -1
    try:
        for batch in _batches(file, column):
            if column not in batch.schema.names:
                names = ", ".join(brief(name) for name in batch.schema.names[:8])
                raise InputError(f"{file}: has no column {column!r}; --column names one of {names}")
            for value in batch.column(column):
                row += 1
                yield row, _text_of(value.as_py(), column, [])
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
