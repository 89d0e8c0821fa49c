"""`refgba llm explore`: what the three commands write, in one folder; it goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal

import llm_models
import pytest
from commands import assert_one_line, last_json
from llm_models import SITES, llm

from refgba.llm import harvesting
from refgba.llm.explore import trained_on
from refgba.runs import console

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
    assert_one_line(cli("llm", "explore", model, *of, "--l0", 99), "--l0 must lie between 0 and --width (40)")
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


@pytest.fixture
def command(models, long):
    """A command that explores into the folder `out`."""
    flags = ["--text", long, *SMALL, "--tokens", 1500, "-o", "out"]
    return ["llm", "explore", models("gpt2"), "--site", SITES["gpt2"], *flags]


@llm
def test_a_dashboard_of_another_run_is_not_taken_for_this_one(cli, command, tmp_path):
    assert cli(*command, "--l0", 3).exit_code == 0
    page = tmp_path / "out" / "dashboard" / "index.html"
    before = page.read_bytes()
    shutil.rmtree(tmp_path / "out" / "run")
    result = cli(*command, "--l0", 9)
    assert_one_line(result, "dashboard: is not of the run and the store that are beside it now; remove it")
    assert not (tmp_path / "out" / "run").exists()  # said before hours of training
    assert page.read_bytes() == before
    shutil.rmtree(page.parent)
    assert cli(*command, "--l0", 9).exit_code == 0
    after = page.read_bytes()
    assert after != before
    page.write_bytes(before)  # of the first run, beside the second
    assert_one_line(cli(*command, "--l0", 9), "dashboard: is not of the run and the store")
    page.write_bytes(after)
    assert cli(*command, "--l0", 9).exit_code == 0
    shutil.rmtree(tmp_path / "out" / "store")
    assert_one_line(cli(*command, "--l0", 9), "dashboard: is not of the run and the store")


@llm
def test_what_was_asked_for_is_compared_before_what_follows_from_it(cli, command):
    assert cli(*command, "--l0", 3, "--seed", 1).exit_code == 0
    of = ["--l0", 3, "--seed", 1]
    assert_one_line(cli(*command, "--l0", 3, "--seed", 5), "begun with seed = 1, not 5; give --seed 1")
    assert_one_line(cli(*command, "--seed", 1), "begun with l0 = 3.0, not 0.0; give --l0 3")
    assert_one_line(cli(*command, "--l0", 4.5, "--seed", 1), "begun with l0 = 3.0, not 4.5; give --l0 3")
    assert_one_line(cli(*command, *of, "--steps", 99), "begun with steps = 30, not 99; give --steps 30")
    assert "extends it" not in cli(*command, *of).stderr  # which it could not do


@llm
def test_too_little_text_is_refused_before_the_harvest_by_a_flag_that_there_is(cli, command, tmp_path):
    for flags, complaint in (
        (("--tokens", 100), "fewer than the 512 of a batch: give at least --tokens 5"),
        (("--tokens", 10**6, "--files", "00.txt"), "fewer than the 512 of a batch: give more with --text"),
    ):
        assert_one_line(cli(*command, *flags), complaint)
        assert not (tmp_path / "out").exists()


def test_rows_that_are_held_out_are_not_trained_on():
    assert [trained_on(rows) for rows in (10, 990, 1000, 2000)] == [10, 990, 900, 1800]  # fewer than 100 are not


@llm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_training_it_names_the_command_that_goes_on(cli, command, tmp_path, monkeypatch, number):
    train = console.train

    def begin(run):
        steps = run.steps

        def killed(stop):
            os.kill(os.getpid(), number)
            yield from steps(stop)

        object.__setattr__(run, "steps", killed)
        return train(run)

    with monkeypatch.context() as patch:
        patch.setattr(console, "train", begin)
        result = cli(*command)
    assert result.exit_code == 128 + number
    last = result.stderr.splitlines()[-1]
    assert last == f"out: stopped by {number.name} while training; the same command goes on"
    assert not (tmp_path / "out" / "dashboard").exists()
    assert cli(*command).exit_code == 0
    assert (tmp_path / "out" / "dashboard" / "index.html").is_file()


@llm
def test_it_writes_into_no_folder_of_something_else(cli, command, long, tmp_path):
    before = sums(long)
    assert_one_line(cli(*command, "-o", long), "holds 00.txt, which no `explore` wrote; choose another folder")
    assert sums(long) == before
    (tmp_path / "out").mkdir()
    assert cli(*command).exit_code == 0
