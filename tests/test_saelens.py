"""Folders of SAELens: written as the library names and turns its arrays, read only where we compute the same."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from dictionaries import (
    ACTIVATIONS,
    PROVENANCE,
    activations,
    network,
    refused,
    same,
    theirs,
)
from safetensors.numpy import load_file

from refgba.errors import InputError
from refgba.formats import export, is_dictionary, read, saelens
from refgba.formats.dictionary import ARRAYS, Input
from refgba.formats.trained import from_params

# ---- written ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("format", ["saelens", "saelens-folded"])
def test_what_is_written_for_saelens_is_read_back_exactly(tmp_path, format, activation, dtype):
    params, config = network(activation, True, dtype)
    export(params, config, PROVENANCE, tmp_path / "out", format)
    assert is_dictionary(tmp_path / "out")
    ours, back = from_params(params, config), read(tmp_path / "out")
    if format == "saelens":  # d = 4: √d is 2, and nothing is rounded
        scaled = {name: 2 * getattr(ours, name) for name in ("b_enc", "threshold", "b_dec")}
        same(back, replace(ours, **scaled, input="sqrt_d"))
    else:
        shift = params.b_pre.astype(np.float64) @ params.W.T.astype(np.float64)
        folded = replace(ours, b_enc=(ours.b_enc - shift).astype(dtype), subtract_b_dec=False)
        np.testing.assert_allclose(back.b_enc, folded.b_enc, rtol=1e-6)
        same(back, replace(folded, b_enc=back.b_enc))
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert cfg["metadata"]["refgba"] == PROVENANCE
    assert cfg["dtype"] == dtype


@pytest.mark.parametrize("format", ["saelens", "saelens-folded"])
def test_the_transposed_encoder_is_not_scrambled_on_disk(tmp_path, format):
    params, config = network(M=5, d=3)
    export(params, config, {}, tmp_path / "out", format)
    tensors = load_file(tmp_path / "out" / "sae_weights.safetensors")  # the library's own reader
    assert set(tensors) == set(ARRAYS)
    assert tensors["W_enc"].shape == (3, 5)
    assert (tensors["W_enc"] == params.W.T).all()
    assert (tensors["W_dec"] == params.a[:, None] * params.W).all()


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("input", get_args(Input))
def test_a_dictionary_for_any_rows_is_written_and_read_exactly(tmp_path, input, subtract):
    ours = replace(from_params(*network(M=3, d=5)), input=input, subtract_b_dec=subtract)
    saelens.write(ours, {}, tmp_path / "out")
    same(read(tmp_path / "out"), ours)


@pytest.mark.parametrize("format", ["saelens", "saelens-folded"])
def test_the_note_says_which_rows_to_leave_out(tmp_path, format):
    export(*network(), {}, tmp_path / "out", format)
    note = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]["refgba_note"]
    assert ("leave out rows of zeros" in note) == (format == "saelens")


# ---- read ------------------------------------------------------------------------------------------------------------


def test_a_jumprelu_sae_of_any_norms_is_read_as_it_is(tmp_path):
    given = theirs(tmp_path)
    back = read(tmp_path)
    assert (back.subtract_b_dec, back.input) == (True, "raw")  # SAELens' own defaults
    assert (back.W_enc == given["W_enc"].T).all()
    assert all((getattr(back, name) == given[name]).all() for name in ARRAYS[1:])


@pytest.mark.parametrize("drop", [("threshold",), ("threshold", "architecture", "metadata")])
def test_a_standard_sae_is_relu_and_before_version_6_the_default(tmp_path, drop):
    theirs(tmp_path, {"architecture": "standard", "normalize_activations": False, "activation_fn_str": "relu"}, drop)
    back = read(tmp_path)
    x = activations(50, 3)
    margin, codes = back.encode(x)
    z = (x - back.b_dec) @ back.W_enc.T + back.b_enc
    assert not back.threshold.any()
    assert (margin == z).all()
    assert (codes == np.maximum(z, 0)).all()


@pytest.mark.parametrize(
    ("named", "input"), [("none", "raw"), ("constant_norm_rescale", "sqrt_d"), ("layer_norm", "layer_norm")]
)
def test_each_normalisation_is_an_input(tmp_path, named, input):
    theirs(tmp_path, {"normalize_activations": named, "apply_b_dec_to_input": False})
    assert (read(tmp_path).input, read(tmp_path).subtract_b_dec) == (input, False)


def test_a_log_threshold_is_a_threshold(tmp_path):
    log = np.array([-3, -2, -1, 0, 1], np.float32)
    theirs(tmp_path, log_threshold=log, drop=("threshold",))
    np.testing.assert_allclose(read(tmp_path).threshold, np.exp(log), rtol=1e-6)


def test_a_scaling_factor_that_does_nothing_is_passed_over(tmp_path):
    theirs(tmp_path / "without")
    theirs(tmp_path / "with", scaling_factor=np.ones(5, np.float32))
    same(read(tmp_path / "with"), read(tmp_path / "without"))


@pytest.mark.parametrize(("dtype", "expected"), [("float64", "float64"), ("torch.bfloat16", "float32")])
def test_the_dtype_of_cfg_decides_and_16_bits_become_float32(tmp_path, dtype, expected):
    given = theirs(tmp_path, {"dtype": dtype}, W_enc=np.ones((3, 5), np.float16) / 3)
    back = read(tmp_path)
    assert back.W_enc.dtype == back.threshold.dtype == expected
    assert (back.W_enc == given["W_enc"].T).all()


def test_bfloat16_tensors_are_read(tmp_path):
    values = {"W_enc": [[1, -2.5]], "b_enc": [0.5, 3], "W_dec": [[1], [0.0078125]], "b_dec": [-8], "threshold": [0, 2]}
    header, data = {}, b""
    for name, value in values.items():
        array = np.array(value, np.float32)
        raw = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    theirs(tmp_path, {"d_in": 1, "d_sae": 2, "dtype": "bfloat16"})
    (tmp_path / "sae_weights.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    back = read(tmp_path)
    assert back.W_enc.tolist() == [[1], [-2.5]]
    assert all(getattr(back, name).tolist() == values[name] for name in ARRAYS[1:])


# ---- refused ---------------------------------------------------------------------------------------------------------


NAN = np.array([0, 0, np.nan, 0, 0], np.float32)


REFUSED = {
    "transcoder": (
        {"cfg": {"architecture": "transcoder"}},
        "architecture is 'transcoder'; supported are standard, jump",
    ),
    "topk without k": ({"cfg": {"architecture": "topk"}}, "k should be a whole number of at least 1, not missing"),
    "too many": ({"cfg": {"architecture": "topk", "k": 6}, "drop": ["threshold"]}, "k is 6, it should be from 1 to 5"),
    "two gates": ({"cfg": {"architecture": "topk", "k": 2}}, "holds 'threshold', which changes what the others mean"),
    "a norm": (
        {"cfg": {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": None}, "drop": ["threshold"]},
        "rescale_acts_by_decoder_norm should be true or false, not missing",
    ),
    "no norm": (
        {
            "cfg": {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True},
            "drop": ["threshold"],
            "W_dec": np.zeros((5, 3), np.float32),
        },
        "sae_weights.safetensors: row 0 is all zeros",
    ),
    "gated": ({"cfg": {"architecture": ["gated"]}}, "architecture is a list; supported are"),
    "old topk": ({"cfg": {"activation_fn_str": "topk"}}, "activation_fn_str is 'topk'; supported are relu"),
    "scaled": ({"cfg": {"normalize_activations": "expected_average_only_in"}}, "fold_activation_norm_scaling_factor"),
    "scaled before 6": ({"cfg": {"normalize_activations": True}}, "normalize_activations is expected_average_only_in"),
    "whitened": (
        {"cfg": {"normalize_activations": "covariance_whitening"}},
        "normalize_activations is 'covariance_whitening'; supported are none, constant_norm_rescale, layer_norm",
    ),
    "a dtype": ({"cfg": {"dtype": "int8"}}, "cfg.json: dtype is 'int8'; supported are float64"),
    "no dtype": ({"drop": ["dtype"]}, "cfg.json: dtype is missing"),
    "no d_in": ({"drop": ["d_in"]}, "cfg.json: d_in should be a whole number of at least 1, not missing"),
    "true neurons": ({"cfg": {"d_sae": True}}, "d_sae should be a whole number of at least 1, not True"),
    "no neurons": ({"cfg": {"d_sae": 0}}, "d_sae should be a whole number of at least 1, not 0"),
    "other neurons": ({"cfg": {"d_sae": 10**15}}, r"W_enc has shape \(3, 5\), by cfg.json it should be \(3, 1000"),
    "no bias": ({"cfg": {"apply_b_dec_to_input": 1}}, "apply_b_dec_to_input should be true or false, not 1"),
    "no tensor": ({"drop": ["W_dec"]}, "sae_weights.safetensors: W_dec is missing"),
    "transposed": ({"W_dec": np.ones((3, 5), np.float32)}, r"W_dec has shape \(3, 5\), .* should be \(5, 3\)"),
    "integers": ({"b_enc": np.ones(5, np.int32)}, "b_enc holds I32; it should hold one of F64, F32, F16, BF16"),
    "NaN": ({"b_enc": NAN}, "safetensors: b_enc holds a NaN or an infinity"),
    "past float32": ({"b_dec": np.full(3, 1e300)}, "b_dec holds a NaN or an infinity"),
    "negative": ({"threshold": np.arange(2, -3, -1, dtype=np.float32)}, r"neuron 3 has the threshold -1 \(2 such"),
    "one more": ({"r_mag": np.ones(5, np.float32)}, "holds 'r_mag', which changes what the others mean"),
    "scaling": ({"scaling_factor": 2 * np.ones(5, np.float32)}, "holds 'scaling_factor', which changes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_named(tmp_path, case):
    change, message = REFUSED[case]
    theirs(tmp_path, **change)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_json_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "cfg.json").open("wb") as file:
        file.truncate(2**34)  # sparse
    assert "cfg.json: larger than 16,777,216 bytes" in refused(tmp_path)


def test_a_message_quotes_no_more_than_a_line_of_the_file(tmp_path):
    theirs(tmp_path, {"architecture": "x\n" * 10_000})
    assert len(refused(tmp_path)) < 200 + len(str(tmp_path))
    theirs(tmp_path, b_dec=np.zeros((1,) * 60, np.float32))
    assert len(refused(tmp_path)) < 200 + len(str(tmp_path))
