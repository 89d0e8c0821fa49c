"""Harvesting: the rows are the model's own, each with its token, and a kill costs nothing but time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import llm_models
import numpy as np
import pytest
from commands import assert_one_line, last_json
from llm_models import BLOCKS, KINDS, SITES, TEXT, llm, make, needs, tokenizer

from refgba.data.store import open_store
from refgba.errors import InputError
from refgba.llm.records import open_harvest

models, corpus = llm_models.models, llm_models.corpus  # fixtures


def everything(folder):
    """Every file in a folder, by its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@llm
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_is_what_the_model_computes_for_its_token(cli, models, corpus, kind):
    torch, transformers = needs()
    sites = [SITES[kind], BLOCKS[kind]]
    flags = [word for site in sites for word in ("--site", site)]
    flags += ["--context", "24", "--batch", "3", "--drop-first", "0", "--keep-special", "--max-norm", "0"]
    last_json(cli("harvest", models(kind), *flags, "--text", corpus, "-o", "stores", "--json"))
    auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(models(kind)).eval()
    for site in sites:
        harvest = open_harvest(corpus.parent / "stores" / site)
        harvest.verify()
        tokens, rows = harvest.tokens(0), harvest.rows(0)
        seen = []
        module = model.get_submodule(site)
        module.register_forward_hook(
            lambda _m, _a, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        for c in range(tokens.contexts):
            ids = tokens.ids[tokens.starts[c] : tokens.starts[c + 1]]
            seen.clear()
            with torch.no_grad():
                model(torch.tensor(ids[None].astype(np.int64)))  # alone, without padding
            mine = rows[tokens.context == c]
            out = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
            assert np.allclose(mine, out[0].numpy(), rtol=1e-4, atol=1e-5)
            assert np.allclose(tokens.norm[tokens.context == c], np.linalg.norm(mine, axis=1), rtol=1e-5)


@llm
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_documents_and_text_come_back(cli, models, corpus, kind):
    cli("harvest", models(kind), "--site", SITES[kind], "--context", "24", "--text", corpus, "-o", "store")
    harvest = open_harvest(corpus.parent / "store")
    special = set(harvest.special)
    made = tokenizer(kind)
    whole = {k: "" for k in range(len(TEXT))}
    ids = {k: [] for k in range(len(TEXT))}
    for shard in range(len(harvest.files)):
        tokens = harvest.tokens(shard)
        assert (tokens.ids[tokens.at] == tokens.token).all()
        for c in range(tokens.contexts):
            document = int(tokens.first_document[c])
            here = [i for i in tokens.ids[tokens.starts[c] : tokens.starts[c + 1]].tolist() if i not in special]
            assert tokens.offset[c] == len(ids[document])
            ids[document] += here
            whole[document] += "".join(tokens.pieces(c))
        assert not set(tokens.token.tolist()) & special
        assert (tokens.position > 0).all()
    assert whole == dict(enumerate(TEXT))
    assert ids == {k: made(text, add_special_tokens=False)["input_ids"] for k, text in enumerate(TEXT)}


@llm
def test_characters_of_several_tokens_are_not_torn(cli, models, tmp_path):
    (tmp_path / "t.txt").write_text("é😀é 日本 </script>\n", encoding="utf-8")
    done = cli("harvest", models("qwen2"), "--site", SITES["qwen2"], "--text", "t.txt", "-o", "store")
    assert done.exit_code == 0, done.output
    pieces = open_harvest(tmp_path / "store").tokens(0).pieces(0)
    assert "".join(pieces) == "é😀é 日本 </script>\n"
    assert "😀" in "".join(pieces)
    assert not any("\ufffd" in piece for piece in pieces)


@llm
def test_what_is_left_out_is_counted(cli, models, corpus):
    result = last_json(
        cli("harvest", models("gemma2"), "--site", "model.layers.1.mlp", "--drop-first", "3", "--max-norm", "1.1",
            "--text", corpus, "-o", "store", "--json")
    )["stores"][0]  # fmt: skip
    harvest = open_harvest(corpus.parent / "store")
    tokens = harvest.tokens(0)
    assert result["dropped"]["first"] == np.minimum(3, np.diff(tokens.starts)).sum()  # the first of them is <bos>
    assert result["dropped"]["norm"] > 0
    assert result["rows"] + sum(result["dropped"].values()) == result["tokens"] == len(tokens.ids)
    assert tokens.norm.max() <= harvest.about["largest_norm"]
    assert tokens.position.min() == 3


@llm
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_store_is_trained_on(cli, models, corpus, dtype):
    site = SITES["gpt2"]
    cli("harvest", models("gpt2"), "--site", site, "--dtype", dtype, "--text", corpus, "-o", "store")
    store = open_store(corpus.parent / "store")
    assert store.dtype == dtype
    assert store.about["site"] == site
    trained = cli("train", "store", "-o", "run", "--width", "24", "--groups", "2", "--steps", "20", "--batch", "32")
    assert trained.exit_code == 0, trained.output
    assert cli("data", "verify", "store").exit_code == 0


@llm
def test_numbers_too_large_for_float16_are_refused_and_nothing_is_left(cli, tmp_path, corpus):
    torch, transformers = needs()
    folder = make(tmp_path / "loud", "gpt2")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.mul_(1e7)
    model.save_pretrained(folder)
    flags = ["--site", SITES["gpt2"], "--text", corpus, "-o", "store"]
    assert_one_line(cli("harvest", folder, *flags, "--dtype", "float16"), "too large for float16; --dtype float32")
    assert not (tmp_path / "store").exists()
    assert cli("harvest", folder, *flags).exit_code == 0


@llm
def test_several_sites_by_wildcard_and_the_input_of_one(cli, models, corpus):
    result = last_json(
        cli("harvest", models("qwen2"), "--site", "model.layers.*.mlp", "--text", corpus, "-o", "s", "--json")
    )
    assert [store["site"] for store in result["stores"]] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    site = ["--site", "model.layers.1.mlp.down_proj"]
    cli("harvest", models("qwen2"), *site, "--of", "input", "--text", corpus, "-o", "inner")
    cli("harvest", models("qwen2"), *site, "--text", corpus, "-o", "outer")
    inner, outer, mlp = (open_harvest(corpus.parent / name) for name in ("inner", "outer", "s/model.layers.1.mlp"))
    assert inner.store.d == 24
    assert np.array_equal(outer.rows(0), mlp.rows(0))
    assert inner.settings["of"] == "input"


@llm
def test_documents_share_contexts_only_when_packed(cli, models, corpus):
    flags = ["--site", SITES["qwen2"], "--text", corpus, "--context", "32"]
    cli("harvest", models("qwen2"), *flags, "-o", "apart")
    cli("harvest", models("qwen2"), *flags, "-o", "packed", "--pack", "--keep-special")
    apart, packed = (open_harvest(corpus.parent / name).tokens(0) for name in ("apart", "packed"))
    for c in range(apart.contexts):
        assert len(set(apart.document[apart.context == c])) == 1
    assert any(len(set(packed.document[packed.context == c])) > 1 for c in range(packed.contexts))
    assert set(np.diff(packed.starts)[:-1]) == {32}
    text = "".join("".join(packed.pieces(c)) for c in range(packed.contexts))
    assert text == "".join(TEXT)


@llm
def test_no_more_contexts_of_a_document_than_asked_for(cli, models, corpus):
    flags = ["--site", SITES["qwen2"], "--text", corpus, "--context", "16", "-o", "store"]
    assert cli("harvest", models("qwen2"), *flags, "--per-document", "2").exit_code == 0
    tokens = open_harvest(corpus.parent / "store").tokens(0)
    numbers, counts = np.unique(tokens.first_document, return_counts=True)
    assert len(numbers) == len(TEXT)
    assert counts.max() == 2
    assert set(tokens.offset.tolist()) == {0, 16}
    done = cli("harvest", models("qwen2"), *flags[:-1], "other", "--per-document", "2", "--pack")
    assert_one_line(done, "leave --pack or --per-document out")


@llm
def test_text_comes_in_every_form(cli, models, corpus, tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in TEXT))
    parquet.write_table(pa.table({"text": TEXT}), tmp_path / "t.parquet")
    (tmp_path / "set").mkdir()
    table = pa.table({"text": TEXT})
    with pa.OSFile(str(tmp_path / "set" / "data-0.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as sink:
        sink.write_table(table)
    (tmp_path / "set" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    rows = []
    for k, source in enumerate([corpus, "t.jsonl", "t.parquet", "set"]):
        done = cli("harvest", models("gpt2"), "--site", SITES["gpt2"], "--text", source, "-o", f"s{k}")
        assert done.exit_code == 0, done.output
        harvest = open_harvest(tmp_path / f"s{k}")
        rows.append((harvest.rows(0), harvest.tokens(0).document))
    for other in rows[1:]:
        assert np.array_equal(rows[0][0], other[0])
        assert np.array_equal(rows[0][1], other[1])


@llm
def test_a_harvest_that_was_cut_short_ends_in_the_same_bytes(cli, models, corpus, monkeypatch):
    from refgba.llm import harvesting

    monkeypatch.setattr(harvesting, "MEASURED", 64)
    flags = ["--site", "model.layers.*.mlp", "--text", corpus, "--context", "16", "--batch", "2", "--shard", "60"]
    assert cli("harvest", models("qwen2"), *flags, "-o", "whole").exit_code == 0
    plain, count = harvesting.run, [0]

    def failing(*given):
        count[0] += 1
        if count[0] % 11 == 0:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(harvesting, "run", failing)
    attempts = 1
    while cli("harvest", models("qwen2"), *flags, "-o", "cut").exit_code and attempts < 100:
        attempts += 1
    assert 3 < attempts < 100
    monkeypatch.setattr(harvesting, "run", plain)
    assert everything(corpus.parent / "cut") == everything(corpus.parent / "whole")
    assert len(open_harvest(corpus.parent / "whole" / "model.layers.0.mlp").files) > 3
    before = everything(corpus.parent / "cut")
    assert cli("harvest", models("qwen2"), *flags, "-o", "cut").exit_code == 0  # nothing is left to do
    assert everything(corpus.parent / "cut") == before


@llm
@pytest.mark.slow
def test_twenty_sigkills_change_no_byte(models, corpus, tmp_path):
    needs()
    flags = ["--site", "model.layers.*.mlp", "--text", str(corpus), "--context", "8", "--batch", "1", "--shard", "40"]
    settings = {"harvest": ["harvest", str(models("qwen2")), *flags], "folder": str(tmp_path), "kills": 20, "seed": 0}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("harvest_kills.py"), tmp_path / "settings.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["killed"] == 20
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")


@llm
@pytest.mark.slow
def test_memory_does_not_grow_with_the_tokens(models, tmp_path):
    needs()
    (tmp_path / "long.txt").write_text(llm_models.text(0, 40_000), encoding="utf-8")
    code = (
        "import resource, sys; from refgba.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for tokens in ("4000", "40000"):
        flags = ["--site", SITES["qwen2"], "--text", str(tmp_path / "long.txt"), "--tokens", tokens, "--shard", "2000"]
        command = [sys.executable, "-c", code, "harvest", str(models("qwen2")), *flags, "-o", str(tmp_path / tokens)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]) / 1024)
    assert peaks[1] < peaks[0] + 50  # MiB


# ---- bad use ---------------------------------------------------------------------------------------------------------


@llm
@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--site", "model.layers.1.mpl"], "has no submodule 'model.layers.1.mpl'; the closest are model.layers.1.mlp"),
        (["--site", "model.layers.*.nothing"], "has no submodule"),
        (["--site", ""], "--site is empty; name a submodule, such as lm_head"),
        (["--site", "model.rotary_emb"], "the output of model.rotary_emb"),
        (["--site", "model.layers.1.mlp", "--context", "65"], "--context 65 is longer than the 64 tokens"),
        (["--site", "model.layers.1.mlp", "--device", "abacus"], "--device abacus: torch cannot compute there"),
        (["--site", "model.layers.1.mlp", "--text", "none"], "none: no such file"),
        (["--site", "model.layers.1.mlp", "--text", "empty.txt"], "holds no token"),
        (["--site", "model.layers.1.mlp", "--text", "binary.bin"], "binary.bin: not UTF-8"),
        (["--site", "model.layers.1.mlp", "--text", "bad.jsonl"], "bad.jsonl: line 1: not JSON"),
        (["--site", "model.layers.1.mlp", "--text", "other.jsonl"], "other.jsonl: line 1: has no text in 'text'"),
        (["--site", "model.layers.1.mlp", "--drop-first", "200"], "--drop-first 200 leaves none of a context"),
    ],
)
def test_bad_use_is_one_line_and_writes_nothing(cli, models, tmp_path, flags, complaint):
    (tmp_path / "good.txt").write_text(TEXT[3])
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.jsonl").write_text('{"text"\n{"text": "a cat"}\n')
    (tmp_path / "other.jsonl").write_text('{"body": "a cat"}\n')
    flags = flags if "--text" in flags else [*flags, "--text", "good.txt"]
    assert_one_line(cli("harvest", models("qwen2"), *flags, "-o", "store"), complaint)
    assert not (tmp_path / "store").exists()


@llm
def test_a_harvest_goes_on_only_with_what_it_was_begun_with(cli, models, corpus):
    flags = ["--site", SITES["gpt2"], "--text", corpus, "-o", "store"]
    assert cli("harvest", models("gpt2"), *flags).exit_code == 0
    assert_one_line(cli("harvest", models("gpt2"), *flags, "--context", "7"), "was begun with context = 64, not 7")
    assert_one_line(cli("harvest", models("qwen2"), *flags[2:], "--site", "model.norm"), "was begun with model =")


@llm
def test_two_harvests_do_not_write_to_one_folder(cli, models, corpus):
    flags = ["--site", SITES["gpt2"], "--text", corpus, "-o", "store"]
    assert cli("harvest", models("gpt2"), *flags).exit_code == 0
    handle = os.open(corpus.parent / "store", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert_one_line(cli("harvest", models("gpt2"), *flags), "another harvest is writing to this folder")
    os.close(handle)
    assert cli("harvest", models("gpt2"), *flags).exit_code == 0


@llm
def test_a_model_without_weights_for_its_head_is_refused_by_name(cli, tmp_path, corpus):
    folder = make(tmp_path / "bert", "bert", head=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    done = cli("harvest", folder, "--site", "encoder.layer.0", "--text", corpus, "-o", "store")
    assert_one_line(done, "holds no weights for cls.predictions")
    assert not (tmp_path / "store").exists()


def test_a_missing_extra_is_one_line(cli, monkeypatch, tmp_path):
    import importlib.util

    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else plain(name, *a))
    (tmp_path / "t.txt").write_text("text")
    done = cli("harvest", "model", "--site", "x", "--text", "t.txt", "-o", "store")
    assert_one_line(done, "pip install '.[llm]'")
    assert not (tmp_path / "store").exists()


def test_the_commands_are_there_and_import_no_torch():
    code = "import sys, refgba.cli; print('torch' in sys.modules, 'harvest' in refgba.cli.main.commands)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@llm
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_damaged_tokens_are_named(cli, models, corpus, damage):
    cli("harvest", models("gpt2"), "--site", SITES["gpt2"], "--text", corpus, "-o", "store")
    file = corpus.parent / "store" / "00000.tokens.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(data[:-9])
    else:
        data[-1] ^= 1
        file.write_bytes(data)
    with pytest.raises(InputError, match=r"00000\.tokens\.safetensors"):
        open_harvest(corpus.parent / "store").verify()
    with pytest.raises(InputError, match=r"00000\.tokens\.safetensors: (no such file|does not match its checksum)"):
        open_harvest(corpus.parent / "store").tokens(0)
