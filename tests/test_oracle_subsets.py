"""A right port passes whatever part of its arrays it gives, and a wrong one is found wherever its arrays show it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import MUTANTS, compiled
from recorded import KINDS, config_of, halved, recorded
from second_port import port

from refgba.oracle import compare, traces
from refgba.oracle.stepwise import QUANTITIES, STATE

every_start = pytest.mark.parametrize("starts", traces.STARTS)


@cache
def ported(kind, starts, seed=None):
    """A trace, and what the second port makes of it in float32."""
    trace = recorded(kind) if seed is None else traces.example(config_of(kind, seed=seed), 5)
    return trace, halved(port(trace, starts, np.float32))


@st.composite
def subsets(draw):
    """Names and steps to leave out, and single arrays at random beside them."""
    names = draw(st.sets(st.sampled_from(list(QUANTITIES))))
    steps = draw(st.sets(st.integers(1, 12), max_size=11))
    share, seed = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9])), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    return lambda t, name: name not in names and t not in steps and rng.random() >= share


@settings(max_examples=150)
@given(st.sampled_from(list(KINDS)), st.sampled_from(traces.STARTS), st.integers(0, 5), subsets())
def test_a_right_port_passes_whatever_it_gives(kind, starts, seed, kept):
    trace, dump = ported(kind, starts, seed)
    part = {key: value for key, value in dump.items() if kept(int(key.split("/")[0]), key.split("/")[1])}
    if any(not key.endswith("/rows") for key in part):
        report = compare(trace, part, starts, 1e-5)
        assert report.agrees, str(report)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STATE)
def test_any_array_of_the_state_may_be_missing(name, kind):
    trace, dump = ported(kind, "own")
    part = {key: value for key, value in dump.items() if key.split("/")[1] != name}
    report = compare(trace, part, "own")
    assert report.agrees, str(report)
    assert report.recomputed == ([] if part.keys() == dump.keys() else [name])
    assert (f"the port's own {name}" in str(report)) == (part.keys() != dump.keys())
    assert compare(trace, part, "trace", 0.5).recomputed == []


WITHOUT = {  # what a port does not write down, and how many of the mistakes are then seen
    "the optimiser's state": (("m.", "v.", "updates."), 69),
    "the parameters W and W_dec": (("W", "W_dec"), 66),
    "all of its state": (("m.", "v.", "updates.", "left.", "W", "W_dec", "a", "b_pre", "b", "held"), 64),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_wider_bounds_still_find_what_is_wrong(what):
    names, least = WITHOUT[what]
    seen = 0
    for mutant in MUTANTS:
        trace = recorded(mutant.of)
        dump = halved(compiled(mutant).port(trace, "own", np.float32))
        lacks = [
            key
            for key in dump
            if any(key.split("/")[1] == n or (n[-1] == "." and key.split("/")[1].startswith(n)) for n in names)
        ]
        seen += not compare(trace, {key: dump[key] for key in dump.keys() - set(lacks)}, "own").agrees
    assert least <= seen < len(MUTANTS)
