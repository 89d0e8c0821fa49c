"""Dictionaries in the files of others: exact round trips, nothing believed, and the libraries themselves."""

from __future__ import annotations

import io
import json
import struct
import sys
import tempfile
import tracemalloc
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from engines import library, real
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from refgba import baselines, gba, recipe, sae
from refgba import formats as interop
from refgba.config import BaselineConfig, GBAConfig
from refgba.errors import InputError
from refgba.formats import ARRAYS, Dictionary, Input, export, from_params, is_dictionary, read, write_npz
from refgba.sae import Params, unit_rows

ACTIVATIONS = ["jumprelu", "relu"]
OURS = ["npz", "saelens", "saelens-folded"]  # formats that are read again
PROVENANCE = {"config": {"width": 7}, "refgba": "0.1.0", "data": {"sha256": "ab" * 32, "rows": 100}}


def network(activation="jumprelu", untied=False, dtype="float64", M=7, d=4, seed=0):
    rng = np.random.default_rng(seed)
    params = Params(
        W=unit_rows(rng.standard_normal((M, d))),
        a=rng.standard_normal(M),
        b=-rng.uniform(0, 0.5, M),
        b_pre=0.3 * rng.standard_normal(d),
        W_dec=unit_rows(rng.standard_normal((M, d))) if untied else None,
    )
    config = GBAConfig(width=M, groups=1, activation=activation, untied=untied, dtype=dtype)
    return params.astype(dtype), config


def topk(k=3, dtype="float64", M=7, d=4, seed=0):
    """A TopK network with biases and encoder rows of any norm."""
    rng = np.random.default_rng(seed)
    params = baselines.Params(
        W=rng.standard_normal((M, d)),
        b=0.1 * rng.standard_normal(M),
        b_pre=0.3 * rng.standard_normal(d),
        W_dec=unit_rows(rng.standard_normal((M, d))),
        theta=np.zeros(M),
    )
    return params.astype(dtype), BaselineConfig(method="topk", k=k, width=M, dtype=dtype)


def activations(L, d, seed=1):
    """Rows like a language model's: a few directions with most of the variance, a mean, norms of 2 to 900."""
    rng = np.random.default_rng(seed)
    V = unit_rows(rng.standard_normal((2 * d, d)))
    codes = rng.exponential(size=(L, 2 * d)) * (rng.random((L, 2 * d)) < 6 / d)
    spectrum = 3.0 * np.arange(1, d + 1) ** -0.5
    x = (codes @ V + 0.3 * rng.standard_normal((L, d))) * spectrum + 0.5 * rng.standard_normal(d)
    return (x * np.exp(rng.normal(2, 0.7, (L, 1)))).astype(np.float32)


@cache
def trained(activation, untied, dtype, d=32):
    """A network trained on `activations`, and rows it has not seen."""
    x = activations(8192, d)
    phases = {"form": 0.0, "hold": 1.0} if activation == "relu" else {}  # the recipe's two are made for JumpReLU
    network = {"activation": activation, "untied": untied, "dtype": dtype}
    config = recipe.default(d, width=256, steps=300, batch=256, groups=4, **network, **phases)
    state = gba.init(gba.random_params(config, d), config)
    for _ in gba.train(state, gba.minibatches(x[:4096], config)):
        pass
    return state.params, config, x[4096:]


def same(left, right):
    assert (left.subtract_b_dec, left.input, left.k) == (right.subtract_b_dec, right.input, right.k)
    for name in ARRAYS:
        a, b = getattr(left, name), getattr(right, name)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert (a == b).all(), name


def refused(path):
    """The one line with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- our own network as a dictionary ---------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    activation=st.sampled_from(ACTIVATIONS),
    untied=st.booleans(),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 6)),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_dictionary_is_the_network_gate_by_gate_and_to_the_last_bit(activation, untied, shape, seed):
    L, M, d = shape
    params, config = network(activation, untied, M=M, d=d, seed=seed)
    x = unit_rows(np.random.default_rng(seed).standard_normal((L, d)))
    y, on, s = sae.encode(params, x, activation)
    dictionary = from_params(params, config)
    margin, codes = dictionary.encode(x)
    assert ((margin > 0) == on).all()
    assert (margin == y).all()
    assert (codes == s).all()
    assert (dictionary.decode(codes) == sae.decode(params, s)).all()


def test_a_neuron_exactly_at_its_threshold_is_off():
    params = Params(W=np.eye(2), a=np.ones(2), b=np.array([-0.5, -0.0]), b_pre=np.zeros(2))
    dictionary = from_params(params, GBAConfig(width=2, groups=1))
    margin, codes = dictionary.encode(np.array([[0.5, 0.0], [0.75, 0.25]]))
    assert (margin > 0).tolist() == [[False, False], [True, True]]
    assert codes.tolist() == [[0, 0], [0.75, 0.25]]


def test_a_bias_of_minus_zero_is_a_threshold_of_plus_zero():
    params, config = network()
    params.b[:2] = 0.0, -0.0
    assert not np.signbit(from_params(params, config).threshold).any()


def test_a_positive_bias_is_refused_for_jumprelu_and_kept_for_relu():
    params, config = network()
    params.b[[2, 5]] = 0.25, 0.5
    with pytest.raises(InputError, match=r"neuron 2 has the bias 0.25 \(2 such neurons\)"):
        from_params(params, config)
    assert from_params(params, replace(config, activation="relu")).b_enc[5] == 0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("input", get_args(Input))
def test_everything_is_computed_in_the_dtype_of_the_arrays(dtype, input):
    dictionary = replace(from_params(*network(dtype=dtype)), input=input)
    x = dictionary.prepare(activations(5, 4).astype(np.float16))
    margin, codes = dictionary.encode(x)
    assert {x.dtype, margin.dtype, codes.dtype, dictionary.decode(codes).dtype} == {np.dtype(dtype)}


def test_rows_are_prepared_as_each_input_says():
    x, dictionary = np.array([[3.0, 0.0, 4.0, 0.0]]), from_params(*network())
    prepared = {input: replace(dictionary, input=input).prepare(x) for input in get_args(Input)}
    assert (prepared["raw"] == x).all()
    np.testing.assert_allclose(prepared["unit"], [[0.6, 0, 0.8, 0]])
    np.testing.assert_allclose(prepared["sqrt_d"], [[1.2, 0, 1.6, 0]])
    deviation = np.sqrt((1.25**2 + 1.75**2 + 2.25**2 + 1.75**2) / 3)  # n - 1
    np.testing.assert_allclose(prepared["layer_norm"], (x - 1.75) / (deviation + 1e-5))


@pytest.mark.parametrize("input", ["unit", "sqrt_d"])
def test_a_row_of_zeros_has_no_norm_to_be_scaled_to(input):
    with pytest.raises(InputError, match="row 1 is all zeros"):
        replace(from_params(*network()), input=input).prepare(np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]]))


# ---- written and read again ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("input", get_args(Input))
def test_any_dictionary_is_written_and_read_exactly_whatever_its_memory_order(tmp_path, input):
    ours = replace(from_params(*network(M=3, d=5)), input=input)
    strided = replace(ours, W_enc=np.asfortranarray(ours.W_enc), W_dec=np.repeat(ours.W_dec, 2, axis=1)[:, ::2])
    write_npz(strided, {}, tmp_path / "out")
    same(read(tmp_path / "out"), ours)


def test_an_array_in_fortran_order_is_read_as_it_is(tmp_path):
    ours = from_params(*network())
    write_npz(ours, {}, tmp_path / "out")
    np.savez(tmp_path / "out" / "dictionary.npz", **{n: np.asfortranarray(getattr(ours, n)) for n in ARRAYS})
    same(read(tmp_path / "out"), ours)


@pytest.mark.parametrize("format", ["saelens", "saelens-folded"])
def test_the_transposed_encoder_is_not_scrambled_on_disk(tmp_path, format):
    params, config = network(M=5, d=3)
    export(params, config, {}, tmp_path / "out", format)
    tensors = load_file(tmp_path / "out" / "sae_weights.safetensors")  # the library's own reader
    assert set(tensors) == set(ARRAYS)
    assert tensors["W_enc"].shape == (3, 5)
    assert (tensors["W_enc"] == params.W.T).all()
    assert (tensors["W_dec"] == params.a[:, None] * params.W).all()


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


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 6)),
    k=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_a_topk_dictionary_is_the_network_to_the_last_bit(shape, k, seed):
    L, M, d = shape
    params, config = topk(min(k, M), M=M, d=d, seed=seed)
    x = unit_rows(np.random.default_rng(seed + 1).standard_normal((L, d)))
    y, s = baselines.evaluation_codes(params, x, config)
    dictionary = from_params(params, config)
    margin, codes = dictionary.encode(x)
    assert (margin == y).all()
    assert (codes == s).all()
    assert ((margin > 0) == (codes > 0)).all()
    assert (dictionary.decode(codes) == baselines.decode(params, s)).all()


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


def test_a_topk_has_no_thresholds_and_a_k_of_its_size():
    dictionary = from_params(*topk())
    with pytest.raises(InputError, match="k is 8, it should be from 1 to 7"):
        replace(dictionary, k=8)
    with pytest.raises(InputError, match=r"with thresholds there cannot be a k \(3\) too"):
        replace(dictionary, threshold=np.ones(7))


# ---- where it is written ---------------------------------------------------------------------------------------------


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


def test_without_torch_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"written and read by torch .*: pip install 'refgba\[interop\]'"):
        export(*network(), {}, tmp_path / "out", "dictionary-learning")
    assert list(tmp_path.iterdir()) == []


# ---- nothing in a folder is believed ---------------------------------------------------------------------------------


def theirs(folder, cfg=None, drop=(), **tensors):
    """A folder of SAELens: of a jumprelu SAE, with these entries of cfg.json and tensors instead, some left out."""
    rng = np.random.default_rng(0)
    given = {
        "W_enc": rng.standard_normal((3, 5)).astype(np.float32),
        "b_enc": rng.standard_normal(5).astype(np.float32),
        "W_dec": rng.standard_normal((5, 3)).astype(np.float32),
        "b_dec": rng.standard_normal(3).astype(np.float32),
        "threshold": rng.random(5).astype(np.float32),
    } | tensors
    settings = {
        "architecture": "jumprelu",
        "d_in": 3,
        "d_sae": 5,
        "dtype": "float32",
        "metadata": {"sae_lens_version": "6.54.12"},
    } | (cfg or {})
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({name: v for name, v in settings.items() if name not in drop}))
    (folder / "sae_weights.safetensors").write_bytes(save({name: v for name, v in given.items() if name not in drop}))
    return given


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
    theirs(tmp_path, scaling_factor=np.ones(5, np.float32))
    read(tmp_path)


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


def test_layer_norm_of_one_dimension_is_refused():
    with pytest.raises(InputError, match="layer_norm needs at least 2 dimensions"):
        replace(from_params(*network(d=1)), input="layer_norm")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe{}", b"[]", b"null", b"[" * 100_000, b'{"d_in": ' + b"9" * 5000 + b"}", b'{"a":' * 10**5],
)
@pytest.mark.parametrize("name", ["cfg.json", "dictionary.json"])
def test_json_that_is_none_is_refused(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    assert f"{name}: " in refused(tmp_path)


def test_json_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "cfg.json").open("wb") as file:
        file.truncate(2**34)  # sparse
    assert "cfg.json: larger than 16,777,216 bytes" in refused(tmp_path)


def test_a_message_quotes_no_more_than_a_line_of_the_file(tmp_path):
    theirs(tmp_path, {"architecture": "x\n" * 10_000})
    assert len(refused(tmp_path)) < 200 + len(str(tmp_path))
    theirs(tmp_path, b_dec=np.zeros((1,) * 60, np.float32))
    assert len(refused(tmp_path)) < 200 + len(str(tmp_path))


def test_a_folder_that_is_no_dictionary_says_so(tmp_path):
    assert not is_dictionary(tmp_path)
    assert "neither dictionary.json nor SAELens' cfg.json" in refused(tmp_path)
    assert "neither" in refused(tmp_path / "missing")


@pytest.mark.parametrize("format", OURS)
def test_a_missing_file_is_named(tmp_path, format):
    export(*network(), {}, tmp_path / "out", format)
    name = interop.NPZ if format == "npz" else interop.WEIGHTS
    (tmp_path / "out" / name).unlink()
    assert f"{name}: no such file" in refused(tmp_path / "out")
    (tmp_path / "out" / name).mkdir()
    assert f"{name}: no such file" in refused(tmp_path / "out")


def npz(folder, savez=np.savez, **instead):
    arrays = interop._arrays(from_params(*network())) | instead
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
    npz(exact, **instead)
    with pytest.raises(InputError, match=message):
        read(exact)


def test_a_compressed_archive_is_refused_before_it_is_opened_up(exact):
    npz(exact, np.savez_compressed, W_enc=np.zeros((10**6, 4)))
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


# ---- the libraries themselves ----------------------------------------------------------------------------------------


def agrees(params, config, rows, codes, reconstructions, near):
    """Codes (L, M) and reconstructions (L, d) of unit rows are the network's: no gate flipped, 1e-4 apart at most.

    Rounding may flip a gate whose pre-activation is within `near` of 0.
    """
    y, on, s = sae.encode(params, unit_rows(rows.astype(params.W.dtype)), config.activation)
    f = sae.decode(params, s)
    flipped = (codes > 0) != on
    assert on.any()
    assert not flipped[np.abs(y) > near].any()
    off = np.abs(codes - s)[~flipped].max() / s.max(), np.abs(reconstructions - f).max() / np.abs(f).max()
    print(f"{flipped.sum()} of {on.size} gates flipped, L0 {on.sum() / len(on):.1f}; codes, rows apart: {off}")
    assert max(off) < 1e-4


CASES = [
    pytest.param(activation, untied, dtype, id=f"{activation}-{'untied' if untied else 'tied'}-{dtype}")
    for activation in ACTIVATIONS
    for untied in (False, True)
    for dtype in ("float32", "float64")
]
NEAR = {"float32": 2e-6, "float64": 1e-14}


@real
@pytest.mark.parametrize("unit", [False, True], ids=["raw rows", "unit rows"])
@pytest.mark.parametrize("folded", [False, True], ids=["", "folded"])
@pytest.mark.parametrize(("activation", "untied", "dtype"), CASES)
def test_saelens_computes_what_the_network_does(tmp_path, activation, untied, dtype, folded, unit):
    torch, sae_lens = library("torch"), library("sae_lens")
    params, config, rows = trained(activation, untied, dtype)
    export(params, config, PROVENANCE, tmp_path / "out", "saelens-folded" if folded else "saelens")
    loaded = sae_lens.SAE.load_from_disk(str(tmp_path / "out"))
    assert loaded.cfg.metadata.refgba == PROVENANCE
    assert loaded.W_enc.dtype == getattr(torch, dtype)
    rows = rows.astype(dtype)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if unit or folded:
        rows, norms = unit_rows(rows), 1
    with torch.no_grad():
        codes = loaded.encode(torch.tensor(rows))
        f = loaded.decode(codes).numpy()
    scale = 1 if folded else np.sqrt(rows.shape[1])
    agrees(params, config, rows, codes.numpy() / scale, f / norms, NEAR[dtype])


@real
@pytest.mark.parametrize(("activation", "untied", "dtype"), CASES)
def test_dictionary_learning_computes_what_the_network_does(tmp_path, activation, untied, dtype):
    torch, utils = library("torch"), library("dictionary_learning.utils")
    params, config, rows = trained(activation, untied, dtype)
    export(params, config, PROVENANCE, tmp_path / "out", "dictionary-learning")
    loaded, about = utils.load_dictionary(str(tmp_path / "out"), device="cpu")
    assert about["refgba"] == PROVENANCE
    assert not loaded.apply_b_dec_to_input
    with torch.no_grad():
        f, codes = loaded(torch.tensor(unit_rows(rows)), output_features=True)
    agrees(params, config, rows, codes.numpy(), f.numpy(), NEAR["float32"])  # it computes in float32 only
    assert is_dictionary(tmp_path / "out")
    ours = read(tmp_path / "out")
    for name, theirs in loaded.state_dict().items():
        array = getattr(ours, name)
        assert ((array.T if name == "W_enc" else array) == theirs.numpy()).all()
    assert (ours.input, ours.subtract_b_dec) == ("unit", False)
    for damaged in (b"", (tmp_path / "out" / "ae.pt").read_bytes()[:-100], b"cos\nsystem\n(S'true'\ntR."):
        (tmp_path / "out" / "ae.pt").write_bytes(damaged)
        assert "ae.pt: damaged, or not the weights of JumpReluAutoEncoder" in refused(tmp_path / "out")


@real
@pytest.mark.parametrize("folded", [False, True], ids=["raw", "folded"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saelens_computes_what_our_topk_does(tmp_path, dtype, folded):
    torch, sae_lens = library("torch"), library("sae_lens")
    params, config = topk(k=9, dtype=dtype, M=200, d=24)
    export(params, config, PROVENANCE, tmp_path / "out", "saelens-folded" if folded else "saelens")
    loaded = sae_lens.SAE.load_from_disk(str(tmp_path / "out"))
    assert (loaded.cfg.architecture(), loaded.cfg.k) == ("topk", 9)
    rows = activations(500, 24).astype(dtype)
    x = unit_rows(rows)
    with torch.no_grad():
        codes = loaded.encode(torch.tensor(x if folded else rows))
        f = loaded.decode(codes).numpy() / (1 if folded else np.linalg.norm(rows, axis=1, keepdims=True))
    _, s = baselines.evaluation_codes(params, x, config)
    scale, near = 1 if folded else np.sqrt(24), 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(codes.numpy() / scale, s, atol=near * s.max())
    np.testing.assert_allclose(f, baselines.decode(params, s), atol=10 * near)


@real
def test_dictionary_learning_computes_what_our_topk_does(tmp_path):
    torch, utils = library("torch"), library("dictionary_learning.utils")
    params, config = topk(k=9, dtype="float32", M=200, d=24)
    export(params, config, PROVENANCE, tmp_path / "out", "dictionary-learning")
    loaded, _ = utils.load_dictionary(str(tmp_path / "out"), device="cpu")
    x = unit_rows(activations(500, 24))
    with torch.no_grad():
        f, codes = loaded(torch.tensor(x), output_features=True)
    _, s = baselines.evaluation_codes(params, x, config)
    np.testing.assert_allclose(codes.numpy(), s, atol=1e-5 * s.max())
    np.testing.assert_allclose(f.numpy(), baselines.decode(params, s), atol=1e-4)
    same(read(tmp_path / "out"), from_params(params, config))
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    told["trainer"]["k"] = 8
    (tmp_path / "out" / "config.json").write_text(json.dumps(told))
    assert "its k is not 8, as config.json says" in refused(tmp_path / "out")


@real
@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("normalisation", ["none", "constant_norm_rescale"])
def test_a_topk_of_saelens_computes_what_saelens_does(tmp_path, normalisation, subtract, rescaled):
    torch, sae_lens = library("torch"), library("sae_lens")
    d, M, rng = 24, 160, np.random.default_rng(0)
    cfg = sae_lens.TopKSAEConfig(
        d, M, k=11, dtype="float64", apply_b_dec_to_input=subtract, normalize_activations=normalisation,
        rescale_acts_by_decoder_norm=rescaled,
    )  # fmt: skip
    theirs = sae_lens.TopKSAE(cfg)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            values = rng.standard_normal(tuple(parameter.shape))
            values *= np.exp(rng.standard_normal((M, 1))) if name == "W_dec" else 1  # rows of any norm
            parameter.copy_(torch.tensor(values))
    theirs.save_model(tmp_path / "out")
    ours, rows = read(tmp_path / "out"), activations(2000, d).astype("float64")
    with torch.no_grad():
        codes = theirs.encode(torch.tensor(rows))
        f = theirs.decode(codes).numpy()
    if normalisation == "constant_norm_rescale":  # SAELens gives rows back as they came
        f = f * np.sqrt(d) / np.linalg.norm(rows, axis=1, keepdims=True)
    margin, s = ours.encode(ours.prepare(rows))
    np.testing.assert_allclose(s, codes.numpy(), atol=1e-12 * s.max())
    assert ((margin > 0) == (codes.numpy() > 0)).all()
    np.testing.assert_allclose(ours.decode(s), f, atol=1e-11 * np.abs(f).max())


@real
@pytest.mark.parametrize("normalisation", interop.NORMALISATIONS)
@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_dictionary_of_saelens_computes_what_saelens_does(tmp_path, architecture, subtract, normalisation, dtype):
    torch, sae_lens = library("torch"), library("sae_lens")
    make = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig),
    }[architecture]
    d, M, rng = 24, 160, np.random.default_rng(0)
    theirs = make[0](make[1](d, M, dtype=dtype, apply_b_dec_to_input=subtract, normalize_activations=normalisation))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            values = rng.standard_normal(tuple(parameter.shape))
            values *= np.exp(rng.standard_normal((M, 1))) if name == "W_dec" else 1  # rows of any norm
            parameter.copy_(torch.tensor(np.abs(values) if name == "threshold" else values))
    theirs.save_model(tmp_path / "out")
    ours, rows = read(tmp_path / "out"), activations(2000, d).astype(dtype)
    with torch.no_grad():
        codes = theirs.encode(torch.tensor(rows))
        f = theirs.decode(codes).numpy()
    x = ours.prepare(rows)
    margin, s = ours.encode(x)
    if normalisation == "constant_norm_rescale":  # SAELens gives rows back as they came
        f = f * np.sqrt(d) / np.linalg.norm(rows, axis=1, keepdims=True)
    elif normalisation == "layer_norm":
        f = (f - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, ddof=1, keepdims=True)
    flipped = (margin > 0) != (codes.numpy() > 0)
    close = 1e-4 if dtype == "float32" else 1e-12
    assert not flipped[np.abs(margin) > close * np.abs(margin).max()].any()
    assert np.abs(s - codes.numpy())[~flipped].max() < close * s.max()
    assert np.abs(ours.decode(s) - f).max() < close * np.abs(f).max()
    print(f"{flipped.sum()} of {flipped.size} gates flipped", np.abs(ours.decode(s) - f).max() / np.abs(f).max())


@real
def test_bfloat16_weights_of_saelens_are_read(tmp_path):
    torch, sae_lens = library("torch"), library("sae_lens")
    made = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(6, 11, dtype="bfloat16"))
    made.save_model(tmp_path / "out")
    back = read(tmp_path / "out")
    for name, parameter in made.named_parameters():
        values = parameter.detach().to(torch.float32).numpy()
        assert (getattr(back, name) == (values.T if name == "W_enc" else values)).all()
