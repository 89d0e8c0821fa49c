"""SAELens itself: it computes what our networks do from what we write, and we compute what its own do."""

from __future__ import annotations

import numpy as np
import pytest
from dictionaries import (
    CASES,
    NEAR,
    PROVENANCE,
    activations,
    agrees,
    network,
    topk,
    trained,
)
from engines import library, real

from refgba import baselines, gba
from refgba.config import BaselineConfig
from refgba.formats import export, read, saelens
from refgba.sae import unit_rows


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
@pytest.mark.parametrize("folded", [False, True], ids=["raw", "folded"])
@pytest.mark.parametrize("method", ["matryoshka", "gated"])
def test_saelens_computes_as_a_jumprelu_what_we_trained_otherwise(tmp_path, method, folded):
    torch, sae_lens = library("torch"), library("sae_lens")
    config = BaselineConfig(method=method, width=200, k=9, sparsity=0.05, lr=0.01, steps=200, batch=64)
    rows = activations(500, 24).astype("float64")
    x, state = unit_rows(rows), baselines.init(baselines.random_params(config, 24), config)
    for _ in gba.train(state, gba.minibatches(rows, config), baselines.step, baselines.adapt):
        pass
    export(state.params, config, PROVENANCE, tmp_path / "out", "saelens-folded" if folded else "saelens")
    loaded = sae_lens.SAE.load_from_disk(str(tmp_path / "out"))
    assert loaded.cfg.architecture() == "jumprelu"
    with torch.no_grad():
        codes = loaded.encode(torch.tensor(x if folded else rows)).numpy() / (1 if folded else np.sqrt(24))
    _, s = baselines.evaluation_codes(state.params, x, config)
    assert 2 < np.count_nonzero(s) / len(s) < 100
    np.testing.assert_allclose(codes, s, atol=1e-12 * s.max())


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
@pytest.mark.parametrize("normalisation", saelens.NORMALISATIONS)
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


@real
def test_rows_of_zeros_are_survived_where_rows_are_not_scaled(tmp_path):
    torch, sae_lens = library("torch"), library("sae_lens")
    params, config = network(M=50, d=8, dtype="float32")
    export(params, config, PROVENANCE, tmp_path / "out", "saelens-folded")
    loaded, ours = sae_lens.SAE.load_from_disk(str(tmp_path / "out")), read(tmp_path / "out")
    rows = np.vstack([unit_rows(activations(5, 8)), np.zeros((3, 8), np.float32)])
    with torch.no_grad():
        codes = loaded.encode(torch.tensor(rows))
        f = loaded.decode(codes).numpy()
    assert np.isfinite(f).all()
    _, s = ours.encode(rows)
    np.testing.assert_allclose(codes.numpy(), s, atol=1e-5)
    np.testing.assert_allclose(f, ours.decode(s), atol=1e-5)
