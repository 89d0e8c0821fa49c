"""A second port written from the page agrees with the reference, and the oracle tells what is wrong with it.

tests/jax_port.py is that port, tests/jax_mistakes.py what is put into it.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from importlib import import_module

import numpy as np
import pytest
from engines import library
from jax_mistakes import MUTANTS
from mutations import compiled
from recorded import SHIPPED

from refgba.oracle import compare, traces
from refgba.oracle.stepwise import STATE

pytestmark = pytest.mark.interop
WAYS = [("float64", "trace"), ("float32", "own")]
UNKNOWN = 10  # mistakes of which the oracle may say no more than where they are


@pytest.fixture(scope="module")
def port():
    """The port."""
    library("jax")
    return import_module("jax_port")


@cache
def shipped(name):
    return traces.read_trace(SHIPPED / name)


def dumped(port, trace, starts, dtype):
    """What a port computes on the trace's rows, floats in one dtype, as NumPy's arrays."""
    jnp = library("jax.numpy")

    def given(values):
        floats = {name for name, value in values.items() if value.dtype.kind == "f" and "peaks" not in name}
        return {name: jnp.asarray(value, dtype if name in floats else None) for name, value in values.items()}

    dump, state = {}, given(trace.before(trace.first))
    for t in trace.numbers:
        state = given(trace.before(t)) if starts == "trace" else state
        got = port.step(trace.config, t, trace.at(t)["rows"], state)
        dump |= {f"{t}/{name}": np.asarray(value) for name, value in got.items()}
        state = {name: got[name] for name in STATE if name in got}
    return {name: value.astype(dtype) if value.dtype.kind == "f" else value for name, value in dump.items()}


@pytest.mark.parametrize(("dtype", "starts"), [*WAYS, ("float64", "own"), ("float32", "trace")])
@pytest.mark.parametrize("name", ["default", "paper", "ties"])
def test_a_port_from_the_page_agrees_in_every_quantity(port, name, dtype, starts):
    trace = shipped(name)
    dump = dumped(port, trace, starts, dtype)
    assert compare(trace, dump, starts).agrees
    assert dump.keys() == {key for key in trace.arrays if not key.startswith("0/") and not key.endswith("/rows")}


def test_it_starts_as_the_page_says(port):
    jnp = library("jax.numpy")
    for name in ("default", "paper"):
        trace = shipped(name)
        start = {f"0/{name}": np.asarray(value) for name, value in port.start(trace.config, trace.at(0)["W"]).items()}
        assert start.keys() == {key for key in trace.arrays if key.startswith("0/")}
        rows = (trace.at(t)["rows"] for t in trace.numbers)
        steps = port.train(trace.config, jnp.asarray(trace.at(0)["W"]), rows)
        dump = {f"{t}/{name}": np.asarray(value) for t, got in enumerate(steps, 1) for name, value in got.items()}
        assert compare(trace, start | dump, "own").agrees


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_is_found_and_never_taken_for_another(port, mutant):
    broken, trace = compiled(mutant, port), shipped(mutant.of)
    for dtype, starts in WAYS:
        report = compare(trace, dumped(broken, trace, starts, dtype), starts)
        if report.agrees and dtype == "float32" and (mutant.note or "").endswith("float32"):
            continue  # what rounds to float32 is no mistake there
        found = report.deviation
        assert found.name == mutant.quantity, str(found)
        if mutant.cause:
            assert mutant.cause in found.causes, str(found)
        else:
            assert found.causes == [], str(found)
        if dtype == "float64":
            assert len(found.causes) <= 1, str(found)
            assert mutant.note is None or mutant.note in found.notes, str(found)


def test_the_mistakes_are_many_and_few_of_them_are_unknown():
    assert len(MUTANTS) == len({mutant.name for mutant in MUTANTS}) >= 80
    kinds = Counter("cause" if m.cause else "note" if m.note else "unknown" for m in MUTANTS)
    assert kinds["unknown"] <= UNKNOWN, kinds
