"""What is written appears where links lead, with the mode that the umask asks for; only regular files are read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from refgba.data import files
from refgba.data.store import checksum, open_store
from refgba.data.writer import Writer
from refgba.errors import InputError

ROOT = Path(files.__file__).parents[2]


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def store(path):
    with Writer(path, 2, "float32", 2) as writer:
        writer.append(np.ones((3, 2), np.float32))


def network(path):
    """A folder with a file that a library makes, and one of ours."""
    with files.new_folder(path) as partial:
        save_file({"W": np.ones(3)}, partial / "params.safetensors")
        (partial / "state.json").write_text("{}")


# ---- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write(path, b"x"),
        lambda path: files.write_output(path / "a" / "x", b"x"),
        lambda path: files.write_folder(path, {"x": b"x"}),
        lambda path: files.write_new_folder(path / "a", {"x": b"x"}),
        network,
        store,
    ],
    ids=["file", "output", "folder", "new folder", "network", "store"],
)
def test_what_is_new_has_the_mode_of_the_umask(tmp_path, write, mask):
    with umask(mask):
        write(tmp_path / "new")
    for path in (tmp_path / "new", *(tmp_path / "new").rglob("*")):
        assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~mask, path


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o664, 0o444])
def test_what_is_replaced_has_the_mode_that_it_had(tmp_path, kept):
    (tmp_path / "x").write_bytes(b"before")
    (tmp_path / "x").chmod(kept)
    files.write(tmp_path / "x", b"after")
    assert ((tmp_path / "x").read_bytes(), mode(tmp_path / "x")) == (b"after", kept)
    (tmp_path / "f").mkdir()
    (tmp_path / "f").chmod(kept | 0o700)
    files.write_folder(tmp_path / "f", {"x": b""})
    assert mode(tmp_path / "f") == kept | 0o700


def test_a_setgid_folder_hands_its_group_and_bit_down(tmp_path):
    tmp_path.chmod(0o2775)
    network(tmp_path / "run")
    files.write(tmp_path / "x", b"")
    assert mode(tmp_path / "run") & stat.S_ISGID
    for path in (tmp_path / "run", tmp_path / "run" / "state.json", tmp_path / "x"):
        assert path.stat().st_gid == tmp_path.stat().st_gid


# ---- links, and what is no file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False], ids=["", "dangling"])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path, there):
    (tmp_path / "far").mkdir()
    file, folder = tmp_path / "far" / "x", tmp_path / "far" / "f"
    if there:
        file.write_bytes(b"before")
        folder.mkdir()
    (tmp_path / "x").symlink_to("far/x")
    (tmp_path / "f").symlink_to(folder)
    files.write(tmp_path / "x", b"after")
    files.write_folder(tmp_path / "f", {"x": b"after"})
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "f").is_symlink()
    assert file.read_bytes() == (folder / "x").read_bytes() == b"after"
    assert sorted(p.name for p in (tmp_path / "far").iterdir()) == ["f", "x"]


def special(path, kind):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    return path


@pytest.mark.parametrize("kind", ["fifo", "/dev/null", "/dev/zero", "folder"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path, kind):
    path = special(tmp_path / "x", kind)
    before = path.lstat()
    with pytest.raises(OSError, match="Not a regular file"):
        files.write(path, b"x")
    for refuse in (files.refuse_output, lambda path: files.write_output(path, b"x")):
        with pytest.raises(InputError, match=f"{path}: is (not a regular file|a folder); give the name"):
            refuse(path)
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert list(tmp_path.iterdir()) == [path]
    if kind != "folder":
        with pytest.raises(OSError, match="Not a directory"):
            files.write_folder(path, {})
        assert list(tmp_path.iterdir()) == [path]


def test_a_dash_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="-: output goes to files only"):
        files.write_output(Path("-"), b"x")
    assert list(tmp_path.iterdir()) == []


# ---- checked before anything is computed -----------------------------------------------------------------------------


def test_missing_folders_are_made_and_nothing_before_it_is_time(tmp_path):
    path = tmp_path / "a" / "b" / "x"
    files.refuse_output(path)
    assert list(tmp_path.iterdir()) == []
    files.write_output(path, b"x")
    assert path.read_bytes() == b"x"


def test_a_path_below_a_file_or_with_a_name_too_long_is_refused_by_its_name(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "a" / "x", tmp_path / ("x" * 300)):
        for refuse in (files.refuse_output, lambda path: files.write_output(path, b"x")):
            with pytest.raises(InputError) as caught:
                refuse(path)
            assert str(caught.value).startswith(f"{path}: cannot be written (")


def test_a_folder_that_may_not_be_written_is_told_before_anything_is_computed():
    with tempfile.TemporaryDirectory() as name:  # pytest's own lies where other users may not look
        place = Path(name)
        place.chmod(0o555)
        code = "import os, sys; from pathlib import Path; from refgba.data import files\n"
        code += "if os.geteuid() == 0: os.seteuid(65534)\n"
        code += (
            "for path in sys.argv[1:]:\n    try: files.refuse_output(Path(path))\n    except ValueError as e: print(e)"
        )
        paths = [place / "x", place / "a" / "b" / "x"]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        place.chmod(0o755)
    assert done.stdout.splitlines() == [f"{path}: cannot be written (Permission denied)" for path in paths], done.stderr


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "folder"])
@pytest.mark.parametrize(
    "read", [files.read_json, lambda path: files.read_file(path, 9), files.regular_size, open_store, checksum]
)
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, kind, read):
    path, errors = special(tmp_path / "x", kind), []

    def attempt():
        try:
            read(path)
        except InputError as error:
            errors.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert errors[0].startswith(f"{path}: ")


@pytest.mark.parametrize("read", [files.read_json, lambda path: files.read_file(path, 2**20)])
def test_a_sparse_giant_is_not_read(tmp_path, read):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(InputError, match=r"x: larger than [0-9,]* bytes"):
        read(tmp_path / "x")


def test_a_file_is_read_whole_up_to_the_most(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert files.read_file(tmp_path / "x", 3) == b"abc"
    with pytest.raises(InputError, match="x: larger than 2 bytes"):
        files.read_file(tmp_path / "x", 2)
