"""Effects on logits beside the contexts: those of the unembedding, neuron by neuron, on real classes of models."""

from __future__ import annotations

import llm_models
import numpy as np
import pytest
from commands import assert_one_line, last_json
from dictionaries import network
from llm_models import SITES, D, llm, make
from llm_stores import write_run

from refgba import llm as room
from refgba.llm.dashboard import direct_effects, survey_features
from refgba.llm.unembedding import Unembedding

models, corpus = llm_models.models, llm_models.corpus  # fixtures


@llm
@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma2"])
def test_effects_are_those_of_the_unembedding(models, corpus, tmp_path, kind):
    model = room.open_model(str(models(kind)))
    room.harvest(model, SITES[kind], corpus, tmp_path / "store", context=32)
    run = write_run(tmp_path / "run", *network(M=32, d=D))
    features = survey_features(run, tmp_path / "store")
    effects = direct_effects(features, model, count=4)
    unembedding = Unembedding(model, SITES[kind], "output", features.dictionary.W_dec.shape[1])
    for m in range(features.M):
        logits = unembedding.effects(features.dictionary.W_dec[m]).numpy()[: len(model.tokenizer.tokenizer)]
        np.testing.assert_allclose(effects.high_value[m], np.sort(logits)[::-1][:4], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(logits[effects.low[m]], np.sort(logits)[:4], rtol=1e-3, atol=1e-4)
        assert effects.histogram[m].sum() == len(logits)
    token, _ = effects.promoted(0)[0]
    assert effects.names[token] == model.tokenizer.tokenizer.decode([token])
    assert repr(effects.names[token]) in repr(effects)


@llm
def test_the_command_with_a_model_and_one_without_a_head(cli, models, corpus, tmp_path):
    cli("harvest", models("qwen2"), "--site", SITES["qwen2"], "--context", "24", "--text", corpus, "-o", "store")
    write_run(tmp_path / "run", *network(M=32, d=D))
    found = last_json(cli("llm", "dashboard", "run", "store", models("qwen2"), "-o", "page", "--json"))
    assert found["neurons"] == 32
    other = make(tmp_path / "other", "qwen2", seed=1)
    for model, says in ((models("qwen2"), False), (other, True)):
        said = cli("llm", "dashboard", "run", "store", model, "-o", f"page-{says}").stderr
        assert ("has other weights than the model that was harvested" in said) == says
    headless = make(tmp_path / "headless", "bert", head=False)
    assert_one_line(cli("llm", "dashboard", "run", "store", headless, "-o", "new"), "headless: ")
    assert not (tmp_path / "new").exists()
