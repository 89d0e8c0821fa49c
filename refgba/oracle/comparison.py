"""A candidate held against a trace, in the order of the algorithm, up to the first quantity that deviates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from refgba.errors import InputError
from refgba.oracle.causes import BEGINNING, causes, why_nothing
from refgba.oracle.notes import notes
from refgba.oracle.place import Beginning, Place, Starts, Steps, places
from refgba.oracle.recording import Trace
from refgba.oracle.report import Deviation, Report
from refgba.oracle.stepwise import QUANTITIES, STATE, Value, needs
from refgba.oracle.validation import by_step, checked_candidate, missing

TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 1e-2}  # by the least precise dtype of a dump


def compare(
    trace: Trace, candidate: Mapping[str, Value], starts: Starts = "trace", tolerance: float | None = None
) -> Report:
    """Where another implementation first deviates from a trace, if it does, and why.

    candidate: arrays, or what NumPy takes for them, named as in the trace, any part of them.  starts: "trace" when
    every step began with the trace's state before it, `Trace.before`; "own" when the implementation ran on by itself.
    tolerance: relative to the size of each quantity (`rounding`); TOLERANCE by the dtype when it is None.  Raises
    InputError for a candidate of nothing that a port computes, unknown names, wrong shapes or dtypes, and NaN.

    A port whose gradients of W are right at the first step, and twice too large at the second:

    >>> from refgba.config import GBAConfig
    >>> from refgba.model import SyntheticModel, Uniform
    >>> from refgba.oracle import compare, record
    >>> X = SyntheticModel(Uniform(6, (2,)), d=3).draw(0, 10).X
    >>> trace = record(GBAConfig(width=4, groups=2, steps=2, batch=5), X)
    >>> report = compare(trace, {"1/dW": trace.at(1)["dW"], "2/dW": 2 * trace.at(2)["dW"]})
    >>> report.compared, report.deviation.step, report.deviation.name
    (1, 2, 'dW')
    >>> report.deviation.causes[0]
    'the loss lacks its 1/2, and so do the gradients'
    """
    arrays = checked_candidate(trace, candidate)
    if tolerance is None:
        dtypes = {str(np.asarray(value).dtype) for value in candidate.values()}
        tolerance = max(TOLERANCE.get(dtype, 0) for dtype in dtypes) or TOLERANCE["float64"]
    if not 0 < tolerance < 1:
        raise InputError(f"the tolerance should be between 0 and 1, not {tolerance}")
    steps = by_step(arrays)
    agree, flips, nearest = 0, list[tuple[int, int, int]](), (0.0, 0, "")

    def report(deviation: Deviation | None) -> Report:
        lacks = missing(trace, steps)
        ran_on = starts == "own" and max(steps) > trace.first
        recomputed = [name for name in lacks if name.split(" ")[0] in STATE and ran_on]
        computed = sorted(steps.keys() - {trace.first - 1})
        return Report(agree, computed, tolerance, flips, nearest, trace.steps, lacks, recomputed, deviation)

    with np.errstate(all="ignore"):  # mistakes divide by zero
        for place in _in_order(trace, steps, starts, tolerance):
            flips += place.flipped
            for name in place.ordered:
                share = place.share(name)
                if share > 1:
                    first = _deviation(place, name, trace, steps, starts)
                    return report(first)
                agree, nearest = agree + 1, max(nearest, (share, place.t, name))
    return report(None)


def _in_order(trace: Trace, candidate: Steps, starts: Starts, tolerance: float) -> Iterator[Beginning | Place]:
    if trace.first - 1 in candidate:
        yield Beginning(trace, candidate, tolerance)
    yield from places(trace, candidate, starts, tolerance)


def _deviation(place: Place | Beginning, name: str, trace: Trace, candidate: Steps, starts: Starts) -> Deviation:
    """What to say of a quantity that deviates."""
    got = place.values[name].astype(np.float64)
    if isinstance(place, Beginning):
        return _at_worst(name, place.t, place.expected[name], got, place.allowed(name), [BEGINNING], [], [])
    if name not in place.there:
        why, first = why_nothing(name, place.t, trace.config), float(got.flat[0])
        return Deviation(name, place.t, [0] * got.ndim, None, first, 0.0, got.size, got.size, [why], [], [])
    parts = needs(name, place.step)
    unseen = [part for part in parts if part not in place.values and part in QUANTITIES]
    likely = causes(place, name, trace, candidate, starts)
    deviation = _at_worst(name, place.t, place.step[name], got, place.allowed(name), likely, parts, unseen)
    return deviation if likely else replace(deviation, notes=notes(place, name, trace, candidate, starts))


def _at_worst(
    name: str, t: int, expected: Any, got: Value, allowed: Any, why: list[str], parts: list[str], unseen: list[str]
) -> Deviation:
    """A deviation, shown at the entry that is off by most."""
    expected, allowed = np.asarray(expected, np.float64), np.broadcast_to(allowed, got.shape)
    error = abs(got - expected)
    off = error > allowed
    at = np.unravel_index(np.argmax(np.where(off, error, -1)), got.shape)
    entry = float(expected[at]), float(got[at]), float(allowed[at])
    return Deviation(name, t, [int(i) for i in at], *entry, int(off.sum()), got.size, why, parts, unseen)
