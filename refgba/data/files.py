"""Files and folders written so that they appear whole or not at all, and JSON objects read from untrusted files.

What is written first gets a temporary name, is flushed to disk, and is then renamed.  Temporary names begin with
`PARTIAL`.  A process that is killed may leave one behind; nothing reads it, and `sweep` removes it.

Links are followed: what they lead to is replaced, and they stay.  Only regular files and folders are ever replaced.
New files have the mode 0666 less the umask, new folders 0777 less the umask; what replaces something has its mode.

Every failure to write is an OSError that leaves what was there before as it was.  `write_output` and
`write_new_folder`, for paths that a user gave, make an InputError of it that names the path.  Long before, when nothing
has been computed, the functions `refuse_...` say what would fail.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refgba.errors import InputError, brief, unwritten

LARGEST_JSON = 2**24  # bytes of a JSON file, unless its reader expects more
PARTIAL = ".partial-"


def write(path: Path, data: bytes) -> None:
    """Make or replace the file `path`; OSError, too, when something else than a regular file is there."""
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file")
    path = Path(os.path.realpath(path))
    partial = _partial(path)
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            file.write(data)
        flush(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_output(path: Path, data: bytes) -> None:
    """Make or replace the file `path`, and make the folders it is in; InputError, naming it, when it cannot be."""
    refuse_output(path)
    try:
        with made(Path(os.path.realpath(path)).parent):
            write(path, data)
    except OSError as error:
        raise unwritten(path, error) from None


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder, and those it is in, where they are missing; if the body fails, those that are empty go again."""
    new = missing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        remove_empty(new)
        raise


def missing(folder: Path) -> list[Path]:
    """This folder, and those it is in, as far as they are not there, the innermost first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, each of which holds the one before it, up to the first that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def refuse_output(path: Path) -> None:
    """InputError, naming the path, unless `write_output` could make or replace it now.  Writes nothing."""
    refuse_dash(path)
    mode = _mode_or_refusal(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder; give the name of a file")
    if mode is not None and not stat.S_ISREG(mode):
        raise InputError(f"{path}: is not a regular file; give the name of one")
    refuse_place(path)


def refuse_place(path: Path) -> None:
    """InputError, naming the path, unless something new could be put there: its folder can be written, or made."""
    refuse_dash(path)
    _refuse_unwritable(path, Path(os.path.realpath(path)).parent)


def refuse_folder(path: Path) -> None:
    """InputError, naming the path, unless files could be put into the folder `path`, which may have to be made."""
    refuse_dash(path)
    mode = _mode_or_refusal(path)
    if mode is not None and not stat.S_ISDIR(mode):
        raise InputError(f"{path}: exists and is not a folder")
    _refuse_unwritable(path, Path(os.path.realpath(path)))


def refuse_new_file(path: Path) -> None:
    """InputError, naming the path, unless a file could be made there, where nothing is yet."""
    refuse_dash(path)
    if _mode_or_refusal(path) is not None:
        raise InputError(f"{path}: exists; choose another file or remove it")
    refuse_place(path)


def refuse_dash(path: Path) -> None:
    """InputError for the path by which other programs mean standard output."""
    if str(path) == "-":
        raise InputError("-: output goes to files only; give another name, or ./- for this one")


def _refuse_unwritable(path: Path, folder: Path) -> None:
    """InputError, naming the path, unless files could be put into `folder`, which may have to be made."""
    names = [os.path.basename(os.path.realpath(path))]  # of what would be made
    while not os.path.lexists(folder) and folder != folder.parent:
        names.append(folder.name)
        folder = folder.parent
    if not os.path.isdir(folder):
        raise InputError(f"{path}: cannot be written (Not a directory)")
    for name in names:
        _mode_or_refusal(path, folder / name)  # a name may be too long
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise InputError(f"{path}: cannot be written (Permission denied)")


def _mode(path: Path) -> int | None:
    """What `stat` says of a file or folder, through links; None if nothing is there."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _mode_or_refusal(path: Path, place: Path | None = None) -> int | None:
    """`_mode` of a path to be written, or of a place on the way to it; InputError, naming the path, where it fails."""
    try:
        return _mode(place or path)
    except OSError as error:
        raise unwritten(path, error) from None


def _partial(path: Path) -> Path:
    """A temporary name beside `path`."""
    return path.with_name(PARTIAL + secrets.token_hex(8))


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make or replace the folder `path` with these files, by name, in it."""
    with new_folder(path) as partial:
        for name, data in files.items():
            (partial / name).write_bytes(data)


def refuse_full_folder(path: Path) -> None:
    """InputError unless `path` is free for a new folder: nothing is there, or a folder that is empty."""
    refuse_dash(path)
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: exists and is not a folder")
        if path.exists() and any(path.iterdir()):
            raise InputError(f"{path}: is not empty; choose another folder or remove it")
    except OSError as error:
        raise unwritten(path, error) from None


def write_new_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder `path`, and those it is in, with these files in it.

    InputError as `refuse_full_folder`, and when it cannot be written.
    """
    with output_folder(path) as partial:
        for name, data in files.items():
            (partial / name).write_bytes(data)


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Make the folder `path`, and those it is in: the body fills it, and it appears only when all is there.

    InputError as `refuse_full_folder`, and when it cannot be written.
    """
    refuse_full_folder(path)
    try:
        folder = Path(os.path.realpath(path))  # so that "." has a name and a folder it is in
        with made(folder.parent), new_folder(folder) as partial:
            yield partial
    except OSError as error:
        raise unwritten(path, error) from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make or replace the folder `path`: the body fills a folder that takes its place, unless the body raises."""
    mode = _mode(path)
    if mode is not None and not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, "Not a directory")
    path = Path(os.path.realpath(path))
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            if not file.is_dir():
                file.chmod(partial.stat().st_mode & 0o666)  # some libraries make their files private
            flush(file)
        if mode is not None:
            partial.chmod(stat.S_IMODE(mode))
        flush(partial)
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


def quoted(path: Path) -> str:
    """A path as a shell takes it, for a command that is shown and may be pasted."""
    return shlex.quote(str(path))


def regular_size(path: Path) -> int:
    """Bytes of a regular file; InputError, naming it, for anything else: a pipe or a device is read without end."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a ValueError for a name that no file can have
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: no such file; a folder is there")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a regular file")
    return status.st_size


def read_file(path: Path, most: int) -> bytes:
    """A regular file of at most `most` bytes, whole; InputError, naming it, for anything else."""
    size = regular_size(path)
    if size > most:
        raise InputError(f"{path}: larger than {most:,} bytes")
    try:
        with path.open("rb") as file:
            return file.read(size)  # no more, should it grow
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_json(path: Path, most: int = LARGEST_JSON) -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes; InputError, naming the file, for anything else."""
    return parse_json(read_file(path, most), path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `data`, bytes of the file `path`; InputError, naming the file, for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({brief(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: should hold a JSON object, not {type(value).__name__}")
    return value
