"""Dictionaries of Gemma Scope and sparsify, which are read and not written: by hand, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from refgba.errors import InputError
from refgba.formats import bring, is_dictionary, read
from refgba.runs import judging

GEMMA = {
    "W_enc": np.array([[1, 0, 1], [0, 1, 1]], np.float32),  # (d, M)
    "b_enc": np.array([0, 0, -1], np.float32),
    "threshold": np.array([1, 0.5, -2], np.float32),
    "W_dec": np.array([[1, 0], [0, 1], [0.5, 0.5]], np.float32),
    "b_dec": np.array([10, 20], np.float32),
}
CFG = {"activation": "topk", "expansion_factor": 2, "num_latents": 0, "k": 1, "d_in": 2, "transcode": False}
SPARSIFY = {
    "encoder.weight": np.array([[1, 0], [0, 1], [1, 1], [-1, 0]], np.float32),
    "encoder.bias": np.array([0, 0, -2.5, 0], np.float32),
    "W_dec": np.array([[1, 0], [0, 1], [1, 1], [-1, 0]], np.float32),
    "b_dec": np.array([1, 1], np.float32),
}


def sparsify(path, cfg=CFG, arrays=SPARSIFY):
    path.mkdir()
    (path / "cfg.json").write_text(json.dumps(cfg))
    save_file(arrays, path / "sae.safetensors")
    return path


@pytest.mark.parametrize("folder", [True, False])
def test_gemma_scope_by_hand(tmp_path, folder):
    path = tmp_path / "scope" if folder else tmp_path / "any name.npz"
    if folder:
        path.mkdir()
    np.savez(path / "params.npz" if folder else path, **GEMMA)
    assert is_dictionary(path)
    dictionary = read(path)
    assert (dictionary.input, dictionary.k, dictionary.subtract_b_dec) == ("raw", None, False)
    x = np.array([[3, 0.5], [1, 2], [-1, 1.5]], np.float32)  # z: 3, .5, 2.5; 1, 2, 2; -1, 1.5, -.5
    _, codes = dictionary.encode(dictionary.prepare(x))
    np.testing.assert_array_equal(codes, [[3, 0, 2.5], [0, 2, 2], [0, 1.5, 0]])  # at a threshold: off; under 0: off
    np.testing.assert_array_equal(dictionary.decode(codes)[0], [14.25, 21.25])
    np.testing.assert_array_equal(bring(path).W_enc, dictionary.W_enc)
    np.save(tmp_path / "x.npy", x)
    assert judging.judge(path, tmp_path / "x.npy").result["l0"] == 5 / 3


def test_sparsify_by_hand(tmp_path):
    path = sparsify(tmp_path / "coder")
    assert is_dictionary(path)
    dictionary = read(path)
    assert (dictionary.input, dictionary.k, dictionary.subtract_b_dec) == ("raw", 1, True)
    x = np.array([[4, 3], [1, 1], [0, 1]], np.float32)
    # less b_dec (3, 2), (0, 0), (-1, 0), and so z: 3, 2, 2.5, -3; 0, 0, -2.5, 0; -1, 0, -3.5, 1
    _, codes = dictionary.encode(dictionary.prepare(x))
    np.testing.assert_array_equal(codes, [[3, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(dictionary.decode(codes), [[4, 1], [1, 1], [0, 1]])


def test_sparsify_may_name_its_latents(tmp_path):
    assert len(read(sparsify(tmp_path / "coder", CFG | {"num_latents": 4, "expansion_factor": 32})).W_enc) == 4


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"transcode": True}, "cfg.json: transcode is true, which is not supported"),
        ({"skip_connection": True}, "skip_connection is true"),
        ({"activation": "groupmax"}, "activation is 'groupmax'; supported are topk"),
        ({"k": 0}, "k should be a whole number of at least 1"),
        ({"d_in": None}, "d_in should be a whole number of at least 1, not missing"),
        ({"num_latents": 5}, r"encoder.weight has shape \(4, 2\), by cfg.json it should be \(5, 2\)"),
        ({"k": 9}, "k is 9, it should be from 1 to 4"),
    ],
)
def test_a_coder_that_would_mean_something_else_is_refused(tmp_path, change, complaint):
    with pytest.raises(InputError, match=complaint):
        read(sparsify(tmp_path / "coder", CFG | change))


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({k: v for k, v in SPARSIFY.items() if k != "W_dec"}, "W_dec is missing"),
        (SPARSIFY | {"W_skip": np.zeros((2, 2), np.float32)}, "holds 'W_skip', which changes what the others mean"),
        (SPARSIFY | {"b_dec": np.zeros(2, np.int32)}, "b_dec holds I32"),
        (SPARSIFY | {"b_dec": np.array([np.nan, 0], np.float32)}, "b_dec holds a NaN"),
    ],
)
def test_arrays_of_a_coder_that_cannot_be_right_are_refused(tmp_path, arrays, complaint):
    with pytest.raises(InputError, match=rf"sae.safetensors: {complaint}"):
        read(sparsify(tmp_path / "coder", CFG, arrays))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"b_enc": np.zeros(2, np.float32)}, r"b_enc has shape \(2,\)"),
        ({"W_enc": np.zeros(3, np.float32)}, r"W_enc has shape \(3,\), it should be \(dimensions, neurons\)"),
        ({"W_dec": np.array([object()])}, "W_dec is not a plain array"),
        ({"b_dec": np.array([np.inf, 0], np.float32)}, "b_dec holds a NaN or an infinity"),
    ],
)
def test_arrays_of_gemma_scope_that_cannot_be_right_are_refused(tmp_path, change, complaint):
    (tmp_path / "scope").mkdir()
    np.savez(tmp_path / "scope" / "params.npz", **GEMMA | change)
    with pytest.raises(InputError, match=rf"params.npz: .*{complaint}"):
        read(tmp_path / "scope")


def test_damaged_files_are_refused(tmp_path):
    path = sparsify(tmp_path / "coder")
    (path / "sae.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match=r"sae.safetensors: damaged or cannot be read"):
        read(path)
    (tmp_path / "params.npz").write_bytes(b"PK no archive")
    assert not is_dictionary(tmp_path / "params.npz")
    with pytest.raises(InputError, match=r"params.npz: damaged"):
        read(tmp_path)
