"""The oracle finds the first quantity that is wrong, and names the mistake behind it."""

from __future__ import annotations

import inspect
from itertools import product

import numpy as np
import pytest
import second_port
from mutations import MET, MUTANTS, compiled
from recorded import KINDS, config_of, halved, recorded
from second_port import port

from refgba.oracle import compare, traces
from refgba.oracle.mistakes import MISTAKES
from refgba.oracle.stepwise import names


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_is_caught_and_named(mutant):
    found = compare(
        recorded(mutant.of), compiled(mutant).port(recorded(mutant.of), mutant.starts), mutant.starts
    ).deviation
    assert found is not None
    assert found.name == mutant.quantity
    assert found.causes == ([mutant.cause] if mutant.cause else [])


@pytest.mark.parametrize("starts", traces.STARTS)
@pytest.mark.parametrize("mutant", MET, ids=lambda mutant: mutant.name)
def test_what_misled_a_porter_is_named(mutant, starts):
    for dtype, dump in ((np.float64, lambda arrays: arrays), (np.float32, halved)):
        trace = recorded(mutant.of)
        found = compare(trace, dump(compiled(mutant).port(trace, starts, dtype)), starts).deviation
        assert (found.name, found.causes) == (mutant.quantity, [mutant.cause] if mutant.cause else []), str(found)
        assert mutant.note is None or mutant.note in found.notes


@pytest.mark.parametrize("mutant", MUTANTS[3::5], ids=lambda mutant: mutant.name)
def test_a_mistake_is_caught_and_named_in_float32_too(mutant):
    dumped = halved(compiled(mutant).port(recorded(mutant.of), mutant.starts, np.float32))
    found = compare(recorded(mutant.of), dumped, mutant.starts).deviation
    assert (found.name, found.causes) == (mutant.quantity, [mutant.cause] if mutant.cause else [])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("reconstructor path missing", {"W"}),
        ("gradient through closed gates", {"W", "b_pre"}),
        ("epsilon inside the root", {"W"}),
        ("bias correction missing", {"a"}),
        ("T_k by the group's size", {"b"}),
        ("y passed instead of z", {"loss"}),
        ("targets linear", {"b"}),
    ],
)
def test_the_cause_is_found_upstream_of_what_is_shown(name, shown):
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    dumped = compiled(mutant).port(recorded(mutant.of), "trace")
    found = compare(recorded(mutant.of), {k: v for k, v in dumped.items() if k.split("/")[1] in shown}).deviation
    assert found.name in shown
    assert found.causes == [mutant.cause]
    assert found.unseen
    assert not set(found.unseen) & shown


def test_every_known_mistake_changes_something():
    """On some trace; but where no y is exactly 0."""
    silent = set(MISTAKES)
    with np.errstate(all="ignore"):
        drawn = (
            traces.example(config_of(kind, seed=seed, batch=10, adapt_every=5), 5)  # 2 of 50 is floor x HTF
            for kind, seed in product(KINDS, range(10, 16))
        )
        for trace in (recorded(), recorded("ties"), *drawn):
            for t, text in product(range(1, trace.steps + 1), sorted(silent)):
                shown = (*MISTAKES[text], "y", "m.W", "m.a", "m.b_pre")
                replaced = [name for name in shown if name in names(trace.config, t)]
                right, wrong = trace.at(t), trace.step(t, instead=MISTAKES[text])
                if any(not np.array_equal(np.asarray(wrong[name]), right[name]) for name in replaced):
                    silent.discard(text)
    assert silent == {
        "gates are 1{y >= 0}, not 1{y > 0}",
        "the counts are of y >= 0, not y > 0",
    }


@pytest.mark.parametrize("more", [{"groups": 1}, {"batch": 1}, {"width": 3}, {"adapt_every": 1}, {"form": 1.0}])
def test_mistakes_can_be_worked_through_whatever_the_settings(more):
    trace = traces.example(config_of("default", **more), 2)
    assert compare(trace, port(trace)).agrees
    for t in (1, 6, 12):
        if f"{t}/y" in trace.arrays:
            wrong = {f"{t}/y": trace.at(t)["y"] + 1.0}
            assert compare(trace, wrong).deviation.name == "y"


def test_of_two_deviations_the_earlier_in_the_algorithm_is_told():
    right = recorded().arrays
    for first, second in (("5/dW", "5/W"), ("4/W", "5/x"), ("3/p", "3/b"), ("7/on", "7/dW"), ("0/a", "1/x")):
        off = {name: right[name] ^ True if right[name].dtype == bool else right[name] + 0.5 for name in (first, second)}
        found = compare(recorded(), dict(reversed((right | off).items()))).deviation
        assert f"{found.step}/{found.name}" == first


def test_a_deviation_says_where_and_by_how_much():
    wrong = recorded().at(5)["dW"].copy()
    wrong[4, 2] += 0.25
    report = compare(recorded(), {"5/dW": wrong})
    found = report.deviation
    assert (found.step, found.name, found.index, found.off, found.entries) == (5, "dW", [4, 2], 1, 60)
    assert found.got - found.expected == pytest.approx(0.25)
    assert 0 < found.allowed < 1e-9
    assert found.needs == found.unseen == ["dW.detector", "dW.reconstructor"]
    told = str(report)
    for part in ("step 5: dW deviates", f"dW[4, 2] should be {found.expected!r}, is {found.got!r}", "1 of 60 entries",
                 "no known mistake", "dW.detector, dW.reconstructor"):  # fmt: skip
        assert part in told


def test_who_says_that_steps_start_elsewhere_is_told_so():
    ran_on = {name: value for name, value in port(recorded(), "own", np.float32).items() if not name.startswith("1/x")}
    found = compare(recorded(), halved(ran_on), "trace").deviation
    assert found.causes == ["the step starts from the port's own state, not from the trace's"]
    assert compare(recorded(), halved(ran_on), "own").agrees


@pytest.mark.parametrize(("bits", "precision", "tolerance"), [(10, "TF32", 1e-3), (7, "bfloat16", 1e-2)])
@pytest.mark.parametrize("starts", traces.STARTS)
def test_products_in_a_low_precision_are_recognised(starts, bits, precision, tolerance):
    def low(subscripts, *factors):
        unit = np.uint32(1 << (23 - bits))
        rounded = [((f.astype(np.float32).view(np.uint32) + unit // 2) & ~(unit - 1)).view(np.float32) for f in factors]
        return np.einsum(subscripts, *rounded)

    module = {"low": low}
    exec(inspect.getsource(second_port).replace("np.einsum(", "low("), module)
    dump = halved(module["port"](recorded(), starts, np.float32))
    found = compare(recorded(), dump, starts).deviation
    assert (found.name, found.causes) == ("y", [])
    assert f"everything agrees to {tolerance:g}: are matrix products computed in {precision}?" in str(found)
    assert compare(recorded(), dump, starts, tolerance).agrees
