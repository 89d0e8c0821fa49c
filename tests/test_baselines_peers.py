"""Codes, losses and gradients of the baselines are those of dictionary_learning, on the same arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from baseline_cases import CHOOSING, gradients, loss, random_case
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
@pytest.mark.parametrize("method", CHOOSING)
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
