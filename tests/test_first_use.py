"""The first run: which backend it takes, what it says before it begins, and that none of this changes its numbers."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from commands import QUICK, last_json

from refgba import backends
from refgba.baselines import METHODS
from refgba.config import BaselineConfig, GBAConfig
from refgba.data.activations import open_activations
from refgba.errors import InputError
from refgba.recipe import default
from refgba.runs import console, forecast, trainer

SHORT = QUICK[: QUICK.index("--backend")]


def about(run):
    return json.loads((run / "about.json").read_text())["backend"]


def dtype(run):
    return json.loads((run / "config.json").read_text())["dtype"]


# ---- the backend and the dtype ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["train", "x.npy"], ["demo", "--rows", "500"]], ids=["train", "demo"])
@pytest.mark.parametrize("flags", [[], ["--backend", "auto"]], ids=["left out", "named"])
def test_the_fast_backend_and_float32_are_the_defaults(cli, data, tmp_path, command, flags):  # noqa: ARG001
    pytest.importorskip("numba")
    result = cli(*command, "-o", "run", *SHORT, *flags)
    assert result.exit_code == 0, result.stderr
    assert (about(tmp_path / "run"), dtype(tmp_path / "run")) == ("numba", "float32")
    assert "numba in float32" in result.stderr


@pytest.mark.parametrize("method", METHODS)
def test_numpy_stands_in_where_numba_cannot_run_and_the_reason_is_told(cli, data, tmp_path, monkeypatch, method):
    load_for = backends.load_for

    def refuse(name, config):
        if name == "numba":
            raise InputError("backend 'numba' cannot run here: a reason")
        return load_for(name, config)

    monkeypatch.setattr(backends, "load_for", refuse)
    flags = ["--width", 24, "--steps", 5, "--batch", 8, "--method", method, *(["--k", 4] if "topk" in method else [])]
    result = cli("train", data, "-o", "run", *flags)
    assert result.exit_code == 0, result.stderr
    assert "Note: backend 'numba' cannot run here: a reason; numpy computes instead" in result.stderr
    assert "numpy in float32" in result.stderr
    assert (about(tmp_path / "run"), dtype(tmp_path / "run")) == ("numpy", "float32")


def test_what_is_asked_for_goes_before_the_defaults(cli, data, tmp_path):
    (tmp_path / "settings.json").write_text('{"dtype": "float64"}')
    for flags, expected in (
        (["--backend", "numpy"], ("numpy", "float32")),
        (["--dtype", "float64", "--backend", "numpy"], ("numpy", "float64")),
        (["--config", "settings.json", "--backend", "numpy"], ("numpy", "float64")),
        (["--recipe", "paper"], ("numpy", "float64")),
        (["--recipe", "paper", "--dtype", "float32"], ("numpy", "float32")),
    ):
        run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        assert cli("train", data, "-o", run, *SHORT, *flags).exit_code == 0
        assert (about(run), dtype(run)) == expected, flags


def test_the_reference_keeps_its_defaults():
    assert GBAConfig().dtype == BaselineConfig().dtype == default(8).dtype == "float64"


@pytest.mark.parametrize("flags", [[], ["--backend", "auto"]], ids=["left out", "auto"])
def test_a_run_that_goes_on_keeps_its_backend(cli, data, tmp_path, flags):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    result = cli("train", "--resume", "run", "--steps", 40, *flags)
    assert result.exit_code == 0
    assert "40 steps of 32 rows, of which 30 are done; numpy in float64 takes about" in result.stderr
    assert "not be the same to the bit" not in result.stderr
    assert about(tmp_path / "run") == "numpy"


# ---- what is told before the first step ------------------------------------------------------------------------------


def test_one_line_before_the_first_step_says_what_is_coming(cli, data):
    lines = cli("train", data, "-o", "run", *QUICK).stderr.splitlines()
    [line] = [line for line in lines if "neurons on" in line]
    assert line.startswith("Note: M = 24 neurons on 500 rows of d = 42, 30 steps of 32 rows; numpy in float64 takes")
    assert line.endswith("GB of memory")
    done = cli("train", "--resume", "run").stderr
    assert "neurons on" not in done


@pytest.mark.parametrize("flags", [[], ["--method", "topk", "--k", "4"]], ids=["gba", "topk"])
def test_timing_a_few_steps_changes_no_number(cli, data, tmp_path, monkeypatch, flags):
    quick = ["--width", 24, "--steps", 20, "--batch", 32, *flags]
    assert cli("train", data, "-o", "timed", *quick).exit_code == 0
    monkeypatch.setattr(console, "foretell", id)
    assert cli("train", data, "-o", "plain", *quick).exit_code == 0
    a, b = ((tmp_path / run / "final" / "params.safetensors").read_bytes() for run in ("timed", "plain"))
    assert a == b


class Slow:
    """The reference, but each step takes as long as `wait` says, on a clock of its own that no other process slows."""

    def __init__(self, wait):
        self._numpy, self._wait, self.clock = backends.load("numpy"), wait, 0.0

    def __getattr__(self, name):
        return getattr(self._numpy, name)

    def step(self, state, x):
        metrics = self._numpy.step(state, x)
        self.clock += self._wait(state, float(metrics.l0) / state.config.width)
        return metrics


@pytest.mark.parametrize(
    "wait",
    [
        lambda state, density: 0.004,  # noqa: ARG005
        lambda state, density: 0.002 + 0.03 * density,  # noqa: ARG005
        lambda state, density: 0.003 if state.params.W_dec is None else 0.006,  # noqa: ARG005
    ],
    ids=["constant", "by density", "by phase"],
)
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_the_time_told_is_within_half_of_the_time_it_takes(data, monkeypatch, wait, recipe):
    activations, slow = open_activations(data), Slow(wait)
    monkeypatch.setattr(forecast, "perf_counter", lambda: slow.clock)
    config = METHODS["gba"].configure(42, recipe, width=64, steps=400, batch=64)
    expected = forecast.forecast(config, slow, activations)
    rows = iter(np.random.default_rng(0).standard_normal((400, 64, 42)))
    state = backends.begin(slow, config, 42)
    began = slow.clock
    for x in rows:
        slow.step(state, x / np.linalg.norm(x, axis=1, keepdims=True))
        if state.t % config.adapt_every == 0:
            slow.adapt(state)
    took = slow.clock - began
    assert 0.5 * took < expected.seconds < 1.5 * took
    half = forecast.forecast(config, slow, activations, done=200)
    assert half.seconds < 0.75 * expected.seconds


def test_compiling_counts_in_neither_the_clock_nor_the_bar(cli, data, monkeypatch):
    load_for = backends.load_for

    def compile_first(name, config):
        time.sleep(1.5)
        return load_for(name, config)

    monkeypatch.setattr(backends, "load_for", compile_first)
    result = cli("train", data, "-o", "run", *QUICK, "--json")
    assert last_json(result)["seconds"] < 1.5
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("Loading numba, which compiles the first time on a machine")]


def test_the_clock_begins_with_the_first_step():
    assert "perf_counter" not in trainer.train_run.__code__.co_names


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "under 1 s"), (7.4, "7 s"), (200, "3 min 20 s"), (1300, "21 min"), (7500, "2 h 5 min"), (59.7, "1 min 0 s")],
)
def test_durations_are_told_in_words(seconds, words):
    assert forecast.told(seconds) == words


def test_a_rate_at_which_training_diverges_is_timed_all_the_same(data):
    config = replace(default(42, width=24, groups=3, steps=30, batch=32), lr=1e300)
    assert forecast.forecast(config, backends.load("numpy"), open_activations(data)).seconds < 60
