"""Files and stores merged into one: in order, converted exactly, nothing overwritten and nothing damaged passed on."""

from __future__ import annotations

import signal
import time
import tracemalloc

import numpy as np
import pytest
from store_files import (
    everything,
    flip,
    npy,
    numbers,
    of,
    one_line,
    python,
    rows,
    safetensors,
    written,
)

from refgba.data import activations, pack
from refgba.data.inspection import verify
from refgba.data.store import DTYPES, open_store


def test_files_and_stores_merge_in_order_and_split_anew(tmp_path):
    x = rows(300)
    sources = [
        npy(tmp_path / "a.npy", x[:50].astype(">f4")),
        safetensors(tmp_path / "b.safetensors", x[50:90], "hidden"),
        written(tmp_path / "c", x[90:], 64, "safetensors"),
    ]
    for format in ("npy", "safetensors"):
        ticks: list[int] = []
        out = pack.pack(sources, tmp_path / format, rows_per_shard=77, format=format, tick=ticks.append)
        assert [shard.rows for shard in out.shards] == [77, 77, 77, 69]
        np.testing.assert_array_equal(everything(out), x)
        assert sum(ticks) == 300
        again = pack.pack([out.path], tmp_path / f"{format}-again")
        assert len(again.shards) == 1
        np.testing.assert_array_equal(everything(again), x)


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_packing_converts_exactly_as_ml_dtypes(tmp_path, source, target):
    raw = of(rows(), source)
    path = safetensors(tmp_path / "x.safetensors", raw)
    out = pack.pack([path], tmp_path / "s", dtype=target, format="safetensors", rows_per_shard=33)
    assert out.dtype == target
    right = numbers(of(numbers(raw, source).astype(np.float32), target), target)  # drawn in float32: once is enough
    np.testing.assert_array_equal(numbers(everything(out), target), right)


def test_sources_of_different_dtypes_need_one_and_of_different_d_are_refused(tmp_path):
    a, b, c = (
        npy(tmp_path / f"{n}.npy", x) for n, x in zip("abc", (rows(), rows().astype("f2"), rows(d=4)), strict=True)
    )
    one_line(lambda: pack.pack([a, b], tmp_path / "s"), b, "dtype is float16", "float32", "--dtype")
    one_line(lambda: pack.pack([a, c], tmp_path / "s", dtype="float32"), c, "its rows have d = 4, those of", "d = 5")
    one_line(lambda: pack.pack([a, tmp_path / "gone"], tmp_path / "s"), tmp_path / "gone", "no such file")
    one_line(lambda: pack.pack([], tmp_path / "s"), "no files to pack")
    assert not (tmp_path / "s").exists()
    assert pack.pack([a, b], tmp_path / "s", dtype="float64").dtype == "float64"


def test_what_all_sources_say_of_themselves_is_kept_and_flags_go_before_it(tmp_path):
    a = written(tmp_path / "a", rows(), model="m", layer=3, site="x")
    b = written(tmp_path / "b", rows(), model="m", layer=4)
    assert pack.pack([a, b], tmp_path / "1").about == {"model": "m"}
    assert pack.pack([a, b], tmp_path / "2", about={"layer": 5, "model": None}).about == {"model": "m", "layer": 5}
    assert pack.pack([a, npy(tmp_path / "x.npy", rows())], tmp_path / "3").about == {}
    assert pack.pack([a], tmp_path / "4").about == {"model": "m", "layer": 3, "site": "x"}


def test_a_damaged_source_is_not_given_a_new_checksum(tmp_path):
    path = written(tmp_path / "s", rows(), 40)
    flip(path / "00001.npy", 200)
    one_line(lambda: pack.pack([path], tmp_path / "t", rows_per_shard=20), path / "00001.npy", "its checksum")
    assert len(open_store(tmp_path / "t")) == 20  # the last one that was surely whole


def test_a_row_that_does_not_fit_is_named_by_its_place_in_the_source(tmp_path):
    x = rows()
    x[71, 3] = 1e6
    path = written(tmp_path / "s", x, 30)
    said = f"{path}/00002.npy: row 11 (row 71 of {path}) holds 1e+06, too large for float16"
    one_line(lambda: pack.pack([path], tmp_path / "t", dtype="float16", rows_per_shard=8), said)
    one_line(lambda: written(tmp_path / "w", x, 30, dtype="float16"), f"{tmp_path}/w: row 71 holds 1e+06")


def test_packing_holds_blocks_not_shards(tmp_path):
    x = rows(2**16, 128)  # 32 MiB
    path = npy(tmp_path / "x.npy", x)
    tracemalloc.start()
    try:
        out = pack.pack([path], tmp_path / "s", dtype="bfloat16", format="safetensors")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        verify(out)
        of_verify = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * activations.BLOCK
    sample = 8 * 2**14 * 128  # bytes: the rows, in float64, by which the centre is found, and two copies of them
    assert of_verify < 16 * activations.BLOCK + 3 * sample
    np.testing.assert_array_equal(everything(out), of(x, "bfloat16"))


# ---- refused, and killed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"dtype": "bfloat16"}, ".npy has no bfloat16"),
        ({"dtype": "int8"}, "dtype should be one of float16, bfloat16, float32, float64, not int8"),
        ({"format": "csv"}, "format should be npy or safetensors, not csv"),
        ({"rows_per_shard": 0}, "rows per shard must be between 1 and"),
        ({"rows_per_shard": 2**41}, "rows per shard must be between 1 and"),
    ],
)
def test_a_store_that_cannot_be_is_refused_before_anything_is_written(tmp_path, given, complaint):
    path, out = npy(tmp_path / "x.npy", rows()), tmp_path / "s"
    one_line(lambda: pack.pack([path], out, **given), complaint)
    assert not out.exists()


def test_nothing_is_ever_overwritten(tmp_path):
    path, out = npy(tmp_path / "x.npy", rows()), tmp_path / "s"
    one_line(lambda: pack.pack([path], path), path, "exists and is not a folder")
    one_line(lambda: pack.pack([path], tmp_path), tmp_path, "is not empty")
    assert sorted(tmp_path.iterdir()) == [path]
    out.mkdir()
    assert len(pack.pack([path], out)) == 100
    one_line(lambda: pack.pack([path], out), out, "is not empty; choose another folder or remove it")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    path = npy(tmp_path / "x.npy", rows())
    one_line(lambda: pack.pack([path], tmp_path / ("x" * 300)), "cannot be written (File name too long)")
    one_line(lambda: pack.pack([path], path / "s"), "cannot be written (Not a directory)")


@pytest.mark.parametrize("wait", [0.0, 0.05, 0.13])
def test_a_process_that_is_killed_leaves_a_store_that_can_be_read(tmp_path, wait):
    x, out = rows(20_000, 16), tmp_path / "s"
    path = npy(tmp_path / "x.npy", x)
    code = """
        import sys
        from pathlib import Path
        from refgba.data import pack
        pack.pack([Path(sys.argv[1])], Path(sys.argv[2]), rows_per_shard=7)
    """
    process = python(code, path, out)
    try:
        while not (out / "00003.npy").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.001)
        time.sleep(wait)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    opened = open_store(out)
    assert not opened.complete
    assert len(opened) >= 21
    np.testing.assert_array_equal(everything(opened), x[: len(opened)])
    assert verify(opened)["no_checksum"] == 0
    salvaged = pack.pack([out], tmp_path / "t")
    assert (len(salvaged), salvaged.complete) == (len(opened), True)
