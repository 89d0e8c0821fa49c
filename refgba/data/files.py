"""Files and folders written so that they appear whole or not at all, and JSON objects read from untrusted files.

What is written first gets a temporary name, is flushed to disk, and is then renamed.  Temporary names begin with
`PARTIAL`.  A process that is killed may leave one behind; nothing reads it, and `sweep` removes it.  Every failure to
write is an OSError that leaves what was there before as it was; `write_new_folder` alone, which writes where a user
says, makes an InputError of it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refgba.errors import InputError, brief

LARGEST_JSON = 2**24  # bytes of a JSON file, unless its reader expects more
PARTIAL = ".partial-"


def write(path: Path, data: bytes) -> None:
    """Make or replace the file `path`."""
    handle, name = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        partial.chmod(0o644)  # mkstemp makes it private
        flush(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make or replace the folder `path` with these files, by name, in it."""
    with new_folder(path) as partial:
        for name, data in files.items():
            (partial / name).write_bytes(data)


def refuse_full_folder(path: Path) -> None:
    """InputError unless `path` is free for a new folder: nothing is there, or a folder that is empty."""
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: exists and is not a folder")
        if path.exists() and any(path.iterdir()):
            raise InputError(f"{path}: is not empty; choose another folder or remove it")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def write_new_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder `path`, and those it is in, with these files in it.

    InputError as `refuse_full_folder`, and when it cannot be written.
    """
    refuse_full_folder(path)
    try:
        folder = Path(os.path.realpath(path))  # so that "." has a name and a folder it is in
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(folder, files)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make or replace the folder `path`: the body fills a folder that takes its place, unless the body raises."""
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
    try:
        partial.chmod(0o755)  # mkdtemp makes it private
        yield partial
        for file in (*partial.iterdir(), partial):
            flush(file)
        with suppress(FileNotFoundError):
            remove_folder(path)  # a folder that is not empty cannot be renamed over
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder so that it is never seen with only some of its files."""
    gone = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
    try:
        path.rename(gone / path.name)
    finally:
        shutil.rmtree(gone, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove what killed processes left in the folder `path` under temporary names."""
    for partial in path.glob(PARTIAL + "*"):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def regular_size(path: Path) -> int:
    """Bytes of a file; InputError, naming it, if there is none: a pipe or a device would be read without end."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_json(path: Path, most: int = LARGEST_JSON) -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes; InputError, naming the file, for anything else."""
    if regular_size(path) > most:
        raise InputError(f"{path}: larger than {most:,} bytes")
    try:
        return parse_json(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `data`, bytes of the file `path`; InputError, naming the file, for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({brief(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: should hold a JSON object, not {type(value).__name__}")
    return value
