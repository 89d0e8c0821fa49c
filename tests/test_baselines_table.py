"""The table of methods: every module has every name of the Protocol, and nothing else decides by the method."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from refgba import baselines, cli, gba
from refgba.backends import NAMES, load_for
from refgba.backends.baselines.traits import LACKING
from refgba.baselines import CHOICES, METHODS, chosen
from refgba.baselines.method import Description, Method
from refgba.config import CHOOSING, Baseline, BaselineConfig, GBAConfig, config_from_json
from refgba.errors import InputError
from refgba.formats import from_params
from refgba.sae import unit_rows

ROOM = Path(baselines.__file__).parent
SMALL = {"width": 24, "steps": 20, "batch": 16}


def parameters(function):
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


def small(name, **settings):
    """Settings of a small run on rows of 6 dimensions, and its state before the first step."""
    method = METHODS[name]
    config = method.configure(6, "default", **SMALL, **({"k": 4} if name in CHOOSING else {}), **settings)
    return method, config, method.init(method.random_params(config, 6), config)


def rows(config, seed=0):
    return unit_rows(np.random.default_rng(seed).standard_normal((config.batch, 6))).astype(config.master)


# ---- the table and its files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_every_name_of_the_protocol_with_the_same_parameters(name):
    method = METHODS[name]
    names = [member for member in vars(Method) if not member.startswith("_")]
    assert len(names) > 20
    for member in names:
        assert hasattr(method, member), member
        assert member in method.__all__, member
        if inspect.isfunction(vars(Method)[member]):
            expected, ours = parameters(vars(Method)[member]), parameters(getattr(method, member))
            assert [p.name for p in ours[: len(expected)]] == [p.name for p in expected], member
            assert [p.kind for p in ours[: len(expected)]] == [p.kind for p in expected], member
            assert all(p.default is not p.empty for p in ours[len(expected) :]), member
    assert set(method.__all__) == set(names)


def test_a_method_s_file_has_its_name_and_every_such_file_is_in_the_table():
    assert {name: Path(method.__file__) for name, method in METHODS.items()} == {
        name: ROOM / f"{name}.py" for name in METHODS
    }
    defining = {path.stem for path in ROOM.glob("*.py") if "def encode(" in path.read_text(encoding="utf-8")}
    assert defining - {"method"} == set(METHODS)


def test_the_command_line_and_the_settings_have_the_methods_of_the_table():
    assert list(CHOICES) == ["gba", "ba", *(name for name in METHODS if name != "gba")]
    for command in (cli.main.commands["train"], cli.main.commands["demo"]):
        [option] = [p for p in command.params if p.name == "method"]
        assert list(option.type.choices) == list(CHOICES)
    assert ["gba", *get_args(Baseline)] == list(METHODS)


def test_nothing_here_asks_which_method_it_has():
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) != "isinstance", path.name
            if isinstance(node, ast.Compare):
                assert not any(".method" in ast.unparse(side) for side in (node.left, *node.comparators)), path.name


@pytest.mark.parametrize("name", METHODS)
def test_the_reference_runs_every_method_behind_the_contract(name):
    _, config, _ = small(name)
    backend = load_for("numpy", config)
    assert backend.__name__ == f"{METHODS[name].TWINS}.numpy"


@pytest.mark.parametrize("name", LACKING["cupy"])
def test_a_method_that_a_backend_lacks_is_refused_in_one_line_whatever_is_installed(name):
    _, config, _ = small(name)
    with pytest.raises(
        InputError, match="'cupy' trains with method gba, l1, topk, batchtopk, jumprelu only; numpy and"
    ) as said:
        load_for("cupy", config)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("gba", *LACKING["cupy"])])
def test_a_backend_without_the_file_is_refused(name, monkeypatch):
    _, config, _ = small(name)
    twins = Path(cli.__file__).parent / "backends" / "baselines"
    assert {path.stem for path in twins.glob("*.py")} & set(NAMES) == set(NAMES)
    missing = f"{METHODS[name].TWINS}.cupy"
    monkeypatch.setattr("refgba.backends.find_spec", lambda path: None if path == missing else find_spec(path))
    with pytest.raises(InputError, match="backend 'cupy' trains with method gba only; numpy and numba have the basel"):
        load_for("cupy", config)


# ---- what the table says is so ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_settings_lead_back_to_their_method(name):
    method, config, _ = small(name)
    assert type(config) is method.Config
    assert config.method == name
    assert config_from_json(config.to_json()) == config
    assert METHODS[config.method] is method


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in METHODS), ("gba", {"form": 0.0}), ("gba", {"untied": False})],
)
def test_arrays_and_moments_after_every_step_are_those_that_the_table_names(name, settings):
    method, config, state = small(name, **settings)
    assert config.steps > 8
    for t in range(config.steps + 1):
        if t:
            method.step(state, rows(config, t))
        assert tuple(state.params.arrays()) == method.parameters(config, t)
        assert set(state.optimiser) == set(method.optimised(config, t))
        assert set(method.optimised(config, t)) <= set(method.parameters(config, t))
    own = getattr(state, method.OWN.name)
    assert own.shape == (config.width,)
    assert own.dtype == method.OWN.dtype
    order = ["config", "params", "optimiser", "buffer", "last", method.OWN.name, "t"]
    assert [f.name for f in fields(method.State)][: len(order)] == order
    assert type(state) is method.State
    assert type(state.params) is method.Params


@pytest.mark.parametrize("name", METHODS)
def test_codes_of_inference_are_those_of_the_forward_pass(name):
    method, config, state = small(name)
    for t in range(5):
        method.step(state, rows(config, t))
    x = rows(config, 9)
    fwd = method.forward(state.params, x, config, training=False)
    y, s = method.evaluation_codes(state.params, x, config)
    assert ((y > 0) == fwd.on).all()
    assert (s == fwd.s).all()
    assert (method.decode(state.params, s) == fwd.f).all()
    assert method.penalty(state.params, fwd, config) >= 0
    seen = method.encode(state.params, x, config)
    assert all((a == b).all() for a, b in zip(seen[1:], (seen[2] != 0, seen[1] * seen[2]), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_what_others_get_has_the_same_codes(name):
    method, config, state = small(name)
    for t in range(12):
        method.step(state, rows(config, t))
    dictionary, arrays = from_params(state.params, config), method.exported(state.params, config)
    assert dictionary.k == arrays.k
    for array in ("W_enc", "b_enc", "threshold", "W_dec", "b_dec"):
        assert (getattr(dictionary, array) == getattr(arrays, array)).all()
    y, s = method.evaluation_codes(state.params, rows(config, 30), config)
    margin, codes = dictionary.encode(rows(config, 30))
    assert ((margin > 0) == (y > 0)).all()
    assert (codes == s).all()


def test_only_gba_has_groups_and_targets():
    _, config, _ = small("gba")
    groups = METHODS["gba"].groups(config)
    assert groups.group.tolist() == config.group().tolist()
    assert groups.target.tolist() == config.target().tolist()
    for name in sorted(METHODS.keys() - {"gba"}):
        assert METHODS[name].groups(small(name)[1]) is None


def test_gba_s_functions_are_the_paper_s():
    for name in ("random_params", "init", "step", "adapt", "State"):
        assert getattr(METHODS["gba"], name) is getattr(gba, name)


# ---- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "description"),
    [
        (
            GBAConfig(steps=4000, form=0.4, untied=True),
            Description("GBA, recipe default; features form until step 1,600", "jumprelu, untied decoder", 1600),
        ),
        (GBAConfig(groups=1, activation="relu"), Description("BA (one group), recipe default", "relu, tied weights")),
        (BaselineConfig(method="l1", sparsity=0.1), Description("l1, sparsity 0.1")),
        (BaselineConfig(method="topk"), Description("topk, k 32")),
        (BaselineConfig(method="batchtopk", k=7), Description("batchtopk, k 7")),
        (BaselineConfig(method="jumprelu", sparsity=2e-3), Description("jumprelu, sparsity 0.002")),
        (
            BaselineConfig(method="matryoshka", width=4096, prefixes=3),
            Description("matryoshka, k 32, prefixes of 1,024, 2,048, 4,096 neurons"),
        ),
        (BaselineConfig(method="gated", sparsity=0.05), Description("gated, sparsity 0.05")),
    ],
)
def test_a_run_is_described_by_its_method(config, description):
    assert METHODS[config.method].description(config, "default") == description


def test_without_its_recipe_a_run_is_described_too():
    assert METHODS["gba"].description(GBAConfig(), None).method == "GBA"


@pytest.mark.parametrize("name", METHODS)
def test_an_extended_run_says_what_becomes_of_its_learning_rate(name):
    method, config, _ = small(name)
    longer = method.extended(config, 40)
    assert longer.steps == 40
    line = method.extension(longer, 20)
    assert line.startswith("extended to 40 steps: ")
    assert "the learning rate of step 21 is " in line
    assert "\n" not in line


# ---- settings for a value of --method --------------------------------------------------------------------------------


def test_ba_is_gba_with_one_group():
    method, settings = chosen("ba", {"width": 64})
    assert method is METHODS["gba"]
    assert settings == {"width": 64, "groups": 1}
    assert chosen("ba", {"groups": 1})[1] == {"groups": 1}
    with pytest.raises(InputError, match="method ba has one group, not 3"):
        chosen("ba", {"groups": 3})


@pytest.mark.parametrize(("choice", "name"), [("gba", "k"), ("ba", "sparsity"), ("topk", "htf"), ("l1", "adapt_every")])
def test_a_setting_that_the_method_lacks_is_named(choice, name):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} is no setting of method {choice}"):
        chosen(choice, {"lr": 0.1, name: 1})


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"gba"}))
def test_a_baseline_has_gba_s_width_and_steps_unless_others_are_given(name):
    assert [METHODS[name].configure(d, "default").width for d in (6, 300)] == [1024, 2400]
    assert METHODS[name].configure(6, "default").steps == 4000
    given = METHODS[name].configure(6, "paper", width=40, steps=7)
    assert (given.width, given.steps, given.method) == (40, 7, name)
