"""A run in a model: where it was trained on, and as it was harvested, or a word that says what is not so."""

from __future__ import annotations

import json
import shutil

import llm_models
import pytest
from commands import assert_one_line, last_json
from llm_models import SITES, llm, make, needs
from safetensors.numpy import load_file, save_file

models, corpus = llm_models.models, llm_models.corpus  # fixtures
SMALL = ["--width", "32", "--groups", "2", "--steps", "8", "--batch", "32", "--centre", "off", "--backend", "numpy"]


@pytest.fixture
def trained(cli, models, corpus, monkeypatch):
    """A run on a harvest of a kind of model, made with flags."""
    monkeypatch.chdir(corpus.parent)

    def made(kind, *flags):
        harvest = ["harvest", models(kind), "--site", SITES[kind], "--text", corpus, "-o", "store", *flags]
        assert cli(*harvest).exit_code == 0
        done = cli("train", "store", "-o", "run", *SMALL)
        assert done.exit_code == 0, done.stderr
        return corpus.parent / "run"

    return made


def earlier(run):
    """The run as an earlier version wrote it, without the site."""
    about = json.loads((run / "about.json").read_text())
    del about["data"]["harvest"]
    (run / "about.json").write_text(json.dumps(about))


@llm
@pytest.mark.parametrize(("site", "of"), [("transformer.h.0.mlp", "output"), (SITES["gpt2"], "input")])
def test_a_run_is_refused_with_a_store_of_another_site(cli, models, corpus, trained, site, of):
    run, model = trained("gpt2"), models("gpt2")
    assert cli("harvest", model, "--site", site, "--of", of, "--text", corpus, "-o", "other").exit_code == 0
    complaint = f"other: is of the {of} of {site}, but {run} was trained on the output of {SITES['gpt2']}"
    text, neuron = ["--text", corpus], ["--neuron", "1"]
    for flags in (["evaluate"], ["effects", *neuron], ["steer", *neuron, "--by", "1", "--prompt", "a", "--peak", "1"]):
        more = text if flags[0] != "steer" else []
        done = cli("llm", flags[0], run, model, *flags[1:], *more, "--store", "other")
        assert_one_line(done, complaint)
    assert_one_line(cli("export", run, "-o", "out", "--store", "other"), complaint)
    assert not (corpus.parent / "out").exists()


@llm
@pytest.mark.parametrize("before", [False, True])
def test_a_run_whose_store_was_moved_says_so_instead_of_guessing(cli, models, corpus, trained, before):
    run, model = trained("gpt2", "--of", "input", "--drop-first", "3", "--context", "24"), models("gpt2")
    flags = ["llm", "evaluate", run, model, "--text", corpus, "--tokens", "200", "--json"]
    expected = last_json(cli(*flags))
    if before:
        earlier(run)
    shutil.move("store", "moved")
    for more in ([], ["--site", SITES["gpt2"]], ["--site", SITES["gpt2"], "--of", "input"]):
        assert_one_line(cli(*flags, *more), "are not there any more; name the harvest with --store, or else all of")
    assert last_json(cli(*flags, "--store", "moved")) == expected
    for store, silent in ([], False), (["--store", "moved"], True):
        said = cli("export", run, "-o", f"out-{silent}", *store).stderr
        assert ("does not say of which model and site" in said) is not (silent or before)
    told = ["--site", SITES["gpt2"], "--of", "input", "--context", "24"]
    done = cli(*flags, *told)
    assert not last_json(done)["left_alone_as_harvested"]
    assert "no harvest says which rows" in done.stderr
    if not before:
        told[3] = "output"
        assert_one_line(cli(*flags, *told), "is of the input of transformer.h.1.mlp, not of the output")
    remade = ["harvest", model, "--site", SITES["gpt2"], "--of", "input", "--text", corpus, "-o", "store"]
    assert cli(*remade).exit_code == 0
    assert_one_line(cli(*flags), "holds other rows now than when it was trained on them; name the harvest with --store")


@llm
@pytest.mark.parametrize(
    ("kind", "flag", "named"), [("gemma2", "--no-bos", "<bos>"), ("gpt2", "--bos", "no special token")]
)
def test_contexts_begin_as_those_of_the_harvest(cli, models, corpus, trained, kind, flag, named):
    from refgba import llm as room
    from refgba.llm.splice import place

    run, model = trained(kind, flag, "--keep-special"), models(kind)
    flags = ["llm", "evaluate", run, model, "--text", corpus, "--tokens", "200", "--json"]
    done, opposite = cli(*flags), {"--bos": "--no-bos", "--no-bos": "--bos"}[flag]
    assert last_json(done) == last_json(cli(*flags, flag))
    assert "contexts begin with" not in done.stderr
    other = cli(*flags, opposite)
    assert last_json(other)["fvu"] != last_json(done)["fvu"]
    assert f"contexts begin with {named}, those of the harvest with" in other.stderr
    opened = room.open_model(str(model), device="cpu")
    put = place(room.open_network(run), opened)
    assert put.model.tokenizer.prefix == ([1] if flag == "--bos" else [])
    assert put.model.module is opened.module
    result = room.evaluate(run, opened, corpus, tokens=200)
    assert result.record()["fvu"] == last_json(done)["fvu"]
    for command in (
        ["effects", "--text", corpus, "--strength", "1"],
        ["steer", "--by", "1", "--prompt", "a", "--peak", "1"],
    ):
        said = [
            cli("llm", command[0], run, model, *command[1:], "--neuron", "1", *more).stderr for more in ([], [opposite])
        ]
        assert ["contexts begin with" in text for text in said] == [False, True]


def rounded(source, out):
    """A copy of a model whose weights are rounded to bfloat16, still in float32."""
    torch, _ = needs()
    shutil.copytree(source, out)
    weights = load_file(out / "model.safetensors")
    weights = {name: torch.from_numpy(w).bfloat16().float().numpy() for name, w in weights.items()}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


@llm
def test_a_file_that_is_not_utf8_is_left_out_of_what_is_measured_on(cli, models, corpus, trained):
    run, flags = trained("gpt2"), ["--text", corpus, "--tokens", "200", "--json"]
    before = last_json(cli("llm", "evaluate", run, models("gpt2"), *flags))
    (corpus / "00a.txt").write_bytes(b"plain at first, " * 1000 + b"\xff\xfe")
    for command in (["evaluate"], ["effects", "--neuron", "3"]):
        result = cli("llm", command[0], run, models("gpt2"), *command[1:], *flags)
        assert result.stderr.count("00a.txt: not UTF-8, left out") == 1
        if command == ["evaluate"]:
            assert last_json(result) == before


@llm
def test_only_other_weights_are_called_other(cli, models, corpus, trained, tmp_path):
    from refgba.llm.models import open_model

    model, other = models("gpt2"), make(tmp_path / "other", "gpt2", seed=1)
    run = trained("gpt2")
    flags = ["--text", corpus, "--tokens", "200"]

    def remarks(named, *more):
        done = cli("llm", "evaluate", run, named, *flags, *more)
        assert done.exit_code == 0, done.stderr
        return done.stderr

    assert "model" not in remarks(model)
    assert "other has other weights than the model that was harvested" in remarks(other)
    assert "cannot be told whether it is the same model" in remarks(model, "--compute", "bfloat16")
    short = rounded(model, tmp_path / "short")  # as most models are published
    for compute, again in (("float32", "bfloat16"), ("bfloat16", "float32")):
        about = {"weights": open_model(str(short), compute, "cpu").weights(), "settings": {"computed_in": compute}}
        assert open_model(str(short), again, "cpu").differs_from(about) is None
        assert "has other weights" in open_model(str(other), "float32", "cpu").differs_from(about)
    about = {"weights": open_model(str(model), "bfloat16", "cpu").weights(), "settings": {"computed_in": "bfloat16"}}
    assert open_model(str(model), "float32", "cpu").differs_from(about) is None  # which rounds to what was harvested


@llm
def test_all_that_put_a_run_into_a_model_say_that_its_store_is_not_whole(cli, models, corpus, trained, tmp_path):
    run, text = trained("gpt2"), ["--text", corpus, "--tokens", "200"]
    meta = json.loads((tmp_path / "store" / "meta.json").read_text())
    (tmp_path / "store" / "meta.json").write_text(json.dumps(meta | {"complete": False}))
    rows = sum(shard["rows"] for shard in meta["shards"])
    remark = f"has not been written to its end; these are the {rows} rows that it has so far"
    steer = ["steer", "--neuron", "1", "--by", "1", "--prompt", "a"]
    for command in (["evaluate", *text], ["effects", "--neuron", "1", *text], steer, [*steer, "--peak", "1"]):
        for more in ([], ["--store", "store"]):
            result = cli("llm", command[0], run, models("gpt2"), *command[1:], *more)
            assert result.exit_code in (0, 2), result.output  # a neuron may never fire there
            assert result.stderr.count(remark) == 1
    (tmp_path / "store" / "meta.json").write_text(json.dumps(meta))
    assert remark not in cli("llm", "evaluate", run, models("gpt2"), *text).stderr
