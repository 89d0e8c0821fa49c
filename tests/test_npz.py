"""Our own format: exact, and no array is made that the file does not hold."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from dictionaries import (
    ACTIVATIONS,
    PROVENANCE,
    network,
    refused,
    same,
)

from refgba.errors import InputError
from refgba.formats import export, is_dictionary, npz, read
from refgba.formats.dictionary import ARRAYS, Input
from refgba.formats.trained import from_params


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_npz_is_exact(tmp_path, activation, untied, dtype):
    params, config = network(activation, untied, dtype)
    export(params, config, PROVENANCE, tmp_path / "out", "npz")
    assert is_dictionary(tmp_path / "out")
    same(read(tmp_path / "out"), from_params(params, config))
    about = json.loads((tmp_path / "out" / "dictionary.json").read_text())
    assert about == {"activation": activation, "subtract_b_dec": True, "input": "unit", "provenance": PROVENANCE}


@pytest.mark.parametrize("input", get_args(Input))
def test_any_dictionary_is_written_and_read_exactly_whatever_its_memory_order(tmp_path, input):
    ours = replace(from_params(*network(M=3, d=5)), input=input)
    strided = replace(ours, W_enc=np.asfortranarray(ours.W_enc), W_dec=np.repeat(ours.W_dec, 2, axis=1)[:, ::2])
    npz.write(strided, {}, tmp_path / "out")
    same(read(tmp_path / "out"), ours)


def test_an_array_in_fortran_order_is_read_as_it_is(tmp_path):
    ours = from_params(*network())
    npz.write(ours, {}, tmp_path / "out")
    np.savez(tmp_path / "out" / "dictionary.npz", **{n: np.asfortranarray(getattr(ours, n)) for n in ARRAYS})
    same(read(tmp_path / "out"), ours)


def save_arrays(folder, savez=np.savez, **instead):
    arrays = from_params(*network()).arrays() | instead
    savez(folder / "dictionary.npz", **{name: array for name, array in arrays.items() if array is not None})


@pytest.fixture
def exact(tmp_path):
    export(*network(), {}, tmp_path / "out", "npz")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ({"b_dec": None}, "dictionary.npz: b_dec is missing"),
        ({"b_dec": np.array([None, 1, 2, 3])}, "b_dec is not a plain array of float32 or float64"),
        ({"b_dec": np.ones(4, np.float16)}, "b_dec is not a plain array"),
        ({"b_dec": np.ones(4, ">f8")}, "b_dec is not a plain array"),
        ({"b_dec": np.ones(4, [("x", "<f8")])}, "b_dec is not a plain array"),
        ({"b_dec": np.ones((1, 1, 4))}, "b_dec is not a plain array"),
        ({"b_dec": np.ones(())}, "b_dec is not a plain array"),
        ({"W_enc": np.ones((0, 4))}, "W_enc is not a plain array"),
        ({"W_enc": np.ones(4)}, r"W_enc has shape \(4,\), it should be \(neurons, dimensions\)"),
        ({"b_dec": np.ones(5)}, r"b_dec has shape \(5,\), with this W_enc it should be \(4,\)"),
        ({"b_dec": np.ones(4, np.float32)}, "b_dec holds float32; all arrays should be float32, or all float64"),
        ({"b_dec": np.array([1, np.inf, 1, 1])}, "b_dec holds a NaN or an infinity"),
        ({"threshold": np.linspace(1, -0.2, 7)}, r"neuron 6 has the threshold -0.2 \(1 such neurons\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(exact, instead, message):
    save_arrays(exact, **instead)
    with pytest.raises(InputError, match=message):
        read(exact)


def test_a_compressed_archive_is_refused_before_it_is_opened_up(exact):
    save_arrays(exact, np.savez_compressed, W_enc=np.zeros((10**6, 4)))
    tracemalloc.start()
    assert "W_enc is compressed or larger than the file" in refused(exact)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def npy(shape, data=b"", order=False):
    header = f"{{'descr': '<f8', 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    "member", [npy((10**9, 10**9)), npy((7, 4), bytes(8 * 27)), npy((7, 4), bytes(8 * 29)), npy((10**17,), bytes(8))]
)
def test_a_header_that_promises_more_than_there_is_is_refused(exact, member):
    with zipfile.ZipFile(exact / "dictionary.npz", "w") as archive:
        archive.writestr("W_enc.npy", member)
    tracemalloc.start()
    assert "which do not agree" in refused(exact)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def test_a_member_that_says_it_is_larger_than_the_file_is_refused(exact):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("W_enc.npy", npy((7, 4), bytes(8 * 28)))
        archive.getinfo("W_enc.npy").file_size = archive.getinfo("W_enc.npy").compress_size = 2**31
    (exact / "dictionary.npz").write_bytes(file.getvalue())
    assert "W_enc is compressed or larger than the file" in refused(exact)


def test_a_header_is_never_parsed_as_python(exact):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"(" * 5000 + b"), }\n"
    with zipfile.ZipFile(exact / "dictionary.npz", "w") as archive:
        archive.writestr("W_enc.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    assert "W_enc is not a plain array" in refused(exact)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("input", "rms", "dictionary.json: input is 'rms'; supported are raw, unit, sqrt_d, layer_norm"),
        ("input", {}, "dictionary.json: input is a dict; supported are"),
        ("subtract_b_dec", "yes", "dictionary.json: subtract_b_dec should be true or false, not 'yes'"),
        ("subtract_b_dec", None, "dictionary.json: subtract_b_dec should be true or false, not missing"),
    ],
)
def test_wrong_settings_of_an_exact_dictionary_are_named(exact, field, value, message):
    about = json.loads((exact / "dictionary.json").read_text())
    (exact / "dictionary.json").write_text(json.dumps(about | {field: value}))
    assert message in refused(exact)
