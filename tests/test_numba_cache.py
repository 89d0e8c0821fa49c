"""Damaged caches of numba: what cannot be used is compiled again, and what cannot be kept is done without."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys

import pytest
from processes import NO_HOME, ROOT, TEST_NUMBA, as_somebody, reasons, refgba_in

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
    from refgba.backends.baselines import numba as baselines_numba

    for module in (numba_compiler, numba_kernels, baselines_numba):
        kernels = [value for value in vars(module).values() if hasattr(value, "signatures")]
        assert kernels
        for function in kernels:
            assert isinstance(function._cache, numba_compiler.ToleratedCache), function
