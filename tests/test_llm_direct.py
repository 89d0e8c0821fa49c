"""Direct effects: what neurons do to logits through the residual stream alone, beside what the model itself does."""

from __future__ import annotations

import llm_models
import numpy as np
import pytest
from commands import last_json
from llm_models import CAUSAL, SITES, TEXT, D, dictionary, llm, needs, tokenizer

from refgba.formats import npz

models, corpus = llm_models.models, llm_models.corpus  # fixtures
SIZES = {"hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
ATTENTION = {
    "qwen2": "model.layers.1.self_attn",
    "gpt2": "transformer.h.1.attn",
    "gpt_neox": "gpt_neox.layers.1.attention",
}


def batch(model):
    """The beginning of a text: ids and mask."""
    torch, _ = needs()
    part = [*model.tokenizer.prefix, *model.tokenizer(TEXT[1])[0].tolist()][:12]
    return torch.tensor([part]), torch.ones((1, len(part)), dtype=torch.int64)


def save(folder, model, kind):
    """A model of another class, with random weights, and the tokenizer of one of `KINDS`."""
    torch, _ = needs()
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * (0.15 if weight.ndim > 1 else 0.02))
    model.save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder


@pytest.fixture
def any_model(models, tmp_path):
    """A model of one of `KINDS` or of another class, opened."""
    _, transformers = needs()
    from refgba.llm.models import open_model

    def opened(kind):
        ends = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
        made = {
            "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
                transformers.GPTNeoXConfig(vocab_size=300, max_position_embeddings=64, eos_token_id=0, **SIZES)
            ),
            "modernbert": lambda: transformers.ModernBertForMaskedLM(
                transformers.ModernBertConfig(vocab_size=120, max_position_embeddings=64, **ends, **SIZES)
            ),
            "gpt1": lambda: transformers.OpenAIGPTLMHeadModel(
                transformers.OpenAIGPTConfig(vocab_size=300, n_embd=D, n_layer=2, n_head=2, n_positions=64)
            ),
            "causal bert": lambda: transformers.BertLMHeadModel(
                transformers.BertConfig(vocab_size=120, max_position_embeddings=64, is_decoder=True, **SIZES)
            ),
        }
        folder = (
            save(tmp_path / kind, made[kind](), "bert" if "bert" in kind else "gpt2") if kind in made else models(kind)
        )
        return open_model(str(folder), device="cpu")

    return opened


def measured(model, site, v, held=None):
    """Mean change of the logits, per unit, if a little of v is added at a site; held: a module that does not answer."""
    torch, _ = needs()
    from refgba.llm import sites

    model.module.double()
    ids, mask = batch(model)
    logits, kept = {}, {}

    def answer(x):
        return kept.setdefault("answer", x.clone())

    with torch.inference_mode():
        for size in (0.0, 1e-4):
            small = torch.from_numpy(size * v).double()
            with sites.editing(model.module, site, "output", lambda x, small=small: x + small):
                if held is None:
                    logits[size] = model.forward(ids, mask).logits
                else:
                    with sites.editing(model.module, held, "output", answer):
                        logits[size] = model.forward(ids, mask).logits
    change = ((logits[1e-4] - logits[0.0]) / 1e-4).mean(dim=(0, 1))
    return (change - change.mean()).numpy()


@llm
@pytest.mark.parametrize("kind", [*CAUSAL, "gpt_neox"])
def test_direct_effects_go_with_those_of_small_steering_in_the_last_layer(any_model, kind):
    from refgba.llm.unembedding import Unembedding

    model = any_model(kind)
    for site in [SITES.get(kind, "gpt_neox.layers.1.mlp"), *([ATTENTION[kind]] if kind in ATTENTION else [])]:
        direct = Unembedding(model, site, "output", D)
        assert direct.why_not is None
        # GPT-NeoX adds attention and MLP side by side; elsewhere the MLP reads what attention wrote, and is held still.
        held = site.replace("self_attn", "mlp").replace(".attn", ".mlp") if site == ATTENTION.get(kind) else None
        for v in dictionary().W_enc[:4]:
            effect, change = direct.effects(v).numpy(), measured(model, site, v, held if held != site else None)
            assert np.corrcoef(effect, change)[0, 1] > 0.9
        model.module.float()


@llm
@pytest.mark.parametrize("kind", ["bert", "modernbert", "causal bert"])
def test_there_are_none_where_the_head_changes_the_stream_before_the_unembedding(any_model, kind):
    from refgba.llm.unembedding import Unembedding

    model = any_model(kind)
    layers = "model.layers" if kind == "modernbert" else "bert.encoder.layer"
    for site in (f"{layers}.0", f"{layers}.1", f"{layers}.1.mlp" if kind == "modernbert" else f"{layers}.1.output"):
        why_not = Unembedding(model, site, "output", D).why_not
        assert f"what {site} puts out does not come to the unembedding as it is" in why_not
        assert ("the head of a masked model" in why_not) is (kind != "causal bert")


@llm
def test_there_are_none_of_what_the_stream_never_sees(models):
    from refgba.llm.models import open_model
    from refgba.llm.unembedding import Unembedding

    def why_not(kind, site, of="output", d=D):
        return Unembedding(open_model(str(models(kind)), device="cpu"), site, of, d).why_not

    assert "puts out does not come to the unembedding" in why_not("gemma2", "model.layers.1.mlp")
    assert why_not("gemma2", "model.layers.1.post_attention_layernorm") is None
    assert "added to the input of transformer.h.1.mlp does not come" in why_not("gpt2", "transformer.h.1.mlp", "input")
    assert why_not("gpt2", "transformer.h.1", "input") is None
    assert why_not("gpt2", "transformer.ln_f", "input") is None
    assert "does not come" in why_not("gpt2", "transformer.h.1.ln_2")
    assert why_not("gemma2", "model.layers.1.mlp.up_proj", d=24) == "rows have d = 24, the unembedding 16"


@llm
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_what_arrives_is_seen_in_16_bits_too(models, kind, dtype):
    from refgba.llm.models import open_model
    from refgba.llm.unembedding import Unembedding

    model = open_model(str(models(kind)), dtype, "cpu")
    assert Unembedding(model, SITES[kind], "output", D).why_not is None
    read = "transformer.h.1.ln_2" if kind == "gpt2" else "model.layers.1.input_layernorm"
    assert Unembedding(model, read, "output", D).why_not is not None


@llm
@pytest.mark.parametrize(
    ("kind", "site", "of"),
    [
        ("gpt1", "transformer.h.1", "output"),  # which ends in its own norm, and none comes after it
        ("gpt1", "transformer.h.1.ln_2", "output"),
        ("gpt2", "transformer.ln_f", "output"),
        ("gemma2", "lm_head", "input"),
    ],
)
def test_behind_the_last_norm_they_are_the_unembedding_alone(any_model, kind, site, of):
    from refgba.llm.unembedding import Unembedding

    model = any_model(kind)
    direct = Unembedding(model, site, of, D)
    assert direct.why_not is None
    for v in dictionary().W_enc[:4]:
        expected = model.head().weight.detach().numpy() @ v
        assert np.allclose(direct.effects(v).numpy(), expected - expected.mean(), atol=1e-5)
        if of == "output" and kind != "gemma2":
            assert np.allclose(measured(model, site, v), expected - expected.mean(), atol=1e-3)  # exactly so
            model.module.float()


@llm
def test_a_model_without_a_final_norm_acts_through_that_of_its_last_block(any_model):
    from refgba.llm.unembedding import Unembedding

    model = any_model("gpt1")
    direct = Unembedding(model, "transformer.h.1.mlp", "output", D)
    assert direct.why_not is None
    assert direct.centred
    for v in dictionary().W_enc[:4]:
        assert np.corrcoef(direct.effects(v).numpy(), measured(model, "transformer.h.1.mlp", v))[0, 1] > 0.9
        model.module.float()
    for site in ("transformer.h.0", "transformer.h.1.attn", "transformer.h.0.mlp"):  # norms of blocks come after these
        assert "does not come to the unembedding" in Unembedding(model, site, "output", D).why_not


@llm
def test_effects_of_a_masked_model_say_why_there_are_no_direct_ones(cli, models, corpus, tmp_path):
    npz.write(dictionary(), {}, tmp_path / "net")
    flags = ["--site", SITES["bert"], "--text", corpus, "--neuron", "1", "--strength", "1"]
    result = last_json(cli("llm", "effects", tmp_path / "net", models("bert"), *flags, "--json"))
    assert "does not come to the unembedding as it is" in result["direct"]
    assert result["effects"][0]["direct"] is None
    assert result["effects"][0]["ablated_kl"] > 0
    assert result["effects"][0]["ablated_loss"] is None  # it reads the tokens that it would predict
    shown = cli("llm", "effects", tmp_path / "net", models("bert"), *flags)
    assert "no direct effects: " in shown.stderr
    assert "loss" not in shown.stdout


@llm
def test_direct_effects_are_those_of_an_edit_that_goes_straight_to_the_end(models):
    torch, _ = needs()
    from refgba.llm import sites
    from refgba.llm.models import open_model
    from refgba.llm.unembedding import Ending, Unembedding

    for kind in CAUSAL:
        model = open_model(str(models(kind)), device="cpu")
        direct = Unembedding(model, SITES[kind], "output", llm_models.D)
        assert direct.why_not is None
        norm = {"qwen2": "model.norm", "gpt2": "transformer.ln_f", "gemma2": "model.norm"}[kind]
        weight = model.module.get_submodule(norm).weight.detach()
        expected = 1 + weight if kind == "gemma2" else weight
        scale, centred = Ending(model).scale()
        assert torch.allclose(scale, expected, atol=1e-3)
        assert centred is (kind == "gpt2")
        v = dictionary().W_enc[0]
        effect = direct.effects(v)
        assert torch.allclose(effect.mean(), torch.tensor(0.0), atol=1e-5)
        ids, mask = batch(model)
        with torch.inference_mode(), sites.capturing(model.module, [norm], "input") as seen:
            model.forward(ids, mask)
        x = seen[norm][0][0, -1]
        norms = model.module.get_submodule(norm)
        small = 1e-2 * torch.from_numpy(v).float() * x.norm()
        size = x.norm() / np.sqrt(len(x)) if kind != "gpt2" else x.std(correction=0)
        shift = small - small.mean() if kind == "gpt2" else small
        head = model.head().weight
        moved = (norms((x + small)[None, None]) - norms((x - small)[None, None]))[0, 0] / 2
        moved = head @ moved / (1e-2 * x.norm()) * size
        along = x - x.mean() if kind == "gpt2" else x  # the norm also shrinks what was there
        moved = moved + head @ (scale * along) * (along @ shift) / (along @ along) / (1e-2 * x.norm())
        assert torch.allclose(moved - moved.mean(), effect, atol=2e-2 * float(effect.abs().max()))
