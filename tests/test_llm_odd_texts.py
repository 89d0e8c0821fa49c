"""Texts that nobody would choose: of documents of one token, at sites that are silent, under names that are none."""

from __future__ import annotations

import json
import shlex
import shutil

import llm_models
import numpy as np
import pytest
from commands import assert_one_line, last_json
from llm_models import SITES, TEXT, D, dictionary, llm, make, needs

from refgba.formats import npz
from refgba.llm import harvesting
from refgba.llm.contexts import Tokenizer, grown
from refgba.llm.records import open_harvest

models, corpus = llm_models.models, llm_models.corpus  # fixtures


@pytest.fixture
def net(tmp_path):
    """A dictionary for the small models."""
    npz.write(dictionary(M=24, dead=5), {}, tmp_path / "net")
    return tmp_path / "net"


@llm
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_documents_with_nothing_to_predict_are_passed_over(cli, models, corpus, tmp_path, net, kind):
    """A whole batch of them once ended in a traceback."""
    text = ["--text", corpus, "--tokens", 600, "--batch", 4, "--json"]
    of = [net, models(kind), "--site", SITES[kind]]
    before = last_json(cli("llm", "evaluate", *of, *text))
    alone = tmp_path / "alone"
    alone.mkdir()
    for k in range(40):
        for folder in (corpus, alone):
            (folder / f"03x{k:02d}.txt").write_text("a" if kind == "gpt2" else "\u200b\n", encoding="utf-8")
    after = last_json(cli("llm", "evaluate", *of, *text))
    assert 0 < after["points"] < before["points"]
    assert_one_line(cli("llm", "evaluate", *of, "--text", alone, "--context", 8), "every position is left out")


@llm
def test_without_a_token_to_predict_there_is_no_loss(cli, models, corpus, net):
    of = [net, models("gpt2"), "--site", SITES["gpt2"], "--text", corpus, "--context", 1, "--strength", 1]
    harvest = ["harvest", models("gpt2"), "--site", SITES["gpt2"], "--text", corpus, "--drop-first", 0, "-o", "store"]
    assert cli(*harvest).exit_code == 0
    of += ["--store", "store"]
    complaint = "corpus: in no context of the "
    assert_one_line(cli("llm", "evaluate", *of[:-4], "--store", "store"), complaint)
    [effect] = last_json(cli("llm", "effects", *of, "--neuron", 1, "--json"))["effects"]
    assert effect["ablated_kl"] > 0
    assert effect["ablated_loss"] is None
    assert_one_line(cli("llm", "effects", *of, "--rank", 1), "corpus: no context holds a token to predict, by whose")


@llm
def test_the_peak_of_a_neuron_that_never_fires_is_nothing_rather_than_less(cli, models, corpus, net):
    of = [net, models("gpt2"), "--site", SITES["gpt2"], "--text", corpus, "--neuron", 5]
    assert "neuron 5 (peak 0, active 0.00%)" in cli("llm", "effects", *of).stdout


@pytest.fixture
def silent(tmp_path):
    """A model whose MLP says something at few tokens only."""
    torch, transformers = needs()
    folder = make(tmp_path / "silent", "gpt2", seed=3)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.transformer.h:
            layer.mlp.c_proj.bias.zero_()
    model.save_pretrained(folder)
    return folder


@llm
def test_rows_beside_zeros_are_no_outliers(cli, silent, corpus, tmp_path, monkeypatch):
    """The median of norms that are mostly 0 is 0, and everything is beyond ten times that."""
    run = harvesting.run

    def sparse(model, found, of, batch):
        rows = run(model, found, of, batch)
        return {site: x * (x.norm(dim=-1, keepdim=True) > x.norm(dim=-1).quantile(0.8)) for site, x in rows.items()}

    monkeypatch.setattr(harvesting, "run", sparse)
    monkeypatch.setattr(harvesting, "check", lambda *_: "")
    harvest = ["harvest", silent, "--site", SITES["gpt2"], "--text", corpus, "--context", 16, "-o", "store"]
    assert cli(*harvest).exit_code == 0
    store = open_harvest(tmp_path / "store")
    assert store.about["median_norm"] > 0
    rows = np.concatenate([store.rows(k) for k in range(len(store.files))])
    assert 0.05 < (np.linalg.norm(rows, axis=1) > 0).mean() < 0.5


@llm
def test_a_site_of_zeros_is_harvested_as_such(cli, silent, corpus, tmp_path):
    torch, transformers = needs()
    model = transformers.AutoModelForCausalLM.from_pretrained(silent)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.zero_()
    model.save_pretrained(silent)
    harvest = ["harvest", silent, "--site", SITES["gpt2"], "--text", corpus, "-o", "store"]
    result = cli(*harvest)
    assert result.exit_code == 0, result.output
    assert "hooked rows equal the plain forward pass to the bit" in result.stderr
    assert not open_harvest(tmp_path / "store").rows(0).any()
    assert_one_line(cli("train", "store", "-o", "run"), "is all zeros and has no direction")


@llm
def test_a_limit_that_leaves_no_row_ends_at_the_first_shard(cli, models, corpus, tmp_path):
    harvest = ["harvest", models("gpt2"), "--site", SITES["gpt2"], "--text", corpus, "--context", 16, "-o", "store"]
    done = cli(*harvest, "--max-norm", 1e-4, "--shard", 100)
    assert_one_line(done, "all rows of a shard are beyond --max-norm; give a larger one, or 0")
    assert not (tmp_path / "store").exists()


# ---- tokenizers that do not say where tokens lie ---------------------------------------------------------------------


def spaced(names):
    """As SentencePiece joins tokens: a space where one begins with a bar, but not at the beginning."""
    return "".join(names).replace("_", " ").removeprefix(" ")


def in_bytes(errors):
    """As tokens that are bytes are joined, by what is done with parts of characters."""
    return lambda names: bytes(map(ord, names)).decode(errors=errors)


@pytest.mark.parametrize("errors", ["ignore", "replace"])
def test_tokens_of_bytes_lie_where_their_characters_end_or_begin(errors):
    text = "naïve 😀 — 日本語 and so on, " * 40
    names = [chr(byte) for byte in text.encode()]
    lengths = grown(names, in_bytes(errors))
    assert lengths[-1] == len(text)
    for k in range(len(names)):
        whole = len(bytes(map(ord, names[: k + 1])).decode(errors="ignore"))  # characters that have ended
        part = len(names[: k + 1]) != len(text[:whole].encode())
        assert lengths[k] - whole in ((0,) if errors == "ignore" or not part else (0, 1, 2, 3))


def test_tokens_with_a_space_before_them_keep_it():
    words = [f"_w{k}" for k in range(300)]
    lengths = grown(words, spaced)
    assert np.array_equal(lengths, np.cumsum([len(word) for word in words]) - 1)  # the first space alone is lost


@llm
def test_a_tokenizer_in_python_shows_each_token_where_it_is():
    _, transformers = needs()
    text = TEXT[2] * 9
    tokenizer = Tokenizer(transformers.ByT5Tokenizer())
    ids, ends = tokenizer(text)
    data, starts = text.encode(), np.concatenate([[0], ends[:-1]])
    names = tokenizer.tokenizer.convert_ids_to_tokens(ids.tolist())
    found = [data[a:b].decode() for a, b in zip(starts, ends, strict=True)]
    assert "".join(found) == text
    assert [piece for name, piece in zip(names, found, strict=True) if name.isascii() and piece != name] == []


def damaged(store, change):
    """The store with another meta.json."""
    meta = json.loads((store / "meta.json").read_text())
    change(meta)
    (store / "meta.json").write_text(json.dumps(meta))


@llm
def test_a_store_that_lacks_what_is_needed_is_named(cli, models, corpus, tmp_path, net):
    harvest = ["harvest", models("gpt2"), "--site", SITES["gpt2"], "--text", corpus, "-o", "store"]
    assert cli(*harvest).exit_code == 0
    good = (tmp_path / "store" / "meta.json").read_text()
    evaluate = ["llm", "evaluate", net, models("gpt2"), "--store", "store", "--text", corpus, "--tokens", 100]
    for change, command, complaint in (
        (lambda m: m["harvest"].pop("largest_norm"), evaluate, "store: harvest: largest_norm is missing, which says"),
        (lambda m: m["harvest"]["settings"].pop("drop_first"), evaluate, "store: harvest: drop_first is missing"),
        (lambda m: m["shards"][0].pop("read"), harvest, "store/meta.json: shard 0: damaged: read is not as it was"),
        (lambda m: m["shards"][0].pop("dropped"), harvest, "store/meta.json: shard 0: damaged: dropped is not"),
        (lambda m: m["shards"][0].update(text_sha256=3), harvest, "shard 0: damaged: text_sha256 is not as it was"),
    ):
        damaged(tmp_path / "store", change)
        assert_one_line(cli(*command), complaint)
        (tmp_path / "store" / "meta.json").write_text(good)
    assert cli(*evaluate).exit_code == cli(*harvest).exit_code == 0


@llm
def test_a_model_that_cannot_be_opened_says_which_part(cli, models, corpus, tmp_path):
    shutil.copytree(models("gpt2"), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    harvest = ["harvest", "model", "--site", SITES["gpt2"], "--text", corpus, "-o", "store"]
    assert_one_line(cli(*harvest), "model: cannot be opened as a language model (tokenizer: ")
    (tmp_path / "model" / "config.json").write_text("{")
    assert_one_line(cli(*harvest), "model: cannot be opened as a language model (configuration: ")


@llm
def test_nothing_warns_of_arrays_that_come_from_files(cli, models, corpus, net, recwarn):
    harvest = ["harvest", models("gpt2"), "--site", SITES["gpt2"], "--text", corpus, "-o", "store"]
    assert cli(*harvest).exit_code == 0
    assert cli("llm", "dashboard", net, "store", models("gpt2"), "-o", "out").exit_code == 0
    steer = ["llm", "steer", net, models("gpt2"), "--store", "store", "--neuron", 1, "--by", 1, "--prompt", "a"]
    assert cli(*steer).exit_code == 0
    assert not [w for w in recwarn if "not writable" in str(w.message)]


@llm
def test_names_with_spaces_can_be_pasted_and_empty_ones_are_none(cli, models, corpus, tmp_path):
    harvest = ["harvest", models("gpt2"), "--site", SITES["gpt2"]]
    corpus.rename(tmp_path / "ein Text ü😀")
    done = cli(*harvest, "--text", "ein Text ü😀", "-o", "a store's ö")
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    assert shlex.split(last.split(": ", 1)[1])[2] == "a store's ö"
    assert json.loads((tmp_path / "a store's ö" / "meta.json").read_text())["harvest"]["settings"]["text"]["paths"]
    assert_one_line(
        cli(*harvest, "--text", "", "-o", "other"), "Invalid value for '--text': is empty; name a file or a folder"
    )
    empty = cli(*harvest, "--text", "ein Text ü😀", "-o", "")
    assert empty.exit_code == 2
    assert "is empty; name a file or a folder" in empty.stderr
    assert open_harvest(tmp_path / "a store's ö").store.d == D
    assert TEXT[0].split()[1] in "".join(open_harvest(tmp_path / "a store's ö").context(0).pieces)
