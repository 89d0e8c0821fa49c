"""The first run: which backend it takes, what it says before it begins, and that none of this changes its numbers."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from commands import QUICK, assert_one_line, last_json

from refgba import backends
from refgba.baselines import METHODS
from refgba.cli import main
from refgba.config import CHOOSING, BaselineConfig, GBAConfig
from refgba.data.activations import open_activations
from refgba.errors import InputError
from refgba.recipe import default
from refgba.runs import console, forecast, sections, trainer

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
    flags = ["--width", 24, "--steps", 5, "--batch", 8, "--method", method, *(["--k", 4] if method in CHOOSING else [])]
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
    assert "40 steps of 32 rows, of which 30 are done; numpy in float64 takes " in result.stderr
    assert "not be the same to the bit" not in result.stderr
    assert about(tmp_path / "run") == "numpy"


# ---- what is told before the first step ------------------------------------------------------------------------------


def test_one_line_before_the_first_step_says_what_is_coming(cli, data):
    lines = cli("train", data, "-o", "run", *QUICK).stderr.splitlines()
    [line] = [line for line in lines if "neurons on" in line]
    assert line.startswith("Note: M = 24 neurons on 500 rows of d = 42, 30 steps of 32 rows; numpy in float64 takes")
    assert line.endswith("B of memory")
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


def test_what_is_not_exact_is_said_to_be_about_so_much():
    assert [forecast.about(seconds) for seconds in (0.2, 7.4)] == ["under 1 s", "about 7 s"]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"), (7, "7 B"), (999, "999 B"), (1000, "1 kB"), (12_900, "12.9 kB"), (98_300_000, "98.3 MB"),
        (999_600, "1 MB"), (1.6e9, "1.6 GB"), (655e12, "655 TB"), (2e15, "2 PB"), (3.2e20, "320,000 PB"),
    ],
)  # fmt: skip
def test_bytes_are_told_in_the_unit_that_suits_them(count, words):
    assert forecast.sized(count) == words


def test_a_rate_at_which_training_diverges_is_timed_all_the_same(data):
    config = replace(default(42, width=24, groups=3, steps=30, batch=32), lr=1e300)
    assert forecast.forecast(config, backends.load("numpy"), open_activations(data)).seconds < 60


# ---- help, and a run that only says what it would do -----------------------------------------------------------------


def wanted(command):
    """The flags of a command, without short forms."""
    return {flag for p in main.commands[command].params for flag in p.opts if flag.startswith("--")}


@pytest.mark.parametrize("command", ["train", "demo"])
def test_help_fits_two_screens_and_names_the_sections_with_more(command):
    result = CliRunner().invoke(main, [command, "--help"], terminal_width=80, env={"COLUMNS": "80"})
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 48
    assert max(map(len, lines)) <= 80
    assert "Essentials:" in lines
    words = " ".join(result.stdout.split())
    for name in sections.SECTIONS[1:]:
        assert f"{name} (" in words
        assert f"{name}:" not in lines
    for flag in ("--out", "--width", "--steps", "--backend", "--dtype", "--seed", "--help-all", "--help"):
        assert f"{flag} " in result.stdout


@pytest.mark.parametrize("command", ["train", "demo"])
def test_all_help_has_every_flag_once_under_a_heading(command):
    text = CliRunner().invoke(main, [command, "--help-all"], terminal_width=100).stdout
    flags = text[text.index("Essentials:") :]
    assert [line[:-1] for line in flags.splitlines() if line and line[0] != " "] == list(sections.SECTIONS)
    named = [
        line.split()[0 if line.strip().startswith("--") else 1] for line in flags.splitlines() if line[:3] == "  -"
    ]
    assert sorted(named) == sorted(wanted(command) | {"--help"})


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("width", "Essentials"), ("keep", "Run"), ("drop_zero_rows", "Run"), ("gamma_plus", "GBA"),
        ("hold", "Ours, beyond the paper"), ("k", "Baselines"), ("lr_decay", "Optimiser"), ("beta1", "Optimiser"),
    ],
)  # fmt: skip
def test_each_flag_has_its_section(name, heading):
    assert sections.section(name) == heading


def test_the_help_of_train_has_two_examples_that_parse():
    lines = CliRunner().invoke(main, ["train", "--help"]).stdout.splitlines()
    examples = [line.split()[1:] for line in lines if line.startswith("  refgba train ")]
    assert len(examples) == 2
    for _, *arguments in examples:
        main.commands["train"].make_context("train", arguments)


@pytest.mark.parametrize("out", [[], ["-o", "run"]], ids=["no folder", "a folder"])
def test_a_dry_run_tells_settings_time_and_memory_and_writes_nothing(cli, data, tmp_path, out):  # noqa: ARG001
    before = sorted(tmp_path.rglob("*"))
    shown = cli("train", "x.npy", *out, *QUICK, "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    assert "width        24" in shown.stdout
    assert "30 steps of 32 rows; numpy in float64 takes " in shown.stdout
    assert "Nothing was written" in shown.stdout
    told = last_json(cli("train", "x.npy", *out, *QUICK, "--dry-run", "--json"))
    assert set(told) == {"backend", "rows", "d", "seconds", "bytes", "config"}
    assert (told["backend"], told["rows"], told["d"], told["config"]["width"]) == ("numpy", 500, 42, 24)
    assert told["seconds"] < 60
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_refuses_what_a_run_would(cli, data):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    assert_one_line(cli("train", data, "-o", "run", *QUICK, "--dry-run"), "run: already holds a run")
    assert_one_line(cli("train", data, *QUICK, "--dry-run", "--lr", "-1"), "lr must not be negative")
    assert_one_line(cli("train", "none.npy", "--dry-run"), "none.npy: no such file")
    assert_one_line(cli("train", "--resume", "run", "--dry-run"), "--dry-run cannot be given with --resume")
    assert_one_line(cli("train", data, *QUICK, "--dry-run", "--drop-below", "1"), "from 0 to under 1, not 1.0")
    assert_one_line(cli("train", data, *QUICK, "--dry-run", "--batch", "501"), "batch 501 is more than the 500 rows")
    assert_one_line(cli("train", data, *QUICK, "--dry-run", "--held-out", "none.npy"), "none.npy: no such file")


def test_a_dry_run_says_that_rows_to_be_left_out_still_count(cli, data):
    result = cli("train", data, *QUICK, "--dry-run", "--drop-below", "0.5", "--drop-zero-rows", "--json")
    assert "--drop-zero-rows and --drop-below 0.5 leaves out" in result.stderr
    assert last_json(result)["rows"] == 500
    assert "leaves out" not in cli("train", data, *QUICK, "--dry-run").stderr


@pytest.mark.parametrize("method", METHODS)
def test_the_help_says_with_which_settings_a_run_of_any_method_trains(cli, data, method):
    small = "--width", 32, "--batch", 32, "--backend", "numpy"
    text = " ".join(CliRunner().invoke(main, ["train", "--help-all"], terminal_width=200).stdout.split())
    chosen = last_json(cli("train", data, "--method", method, *small, "--dry-run", "--json"))["config"]
    for name in ("lr", "lr_decay", "steps", "dtype"):
        [stated] = re.findall(rf"{METHODS['gba'].Config.__dataclass_fields__[name].metadata['help']} \[([^]]*)\]", text)
        values = dict(part.split(": ", 1) for part in stated.split("; "))
        assert values.get("baselines" if method != "gba" else "default", values["default"]) == str(chosen[name]), name
