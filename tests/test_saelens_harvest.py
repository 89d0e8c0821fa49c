"""SAELens opens the model and the rows of an exported run by its metadata, and they are those of the harvest."""

from __future__ import annotations

import json
from pathlib import Path

import llm_models
import numpy as np
import pytest
from commands import assert_one_line
from engines import library, real
from llm_models import SITES, TEXT, llm
from llm_stores import random_store

from refgba.formats import saelens
from refgba.llm.records import open_harvest

models, corpus = llm_models.models, llm_models.corpus  # fixtures
SMALL = ["--centre", "off", "--width", "24", "--groups", "2", "--steps", "20", "--batch", "32", "--backend", "numpy"]


def metadata(folder: Path) -> dict:
    return json.loads((folder / "cfg.json").read_text())["metadata"]


def harvest(**settings) -> dict:
    """A provenance of a harvest of these settings."""
    whole = {"model": "tiny/model", "site": "model.layers.3.mlp", "of": "output"} | settings
    return {"harvest": {"settings": whole, "tokenizer": {"prefix": [], "special": {}}}}


# ---- what is written -------------------------------------------------------------------------------------------------


def test_an_export_says_of_which_model_and_site_it_is(cli, tmp_path):
    random_store(tmp_path / "store")
    assert cli("train", "store", "-o", "run", *SMALL).exit_code == 0
    assert cli("export", "run", "-o", "out").exit_code == 0
    written = metadata(tmp_path / "out")
    assert written["refgba"]["harvest"]["settings"] == open_harvest(tmp_path / "store").settings
    assert {name: written[name] for name in ("model_name", "hook_name", "context_size", "dataset_path")} == {
        "model_name": "tiny/model", "hook_name": "model.layers.3.mlp", "context_size": 8, "dataset_path": "a.txt",
    }  # fmt: skip
    assert cli("export", "run/checkpoints/step-20", "-o", "of a checkpoint").exit_code == 0
    assert metadata(tmp_path / "of a checkpoint")["hook_name"] == "model.layers.3.mlp"


def test_a_harvest_that_has_moved_is_named(cli, tmp_path):
    random_store(tmp_path / "store")
    assert cli("train", "store", "-o", "run", *SMALL).exit_code == 0
    (tmp_path / "store").rename(tmp_path / "moved")
    assert cli("export", "run", "-o", "out").exit_code == 0
    assert "hook_name" not in metadata(tmp_path / "out")
    assert cli("export", "run", "-o", "named", "--store", "moved").exit_code == 0
    assert metadata(tmp_path / "named")["hook_name"] == "model.layers.3.mlp"
    assert_one_line(cli("export", "run", "-o", "none", "--store", "run"), "run: ")
    random_store(tmp_path / "other", d=5)
    assert_one_line(cli("export", "run", "-o", "none", "--store", "other"), "other")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"drop_first": 3}, "seqpos_slice", [3, None]),
        ({"drop_first": 0}, "seqpos_slice", [None]),
        ({"keep_special": True}, "exclude_special_tokens", False),
        ({"pack": True}, "disable_concat_sequences", False),
        ({"computed_in": "bfloat16"}, "model_from_pretrained_kwargs", {"torch_dtype": "bfloat16"}),
        ({"kind": "masked"}, "model_class_name", "AutoModelForMaskedLM"),
        ({"model": "folder/m.gguf"}, "model_name", "folder"),
        ({"model": "folder/m.GGUF"}, "model_from_pretrained_kwargs", {"torch_dtype": "float32", "gguf_file": "m.GGUF"}),
        ({"of": "input"}, "refgba_input_of", "model.layers.3.mlp"),
        ({"text": {"paths": ["a", "b"]}}, "dataset_path", "a, b"),
    ],
)
def test_settings_have_saelens_names(settings, name, value):
    assert saelens.place(harvest(**settings))[name] == value


def test_of_an_input_there_is_no_hook_and_without_a_harvest_nothing():
    assert "hook_name" not in saelens.place(harvest(of="input"))
    assert saelens.place({"step": 1}) == {}


# ---- what SAELens makes of it ----------------------------------------------------------------------------------------


@real
@llm
@pytest.mark.parametrize("format", ["saelens", "saelens-folded"])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_saelens_opens_the_model_and_finds_the_rows_of_the_harvest(cli, models, corpus, kind, format):
    torch, sae_lens = library("torch"), library("sae_lens")
    load_model = library("sae_lens.load_model").load_model
    datasets = library("datasets")
    done = cli("harvest", models(kind), "--site", SITES[kind], "--context", 16, "--text", corpus, "-o", "store")
    assert done.exit_code == 0, done.output
    assert cli("train", "store", "-o", "run", *SMALL).exit_code == 0
    assert cli("export", "run", "-o", "out", "--format", format).exit_code == 0
    sae = sae_lens.SAE.load_from_disk("out")
    about = sae.cfg.metadata
    model = load_model(
        about.model_class_name, about.model_name, "cpu", about.model_from_pretrained_kwargs, [about.hook_name]
    )
    store = sae_lens.ActivationsStore.from_sae(model, sae, dataset=datasets.Dataset.from_dict({"text": TEXT}))
    assert (store.hook_name, store.context_size) == (SITES[kind], 16)
    rows = store.get_filtered_llm_batch()
    assert rows.shape[-1] == sae.cfg.d_in
    assert torch.isfinite(sae.decode(sae.encode(rows.reshape(-1, sae.cfg.d_in)))).all()
    found = open_harvest(corpus.parent / "store")
    tokens, mine = found.tokens(0), found.rows(0)
    c = int(np.flatnonzero(np.diff(tokens.starts) == 16)[0])
    ids = torch.tensor(tokens.ids[tokens.starts[c] : tokens.starts[c + 1]][None].astype(np.int64))
    theirs = store.get_activations(ids).reshape(-1, sae.cfg.d_in).numpy()
    np.testing.assert_allclose(theirs, mine[tokens.context == c], rtol=1e-4, atol=1e-5)
