"""delphi, SAEDashboard and SAEBench themselves read what is written for them, each in an environment of its own.

What they need clashes with what SAELens needs, and with one another; `make test-all` makes the environments, from the
lists in tests/others.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import llm_models
import numpy as np
import pytest
from commands import last_json
from engines import real
from llm_models import SITES, needs, text
from llm_stores import SITE, SPECIAL, random_store, write_store

from refgba import formats
from refgba.llm.dashboard import survey_features, write_delphi, write_features
from refgba.llm.records import open_harvest

models = llm_models.models  # a fixture
HERE = Path(__file__).parent
WORDS = [SPECIAL, "the", "cat", "sat", "on", "a", "mat", "<script>", "naïve"]
LENGTH, D, M = 32, 6, 20


def run(name: str, script: str, *arguments: object) -> list:
    """What a script of tests/others prints in the environment of this name, line by line; or a skipped test."""
    python = HERE.parent / ".venv" / "others" / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{name} is not installed: make .venv/others/{name}/ready")
    settings = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [python, HERE / "others" / script, *map(str, arguments)], capture_output=True, text=True, timeout=600,
        env=os.environ | settings, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]


def dictionary(seed: int = 0) -> formats.Dictionary:
    """A random network of raw rows, of which one neuron never fires."""
    W = np.random.default_rng(seed).standard_normal((M, D))
    threshold = np.full(M, 1.5)
    threshold[3] = 1e6
    return formats.Dictionary(W, np.zeros(M), threshold, W, np.zeros(D), subtract_b_dec=False, input="raw")


@real
def test_delphi_reads_every_activation_where_it_is(tmp_path):
    rng = np.random.default_rng(0)
    contexts = [
        ([SPECIAL, *rng.choice(WORDS[1:], n - 1).tolist()], rng.standard_normal((n, D)))
        for n in (LENGTH, *rng.integers(8, LENGTH + 1, 39).tolist())
    ]
    harvest = open_harvest(write_store(tmp_path / "store", [contexts[:20], contexts[20:]]))
    words = [SPECIAL, *dict.fromkeys(text for texts, _ in contexts for text in texts if text != SPECIAL)]
    write_delphi(dictionary(), harvest, tmp_path / "latents")
    [read] = run("delphi", "read_delphi.py", tmp_path / "latents", SITE, json.dumps(words))
    ids = [[words.index(text) for text in texts] for texts, _ in contexts]
    assert read["tokens"] == [row + [0] * (LENGTH - len(row)) for row in ids]
    expected: dict[str, list] = {}
    for c, (_, x) in enumerate(contexts):
        _, codes = dictionary().encode(x.astype(np.float32).astype(np.float64))
        for at, m in np.argwhere(codes[1:] > 0):  # the first rows were left out
            expected.setdefault(str(m), []).append([c, int(at) + 1, float(np.float16(codes[at + 1, m]))])
    assert "3" not in expected
    assert read["latents"] == expected
    assert len(read["records"]) == M - 1
    for m, examples in read["records"].items():
        at = {(row, position): value for row, position, value in expected[m]}
        for tokens, activations, texts in examples:
            assert texts == [words[id] for id in tokens]
            assert max(activations) > 0
            assert set(activations) - {0} <= set(at.values())


@real
@pytest.mark.parametrize("seed", [0, 1])
def test_sae_dashboard_reads_batches_and_writes_the_same(tmp_path, seed):
    formats.npz.write(dictionary(seed), {}, tmp_path / "dictionary")
    random_store(tmp_path / "store", seed, d=D)
    features = survey_features(tmp_path / "dictionary", tmp_path / "store", top=3, quantiles=2, examples=2)
    write_features(features, tmp_path / "out", "saedashboard")
    files = sorted((tmp_path / "out").iterdir())
    read = run("sae-dashboard", "read_sae_dashboard.py", *files)
    assert read == [json.loads(file.read_text()) for file in files]
    assert [feature["feature_index"] for batch in read for feature in batch["features"]] == list(range(M))


@real
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_sae_bench_measures_what_llm_evaluate_does(cli, models, tmp_path, kind):
    needs()
    context, documents = 24, [text(seed, 60) for seed in range(8)]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for k, document in enumerate(documents):
        (corpus / f"{k}.txt").write_text(document, encoding="utf-8")
    (tmp_path / "texts.json").write_text(json.dumps(documents))
    cut = ["--context", context, "--text", corpus]
    whole = ["--drop-first", 0, "--keep-special", "--max-norm", 0]
    done = cli("harvest", models(kind), "--site", SITES[kind], *cut, *whole, "-o", "store")
    assert done.exit_code == 0, done.output
    small = ["--width", 32, "--groups", 2, "--htf", 0.3, "--steps", 40, "--batch", 32, "--backend", "numpy"]
    assert cli("train", "store", "-o", "run", "--centre", "off", *small).exit_code == 0
    assert cli("export", "run", "-o", "out").exit_code == 0
    ours = last_json(cli("llm", "evaluate", "run", models(kind), "--text", corpus, "--per-document", 1, "--json"))
    [theirs] = run("sae-bench", "run_sae_bench.py", tmp_path / "out", tmp_path / "texts.json", context)
    assert theirs["sparsity"]["l0"] == pytest.approx(ours["l0"], rel=1e-5)
    loss = theirs["model_performance_preservation"]
    assert loss["ce_loss_without_sae"] == pytest.approx(ours["clean"]["value"], rel=1e-5)
    assert loss["ce_loss_with_sae"] == pytest.approx(ours["all"]["spliced"]["loss"]["value"], rel=1e-5)
    assert loss["ce_loss_with_ablation"] == pytest.approx(ours["all"]["zero"]["loss"]["value"], rel=1e-5)
