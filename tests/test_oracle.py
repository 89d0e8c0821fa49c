"""The oracle records what the reference does, to the bit, and lets right ports pass."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from engines import engine
from recorded import KINDS, SHIPPED, config_of, every_kind, every_trace, halved, recorded
from second_port import port

from refgba import gba, oracle, recipe
from refgba.errors import InputError
from refgba.oracle import compare, traces
from refgba.oracle.rounding import Sizes
from refgba.oracle.stepwise import FORMULAS, ORDER, QUANTITIES, names, needs
from refgba.sae import unit_rows

# ---- recording -------------------------------------------------------------------------------------------------------


@every_kind
def test_a_trace_is_the_run_of_the_reference(kind):
    config = config_of(kind)
    X = np.random.default_rng(0).standard_normal((config.steps * config.batch, 5))
    trace = oracle.record(config, X)
    state = gba.init(gba.random_params(config, 5), config)
    batches = (unit_rows(rows) for rows in np.split(X, config.steps))
    for t, metrics in enumerate(gba.train(state, batches), start=1):
        at = trace.at(t)
        assert at["loss"] == metrics.loss
        assert at["on"].sum() / config.batch == metrics.l0
        for name, array in state.params.arrays().items():
            np.testing.assert_array_equal(at[name], array)
        for name, adam in state.optimiser.items():
            if name in state.params.arrays():
                assert (at[f"m.{name}"] == adam.m).all()
                assert (at[f"v.{name}"] == adam.v).all()
                assert at[f"updates.{name}"] == adam.t
        assert at["left.counts"].tolist() == state.buffer.counts.tolist()
        if t % config.adapt_every == 0:
            assert at["counts"].tolist() == state.last.counts.tolist()
            assert (at["peaks"] == state.last.peaks).all()


@every_trace
def test_every_formula_gives_what_the_reference_does_to_the_bit(kind):
    for t in range(1, recorded(kind).steps + 1):
        computed = recorded(kind).step(t)
        for name in names(recorded(kind).config, t):
            np.testing.assert_array_equal(np.asarray(computed[name]), recorded(kind).at(t)[name], err_msg=f"{t}/{name}")


@every_trace
def test_every_quantity_is_computed_from_earlier_ones(kind):
    for t in (1, 6, 12):
        computed = recorded(kind).step(t)
        for name in names(recorded(kind).config, t):
            earlier = [part for part in needs(name, computed) if not part.endswith(" before")]
            assert all(ORDER[part] < ORDER[name] for part in earlier), (name, earlier)
            assert all(ORDER[part] <= ORDER[name] for part in computed.values), name  # helpers too


@pytest.mark.parametrize("kind", ["default", "paper", "ties"])
def test_the_committed_traces_are_what_is_recorded_now(kind):
    kept, fresh = traces.read_trace(SHIPPED / kind), recorded(kind)
    assert kept.config == fresh.config
    assert kept.arrays.keys() == fresh.arrays.keys()
    for name, value in fresh.arrays.items():
        assert value.dtype == kept.arrays[name].dtype
        np.testing.assert_allclose(kept.arrays[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


def test_the_traces_reach_every_branch_of_the_algorithm():
    seen = set()
    for kind in ("default", "paper"):
        c = recorded(kind).config
        for t in range(c.adapt_every, recorded(kind).steps + 1, c.adapt_every):
            now, was = recorded(kind).at(t), recorded(kind).at(t - 1)["b"]
            target, T = now["target"][now["group"]], now["T"][now["group"]]
            seen |= {"clipped at -1"} if (now["lowered"] & (was - c.gamma_minus * now["peaks"] < -1)).any() else set()
            seen |= {"clipped at 0"} if (now["raised"] & (was + c.gamma_plus * T > 0)).any() else set()
            seen |= {"at its target"} if (now["p"] == target).any() else set()
            seen |= {"below the floor, not dead"} if (now["raised"] & (now["p"] > c.eps)).any() else set()
            seen |= {"between"} if (~now["raised"] & ~now["lowered"]).any() else set()
            seen |= {"no positive peak"} if (now["peaks"] == 0).any() else set()
            seen |= {"held", "free"} if 0 < now["held"].sum() < c.width else set()
    assert seen == {
        "clipped at -1", "clipped at 0", "at its target", "below the floor, not dead", "between", "no positive peak",
        "held", "free",
    }  # fmt: skip


def test_the_trace_of_ties_meets_every_limit_exactly_and_has_neurons_at_work_in_every_phase():
    trace, begin = recorded("ties"), 9
    c, met = trace.config, {"p = p_k": 0, "p = floor p_k": 0}
    for t in range(c.adapt_every, trace.steps + 1, c.adapt_every):
        now = trace.at(t)
        target, moves = now["target"][now["group"]], (now["peaks"] > 0) & (now["T"][now["group"]] > 0)
        met["p = p_k"] += ((now["p"] == target) & moves).sum()
        met["p = floor p_k"] += ((now["p"] == c.floor * target) & moves).sum()
    assert all(met.values()), met
    assert recipe.fit_begins(c, begin)
    W = trace.at(begin - 1)["W"]
    cosine = W @ W.T - 2 * np.eye(c.width)
    assert (cosine.max(axis=1)[11:13] == c.hold).all()
    for t in range(1, trace.steps + 1):
        at_work, held = abs(trace.at(t)["dW"]).max(axis=1) > 1e-4, trace.at(t)["held"]
        assert (at_work & ~held).sum() >= 3, t
        assert t < begin or (at_work & held).sum() >= 2, t


@pytest.mark.parametrize(
    ("rows", "more", "complaint"),
    [
        (13, {}, "13 rows should be from 1 to 12 batches of 12"),
        (0, {}, "0 rows should be"),
        (156, {}, "156 rows should be"),
        (12, {"dtype": "float32"}, "recorded in float64, not in float32"),
        (12, {"width": 2**26}, "the trace would take"),
    ],
)
def test_what_cannot_be_recorded_is_refused(rows, more, complaint):
    with pytest.raises(InputError, match=re.escape(complaint)):
        oracle.record(replace(config_of("default"), **more), np.ones((rows, 5)))


# ---- right ports pass ------------------------------------------------------------------------------------------------


@every_trace
@pytest.mark.parametrize("starts", traces.STARTS)
def test_a_trace_agrees_with_itself_exactly(kind, starts):
    report = compare(recorded(kind), recorded(kind).arrays, starts)
    assert report.agrees
    assert (report.compared, report.nearest[0], report.flips) == (len(recorded(kind).arrays), 0, [])


@every_trace
@pytest.mark.parametrize("starts", traces.STARTS)
def test_a_second_implementation_agrees_far_within_the_tolerance(kind, starts):
    report = compare(recorded(kind), port(recorded(kind), starts), starts)
    assert report.agrees, str(report)
    assert report.tolerance == 1e-10
    assert report.nearest[0] < 1e-3
    in_float32 = compare(recorded(kind), halved(port(recorded(kind), starts, np.float32)), starts)
    assert in_float32.agrees, str(in_float32)
    assert in_float32.tolerance == 1e-5
    assert in_float32.nearest[0] < 0.2


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance", "starts", "kind"),
    [
        *(("numpy", "float32", None, *how) for how in product(traces.STARTS, KINDS)),
        *(("numba", "float32", None, "trace", kind) for kind in KINDS),
        ("numba", "float32", None, "own", "default"),
        ("numba", "float64", None, "own", "relu"),
        ("cupy emulated", "tf32", 1e-3, "own", "default"),
        ("cupy emulated", "bfloat16", 1e-2, "trace", "paper"),
    ],
)
def test_our_backends_agree(name, dtype, tolerance, starts, kind):
    with engine(name) as backend:
        report = compare(recorded(kind), traces.dump(recorded(kind), backend, dtype, starts), starts, tolerance)
    assert report.agrees, str(report)
    assert report.tolerance == (tolerance or oracle.TOLERANCE[dtype])
    assert report.compared > 300


def test_noise_of_the_size_of_tf32_on_one_gradient_is_found_at_that_gradient():
    with engine("numba") as backend:
        dumped = traces.dump(recorded(), backend, "float32")
    for name in ("8/dW", "9/da", "7/db_pre"):
        noise = 2.0**-11 * np.random.default_rng(0).standard_normal(dumped[name].shape)
        report = compare(recorded(), dumped | {name: (dumped[name] * (1 + noise)).astype(np.float32)})
        assert (f"{report.deviation.step}/{report.deviation.name}", report.deviation.causes) == (name, [])
        assert compare(recorded(), dumped, tolerance=1e-3).agrees


def test_a_gate_that_rounding_flips_is_told_and_not_failed():
    row, m = 4, 3
    state = recorded().before(8)
    x = unit_rows(recorded().at(8)["rows"])
    y = (x - state["b_pre"]) @ state["W"].T
    state["b"] = np.where(np.arange(12) == m, 1e-9 - y[row, m], state["b"])  # y = 1e-9 there
    right = recorded().step(8, state)
    assert right["on"][row, m]
    quantities = [*recorded().quantities[:7], state, {name: np.asarray(right[name]) for name in recorded().at(8)}]
    edge = oracle.Trace(recorded().config, quantities)
    flip = np.zeros((12, 12), bool)
    flip[row, m] = True
    shut = edge.step(8, values={"on": right["on"] ^ flip})
    assert not np.allclose(shut["s"], right["s"], rtol=0, atol=1e-2)  # JumpReLU: all of z is gone
    candidate = halved({f"8/{name}": np.asarray(shut[name]) for name in edge.at(8)})
    report = compare(edge, candidate)
    assert report.agrees, str(report)
    assert report.flips == [(8, row, m)]
    assert "1 gate flipped" in str(report)
    without = {name: value for name, value in candidate.items() if name not in ("8/on", "8/y")}
    assert compare(edge, {"8/counts": without["8/counts"]}, tolerance=1e-5).agrees
    assert compare(edge, without).agrees  # nothing tells which gates flipped
    assert compare(edge, without | {"8/s": without["8/s"] + np.float32(0.1)}).deviation.name == "s"
    far = candidate["8/on"].copy()
    far[row, m + 1] ^= True
    found = compare(edge, candidate | {"8/on": far}).deviation
    assert (found.name, found.index) == ("on", [row, m + 1])


def test_size_bounds_what_rounding_does():
    """Every step in float32, formula by formula, from rounded states and rows: within a tenth of the bound."""
    for kind in KINDS:
        for t in range(1, 13):
            exact = recorded(kind).step(t)
            rounded = recorded(kind).step(t, halved(recorded(kind).before(t)))
            rounded.values["rows"] = exact["rows"].astype(np.float32)
            sizes = Sizes(exact, 1e-5)
            for name in names(exact.config, t):
                error = abs(np.asarray(rounded[name], np.float64) - np.asarray(exact[name], np.float64))
                assert (error <= 0.1 * sizes.allowed(name)).all(), (kind, t, name)
    assert set(sizes.known) <= {*QUANTITIES, "x - b_pre", "a V", "r", "v . r", "moved.a", "moved.b_pre"}
    assert set(QUANTITIES) <= set(FORMULAS)
