"""`refgba llm explore`: what the three commands write, in one folder; it goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json

import llm_models
import pytest
from commands import assert_one_line, last_json
from llm_models import SITES, llm

from refgba.llm import harvesting

models, corpus = llm_models.models, llm_models.corpus  # fixtures
SMALL = ("--width", 40, "--steps", 30, "--context", 24)


def sums(folder):
    """Every file in a folder, by its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def long(corpus):
    """Enough text for a minibatch."""
    for k in range(20):
        (corpus / f"more{k:02d}.txt").write_text(llm_models.text(100 + k, 60), encoding="utf-8")
    return corpus


@llm
def test_one_command_writes_what_three_write(cli, models, long, tmp_path):
    text = ["--text", long, "--files", "*.txt", "--shuffle", 0]
    model, site = models("qwen2"), SITES["qwen2"]
    result = cli("llm", "explore", model, "--site", site, *text, "--tokens", 1500, *SMALL, "-o", "out", "--json")
    found = last_json(result)
    assert found["page"] == "out/dashboard/index.html"
    assert (tmp_path / found["page"]).is_file()
    assert "altogether: " in result.stderr
    assert " to harvest, " in result.stderr
    harvest = ["harvest", model, "--site", site, *text, "--tokens", 1500, "--context", 24, "-o", "store"]
    assert cli(*harvest).exit_code == 0
    assert (
        cli("train", "store", "-o", "run", "--width", 40, "--steps", 30, "--seed", 0, "--recipe", "measured").exit_code
        == 0
    )
    assert cli("llm", "dashboard", "run", "store", model, "-o", "dashboard").exit_code == 0
    assert sums(tmp_path / "out" / "store") == sums(tmp_path / "store")
    params = "final/params.safetensors"
    assert sums(tmp_path / "out" / "run")[params] == sums(tmp_path / "run")[params]
    assert sums(tmp_path / "out" / "dashboard").keys() == sums(tmp_path / "dashboard").keys()


@llm
def test_it_goes_on_where_it_was_stopped(cli, models, long, tmp_path, monkeypatch):
    command = ["llm", "explore", models("gpt2"), "--site", SITES["gpt2"], "--text", long, *SMALL, "--tokens", 1500]
    assert cli(*command, "-o", "whole").exit_code == 0
    run = harvesting.run
    calls = []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return run(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(harvesting, "run", stopped)
        assert cli(*command, "-o", "parts").exit_code != 0
    assert not (tmp_path / "parts" / "run").exists()
    assert cli(*command, "-o", "parts").exit_code == 0
    (tmp_path / "parts" / "dashboard" / "index.html").unlink()
    (tmp_path / "parts" / "dashboard").rename(tmp_path / "away")
    again = cli(*command, "-o", "parts")  # only the dashboard is missing
    assert again.exit_code == 0, again.output
    params = "run/final/params.safetensors"
    assert sums(tmp_path / "parts")[params] == sums(tmp_path / "whole")[params]
    last = cli(*command, "-o", "parts")
    assert "is there already" in last.stderr
    other = [word if word != 40 else 48 for word in command]
    assert_one_line(cli(*other, "-o", "parts"), "was begun with width = 40, not 48")
    assert_one_line(
        cli(*command, "--recipe", "default", "-o", "parts"), "was begun with --recipe measured, not default"
    )
    assert_one_line(cli(*command[:-1], 1400, "-o", "parts"), "was begun with tokens = 1500, not 1400")


@llm
def test_what_cannot_be_explored_is_one_line_and_nothing_is_written(cli, models, long, tmp_path):
    text = ["--text", long, "-o", "out"]
    model = models("qwen2")
    assert_one_line(cli("llm", "explore", model, "--site", "model.layers.*.mlp", *text), "names 2 sites")
    assert_one_line(cli("llm", "explore", model, "--site", "nothing", *text), "has no submodule 'nothing'")
    assert_one_line(cli("llm", "explore", model, "--site", SITES["qwen2"], *text, "--context", 99), "--context 99")
    of = ["--site", SITES["qwen2"], *text, *SMALL]
    assert_one_line(cli("llm", "explore", model, *of, "--l0", 99), "l0 must lie between 0 and width (40)")
    assert_one_line(cli("llm", "explore", model, *of, "--l0", 9, "--recipe", "default"), "is for measured targets")
    assert not (tmp_path / "out").exists()


@llm
def test_an_encoder_has_a_dashboard_without_logits(cli, tmp_path, long):
    model = llm_models.make(tmp_path / "bare", "bert", head=False)
    site = SITES["bert"].removeprefix("bert.")
    result = cli("llm", "explore", model, "--site", site, "--text", long, *SMALL, "--tokens", 1500, "-o", "out")
    assert result.exit_code == 0, result.output
    assert "no effects on logits" in result.stderr
    assert json.loads((tmp_path / "out" / "store" / "meta.json").read_text())["site"] == site
