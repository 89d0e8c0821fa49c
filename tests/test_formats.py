"""What holds of every format: networks are written and read again, nothing is overwritten, nothing is believed."""

from __future__ import annotations

import json
import struct
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from dictionaries import (
    ACTIVATIONS,
    OURS,
    PROVENANCE,
    activations,
    network,
    refused,
    same,
    theirs,
    topk,
    trained,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from refgba import sae
from refgba.errors import InputError
from refgba.formats import FORMATS, READERS, export, is_dictionary, read
from refgba.formats.dictionary import ARRAYS, Dictionary
from refgba.formats.trained import from_params
from refgba.sae import unit_rows

# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table_has_every_name_that_a_format_offers_and_every_format_reads():
    assert {name: FORMATS[name] for library in READERS for name in library.NAMES} == FORMATS
    assert set(READERS) == set(FORMATS.values())


# ---- written and read again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", OURS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_format_computes_what_the_network_does(tmp_path, format, activation, dtype):
    params, config, rows = trained(activation, True, dtype)
    export(params, config, {}, tmp_path / "out", format)
    back, x = read(tmp_path / "out"), unit_rows(rows.astype(dtype))
    y, on, s = sae.encode(params, x, activation)
    margin, codes = back.encode(back.prepare(rows))
    scale = np.sqrt(x.shape[1]) if format == "saelens" else 1
    near = 1e-5 if dtype == "float32" else 1e-13
    assert not ((margin > 0) != on)[np.abs(y) > near].any()
    agree = (margin > 0) == on
    np.testing.assert_allclose((codes / scale)[agree], s[agree], atol=near)
    np.testing.assert_allclose(back.decode(codes) / scale, sae.decode(params, s), atol=20 * near)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("format", OURS)
def test_topk_is_written_and_read_in_every_format(tmp_path, format, dtype):
    params, config = topk(dtype=dtype)
    export(params, config, PROVENANCE, tmp_path / "out", format)
    ours, back = from_params(params, config), read(tmp_path / "out")
    rows = activations(200, 4)
    (_, codes), (_, theirs) = (each.encode(each.prepare(rows)) for each in (ours, back))
    near = 1e-5 if dtype == "float32" else 1e-13
    scale = 2 if format == "saelens" else 1  # √d
    np.testing.assert_allclose(theirs / scale, codes, atol=near)
    np.testing.assert_allclose(back.decode(theirs) / scale, ours.decode(codes), atol=10 * near)
    assert ((theirs > 0).sum(axis=1) <= 3).all()
    if format == "npz":
        same(back, ours)
        about = json.loads((tmp_path / "out" / "dictionary.json").read_text())
        assert (about["activation"], about["k"]) == ("topk", 3)
    else:
        assert set(load_file(tmp_path / "out" / "sae_weights.safetensors")) == set(ARRAYS) - {"threshold"}


# ---- where a dictionary is written -----------------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path):
    params, config = network()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a folder"):
        export(params, config, {}, tmp_path / "file", "npz")
    with pytest.raises(InputError, match="is not empty; choose another folder"):
        export(params, config, {}, tmp_path / "full", "saelens")
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note.txt"]


def test_an_empty_folder_and_missing_parents_are_taken(tmp_path):
    params, config = network()
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a" / "b"):
        export(params, config, {}, out, "saelens")
        assert sorted(path.name for path in out.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
        assert [path for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file.out: cannot be written \(File exists\)"):
        export(*network(), {}, tmp_path / "file" / "out", "npz")


def test_nothing_is_left_of_a_neuron_that_cannot_be_written(tmp_path):
    params, config = network()
    params.b[0] = 1
    with pytest.raises(InputError, match="neuron 0 has the bias 1"):
        export(params, config, {}, tmp_path / "out", "saelens")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown format 'onnx'; the formats are saelens, saelens-folded, "):
        export(*network(), {}, tmp_path / "out", "onnx")


# ---- nothing in a folder is believed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe{}", b"[]", b"null", b"[" * 100_000, b'{"d_in": ' + b"9" * 5000 + b"}", b'{"a":' * 10**5],
)
@pytest.mark.parametrize("name", ["cfg.json", "dictionary.json"])
def test_json_that_is_none_is_refused(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    assert f"{name}: " in refused(tmp_path)


def test_a_folder_that_is_no_dictionary_says_so(tmp_path):
    assert not is_dictionary(tmp_path)
    assert "neither dictionary.json nor SAELens' cfg.json" in refused(tmp_path)
    assert "neither" in refused(tmp_path / "missing")


@pytest.mark.parametrize("format", OURS)
def test_a_missing_file_is_named(tmp_path, format):
    export(*network(), {}, tmp_path / "out", format)
    name = FORMATS[format].WEIGHTS
    (tmp_path / "out" / name).unlink()
    assert f"{name}: no such file" in refused(tmp_path / "out")
    (tmp_path / "out" / name).mkdir()
    assert f"{name}: no such file" in refused(tmp_path / "out")


@cache
def folders():
    """Small folders of every kind that is read, as bytes."""
    made = {}
    with tempfile.TemporaryDirectory() as name:
        for format in OURS:
            export(*network(M=3, d=2, dtype="float32"), PROVENANCE, Path(name) / format, format)
        theirs(Path(name) / "theirs", {"normalize_activations": "layer_norm"})
        theirs(
            Path(name) / "topk", {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True}, ["threshold"]
        )
        for folder in Path(name).iterdir():
            made[folder.name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return made


def read_bytes(files):
    """What `read` makes of files: a sound dictionary or one line, and nothing else."""
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            (Path(name) / file).write_bytes(data)
        try:
            made = read(Path(name))
        except InputError as error:
            made = str(error)
    if isinstance(made, str):
        assert "\n" not in made
    else:
        assert isinstance(made, Dictionary)
        assert all(np.isfinite(getattr(made, array)).all() for array in ARRAYS)


edits = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["set", "insert", "cut", "end"]), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200)
@given(kind=st.sampled_from([*OURS, "theirs", "topk"]), file=st.integers(0, 1), edits=edits)
@example(kind="npz", file=0, edits=[(0.0, "end", b"x")])
@example(kind="saelens", file=1, edits=[(0.0, "set", b"\xff" * 8)])
def test_damaged_bytes_are_read_or_refused_in_one_line(kind, file, edits):
    files = dict(folders()[kind])
    name = sorted(files)[file]
    data = files[name]
    for where, what, value in edits:
        at = int(where * len(data))
        before, after = data[:at], data[at:]
        data = {
            "set": before + value + after[len(value) :],
            "insert": before + value + after,
            "cut": before + after[len(value) :],
            "end": before,
        }[what]
    read_bytes(files | {name: data})


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["BF16", "standard"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=3,
)


@settings(max_examples=100)
@given(kind=st.sampled_from([*OURS, "theirs", "topk"]), field=st.integers(0, 6), value=anything)
def test_a_field_may_hold_anything(kind, field, value):
    files = dict(folders()[kind])
    name = "dictionary.json" if kind == "npz" else "cfg.json"
    about = json.loads(files[name])
    about[sorted(about)[field % len(about)]] = value
    read_bytes(files | {name: json.dumps(about).encode()})


@settings(max_examples=60)
@given(name=st.sampled_from(ARRAYS), field=st.sampled_from(["dtype", "shape", "data_offsets"]), value=anything)
def test_a_safetensors_header_may_lie(name, field, value):
    files = dict(folders()["theirs"])
    data = files["sae_weights.safetensors"]
    stop = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:stop])
    header[name][field] = value
    text = json.dumps(header).encode()
    read_bytes(files | {"sae_weights.safetensors": struct.pack("<Q", len(text)) + text + data[stop:]})
