"""A port of GBA written from texts alone agrees with the reference, in every quantity of every step.

tests/torch_port.py is that port, tutorial.md and refgba/oracle/format.md are the texts, refgba.oracle is the judge.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from engines import library

from refgba import recipe
from refgba.cli import main
from refgba.config import GBAConfig
from refgba.oracle import compare, traces

pytestmark = pytest.mark.interop
TESTS = Path(__file__).parent
PORT, COMMITTED, PAGE = TESTS / "torch_port.py", TESTS / "traces", TESTS.parent / "refgba/oracle/format.md"

D, SEEDS = 6, (0, 1, 2)
SMALL = {"width": 14, "groups": 4, "steps": 14, "batch": 8, "lr": 0.03, "weight_decay": 0.1}  # groups of 3 and of 4
GAINS = {"adapt_every": 4, "gamma_minus": 1.2, "gamma_plus": 1.8, "htf": 0.25, "ltf": 0.05}  # 0.25: 8 of 32 rows
PAPER, DEFAULT = GBAConfig(**SMALL, **GAINS), recipe.default(D, **SMALL, **GAINS, hold=0.6)
CONFIGS = {
    "paper": PAPER,
    "paper, relu": replace(PAPER, activation="relu"),
    "paper, untied": replace(PAPER, untied=True),
    "default, tied": replace(DEFAULT, untied=False),
    "default, untied": replace(DEFAULT, untied=True),
    "default, relu": replace(DEFAULT, activation="relu"),
    "default, one group": replace(DEFAULT, groups=1),
    "default, form only": replace(DEFAULT, untied=True, form=1.0),
    "default, hold none": replace(DEFAULT, hold=1.0),
    "default, half a step": replace(DEFAULT, form=0.5, steps=13),  # F = 6, not 7
    "default, its numbers": recipe.default(D, width=64, steps=12, batch=32),
}


@pytest.fixture(scope="module")
def port():
    """The port, on one core."""
    library("torch").set_num_threads(1)
    return import_module("torch_port")


@cache
def trace_of(name, seed):
    return traces.example(replace(CONFIGS[name], seed=seed), D)


def tensors(values, dtype):
    """Arrays as tensors, floats in this dtype, but peaks in float64."""
    torch = library("torch")
    as_given = {name: torch.as_tensor(np.array(value)) for name, value in values.items()}
    return {
        name: value.to(getattr(torch, dtype)) if value.is_floating_point() and "peaks" not in name else value
        for name, value in as_given.items()
    }


def dumped(port, trace, starts, dtype="float64"):
    """All that a port computes on the trace's rows, as tensors; where it starts on its own, its own start too."""
    steps = range(1, trace.steps + 1)
    rows = [tensors(trace.at(t), dtype)["rows"] for t in steps]
    before = [tensors(trace.before(t), dtype) for t in steps]
    if starts == "own":
        W = before[0]["W"]
        computed = [port.start(trace.config, W), *port.train(trace.config, W, rows)]
        numbers = range(trace.steps + 1)
    else:
        computed = [port.step(trace.config, t, x, was) for t, x, was in zip(steps, rows, before, strict=True)]
        numbers = steps
    return {f"{t}/{name}": value for t, got in zip(numbers, computed, strict=True) for name, value in got.items()}


def judged(port, trace, starts, dtype="float64"):
    dump = {name: value.numpy() for name, value in dumped(port, trace, starts, dtype).items()}
    return dump, compare(trace, dump, starts)


def assert_agrees(port, trace, starts, dtype):
    dump, report = judged(port, trace, starts, dtype)
    assert report.agrees, str(report)
    assert dump.keys() == {key for key in trace.arrays if starts == "own" or not key.startswith("0/")}


@pytest.mark.parametrize("starts", ["trace", "own"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_port_from_the_texts_agrees_in_every_quantity(port, name, seed, dtype, starts):
    assert_agrees(port, trace_of(name, seed), starts, dtype)


@pytest.mark.parametrize("starts", ["trace", "own"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["default", "paper"])
def test_it_agrees_with_the_traces_that_ship(port, name, dtype, starts):
    assert_agrees(port, traces.read_trace(COMMITTED / name), starts, dtype)


def test_the_traces_reach_every_rule_of_the_method():
    seen = {rule: 0 for rule in ("lowered", "raised", "at -1", "back at 0", "p = target", "p = floor", "T = 0", "held")}
    for name, config in CONFIGS.items():
        for trace in (trace_of(name, seed) for seed in SEEDS):
            for t in range(config.adapt_every, trace.steps + 1, config.adapt_every):
                got, target = trace.at(t), trace.at(t)["target"][trace.at(t)["group"]]
                seen["lowered"] += got["lowered"].sum()
                seen["raised"] += got["raised"].sum()
                seen["at -1"] += (got["b"] == -1).sum()
                seen["back at 0"] += (got["raised"] & (got["b"] == 0)).sum()
                seen["p = target"] += (got["p"] == target).sum()
                seen["p = floor"] += (got["p"] == config.floor * target)[got["p"] > 0].sum()
                seen["T = 0"] += (got["T"] == 0).sum()
            seen["held"] += 0 < trace.at(trace.steps)["held"].sum() < config.width
    assert all(seen.values()), seen


def test_it_gives_the_numbers_of_the_run_made_for_ports(port):
    torch = library("torch")
    M, d, L = 12, 6, 8
    config = GBAConfig(
        width=M, groups=3, steps=20, batch=L, htf=0.3, ltf=0.05, lr=0.05, weight_decay=0.01, gamma_minus=0.1,
        gamma_plus=0.2, adapt_every=3, floor=0.5, form=0.425, hold=0.4, lr_decay=0.5, a_init=0.5,
    )  # fmt: skip
    m, l, i = (torch.arange(n, dtype=torch.float64) for n in (M, L, d))
    m, l = m[:, None], l[:, None]
    batches = [torch.cos(t + 5 * l + 2 * i + l * i) for t in range(1, 21)]
    steps = list(port.train(config, torch.sin(1 + 7 * m + 3 * i + m * i), batches))
    F, end = port.forming_steps(config), steps[-1]
    losses = " ".join(f"{steps[t - 1]['loss']:.5f}" for t in (1, F + 1, 20))
    sums = ", ".join(f"{name} {end[name].sum():.5f}" for name in ("b", "a", "b_pre"))
    lines = f"F {F}, held {end['held'].sum()}, losses {losses}\n{sums}, W {(end['W'] * i).sum():.5f}\n"
    assert lines in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["paper", "default"])
def test_it_passes_as_files_that_nothing_of_ours_wrote(port, kind, tmp_path):
    trace, candidate = tmp_path / "trace", tmp_path / "candidate"

    def cli(*arguments):
        return CliRunner().invoke(main, ["oracle", *map(str, arguments)])

    assert cli("record", "-o", trace, "--recipe", kind, "--untied", "--seed", 3).exit_code == 0
    candidate.mkdir()
    dump = dumped(port, traces.read_trace(trace), "own", "float32")
    apart = {name: value.clone() for name, value in dump.items()}  # safetensors takes no two names for one memory
    library("safetensors.torch").save_file(apart, candidate / "arrays.safetensors")
    index = {"format": "refgba-trace", "version": 1, "starts": "own"}
    (candidate / "index.json").write_text(json.dumps(index), encoding="utf-8")
    checked = cli("check", trace, candidate)
    assert checked.exit_code == 0, checked.output


MISTAKES = {  # by the quantity that goes wrong first: text of the port, what replaces it, the cause the oracle names
    "dW": (
        "detector + reconstructor}",
        "detector}",
        "the reconstructor's path is missing from the gradient of the tied W",
    ),
    "moved.W": (
        "(v_hat.sqrt() + config.adam_eps)",
        "(v_hat + config.adam_eps).sqrt()",
        "epsilon is inside the root",
    ),
    "lowered": (
        "lowered = p > target",
        "lowered = p >= target",
        "a neuron is lowered at p_m >= p_k, not above",
    ),
    "left.seen": (
        "| empty_buffers(len(counts))",
        '| {"left.seen": seen, "left.counts": counts, "left.peaks": peaks}',
        "the buffers are not emptied after adapting",
    ),
}


@pytest.mark.parametrize("starts", ["trace", "own"])
@pytest.mark.parametrize("quantity", MISTAKES)
@pytest.mark.usefixtures("port")
def test_a_mistake_in_the_port_is_named(quantity, starts):
    right, wrong, cause = MISTAKES[quantity]
    source = PORT.read_text(encoding="utf-8")
    assert source.count(right) == 1
    broken = ModuleType("broken_port")
    exec(compile(source.replace(right, wrong), "broken_port.py", "exec"), broken.__dict__)
    _, report = judged(broken, trace_of("default, one group", 1), starts)  # has neurons at p = target
    assert (report.deviation.name, report.deviation.causes) == (quantity, [cause]), str(report)
