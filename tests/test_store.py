"""Stores of activations: every row comes back as it was written, and what is not as it should be is named."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from refgba.data import activations, pack, store
from refgba.data.activations import Activations, Check, open_activations, reopen, survey
from refgba.data.pack import Writer, convert, info, verify
from refgba.data.store import DTYPES, META, open_shard, open_store, stored, values
from refgba.errors import InputError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def rows(N=100, d=5, seed=0):
    return np.random.default_rng(seed).standard_normal((N, d)).astype(np.float32)


def of(x, dtype):
    """x as it is stored in `dtype`, by ml_dtypes."""
    return x.astype(BFLOAT16).view(np.uint16) if dtype == "bfloat16" else x.astype(dtype)


def numbers(raw, dtype):
    return raw.view(BFLOAT16).astype(np.float32) if dtype == "bfloat16" else raw


def safetensors(path, raw, name="activations", **others):
    save_file({name: raw.view(BFLOAT16) if raw.dtype == np.uint16 else raw, **others}, path)
    return path


def npy(path, array):
    np.save(path, array)
    return path


def everything(opened):
    """All rows of a store as they are stored."""
    return np.concatenate([shard.read(0, shard.rows) for shard in opened.shards])


def written(path, x, rows_per_shard=None, format="npy", dtype="float32", **about):
    with Writer(path, x.shape[1], dtype, rows_per_shard, format, about) as writer:
        writer.append(x)
    return path


def change(path, **fields):
    """Change meta.json; the fields of shard k as {k: {...}}."""
    meta = json.loads((path / META).read_text())
    for name, value in fields.items():
        if name == "shards" and isinstance(value, dict):
            for k, entry in value.items():
                meta["shards"][k] |= entry
        else:
            meta[name] = value
    (path / META).write_text(json.dumps(meta))


def one_line(call, *names):
    """`call` raises an InputError of one line that has these names in it."""
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    for name in names:
        assert str(name) in said, said
    return said


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
        (np.zeros((2, 3, 4)), r"this one is 3-D \(2, 3, 4\)"),
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


def lying_npy(shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


def lying_safetensors(**tensor):
    said = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | tensor
    header = json.dumps({"activations": said}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(64)


LIES = {
    "rows.npy": lying_npy((2**60, 4)),
    "d.npy": lying_npy((4, 2**60)),
    "negative.npy": lying_npy((-4, -4)),
    "boolean.npy": lying_npy((4, True)),
    "too-long-to-print.npy": lying_npy(f"(0x{'f' * 4000}, 0x{'f' * 4000})").replace(b"\x76\x00", b"\x90\x1f", 1),
    "header.npy": b"\x93NUMPY\x02\x00" + b"\xf0\xff\xff\xff" + b"{'descr'" * 20,
    "rows.safetensors": lying_safetensors(shape=[2**60, 4], data_offsets=[0, 2**64]),
    "place.safetensors": lying_safetensors(data_offsets=[2**61, 2**61 + 64]),
    "beyond.safetensors": lying_safetensors(data_offsets=[8, 72]),
    "other-place.safetensors": lying_safetensors(data_offsets=[0, 32]),
    "deep.safetensors": (10**5).to_bytes(8, "little") + b"[" * 10**5,
    "header.safetensors": (2**32).to_bytes(8, "little") + b"{" * 100,
}


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


# ---- activations against an oracle -----------------------------------------------------------------------------------


@st.composite
def stores(draw):
    """Sizes of shards, rows in a block, and which rows are zeros."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    N = sum(sizes)
    zero = draw(st.lists(st.integers(0, N - 1), unique=True, max_size=N - 1))
    return sizes, draw(st.integers(1, 9)), sorted(zero)


@given(stores(), st.sampled_from(DTYPES), st.integers(0, 2**32))
def test_blocks_are_the_rows_in_order_without_those_dropped(tmp_path_factory, drawn, dtype, seed):
    sizes, block, zero = drawn
    x = rows(sum(sizes), 3, seed)
    x[zero] = 0
    raw, path = of(x, dtype), tmp_path_factory.mktemp("s")
    pieces = np.split(raw, np.cumsum(sizes)[:-1])
    shards = [open_shard(safetensors(path / f"{k}.safetensors", piece.copy())) for k, piece in enumerate(pieces)]
    opened = store.Store(path, tuple(shards))
    if len(raw) - len(zero) > 1 and len({tuple(row) for row in x.tolist()}) > 2:
        data, found = survey(Activations(opened, block, 1), drop_zero_rows=True)
        assert (found.rows, found.dropped) == (len(x) - len(zero), len(zero))
    else:  # nothing to learn from: a survey refuses it
        data = Activations(opened, block, 1, np.array(zero, np.int64))
    # By hand: blocks start anew with each shard.
    edges = [a + i for a, n in zip(np.cumsum([0, *sizes]).tolist(), sizes, strict=False) for i in range(0, n, block)]
    kept = [np.setdiff1d(np.arange(a, b), zero) for a, b in zip(edges, [*edges[1:], len(x)], strict=True)]
    assert data.begins.tolist() == [*edges, len(x)]
    assert data.counts.tolist() == [len(k) for k in kept]
    assert len(data) == len(x) - len(zero)
    for k in range(len(edges)):
        np.testing.assert_array_equal(data.stored(k), raw[edges[k] : [*edges, len(x)][k + 1]])
    some = np.random.default_rng(seed).permutation(len(edges))[: 1 + seed % len(edges)]
    np.testing.assert_array_equal(data.read(some), raw[np.concatenate([kept[k] for k in some])])
    sample = list(data.sample(len(x) // 2, block))
    assert sum(map(len, sample)) <= max(len(x) // 2, block)
    whole = {tuple(numbers(raw[k], dtype).ravel().tolist()) for k in kept}
    for part in sample:
        assert tuple(part.ravel().tolist()) in whole
    halves = list(data.sample(len(x) // 2, 2))
    assert max(map(len, halves), default=0) <= 2
    assert [row for part in halves for row in part.tolist()] == [row for part in sample for row in part.tolist()]
    rest = numbers(raw[np.concatenate(kept)], dtype)
    np.testing.assert_array_equal(np.concatenate(list(data.sample(len(x), 4))), rest)
    check = Check(opened, "float64", drop_zero_rows=True)
    np.testing.assert_array_equal(np.concatenate(list(check.chunks(replace(data, dropped=check.dropped), 4))), rest)
    assert check.row(np.arange(len(rest))).tolist() == np.concatenate(kept).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_survey_of_shards_is_that_of_the_rows_in_one_file(tmp_path, dtype):
    x = of(rows(500) + 1, dtype)
    _, whole = survey(open_activations(safetensors(tmp_path / "x.safetensors", x)))
    path = written(tmp_path / "s", x, 70, "safetensors", dtype)
    data, parts = survey(replace(open_activations(path), block=9))
    assert (parts.rows, parts.variance) == (whole.rows, pytest.approx(whole.variance, rel=1e-12))
    unit = numbers(x, dtype).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert whole.variance == pytest.approx(unit.var(axis=0).sum(), rel=1e-12)
    assert len(data.counts) == 7 * 8 + 2


@pytest.mark.parametrize("format", ["npy", "safetensors"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_its_file_and_row(tmp_path, format, value):
    x = rows(300)
    x[7 * 30 + 11, 2] = x[290, 0] = value
    path = written(tmp_path / "s", x, 30, format)
    for read in (lambda: survey(open_activations(path)), lambda: verify(open_store(path))):
        one_line(read, f"{path}/00007.{format}: row 11 (row 221 of {path}) holds a NaN, an infinity")


def test_a_signalling_nan_is_named_without_a_warning(tmp_path):
    x = rows().astype(np.float32)
    x.view(np.uint32)[31, 2] = 0x7F800001
    path = npy(tmp_path / "x.npy", x)
    with np.errstate(all="ignore"):  # as on the command line; threads do not know of it
        one_line(lambda: survey(open_activations(path)), f"{path}: row 31 holds a NaN")


def test_a_shard_that_does_not_match_its_checksum_is_named(tmp_path):
    path = written(tmp_path / "s", rows(), 40)
    flip(path / "00001.npy", 200)
    for read in (lambda: survey(open_activations(path)), lambda: verify(open_store(path))):
        one_line(read, path / "00001.npy", "does not match its checksum in meta.json")


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# ---- going on with a run's data --------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """A store of 3 shards whose row 50 is dropped, and the arguments of `reopen`."""
    x = rows()
    x[50] = 0
    path = written(tmp_path / "s", x, 40)
    data, _ = survey(replace(open_activations(path), block=16), drop_zero_rows=True)
    return path, (json.loads(json.dumps(data.record())), data.dropped, data.crc)


def test_a_store_opens_again_as_it_was_also_elsewhere_and_longer(begun, tmp_path):
    path, record = begun
    before = np.delete(everything(open_store(path)), 50, axis=0)

    def reopened(where=None):
        data = reopen(*record, where)
        return data.read(np.arange(len(data.counts)))

    np.testing.assert_array_equal(reopened(), before)
    path.rename(tmp_path / "t")
    np.testing.assert_array_equal(reopened(tmp_path / "t"), before)
    one_line(reopened, path, "no such file")
    npy(tmp_path / "t" / "more.npy", rows(9))
    shards = json.loads((tmp_path / "t" / META).read_text())["shards"]
    change(tmp_path / "t", shards=[*shards, {"file": "more.npy", "rows": 9}])
    assert len(open_store(tmp_path / "t")) == 109
    assert len(reopen(*record, tmp_path / "t")) == 99


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (lambda path: written(path, rows(d=4), 40), "d is 4, the run began with 5"),
        (lambda path: written(path, rows(), 40, dtype="float64"), "dtype is float64, the run began with float32"),
        (lambda path: written(path, rows(80), 40), "has 2 shards, the run began with 3"),
        (lambda path: written(path, rows(), 45), "00000.npy: has 45 rows, the run began with 40"),
        (lambda path: written(path, rows(), 40), ""),
        (lambda path: written(path, rows(seed=1), 40), "00000.npy: rows 0 to 15 are not those that were checked"),
    ],
)
def test_other_data_are_refused_with_what_is_not_as_it_was(begun, tmp_path, other, complaint):
    path = other(tmp_path / "other")
    if complaint:
        one_line(lambda: reopen(*begun[1], path), path, complaint)
    else:  # its first and last block are the same; the one that is not is found when it is read
        data = reopen(*begun[1], path)
        one_line(lambda: data.read(np.array([3])), path, "00001.npy: rows 0 to 15 are not those that were checked")


def test_a_byte_that_flips_between_two_epochs_is_named_by_file_and_rows(begun):
    path, record = begun
    data = reopen(*record)
    flip(path / "00001.npy", 128 + 20 * 20)
    data.read(np.array([0, 1, 2, 3]))
    one_line(lambda: data.read(np.array([0, 4])), path / "00001.npy", "rows 16 to 31 are not those that were checked")
    (path / "00002.npy").unlink()
    one_line(lambda: data.read(np.array([7])), path / "00002.npy", "cannot be read (No such file or directory)")
    one_line(lambda: reopen(*record), path / "00002.npy", "no such file")


def test_a_record_that_does_not_fit_is_refused(begun):
    path, (record, dropped, crc) = begun
    one_line(lambda: reopen(record, dropped, crc[:-1]), path, "the run's record of its data does not fit")
    one_line(lambda: reopen(record, dropped[:0], crc), path, "the run's record of its data does not fit")


# ---- conversion ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(width=32) | st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_float32_becomes_the_bfloat16_of_ml_dtypes(drawn):
    given = [np.uint32(v).view(np.float32) if isinstance(v, int) else np.float32(v) for v in drawn]
    x = np.array(given, np.float32)[:, None]
    with np.errstate(all="ignore"):
        right = x.astype(BFLOAT16)
    fits = np.isfinite(right.astype(np.float32)) | ~np.isfinite(x)
    fits &= (right != 0) | (x == 0)  # here every number is a row
    got = convert(x[fits[:, 0]], "bfloat16")
    np.testing.assert_array_equal(values(got), right[fits[:, 0]].astype(np.float32))
    np.testing.assert_array_equal(np.signbit(values(got)), np.signbit(x[fits[:, 0]]))


def test_ties_between_two_bfloat16_go_to_the_even_one_and_just_beside_them_do_not():
    for low, tie in ((0x3F80, 0x3F808000), (0x3F81, 0x3F818000), (0x0001, 0x00018000), (0x7F7E, 0x7F7E8000)):
        bits = np.array([[tie - 1], [tie], [tie + 1]], np.uint32)
        even = low + (low & 1)
        for sign in (0, 0x8000):
            got = convert((bits | np.uint32(sign << 16)).view(np.float32), "bfloat16")
            assert got[:, 0].tolist() == [low | sign, even | sign, low + 1 | sign]


@given(st.floats(2**-130, 3e38), st.integers(-1, 1))
def test_float64_is_rounded_once(x, ulp):
    bits = (np.float32(x).view(np.uint32) & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    tie = float(bits.view(np.float32))  # between two bfloat16
    near = np.nextafter(tie, ulp * np.inf) if ulp else tie
    low = int(bits >> 16)
    expected = low + {-1: 0, 0: low & 1, 1: 1}[ulp]
    assert convert(np.array([[near], [-near]]), "bfloat16").ravel().tolist() == [expected, expected | 0x8000]


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_conversion_is_that_of_numpy_and_ml_dtypes_and_widening_is_exact(source, target):
    raw = of(np.vstack([rows(), [[np.nan, np.inf, -np.inf, 0.0, -0.0]]]), source)
    got = convert(raw, target)
    assert got.dtype == stored(target)
    wide = numbers(raw, source).astype(np.float64)
    np.testing.assert_array_equal(numbers(got, target), numbers(of(wide, target), target))
    if stored(target).itemsize > stored(source).itemsize:
        np.testing.assert_array_equal(numbers(got, target).astype(np.float64), wide)


@pytest.mark.parametrize(
    ("source", "value", "target", "wider"),
    [
        (np.float32, 65520.0, "float16", "float32"),
        (np.float32, -1e30, "float16", "float32"),
        (np.float64, 1e300, "float16", "float64"),
        (np.float64, 3.5e38, "float32", "float64"),
        (np.float64, 3.4e38, "bfloat16", "float32"),
        (np.float32, 3.4e38, "bfloat16", "float32"),
        (np.float32, 1e-9, "float16", "float32"),
        (np.float64, 1e-60, "float32", "float64"),
        (np.float32, 1e-44, "bfloat16", "float32"),
    ],
)
def test_a_row_that_a_dtype_cannot_hold_is_named_with_one_that_can(tmp_path, source, value, target, wider):
    x = np.ones((50, 3), source)
    x[31] = [0, value, 0]
    path, out = npy(tmp_path / "x.npy", x), tmp_path / "out"
    one_line(
        lambda: pack.pack([path], out, dtype=target, format="safetensors"),
        f"{path}: row 31 holds ",
        f"{abs(float(source(value))):g}, too {'large' if abs(value) > 1 else 'small'} for {target}",
        f"; --dtype {wider} would hold it",
    )
    assert not out.exists()
    pack.pack([path], out, dtype=wider)


def test_the_largest_of_a_dtype_and_what_rounds_to_it_fit():
    assert convert(np.array([[65519.0]]), "float16") == np.float16(65504)
    assert convert(np.array([[3.3895e38]]), "bfloat16") == 0x7F7F


# ---- writing ---------------------------------------------------------------------------------------------------------


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


# ---- packing ---------------------------------------------------------------------------------------------------------


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
        verify(out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * activations.BLOCK
    np.testing.assert_array_equal(everything(out), of(x, "bfloat16"))


def test_info_tells_what_the_headers_say(tmp_path):
    path = written(tmp_path / "s", rows(), 40, model="m")
    told = json.loads(json.dumps(info(open_store(path))))
    size = sum(file.stat().st_size for file in path.glob("*.npy"))
    assert told == {
        "path": str(path),
        "rows": 100,
        "d": 5,
        "dtype": "float32",
        "complete": True,
        "shards": 3,
        "rows_per_shard": [20, 40],
        "bytes": size,
        "checksums": 3,
        "about": {"model": "m"},
    }
    opened = open_store(path)
    (path / "00001.npy").unlink()
    one_line(lambda: info(opened), path / "00001.npy", "cannot be read")


def test_verify_counts_what_it_checked(tmp_path):
    x = rows()
    x[[3, 50]] = 0
    path = written(tmp_path / "s", x, 40)
    one_line(lambda: verify(open_store(path)), path / "00000.npy", "row 3 is all zeros")
    change(path, shards={1: {"sha256": None}})
    ticks: list[int] = []
    told = verify(open_store(path), drop_zero_rows=True, tick=ticks.append)
    assert told.pop("variance") == pytest.approx(1, abs=0.1)
    assert told == {"rows": 98, "dropped": 2, "shards": 3, "checksums": 2, "no_checksum": 1}
    assert sum(ticks) == 100
    large = npy(tmp_path / "x.npy", rows().astype(np.float64) * 1e25)
    one_line(lambda: verify(open_store(large)), large, "row 0", "too large or small for float32")
    verify(open_store(large), "float64")


# ---- when the process or the disk fails ------------------------------------------------------------------------------


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        cwd=Path(store.__file__).parents[2],
        **options,
    )


@pytest.mark.parametrize("wait", [0.0, 0.05, 0.13])
def test_a_process_that_is_killed_leaves_a_store_that_can_be_read(tmp_path, wait):
    x, out = rows(20_000, 16), tmp_path / "s"
    path = npy(tmp_path / "x.npy", x)
    code = """
        import sys
        from pathlib import Path
        from refgba.runs import pack
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


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path, monkeypatch):
    flushed = []

    def fsync(handle):
        flushed.append(handle)
        if len(flushed) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack, "os", SimpleNamespace(fsync=fsync))
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
        from refgba.errors import InputError
        from refgba.runs import pack
        from refgba.data.store import open_store
        out = Path(sys.argv[3])
        with pack.Writer(out, 16, "float32", 1000) as writer:
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
