"""Dictionaries of other libraries meet the place that they say they are for, each in its library's words."""

from __future__ import annotations

import json

import llm_models
import numpy as np
import pytest
from commands import assert_one_line, last_json
from engines import library
from llm_models import SITES, dictionary, llm
from llm_stores import SITE, random_store
from safetensors.numpy import save_file
from test_llm_matching import SMALL, changed

from refgba.errors import InputError
from refgba.formats import dictionary_learning, npz, saelens
from refgba.llm.claims import spot_of
from refgba.llm.dashboard import survey_features

models, corpus = llm_models.models, llm_models.corpus  # fixtures
M, D = 12, 6
INPUT = "the input of "


@pytest.mark.parametrize(
    ("name", "site", "differs"),
    [
        ("blocks.8.hook_resid_post", "model.layers.8", None),
        ("blocks.8.hook_resid_post", "model.layers.9", "another layer"),
        ("blocks.8.hook_resid_post", INPUT + "model.layers.9", None),  # which is what layer 8 puts out
        ("blocks.8.hook_resid_pre", "model.layers.7", None),
        ("blocks.8.hook_resid_pre", "model.layers.8", "another layer"),
        ("blocks.8.hook_resid_pre", INPUT + "transformer.h.8", None),
        ("blocks.8.hook_mlp_out", "model.layers.8.mlp", None),
        ("blocks.8.hook_mlp_out", INPUT + "model.layers.8.mlp", "the other side"),
        ("blocks.8.hook_mlp_out", "model.layers.8.self_attn", "another part of the layer"),
        ("blocks.8.hook_mlp_out", "model.layers.8", "another part of the layer"),
        ("blocks.8.hook_mlp_out", "model.layers.8.post_feedforward_layernorm", None),  # in Gemma it is that
        ("blocks.8.attn.hook_z", "model.layers.8.self_attn.o_proj", None),
        ("blocks.8.attn.hook_z", "model.layers.18.self_attn.o_proj", "another layer"),
        ("model.layers.8.mlp", "model.layers.8.mlp", None),
        ("layers.8.mlp", "model.layers.8.mlp", None),  # sparsify hooks the model without its head
        ("layers.8.mlp", "model.layers.80.mlp", "another layer"),
        ("layers.8.mlp.up_proj", "model.layers.8.mlp", "another submodule"),
        ("gpt_neox.layers.8.mlp", "transformer.h.8.mlp", None),  # modules are called otherwise in another version
        ("model.layers.8.mlp", "lm_head", "another submodule"),
        ("model.norm", "model.layers.8.mlp", "another submodule"),
        ("model.norm", "lm_head", "another submodule"),
        ("resid_post_layer_8", "model.layers.8", None),
        ("resid_post_layer_8", "model.layers.8.mlp", "another part of the layer"),
        ("mlp_out_layer8", "model.layers.7.mlp", "another layer"),
        ("layer8", INPUT + "model.layers.9", None),
        ("layer8", INPUT + "model.layers.7", "another layer"),
        ("somewhere", "model.layers.8.mlp", None),
    ],
)
def test_what_two_names_say_is_compared(name, site, differs):
    module, of = site.removeprefix(INPUT), "input" if site.startswith(INPUT) else "output"
    assert spot_of(name, "output").differs(spot_of(module, of, module=True)) == differs


# ---- the formats -----------------------------------------------------------------------------------------------------


def of_saelens(out, metadata):
    """A folder of SAELens, whose metadata say this."""
    saelens.write(dictionary(M=M, d=D), {}, out)
    cfg = json.loads((out / "cfg.json").read_text())
    cfg["metadata"] |= metadata
    (out / "cfg.json").write_text(json.dumps(cfg))
    return out


def of_dictionary_learning(out, trainer, io="out"):
    """A folder of dictionary_learning, whose trainer says this."""
    library("torch")
    dictionary_learning.write(dictionary(M=M, d=D), {}, out)
    index = json.loads((out / "config.json").read_text())
    index["trainer"] |= trainer
    (out / "config.json").write_text(json.dumps(index | {"buffer": {"io": io}}))
    return out


def of_sparsify(out):
    """A folder of sparsify, which is called as its hook."""
    out.mkdir(parents=True)
    net = dictionary(M=M, d=D)
    names = {"encoder.weight": net.W_enc, "encoder.bias": net.b_enc, "W_dec": net.W_dec, "b_dec": net.b_dec}
    save_file(names, out / "sae.safetensors")
    (out / "cfg.json").write_text(json.dumps({"d_in": D, "k": 4, "num_latents": M}))
    return out


def of_gemma_scope(out):
    """A folder of Gemma Scope in its repository's layout."""
    out.mkdir(parents=True)
    arrays = dictionary(M=M, d=D).arrays()
    np.savez(out / "params.npz", **arrays | {"W_enc": np.ascontiguousarray(arrays["W_enc"].T)})
    return out


def made(path, kind, layer):
    """A dictionary of a library for the MLP of a layer, as far as the library says it."""
    if kind == "saelens":
        return of_saelens(path / "net", {"hook_name": f"blocks.{layer}.hook_mlp_out"})
    if kind == "saelens before 6":
        return of_saelens(path / "net", {"hook_point": "hook_mlp_out", "hook_point_layer": layer})
    if kind == "dictionary_learning":
        return of_dictionary_learning(path / "net", {"layer": layer, "lm_name": "tiny", "submodule_name": None})
    if kind == "sparsify":
        return of_sparsify(path / f"layers.{layer}.mlp")
    return of_gemma_scope(path / f"gemma-scope-2b-pt-mlp/layer_{layer}/width_16k/average_l0_71")


KINDS = ("saelens", "saelens before 6", "dictionary_learning", "sparsify", "gemma_scope")


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_of_another_layer_is_refused_and_one_of_the_same_is_taken(cli, tmp_path, kind):
    random_store(tmp_path / "store", d=D)  # of the output of model.layers.3.mlp
    assert survey_features(made(tmp_path / "same", kind, 3), tmp_path / "store").rows
    other = made(tmp_path / "other", kind, 8)
    complaint = f"store: is of the output of {SITE}, another layer than"
    with pytest.raises(InputError, match=complaint):
        survey_features(other, tmp_path / "store")
    assert_one_line(cli("llm", "dashboard", other, "store", "-o", "out"), complaint)
    assert_one_line(cli("llm", "features", other, "store", "--format", "delphi", "-o", "out"), complaint)
    assert not (tmp_path / "out").exists()
    if kind != "dictionary_learning":  # which tells no more than the layer
        changed(tmp_path / "store", site="model.layers.8.self_attn")
        part = "another part of the layer than"
        assert_one_line(cli("llm", "dashboard", other, "store", "-o", "out"), part)


def test_what_says_nothing_is_taken(tmp_path):
    random_store(tmp_path / "store", d=D)
    for net in (
        of_saelens(tmp_path / "a", {}),
        of_saelens(tmp_path / "b", {"hook_name": "mine"}),
        of_sparsify(tmp_path / "somewhere"),
        of_gemma_scope(tmp_path / "gemma"),
    ):
        assert survey_features(net, tmp_path / "store").rows
    nowhere = {"layer": 0, "lm_name": "", "submodule_name": None}  # dictionary_learning wants a number, of no model too
    assert survey_features(of_dictionary_learning(tmp_path / "c", nowhere), tmp_path / "store").rows


def test_the_side_of_dictionary_learnings_buffer_counts(tmp_path):
    random_store(tmp_path / "store", d=D)
    trainer = {"layer": 3, "lm_name": "tiny", "submodule_name": SITE}
    assert survey_features(of_dictionary_learning(tmp_path / "a", trainer), tmp_path / "store").rows
    with pytest.raises(InputError, match="the other side than"):
        survey_features(of_dictionary_learning(tmp_path / "b", trainer, "in"), tmp_path / "store")


@pytest.mark.parametrize("format", ["saelens", "npz"])
def test_what_was_exported_knows_its_site_as_the_run_does(cli, tmp_path, format):
    random_store(tmp_path / "store", d=D)
    changed(random_store(tmp_path / "other", d=D), site="model.layers.0.mlp")
    assert cli("train", "store", "-o", "run", *SMALL).exit_code == 0
    assert cli("export", "run", "-o", "net", "--format", format).exit_code == 0
    assert survey_features(tmp_path / "net", tmp_path / "store").rows
    assert_one_line(cli("llm", "dashboard", "net", "other", "-o", "out"), f"net was trained on the output of {SITE}")


# ---- another seed's run ----------------------------------------------------------------------------------------------


def test_the_run_given_with_other_is_checked_before_all_rows_are_read(cli, tmp_path, monkeypatch):
    random_store(tmp_path / "store", d=D)
    changed(random_store(tmp_path / "elsewhere", d=D), site="model.layers.0.mlp")
    for name, store in (("run", "store"), ("same", "store"), ("foreign", "elsewhere")):
        assert cli("train", store, "-o", name, *SMALL).exit_code == 0
    npz.write(dictionary(M=M, d=D + 1), {}, tmp_path / "wide")
    command = ["llm", "dashboard", "run", "store", "-o", "out", "--other"]
    with monkeypatch.context() as patch:
        patch.setattr("refgba.llm.dashboard.commands.survey_features", None)
        trained = (
            "store: is of the output of model.layers.3.mlp, but foreign was trained on the output of model.layers.0"
        )
        assert_one_line(cli(*command, "foreign"), trained)
        assert_one_line(cli(*command, made(tmp_path, "sparsify", 2)), "another layer than")
        assert_one_line(cli(*command, "wide"), "wide: is for rows of d = 7, not 6")
        assert_one_line(cli(*command, "nothing"), "nothing: ")
    assert cli(*command, "same").exit_code == 0


# ---- in a model ------------------------------------------------------------------------------------------------------


def in_model(tmp_path, name):
    """A dictionary for the small models, which says that it is of this place."""
    saelens.write(dictionary(), {}, tmp_path / "net")
    cfg = json.loads((tmp_path / "net" / "cfg.json").read_text())
    cfg["metadata"] |= {"hook_name": name}
    (tmp_path / "net" / "cfg.json").write_text(json.dumps(cfg))
    return tmp_path / "net"


@llm
def test_a_dictionary_goes_into_a_model_where_it_says(cli, models, corpus, tmp_path):
    command = ["llm", "evaluate", in_model(tmp_path, "blocks.1.hook_mlp_out"), models("qwen2"), "--text", corpus]
    assert_one_line(cli(*command), "blocks.1.hook_mlp_out, by its cfg.json, no submodule of")
    complaint = "is for blocks.1.hook_mlp_out, by its cfg.json; the output of model.layers.0.mlp is another layer"
    assert_one_line(cli(*command, "--site", "model.layers.0.mlp"), complaint)
    assert_one_line(cli(*command, "--site", "model.layers.1"), "is another part of the layer")
    site = ["--site", SITES["qwen2"], "--tokens", 200]
    assert cli(*command, *site).exit_code == 0
    assert_one_line(cli(*command, *site, "--of", "input"), "is the other side")
    assert (
        cli("harvest", models("qwen2"), "--site", "model.layers.0.mlp", "--text", corpus, "-o", "store").exit_code == 0
    )
    assert_one_line(cli(*command, "--store", "store"), "store: is of the output of model.layers.0.mlp, another layer")


@llm
def test_a_module_that_is_named_without_the_head_is_found(cli, models, corpus, tmp_path):
    net = in_model(tmp_path, SITES["qwen2"].removeprefix("model."))
    flags = ["--text", corpus, "--tokens", 200, "--json"]
    assert last_json(cli("llm", "evaluate", net, models("qwen2"), *flags))["site"] == SITES["qwen2"]
