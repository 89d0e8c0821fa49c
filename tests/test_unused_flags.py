"""A flag that is given and has no effect is refused in one line, before anything is read or written."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from commands import QUICK, assert_one_line

import refgba
from refgba.baselines import METHODS
from refgba.config import CHOOSING, PENALISED, GBAConfig
from refgba.data import synthetic
from refgba.errors import InputError
from refgba.recipe import RECIPES
from refgba.runs import folder
from refgba.runs.sections import OPTIMISER
from refgba.runs.settings import CUSTOMARY, DERIVED, Request, flags, switch

SMALL = ["--width", 24, "--steps", 30, "--batch", 32, "--backend", "numpy"]
STEER = ["llm", "steer", "run", "model", "--neuron", 1, "--by", 1, "--prompt", "a"]
THEORY = ["theory", "--n", 128, "--d", 42, "--s", 3]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        *(
            (["train", "x.npy", "-o", "run", *flags], complaint)
            for flags, complaint in (
                (["--recipe", "measured", "--htf", 0.02], "--htf has no effect here: targets are measured"),
                (["--targets-from", "data", "--groups", 3], "--groups has no effect here: targets are measured"),
                (["--recipe", "measured", "--ltf", 0.001], "--ltf has no effect here: targets are measured"),
                (["--recipe", "measured", "--method", "ba"], "--method ba has no effect here: targets are measured"),
                (
                    ["--recipe", "measured", "--method", "topk"],
                    "--recipe measured has no effect here: method topk is not trained by recipes",
                ),
                (["--l0", 0], "--l0 has no effect here: it is for targets that are measured from the data"),
                (["--method", "l1", "--k", 3], "--k has no effect here: it is for topk, batchtopk, matryoshka, not"),
                (["--method", "topk", "--sparsity", 1], "--sparsity has no effect here: it is for l1, jumprelu, gated"),
                (["--broadcast-rows"], "--broadcast-rows has no effect without mpiexec; leave it out"),
            )
        ),
        (["demo", "--recipe", "measured", "--htf", 0.02], "--htf has no effect here: targets are measured"),
        (["oracle", "record", "-o", "t", "--ties", "--width", 3], "--width has no effect with --ties"),
        (["evaluate", "run", "x.npy", "--top", 5], "--top has no effect without -o; leave it out"),
        ([*THEORY, "--width", 7, "--eta", 0], "--width and --eta have no effect without --simulate; leave them out"),
        ([*THEORY, "--seed", 0], "--seed has no effect without --simulate"),
        (["synth", "-o", "s", "--kind", "zipf", "--s", 3], "--s has no effect on --kind zipf; leave it out"),
        (["llm", "dashboard", "run", "x.npy", "-o", "d", "--device", "cpu"], "--device has no effect without MODEL"),
        (
            ["llm", "features", "run", "x.npy", "-o", "d", "--format", "delphi", "--top", 3],
            "--top has no effect on --format delphi",
        ),
        ([*STEER, "--column", "t"], "--column has no effect without --text; leave it out"),
        ([*STEER, "--text", "x.npy", "--peak", 1], "--text has no effect with --peak, which is not measured then"),
        (["synth", "-o", "s", "--children", 3], "--children has no effect on --kind imbalanced; leave it out"),
    ],
    ids=lambda part: None if isinstance(part, str) else " ".join(map(str, part)),
)
def test_a_flag_without_effect_is_refused(cli, tmp_path, monkeypatch, command, complaint):
    monkeypatch.setattr("refgba.runs.launch.survey", None)
    np.save(tmp_path / "x.npy", np.eye(6))
    assert_one_line(cli(*command), f"Error: {complaint}")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_a_law_is_another_where_a_setting_that_it_uses_is_another(kind):
    plain = {
        "kind": kind, "n": 24, "d": 6, "weights": "constant", "features": "gaussian", "noise": 0.0, "seed": 0,
        "dtype": "float64", "sparsity": (), "frequency": 0.05, "exponent": 1.0, "rho_2": 0.2, "children": 3,
        "p_child": 0.3,
    }  # fmt: skip
    other = {"sparsity": (2,), "frequency": 0.04, "exponent": 0.5, "rho_2": 0.3, "children": 2, "p_child": 0.4}
    assert synthetic.USED[kind] | synthetic.unused(kind) == set(other)
    for name, value in other.items():
        same = str(synthetic.described(plain | {name: value}).rows) == str(synthetic.described(plain).rows)
        assert same is (name in synthetic.unused(kind)), name


def test_settings_of_a_file_and_of_python_may_be_of_no_use(cli, data, tmp_path):
    measured = [*SMALL, "--recipe", "measured"]
    assert cli("train", data, "-o", "a", *measured).exit_code == 0
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    assert {"htf", "ltf", "groups", "hold"} <= set(settings)
    for out, more in (("b", []), ("c", ["--recipe", "measured"])):
        assert cli("train", data, "-o", out, "--config", "a/config.json", "--backend", "numpy", *more).exit_code == 0
        a, b = ((tmp_path / run / "final" / "params.safetensors").read_bytes() for run in ("a", out))
        assert a == b
    assert Request({"k": 3}, "l1").config(6).k == 3
    assert refgba.load(tmp_path / "a").fit(np.load(data)).config_ == folder.open_network(tmp_path / "a").config


def test_what_has_an_effect_is_taken(cli, data):
    for more in (
        ["--method", "ba", "--htf", 0.02], ["--method", "topk", "--recipe", "paper", "--k", 3],
        ["--recipe", "measured", "--l0", 3, "--relative", 0.5], ["--groups", 2, "--ltf", 0.001, "--hold", 0.9],
    ):  # fmt: skip
        result = cli("train", data, "-o", "run", *SMALL, *more, "--dry-run")
        assert result.exit_code == 0, result.stderr


def test_every_setting_of_every_method_has_an_effect_in_some_run():
    runs = [GBAConfig(), GBAConfig(targets_from="data")]
    for f in fields(GBAConfig):
        assert any(not config.without_effect(f.name) for config in runs), f.name
    for name in (*CHOOSING, *PENALISED):
        config = METHODS[name].configure(6, "default")
        assert {f.name for f in fields(config) if config.without_effect(f.name)} == {
            f.name for f in fields(config) if not config.uses(f.name)
        }


def test_the_flags_of_quick_runs_have_an_effect(cli, data):
    assert cli("train", data, "-o", "run", *QUICK).exit_code == 0
    assert cli("theory", "--n", 16, "--d", 8, "--s", 2, "--simulate", "--rows", 50, "--width", 8).exit_code == 0


def test_a_setting_is_called_as_it_was_given(cli, data, tmp_path):
    train = ["train", data, "-o", "run", "--backend", "numpy"]
    (tmp_path / "c.json").write_text('{"gamma_minus": -1}')
    assert_one_line(cli(*train, "--config", "c.json"), "Error: gamma_minus must not be negative, not -1.0 (from c.json")
    (tmp_path / "c.json").write_text('{"width": 5}')
    file = ["--config", "c.json"]
    assert_one_line(cli(*train, *file), "Error: width (5) must be at least groups (10) (from c.json and the flags)")
    assert_one_line(cli(*train, *file, "--groups", 7), "Error: width (5) must be at least --groups (7) (from c.json")
    assert_one_line(cli(*train, "--gamma-minus", -1), "Error: --gamma-minus must not be negative, not -1.0")
    said = cli(*train, "--width", 24, "--batch", 32, "--steps", 3, "--adapt-every", 5, "--dry-run").stderr
    assert "Note: --adapt-every 5 is more than --steps 3: no bias will adapt" in said
    with pytest.raises(InputError, match=r"^gamma_minus must not be negative"):
        Request({"gamma_minus": -1}).config(6)


# ---- what --help-all says of settings --------------------------------------------------------------------------------


def test_what_is_ours_stands_under_ours(cli):
    text = cli("train", "--help-all").stdout
    paper, ours = (text.partition(f"\n{name}:\n")[2].partition("\n\n")[0] for name in ("GBA", "Ours, beyond the paper"))
    for f in fields(GBAConfig):
        if f.metadata["ours"] and f.name not in OPTIMISER:
            assert f"{switch(f.name)} " in ours
            assert f"{switch(f.name)} " not in paper
    assert {"l0", "relative", "untied"} <= {f.name for f in fields(GBAConfig) if f.metadata["ours"]}


def test_help_tells_the_defaults_of_every_recipe():
    told = {flag.name: flag.help.rpartition("  [")[2].rstrip("]") for flag in flags()}
    assert told["a_init"] == "default: from the data and the run; recipe measured: 0.5; recipe paper: 1.0"
    assert told["floor"] == "default: 0.5; recipe measured: 0.8; recipe paper: 0.0"
    assert told["width"] == "default: from the data and the run; recipe paper: 1024"
    assert told["lr"].startswith("default: 0.0075; baselines: 0.001; recipe measured: from the data and the run")
    assert told["k"] == "default: 32"
    for recipe in RECIPES:
        config = METHODS["gba"].configure(8, recipe, **({} if recipe == "paper" else CUSTOMARY))
        for f in fields(config):
            if not config.without_effect(f.name):
                assert str(getattr(config, f.name)) in told[f.name] or DERIVED in told[f.name], (recipe, f.name)
