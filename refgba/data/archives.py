"""Where the rows lie in `.npz` and `.pt` files, which are zip archives of arrays.

`numpy.savez` and `torch.save` store numbers uncompressed, so rows are read where they lie, as from a `.npy` file.  Of
`numpy.savez_compressed` rows are decoded in order (`decoded`), which `refgba data pack` does.

No pickle is opened here.  That of a `.pt` file, which says shapes and dtypes, is read by torch with weights_only=True
and without any of the numbers; where the numbers are is then held against the archive's own directory.
"""

from __future__ import annotations

import importlib
import shlex
import struct
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from refgba.data.headers import Layout, not_a_float, npy, pack_command, pick, stored
from refgba.errors import InputError, brief

TORCH = (".pt", ".pth", ".ckpt")
MOST_MEMBERS = 2**20  # arrays in an archive
LARGEST_PICKLE = 2**26  # bytes of the pickle in a .pt file: a tensor needs some hundred
BOMB = 200  # an array that was compressed further than this, and is larger than SMALL, is taken for a trap
SMALL = 2**28  # bytes
DEEPEST = 8  # containers within containers in a .pt file


@contextmanager
def _reading(path: Path) -> Iterator[zipfile.ZipFile]:
    """A file that is a zip archive, opened; InputError when it cannot be read."""
    try:
        with path.open("rb") as file, _archive(path, file) as archive:
            yield archive
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


@contextmanager
def _archive(path: Path, file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """The zip archive `file`; whatever it makes the libraries raise becomes an InputError."""
    try:
        with zipfile.ZipFile(file) as archive:
            if len(archive.infolist()) > MOST_MEMBERS:
                raise InputError(f"{path}: holds more than {MOST_MEMBERS:,} members")
            yield archive
    except (InputError, OSError):
        raise
    except Exception as error:  # damaged archives make zipfile raise nearly anything
        raise InputError(f"{path}: not a {path.suffix} file, or truncated or damaged ({brief(error)})") from None


def npz(path: Path, file: BinaryIO, size: int, tensor: str | None) -> Layout:
    """Where an array of a `.npz` file lies; `tensor` as `pick`.  InputError when it is compressed."""
    with _archive(path, file) as archive:
        name, member, layout = _member(path, archive, tensor)
    if member.compress_type != zipfile.ZIP_STORED:
        more = "" if tensor is None else f" --tensor {shlex.quote(tensor)}"
        raise InputError(
            f"{path}: {brief(name)} is compressed, so rows cannot be read where they lie; {pack_command(path, more)} "
            "makes a store of it"
        )
    offset = _begin(path, file, member, size) + layout.offset
    return Layout(layout.shape, layout.dtype, offset, layout.swapped)


def is_compressed(path: Path, tensor: str | None) -> bool:
    """Whether the array that is meant in a `.npz` file is compressed; InputError as `npz`."""
    with _reading(path) as archive:
        return _member(path, archive, tensor)[1].compress_type != zipfile.ZIP_STORED


def shape_of(path: Path, tensor: str | None) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an array in a `.npz` file, compressed or not; InputError as `npz`."""
    with _reading(path) as archive:
        layout = _member(path, archive, tensor)[2]
        return layout.shape, layout.dtype


def decoded(path: Path, tensor: str | None, d: int, block: int) -> Iterator[npt.NDArray[Any]]:
    """The rows (any, d) of a compressed array in a `.npz` file, at most `block` at a time; InputError as `npz`."""
    with _reading(path) as archive:
        _, member, layout = _member(path, archive, tensor)
        dtype = stored(layout.dtype)
        with archive.open(member) as stream:
            stream.read(layout.offset)
            while data := stream.read(block * d * dtype.itemsize):
                rows = np.frombuffer(bytearray(data), dtype).reshape(-1, d)
                yield rows.byteswap(inplace=True) if layout.swapped else rows


def _member(path: Path, archive: zipfile.ZipFile, tensor: str | None) -> tuple[str, zipfile.ZipInfo, Layout]:
    """The array that is meant in a `.npz` file: its name, its place in the archive, its layout within that."""
    members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}

    def describe(member: zipfile.ZipInfo) -> str:
        try:
            with archive.open(member) as stream:
                layout = npy("", stream, member.file_size)  # type: ignore[arg-type]  # seeks and reads as a BinaryIO
            return f"{layout.dtype} {layout.shape}"
        except InputError as error:
            return f"({str(error).removeprefix(': ').partition(';')[0]})"

    name = pick(path, members, tensor, describe)
    member = members[name]
    if member.flag_bits & 1:
        raise InputError(f"{path}: {brief(name)} is encrypted")
    if member.file_size > max(SMALL, BOMB * member.compress_size):
        raise InputError(
            f"{path}: {brief(name)} would unpack from {member.compress_size:,} to {member.file_size:,} bytes; such "
            "files are traps; if it is not, numpy.save what numpy.load makes of it"
        )
    with archive.open(member) as stream:
        layout = npy(f"{path}: {brief(name)}", stream, member.file_size)  # type: ignore[arg-type]
    count = 1
    for n in layout.shape:
        count *= n
        if count > member.file_size:
            break
    if member.file_size != layout.offset + count * stored(layout.dtype).itemsize:
        raise InputError(f"{path}: truncated or damaged ({brief(name)} has not the size of its shape {layout.shape})")
    return name, member, layout


def _begin(path: Path, file: BinaryIO, member: zipfile.ZipInfo, size: int) -> int:
    """The byte of the file at which a member that is not compressed begins."""
    file.seek(member.header_offset)
    head = file.read(30)
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise InputError(f"{path}: truncated or damaged ({brief(member.filename)} is not where it should be)")
    name, extra = struct.unpack("<HH", head[26:])
    begin: int = member.header_offset + 30 + name + extra
    if member.compress_size != member.file_size or begin + member.file_size > size:
        raise InputError(f"{path}: truncated or damaged ({brief(member.filename)} does not fit)")
    return begin


# ---- torch -----------------------------------------------------------------------------------------------------------


def _torch(path: Path) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise InputError(
            f"{path}: shapes in {path.suffix} files are read by torch, which is not installed: pip install torch; or "
            "save x.numpy() with numpy.save"
        ) from None


def pt(path: Path, file: BinaryIO, size: int, tensor: str | None) -> Layout:
    """Where a tensor of a `.pt` file lies; `tensor` as `pick`.  InputError when there is no torch."""
    if file.read(4) != b"PK\x03\x04":
        raise InputError(
            f"{path}: not a {path.suffix} file as torch.save has written them since torch 1.6; load it where you trust "
            "it, and torch.save the tensor again"
        )
    torch = _torch(path)
    with _archive(path, file) as archive:
        _check(path, archive)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                content = torch.load(path, map_location="meta", weights_only=True)
            except Exception as error:  # torch raises nearly anything
                raise InputError(f"{path}: {_unreadable(str(error))}") from None
        tensors = dict(_tensors(torch, content))
        if not tensors:
            raise InputError(f"{path}: holds no tensor; save one with torch.save(x, {str(path)!r})")
        name = pick(path, tensors, tensor, lambda x: f"{x.dtype} {tuple(x.shape)}")
        x = tensors[name]
        where = f"{path}: {brief(name)}" if name else str(path)
        dtype = str(x.dtype).removeprefix("torch.")
        if x.layout != torch.strided:
            raise InputError(f"{where}: a sparse tensor; save x.to_dense()")
        if dtype not in ("float16", "bfloat16", "float32", "float64"):
            raise not_a_float(where, str(x.dtype))
        if not x.is_contiguous():
            raise InputError(f"{where}: its rows do not lie one after the other; save x.contiguous()")
        storage = x.untyped_storage()
        records = [
            begin
            for member in archive.infolist()
            if "/data/" in member.filename and member.file_size == storage.nbytes()
            for begin in [_begin(path, file, member, size)]
            if begin == getattr(storage, "_checkpoint_offset", begin)  # older versions of torch do not say
        ]
    if len(records) != 1:
        raise InputError(f"{where}: where its numbers lie is not clear; torch.save this tensor alone, as x.clone()")
    begin = x.storage_offset() * x.element_size()
    if begin + x.numel() * x.element_size() > storage.nbytes():
        raise InputError(f"{where}: truncated or damaged (its shape does not fit its storage)")
    return Layout(tuple(x.shape), dtype, records[0] + begin)


def _check(path: Path, archive: zipfile.ZipFile) -> None:
    """InputError unless torch may look into the archive: nothing is compressed, and its pickle is small."""
    for member in archive.infolist():
        last = member.filename.rpartition("/")[2]
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise InputError(
                f"{path}: {brief(member.filename)} in it is compressed or encrypted, which torch.save does not do; "
                "torch.save the tensor alone"
            )
        if last == "data.pkl" and member.file_size > LARGEST_PICKLE:
            raise InputError(f"{path}: its pickle has {member.file_size:,} bytes, at most {LARGEST_PICKLE:,} are read")
        if last == "byteorder" and member.file_size < 10 and archive.read(member).decode("ascii") != sys.byteorder:
            raise InputError(f"{path}: written on a machine of the other byte order; save x.numpy() with numpy.save")


def _unreadable(error: str) -> str:
    """What a person makes of torch's refusal."""
    if "weights_only" in error.lower() or "Unsupported" in error:
        return (
            "holds more than tensors, and what else a pickle holds may run code; where you trust it, torch.save the "
            "tensor alone"
        )
    return f"truncated or damaged ({brief(error)})"


def _tensors(torch: Any, content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The tensors in what torch has read, with names: keys and positions, joined by dots."""
    if isinstance(content, torch.Tensor):
        yield name, content
    elif isinstance(content, dict | list | tuple) and depth < DEEPEST:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _tensors(torch, value, f"{name}.{key}" if name else str(key), depth + 1)
