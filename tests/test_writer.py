"""Stores written shard by shard: every row comes back, and a failure leaves the whole shards and no more."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from store_files import (
    everything,
    npy,
    of,
    one_line,
    python,
    rows,
    written,
)

from refgba.data import writer
from refgba.data.inspection import verify
from refgba.data.store import DTYPES, META, open_store
from refgba.data.writer import Writer


@settings(max_examples=30)  # each waits for the disk, a shard at a time
@given(st.lists(st.integers(0, 30), max_size=6), st.integers(1, 25), st.sampled_from(DTYPES), st.booleans())
def test_what_is_appended_comes_back_in_shards_of_that_many_rows(tmp_path_factory, sizes, most, dtype, as_safetensors):
    out, raw = tmp_path_factory.mktemp("w") / "s", of(rows(sum(sizes), 3), dtype)
    format = "safetensors" if as_safetensors or dtype == "bfloat16" else "npy"
    if not len(raw):
        one_line(lambda: written(out, raw, most, format, dtype), out, "there are no rows")
        assert not out.exists()
        return
    with Writer(out, 3, dtype, most, format) as writer:
        for part in np.split(raw, np.cumsum(sizes)[:-1]):
            writer.append(part)
    opened = open_store(out)
    N = len(raw)
    assert [shard.rows for shard in opened.shards] == [most] * (N // most) + [N % most] * (N % most > 0)
    assert (opened.dtype, opened.complete) == (dtype, True)
    np.testing.assert_array_equal(everything(opened), raw)
    for shard in opened.shards:
        assert shard.sha256 == hashlib.sha256(shard.path.read_bytes()).hexdigest()
        library = np.load(shard.path) if format == "npy" else load_file(shard.path)["activations"]
        np.testing.assert_array_equal(library, shard.read(0, shard.rows).view(library.dtype))
    assert sorted(p.name for p in out.iterdir()) == [*(f"{k:05d}.{format}" for k in range(len(opened.shards))), META]


def test_a_body_that_raises_leaves_the_whole_shards_and_no_more(tmp_path):
    out = tmp_path / "s"
    with suppress(KeyboardInterrupt), Writer(out, 5, "float32", 30, about={"layer": 2}) as writer:
        for part in np.split(rows(), 10):
            writer.append(part)
        raise KeyboardInterrupt
    opened = open_store(out)
    assert (len(opened), opened.complete, opened.about) == (90, False, {"layer": 2})
    np.testing.assert_array_equal(everything(opened), rows()[:90])
    assert sorted(p.name for p in out.iterdir()) == ["00000.npy", "00001.npy", "00002.npy", META]
    verify(opened)
    with suppress(KeyboardInterrupt), Writer(tmp_path / "none", 5, "float32", 30) as writer:
        writer.append(rows(20))
        raise KeyboardInterrupt
    assert not (tmp_path / "none").exists()


def test_while_it_is_written_a_store_is_read_up_to_its_last_whole_shard(tmp_path):
    out = tmp_path / "s"
    with Writer(out, 5, "float32", 30) as writer:
        one_line(lambda: open_store(out), "no shard is complete yet")
        for n, part in enumerate(np.split(rows(), 10), 1):
            writer.append(part)
            if n > 3:
                opened = open_store(out)
                assert not opened.complete
                np.testing.assert_array_equal(everything(opened), rows()[: (n * 10 - 1) // 30 * 30])


# ---- when the disk fails ---------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path, monkeypatch):
    flushed = []

    def fsync(handle):
        flushed.append(handle)
        if len(flushed) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "os", SimpleNamespace(fsync=fsync))
    one_line(lambda: written(tmp_path / "s", rows(), 20), f"{tmp_path}/s: cannot be written (No space left on device)")
    opened = open_store(tmp_path / "s")
    assert (len(opened), opened.complete) == (40, False)
    np.testing.assert_array_equal(everything(opened), rows()[:40])
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["00000.npy", "00001.npy", META]


def test_a_file_that_may_not_grow_is_one_line_and_the_shards_before_it_stay(tmp_path):
    x = rows(3000, 16)
    first, second = npy(tmp_path / "a.npy", x[:1000]), npy(tmp_path / "b.npy", x[1000:])
    code = """
        import resource, sys
        from pathlib import Path
        from refgba.data.store import open_store
        from refgba.data.writer import Writer
        from refgba.errors import InputError
        out = Path(sys.argv[3])
        with Writer(out, 16, "float32", 1000) as writer:
            try:
                writer.append(open_store(Path(sys.argv[1])).shards[0].read(0, 1000))
                writer.append(open_store(Path(sys.argv[2])).shards[0].read(0, 100))
                resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
                writer.append(open_store(Path(sys.argv[2])).shards[0].read(100, 2000))
            except InputError as error:
                print(error)
                raise SystemExit(2)
    """
    process = python(code, first, second, tmp_path / "s")
    said, errors = process.communicate()
    assert process.returncode == 2, errors
    assert said == f"{tmp_path}/s: cannot be written (File too large)\n"
    opened = open_store(tmp_path / "s")
    assert (len(opened), opened.complete) == (1000, False)
    np.testing.assert_array_equal(everything(opened), x[:1000])
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["00000.npy", META]
