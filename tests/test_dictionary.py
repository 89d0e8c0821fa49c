"""A network as a `Dictionary`: the same gates, codes and reconstructions, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from dictionaries import (
    ACTIVATIONS,
    activations,
    network,
    topk,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from refgba import baselines, sae
from refgba.config import GBAConfig
from refgba.errors import InputError
from refgba.formats.dictionary import Input
from refgba.formats.trained import from_params
from refgba.sae import Params, unit_rows


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


def test_a_topk_has_no_thresholds_and_a_k_of_its_size():
    dictionary = from_params(*topk())
    with pytest.raises(InputError, match="k is 8, it should be from 1 to 7"):
        replace(dictionary, k=8)
    with pytest.raises(InputError, match=r"with thresholds there cannot be a k \(3\) too"):
        replace(dictionary, threshold=np.ones(7))


def test_layer_norm_of_one_dimension_is_refused():
    with pytest.raises(InputError, match="layer_norm needs at least 2 dimensions"):
        replace(from_params(*network(d=1)), input="layer_norm")


@pytest.mark.parametrize("subtract", [False, True])
def test_b_dec_is_taken_off_the_input_or_folded_into_b_enc(subtract):
    before = replace(from_params(*network()), subtract_b_dec=not subtract)
    after = before.subtracting(subtract)
    x = before.prepare(activations(50, 4))
    for ours, theirs in zip(after.encode(x), before.encode(x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)
    assert after.subtract_b_dec == subtract
    assert after.subtracting(subtract) is after
