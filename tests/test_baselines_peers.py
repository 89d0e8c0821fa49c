"""Codes, losses and gradients of the baselines are those of dictionary_learning, on the same arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from baseline_cases import gradients, loss, random_case
from engines import library, real

from refgba.baselines import forward
from refgba.baselines.auxk import auxiliary


def loaded(network, **arrays):
    """A torch network in float64, with these arrays as its parameters."""
    torch = library("torch")
    network.double()
    parameters = dict(network.named_parameters())
    assert set(parameters) == {name.replace("__", ".") for name in arrays}
    with torch.no_grad():
        for name, array in arrays.items():
            parameters[name.replace("__", ".")].copy_(torch.tensor(array))
    return network, {name.replace(".", "__"): parameter for name, parameter in parameters.items()}


@real
@pytest.mark.parametrize("method", ["topk", "batchtopk"])
def test_topk_and_its_gradients_are_those_of_dictionary_learning(method):
    torch = library("torch")
    name = {
        "topk": ("top_k", "AutoEncoderTopK", "TopKTrainer"),
        "batchtopk": (
            "batch_top_k",
            "BatchTopKSAE",
        ),
    }[method]
    module = library(f"dictionary_learning.trainers.{name[0]}")
    config, params, x, _ = random_case(method, 12, 6, 20, 3)
    config = replace(config, k=3, aux_k=0, aux=1 / 32)
    network, theirs = loaded(
        getattr(module, name[1])(6, 20, 3),
        encoder__weight=params.W, encoder__bias=params.b, decoder__weight=params.W_dec.T, b_dec=params.b_pre,
    )  # fmt: skip
    rows = torch.tensor(x)
    codes = network.encode(rows, **{"use_threshold": False})
    f = network.decode(codes)
    fwd = forward(params, x, config)
    assert ((codes.detach().numpy() > 0) == fwd.on).all()
    np.testing.assert_allclose(codes.detach().numpy(), fwd.s, atol=1e-14)
    np.testing.assert_allclose(f.detach().numpy(), fwd.f, atol=1e-13)

    dead = ~fwd.on.any(axis=0) | (np.arange(20) < 4)
    trainer_class = getattr(module, "TopKTrainer" if method == "topk" else "BatchTopKTrainer")
    trainer = trainer_class(steps=2000, activation_dim=6, dict_size=20, k=3, layer=0, lm_name="none", device="cpu")
    trainer.ae = network
    trainer.num_tokens_since_fired = torch.tensor(np.where(dead, trainer.dead_feature_threshold, 0))
    positive = torch.relu(network.encoder(rows - network.b_dec))
    theirs_aux = trainer.get_auxiliary_loss((rows - f).detach(), positive)
    aux = auxiliary(x, fwd, config, dead)
    found = loss(params, x, fwd, config, aux)
    assert trainer.top_k_aux == 3
    assert found.penalty == pytest.approx(theirs_aux.item() / 32 / 2, rel=1e-5)  # it computes AuxK in float32

    total = (rows - f).pow(2).sum(dim=-1).mean() + trainer.auxk_alpha * theirs_aux
    (total / 2).backward()
    g = gradients(params, x, fwd, config, aux)
    ours = {"encoder__weight": g.W, "encoder__bias": g.b, "decoder__weight": g.W_dec.T, "b_dec": g.b_pre}
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.grad.numpy(), rtol=1e-5, atol=1e-7, err_msg=name)


@real
def test_jumprelu_and_its_gradients_are_those_of_dictionary_learning():
    torch = library("torch")
    module, dictionary = library("dictionary_learning.trainers.jumprelu"), library("dictionary_learning.dictionary")
    config, params, x, _ = random_case("jumprelu", 12, 6, 20, 3)
    config = replace(config, bandwidth=1.0)
    network, theirs = loaded(
        dictionary.JumpReluAutoEncoder(6, 20),
        W_enc=params.W.T, b_enc=params.b, W_dec=params.W_dec, b_dec=params.b_pre, threshold=params.theta,
    )  # fmt: skip
    network.apply_b_dec_to_input = True
    rows, fwd = torch.tensor(x), forward(params, x, config)
    f, codes = network(rows, output_features=True)
    assert ((codes.detach().numpy() > 0) == fwd.on).all()
    np.testing.assert_allclose(f.detach().numpy(), fwd.f, atol=1e-13)
    # Its straight-through functions, its L0 term on pre-activations as the paper has it, and not on codes.
    z = (rows - network.b_dec) @ network.W_enc + network.b_enc
    s = module.JumpReLUFunction.apply(z, network.threshold, config.bandwidth)
    active = module.StepFunction.apply(z, network.threshold, config.bandwidth).sum(dim=-1).mean()
    total = (rows - network.decode(s)).pow(2).sum(dim=-1).mean() / 2 + config.sparsity * active
    total.backward()
    assert total.item() == pytest.approx(loss(params, x, fwd, config).total, rel=1e-7)  # L0 in float32
    g = gradients(params, x, fwd, config)
    assert np.count_nonzero(g.theta) > 10
    ours = {"W_enc": g.W.T, "b_enc": g.b, "W_dec": g.W_dec, "b_dec": g.b_pre, "threshold": g.theta}
    for name, parameter in theirs.items():  # it keeps the bandwidth in float32
        np.testing.assert_allclose(ours[name], parameter.grad.numpy(), rtol=1e-6, atol=1e-12, err_msg=name)


@real
def test_matryoshka_and_its_gradients_are_those_of_dictionary_learning():
    torch, module = library("torch"), library("dictionary_learning.trainers.matryoshka_batch_top_k")
    config, params, x, _ = random_case("matryoshka", 12, 6, 20, 3)
    config = replace(config, k=3, aux_k=0, aux=1 / 32)
    sizes = np.diff([0, *config.ends()]).tolist()
    assert sizes == [5, 5, 10]
    trainer = module.MatryoshkaBatchTopKTrainer(
        steps=2000, activation_dim=6, dict_size=20, k=3, layer=0, lm_name="none", device="cpu",
        group_fractions=[size / 20 for size in sizes], group_weights=[3.0] * 3,  # it takes the mean, we the sum
    )  # fmt: skip
    network, theirs = loaded(trainer.ae, W_enc=params.W.T, b_enc=params.b, W_dec=params.W_dec, b_dec=params.b_pre)
    rows, fwd = torch.tensor(x), forward(params, x, config)
    np.testing.assert_allclose(network.encode(rows, use_threshold=False).detach().numpy(), fwd.s, atol=1e-14)
    silent = np.arange(20) < 14  # before this batch, in which some of them fire
    trainer.num_tokens_since_fired = torch.tensor(np.where(silent, trainer.dead_feature_threshold, 0))
    aux = auxiliary(x, fwd, config, silent & ~fwd.on.any(axis=0))
    assert 0 < len(aux.dead) < 14
    total = trainer.loss(rows, step=0) / 2
    assert loss(params, x, fwd, config, aux).total == pytest.approx(total.item(), rel=1e-6)  # AuxK in float32
    total.backward()
    g = gradients(params, x, fwd, config, aux)
    ours = {"W_enc": g.W.T, "b_enc": g.b, "W_dec": g.W_dec, "b_dec": g.b_pre}
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.grad.numpy(), rtol=1e-5, atol=1e-7, err_msg=name)


@real
def test_gated_and_its_gradients_are_those_of_dictionary_learning():
    torch, module = library("torch"), library("dictionary_learning.trainers.gdm")
    config, params, x, _ = random_case("gated", 12, 6, 20, 3)
    config = replace(config, sparsity=0.25)
    trainer = module.GatedSAETrainer(
        steps=2000, activation_dim=6, dict_size=20, l1_penalty=0.5, sparsity_warmup_steps=0, layer=0, lm_name="none",
        device="cpu",
    )  # fmt: skip
    network, theirs = loaded(
        trainer.ae, encoder__weight=params.W, gate_bias=params.b, decoder__weight=params.W_dec.T,
        decoder_bias=params.b_pre, r_mag=params.r_mag, mag_bias=params.b_mag,
    )  # fmt: skip
    rows, fwd = torch.tensor(x), forward(params, x, config)
    np.testing.assert_allclose(network.encode(rows).detach().numpy(), fwd.s, atol=1e-13)
    total = trainer.loss(rows, step=0) / 2  # without our factor 1/2, λ is half of what it is there
    assert loss(params, x, fwd, config).total == pytest.approx(total.item(), rel=1e-12)
    total.backward()
    g = gradients(params, x, fwd, config)
    ours = {
        "encoder__weight": g.W, "gate_bias": g.b, "decoder__weight": g.W_dec.T, "decoder_bias": g.b_pre,
        "r_mag": g.r_mag, "mag_bias": g.b_mag,
    }  # fmt: skip
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.grad.numpy(), atol=1e-12, err_msg=name)
