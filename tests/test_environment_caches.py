"""Caches of compiled kernels that cannot be written, were prepared by others, or are damaged."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from environments import NO_HOME, ROOT, TEST_CUPY, TEST_NUMBA, reasons, refgba_in

from refgba import backends
from refgba.backends import environment

# ---- folders that cannot be written ----------------------------------------------------------------------------------


@TEST_CUPY
@pytest.mark.parametrize("cache", ["XDG_CACHE_HOME", "TMPDIR"])
def test_a_home_that_cannot_be_written_is_none_of_a_backends_business(tmp_path, cache):
    where = {"XDG_CACHE_HOME": None, "CUPY_CACHE_DIR": None} | {cache: tmp_path}
    said = reasons(refgba_in({"HOME": NO_HOME} | where, "backends"))
    assert NO_HOME not in str(said)
    [made] = tmp_path.iterdir()
    assert made.name == ("refgba" if cache == "XDG_CACHE_HOME" else f"refgba-{os.geteuid()}")
    assert made.stat().st_mode & 0o777 == 0o700


@TEST_CUPY
def test_a_cache_of_cupys_that_cannot_be_written_is_named_with_the_cure():
    reason = reasons(refgba_in({"CUPY_CACHE_DIR": NO_HOME}, "backends"))["cupy"]
    assert reason.endswith(f"'{NO_HOME}'): set CUPY_CACHE_DIR to a folder that can be written")


@pytest.fixture
def shared():
    """A folder like /tmp, which other users can write to, outside of pytest's own, where they may not look."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o1777)
        yield Path(name)


SOMEBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
# Who can read everything, an interpreter below somebody's home too, and write nothing that is not theirs.
SOMEBODY += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def as_somebody():
    """What comes before a command of a user who can write neither the package's folders nor a home."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    if shutil.which("setpriv") is None or subprocess.run([*SOMEBODY, sys.executable, "-V"], check=False).returncode:
        pytest.skip("setpriv is not there, or cannot make somebody else who can read what is root's")
    return SOMEBODY


NOWHERE = {"HOME": NO_HOME, "XDG_CACHE_HOME": None, "CUPY_CACHE_DIR": None, "NUMBA_CACHE_DIR": None}


@TEST_NUMBA
def test_a_user_who_can_write_neither_home_nor_the_package_has_numba(shared):
    somebody = as_somebody()
    for _ in range(2):
        said = reasons(refgba_in(NOWHERE | {"TMPDIR": shared}, "backends", user=somebody))
        assert said["numba"] is None, said
        [cache] = shared.iterdir()
        assert (cache.name, cache.stat().st_uid, cache.stat().st_mode & 0o777) == ("refgba-65534", 65534, 0o700)
        kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")}
        assert {path.suffix for path in kept} == {".nbi", ".nbc"}
    assert kept == {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")}


@TEST_NUMBA
def test_a_cache_of_numbas_that_cannot_be_written_is_named_with_the_cure(shared):
    settings = NOWHERE | {"TMPDIR": shared, "NUMBA_CACHE_DIR": NO_HOME}
    reason = reasons(refgba_in(settings, "backends", user=as_somebody()))["numba"]
    assert "no locator available" in reason
    assert reason.endswith("set NUMBA_CACHE_DIR to a folder that can be written")
    settings["NUMBA_CACHE_DIR"] = shared / "given"
    assert reasons(refgba_in(settings, "backends", user=as_somebody()))["numba"] is None
    assert list((shared / "given").rglob("*.nbi"))


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The folders that `cache_folder` looks at, in order."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache/refgba", tmp_path / f"tmp/refgba-{os.geteuid()}"


def open_to_all(path):
    path.mkdir()
    path.chmod(0o777)


def readable(path):
    path.mkdir(mode=0o750)


def linked(path):
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


def anothers(path):
    if os.geteuid() != 0:
        pytest.skip("only root can give folders away")
    path.mkdir(mode=0o700)
    os.chown(path, 65534, 65534)


def dangling(path):
    path.symlink_to(path.parent / "nothing")


@pytest.mark.parametrize("trap", [open_to_all, readable, linked, anothers, dangling, Path.touch])
def test_a_folder_that_others_prepared_is_never_used_for_what_is_executed(places, trap):
    assert environment.cache_folder() == places[0]
    places[0].rmdir()
    trap(places[0])
    assert environment.cache_folder() == places[1]
    places[1].rmdir()
    trap(places[1])
    fresh = environment.cache_folder()
    assert fresh not in (*places, environment.cache_folder())
    facts = fresh.lstat()
    assert (facts.st_uid, facts.st_mode & 0o777, fresh.is_symlink()) == (os.geteuid(), 0o700, False)


def test_a_cache_that_is_ours_is_used_again(places):
    first = environment.cache_folder()
    (first / "kernel").write_text("compiled")
    assert environment.cache_folder() == first
    assert not environment.writable(Path("~/.cache"))  # without a home, ~ stays what it is
    assert not places[1].exists()


# ---- damaged caches of numba -----------------------------------------------------------------------------------------

KERNEL = """
from refgba.backends.numba_compiler import njit

@njit(nogil=True)
def twice(x):
    return 2 * x
"""


def kernel(path):
    """The module of a kernel, loaded anew."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.twice


def emptied(index, data):
    index.write_bytes(b"")
    del data


def truncated(index, data):
    index.write_bytes(index.read_bytes()[:-5])
    del data


def of_another_version(index, data):
    index.write_bytes(pickle.dumps("0.1") + b"what that version wrote")
    data.write_bytes(b"what that version wrote")


def garbled(index, data):
    index.write_bytes(b"\x80\x04}" + bytes(range(200)))
    del data


def data_emptied(_index, data):
    data.write_bytes(b"")


def data_truncated(_index, data):
    data.write_bytes(data.read_bytes()[:-1000])


def data_of_another_kind(_index, data):
    data.write_bytes(pickle.dumps(("nothing", "of the kind")))


def data_gone(_index, data):
    data.unlink()


def data_a_folder(_index, data):
    data.unlink()
    data.mkdir()


@TEST_NUMBA
@pytest.mark.parametrize(
    "damage",
    [
        emptied, truncated, of_another_version, garbled, data_emptied, data_truncated, data_of_another_kind, data_gone,
        data_a_folder,
    ],
)  # fmt: skip
def test_a_damaged_cache_is_compiled_again(tmp_path, damage):
    path = tmp_path / "kernel_to_be_cached.py"
    path.write_text(KERNEL)
    assert kernel(path)(4.0) == 8.0
    index, data = (next(tmp_path.rglob(f"*{suffix}")) for suffix in (".nbi", ".nbc"))
    damage(index, data)
    again = kernel(path)
    assert again(4.0) == 8.0
    assert sum(again.stats.cache_hits.values()) == 0
    if data.is_file():
        third = kernel(path)
        assert third(4.0) == 8.0
        assert sum(third.stats.cache_hits.values()) == 1  # what was damaged has been replaced


@TEST_NUMBA
def test_a_cache_that_cannot_be_read_is_compiled_again(shared):
    path = shared / "kernel_to_be_cached.py"
    path.write_text(KERNEL)
    assert kernel(path)(4.0) == 8.0
    code = f"import runpy; print(runpy.run_path({str(path)!r})['twice'](4.0))"
    somebody = as_somebody()
    cache = next(shared.rglob("*.nbi")).parent
    cache.chmod(0o777)
    for file in cache.iterdir():
        file.chmod(0o600)
    variables = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(shared), "HOME": NO_HOME}
    result = subprocess.run(
        [*somebody, sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False
    )
    assert (result.stdout, result.stderr) == ("8.0\n", "")
    assert {file.stat().st_uid for file in cache.glob("*.nbi")} == {65534}


@TEST_NUMBA
def test_a_cache_that_cannot_be_kept_is_done_without(tmp_path, monkeypatch):
    from numba.core import caching

    def full(*_args):
        raise OSError(28, "No space left on device")

    path = tmp_path / "kernel_to_be_cached.py"
    path.write_text(KERNEL)
    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", full)
    for _ in range(2):
        assert kernel(path)(4.0) == 8.0


@TEST_NUMBA
def test_the_command_works_with_a_damaged_cache_and_mends_it(tmp_path):
    settings = {"NUMBA_CACHE_DIR": tmp_path / "cache"}
    assert reasons(refgba_in(settings, "backends"))["numba"] is None
    files = list((tmp_path / "cache").rglob("*.nb?"))
    sizes = {path: path.stat().st_size for path in files}
    for path in files:
        path.write_bytes(path.read_bytes()[: 0 if path.suffix == ".nbi" else -100])
    assert reasons(refgba_in(settings, "backends"))["numba"] is None
    assert {path: path.stat().st_size for path in files} == pytest.approx(sizes, rel=0.1)


@TEST_NUMBA
def test_every_kernel_has_a_tolerant_cache():
    from refgba.backends import numba_compiler, numba_kernels
    from refgba.backends.baselines import numba_kernels as baselines_kernels

    for module in (numba_compiler, numba_kernels, baselines_kernels):
        kernels = [value for value in vars(module).values() if hasattr(value, "signatures")]
        assert kernels
        for function in kernels:
            assert isinstance(function._cache, numba_compiler.ToleratedCache), function


def test_an_end_of_file_is_never_taken_for_ctrl_c(cli, monkeypatch):
    def end(*_args, **_named):
        raise EOFError

    monkeypatch.setattr(backends, "status", end)
    result = cli("backends")
    assert (result.exit_code, "Abort" in result.stderr) == (1, False)
    assert json.loads(cli("theory", "--n", 8, "--d", 8, "--s", 1, "--json").stdout)["band"]
