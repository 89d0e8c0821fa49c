"""Rows on disk: every row comes back as it was written, and what is not as it should be is named."""

from __future__ import annotations

import json
import os
import re
import tracemalloc

import numpy as np
import pytest
from store_files import (
    BFLOAT16,
    LIES,
    change,
    everything,
    npy,
    numbers,
    of,
    one_line,
    python,
    rows,
    safetensors,
    written,
)

from refgba.data import store
from refgba.data.store import DTYPES, META, open_shard, open_store, values

# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_rows_of_an_npy_file_come_back_in_every_dtype_and_byte_order(tmp_path, dtype, order):
    x = rows().astype(dtype)
    opened = open_store(npy(tmp_path / "x.npy", x.astype(x.dtype.newbyteorder(order))))
    assert (len(opened), opened.d, opened.dtype, opened.complete) == (100, 5, dtype, True)
    got = opened.shards[0].read(7, 60)
    assert got.dtype == x.dtype
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, x[7:60])
    np.testing.assert_array_equal(store.load_matrix(tmp_path / "x.npy", 5), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("others", [{}, {"a": np.zeros(3), "z": np.ones((2, 2), np.int8)}])
def test_rows_of_a_safetensors_file_come_back_in_every_dtype(tmp_path, dtype, others):
    raw = of(rows(), dtype)
    opened = open_store(safetensors(tmp_path / "x.safetensors", raw, **others))
    assert (len(opened), opened.d, opened.dtype) == (100, 5, dtype)
    got = opened.shards[0].read(7, 60)
    np.testing.assert_array_equal(got, raw[7:60])
    np.testing.assert_array_equal(values(got), numbers(raw[7:60], dtype))
    np.testing.assert_array_equal(store.load_matrix(tmp_path / "x.safetensors"), numbers(raw, dtype))


def test_a_lone_tensor_may_have_any_name_and_of_several_one_must_be_the_activations(tmp_path):
    x, path = rows(), tmp_path / "x.safetensors"
    np.testing.assert_array_equal(everything(open_store(safetensors(path, x, "hidden"))), x)
    safetensors(path, x, "hidden", other=x)
    one_line(lambda: open_store(path), path, "holds 2 tensors, and none named 'activations'")


def test_every_bfloat16_is_the_float32_that_ml_dtypes_makes_of_it():
    raw = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(values(raw), raw.view(BFLOAT16).astype(np.float32))


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.asfortranarray(rows()), "stored column by column"),
        (np.zeros(5), r"this one is 1-D \(5,\)"),
        (np.zeros((2, 3, 4, 5)), r"this one is 4-D \(2, 3, 4, 5\); save x.reshape"),
        (np.zeros((0, 4)), "the array is empty"),
        (np.zeros((4, 0)), "the array is empty"),
        (np.zeros((4, 4), np.int32), "dtype is int32"),
        (np.zeros((4, 4), np.complex64), "dtype is complex64"),
        (np.zeros((4, 4), np.longdouble), "dtype is float128|dtype is longdouble"),
        (np.zeros((4, 4), "f4,f4"), "dtype is "),
        (np.array([[None]]), "dtype is object"),
    ],
)
def test_an_npy_file_of_something_else_is_refused(tmp_path, array, complaint):
    path = npy(tmp_path / "x.npy", array)
    assert re.search(complaint, one_line(lambda: open_store(path), path))


def test_what_is_no_file_of_rows_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    one_line(lambda: open_store(path), path, "no such file")
    one_line(lambda: open_store(tmp_path / ("x" * 300)), "no such file")
    one_line(lambda: open_shard(tmp_path), tmp_path, "not a file")
    one_line(lambda: open_store(tmp_path), "a folder without meta.json; `refgba data pack")
    for data, complaint in (
        (b"", "the file is empty"),
        (b"hello", "not a .npy file"),
        (b"\x93NUMPY\x03\x00", "version"),
    ):
        path.write_bytes(data)
        one_line(lambda: open_store(path), path, complaint)
    other = tmp_path / "x.safetensors"
    for data in (b"1234567", b"\xff" * 30, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}"):
        other.write_bytes(data)
        one_line(lambda: open_store(other), other)
    one_line(lambda: open_store(npy(path, rows()), d=4), path, "its rows have d = 5, the network d = 4")


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_costs_one_line_and_no_memory(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(LIES[name])
    tracemalloc.start()
    try:
        one_line(lambda: open_store(path), path)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(LIES[name]) + 2**20
    finally:
        tracemalloc.stop()


def test_lying_headers_are_refused_where_memory_is_short(tmp_path):
    for name, data in LIES.items():
        (tmp_path / name).write_bytes(data)
    code = """
        import resource, sys
        from pathlib import Path
        from refgba.errors import InputError
        from refgba.data.store import open_store
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 2**26, now + 2**26))
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                open_store(path)
            except InputError as error:
                assert str(path) in str(error) and len(str(error).splitlines()) == 1, error
                continue
            raise SystemExit(f"{path} was opened")
    """
    process = python(code, tmp_path)
    said, errors = process.communicate()
    assert process.returncode == 0, said + errors


def test_a_file_that_is_truncated_while_it_is_read_is_told_with_its_row(tmp_path):
    path = npy(tmp_path / "x.npy", rows())
    opened = open_store(path)
    os.truncate(path, 128 + 61 * 20 + 7)
    np.testing.assert_array_equal(opened.shards[0].read(0, 61), rows()[:61])
    one_line(lambda: opened.shards[0].read(50, 80), path, "truncated: it ends in row 61 of 100")
    one_line(lambda: opened.shards[0].read(80, 90), path, "truncated: it ends in row 80 of 100")
    one_line(lambda: open_store(path), path, "truncated or damaged")
    path.unlink()
    one_line(lambda: opened.shards[0].read(0, 5), path, "cannot be read (No such file or directory)")


def test_a_row_has_a_place_in_its_file_and_in_the_store(tmp_path):
    opened = open_store(written(tmp_path / "s", rows(), 40))
    assert opened.place(39) == f"{tmp_path}/s/00000.npy: row 39"
    assert opened.place(40) == f"{tmp_path}/s/00001.npy: row 0 (row 40 of {tmp_path}/s)"
    assert opened.place(99) == f"{tmp_path}/s/00002.npy: row 19 (row 99 of {tmp_path}/s)"


@pytest.mark.parametrize("name", ["activations", "hidden"])
def test_a_matrix_beside_very_many_tensors_is_opened(tmp_path, name):
    others = {f"a.tensor.with.a.long.name.{k:06d}": np.zeros(1, np.float32) for k in range(20_000)}
    path = safetensors(tmp_path / "x.safetensors", rows(), name, **others)
    if name == "activations":
        np.testing.assert_array_equal(everything(open_store(path)), rows())
    else:
        one_line(lambda: open_store(path), path, "holds 20001 tensors, and none named 'activations'")


def test_a_header_beyond_the_formats_limit_is_told_as_that(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((10**8 + 1).to_bytes(8, "little"))
        file.truncate(2**30)
    one_line(lambda: open_store(path), path, "its header has 100,000,001 bytes, the .safetensors format allows 100,00")


@pytest.mark.parametrize("shape", [(4, 3), (12,)])
def test_bfloat16_that_numpy_saved_is_told_with_how_to_save_it(tmp_path, shape):
    path = npy(tmp_path / "x.npy", np.ones(shape, BFLOAT16))
    one_line(lambda: open_store(path), path, "dtype is |V2: bfloat16, it seems", "safetensors.numpy.save_file")


# ---- meta.json -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"format": "other"}, "format should be 'refgba-activations'"),
        ({"d": 5.0}, "d should be a positive whole number"),
        ({"d": 2**62}, "d should be a positive whole number"),
        ({"d": True}, "d should be a positive whole number"),
        ({"dtype": "int8"}, "dtype should be one of"),
        ({"dtype": ["float32"]}, "dtype should be one of"),
        ({"complete": 1}, "complete should be true or false"),
        ({"shards": "00000.npy"}, "shards should be a list"),
        ({"shards": [[]]}, "shard 0: file should be a name in the folder"),
        ({"shards": {1: {"file": "../x.npy"}}}, "shard 1: file should be a name in the folder"),
        ({"shards": {1: {"file": "x" * 256}}}, "shard 1: file should be a name in the folder"),
        ({"shards": {1: {"file": ""}}}, "shard 1: file should be a name in the folder"),
        ({"shards": {1: {"file": "a\nb.npy"}}}, "shard 1: file should be a name in the folder"),
        ({"shards": {1: {"file": ["00001.npy"]}}}, "shard 1: file should be a name in the folder"),
        ({"shards": {1: {"file": "00000.npy"}}}, "shard 1: file '00000.npy' is listed twice"),
        ({"shards": {1: {"rows": 0}}}, "shard 1: rows should be a positive whole number"),
        ({"shards": {1: {"rows": "40"}}}, "shard 1: rows should be a positive whole number"),
        ({"shards": {2: {"sha256": 3}}}, "shard 2: sha256 should be a string"),
    ],
)
def test_each_field_of_meta_json_that_cannot_be_is_named(tmp_path, fields, complaint):
    path = written(tmp_path / "s", rows(), 40)
    change(path, **fields)
    one_line(lambda: open_store(path), path / META, complaint)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"d": 6}, "00000.npy: d is 5, "),
        ({"dtype": "float16"}, "00000.npy: dtype is float32, "),
        ({"shards": {2: {"rows": 21}}}, "00002.npy: rows is 20, "),
        ({"shards": {1: {"file": "gone.npy"}}}, "gone.npy: no such file"),
        ({"shards": {1: {"file": "é" * 250}}}, "no such file"),
        ({"shards": {1: {"file": ".."}}}, "not a file"),
        ({"shards": []}, "no shard is complete yet"),
    ],
)
def test_a_shard_that_is_not_what_meta_json_says_is_named(tmp_path, fields, complaint):
    path = written(tmp_path / "s", rows(), 40)
    change(path, **fields)
    one_line(lambda: open_store(path), path, complaint)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe\x00", b"[" * 10**5, b"1" * 5000])
def test_a_meta_json_that_is_no_object_is_refused(tmp_path, text):
    path = written(tmp_path / "s", rows(), 40)
    (path / META).write_bytes(text)
    one_line(lambda: open_store(path), path / META)


def test_a_store_that_is_being_written_is_read_up_to_its_last_listed_shard(tmp_path):
    path = written(tmp_path / "s", rows(), 40)
    change(path, shards=json.loads((path / META).read_text())["shards"][:2], complete=False)
    (path / ".partial-00002.npy").write_bytes(b"junk")
    opened = open_store(path)
    assert (len(opened), len(opened.shards), opened.complete) == (80, 2, False)
    np.testing.assert_array_equal(everything(opened), rows()[:80])


def test_what_else_meta_json_says_is_kept(tmp_path):
    about = {"model": "pythia", "layer": 3, "site": "resid_post", "more": {"a": [1]}}
    assert open_store(written(tmp_path / "s", rows(), **about)).about == about
