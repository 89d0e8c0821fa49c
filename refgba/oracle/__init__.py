"""The oracle: what every step must give, recorded from the reference, and where another implementation first departs.

`record` runs `gba.step` and `gba.adapt` in float64 and keeps every quantity of `stepwise` on the way.  `compare` holds
the quantities of another implementation against them in the order of the algorithm and stops at the first that
deviates.  Why it does is not guessed from its name: the step is worked through with each of `mistakes.MISTAKES`, and
those are named whose numbers are the ones that were given.

A port is best checked one step at a time: before each step it takes over the trace's state, so that rounding does not
pile up.  It may also run on by itself; then each step is expected from the port's own state before it, where that is
given.  oracle.md tells those who write ports what to write; files are left to `refgba.oracle.traces`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

import numpy as np

from refgba import gba
from refgba.config import GBAConfig
from refgba.errors import InputError, brief
from refgba.oracle.mistakes import MISTAKES
from refgba.oracle.rounding import TINY, Sizes
from refgba.oracle.stepwise import ADAPTATION, ORDER, QUANTITIES, STATE, Step, Value, names, needs
from refgba.sae import unit_rows
from refgba.types import Array

Starts: TypeAlias = Literal["trace", "own"]
Given: TypeAlias = Mapping[int, dict[str, Value]]  # what there is of a candidate, by step

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # by the least precise dtype of a dump
OTHER_STATE: dict[Starts, str] = {
    "trace": "the step starts from the port's own state, not from the trace's",
    "own": "the step starts from the trace's state, not from the port's own",
}
DTYPES = {"f": "float64", "i": "int64", "b": "bool"}  # of a trace
SHOWN: dict[str, type[float] | type[int] | type[bool]] = {"f": float, "i": int, "b": bool}
KINDS = {"f": "float32 or float64", "i": "whole numbers", "b": "bool"}
LARGEST = 2**32  # bytes of a trace


# ---- recording -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trace:
    """What the reference did: the settings, and for every step its quantities by name.

    Step 0 has the state before the first (`stepwise.STATE`), steps 1.. all that `stepwise.names` lists.
    """

    config: GBAConfig
    quantities: list[dict[str, Value]]

    @property
    def steps(self) -> int:
        """How many steps were recorded."""
        return len(self.quantities) - 1

    @property
    def d(self) -> int:
        """Dimensions of the rows."""
        return int(self.quantities[0]["b_pre"].size)

    @property
    def arrays(self) -> dict[str, Value]:
        """All arrays by step and name, "3/dW"."""
        return {f"{t}/{name}": value for t, step in enumerate(self.quantities) for name, value in step.items()}

    def at(self, t: int) -> dict[str, Value]:
        """The quantities of step t by name."""
        return self.quantities[t]

    def before(self, t: int) -> dict[str, Value]:
        """What a port takes over before step t = 1..: the state after step t - 1, by the names in `stepwise.STATE`."""
        return _state(self.at(t - 1))

    def step(self, t: int, state: Mapping[str, Value] | None = None, **other: Mapping[str, Any]) -> Step:
        """Step t from the trace's state or another; `other` is for `stepwise.Step`."""
        every = self.config.adapt_every
        adapted = (t - 1) // every * every  # the last step before t that was followed by line 6
        last = self.at(adapted) | {"b before": self.at(adapted - 1)["b"]} if adapted else None
        return Step(self.config, t, self.at(t)["rows"], state or self.before(t), last=last, **other)


def record(config: GBAConfig, X: Array) -> Trace:
    """The first N / L steps of a run, from the reference's own random start.

    X: (N, d) rows of any norm; step t takes rows (t - 1) L to t L of them, so that no port has to draw what NumPy
    draws.  InputError when they are no whole number of batches, or more than the run has, for other dtypes than float64
    in the settings, for a row of zeros, and for a trace of more than LARGEST bytes.
    """
    L, (N, d), M = config.batch, X.shape, config.width
    if N % L or not 0 < N // L <= config.steps:
        raise InputError(f"{N} rows should be from 1 to {config.steps} batches of {L} rows")
    if config.dtype != "float64":
        raise InputError(f"a trace is recorded in float64, not in {config.dtype}")
    if (size := 8 * (N // L) * (L * (3 * d + 2 * M) + 10 * M * d)) > LARGEST:
        raise InputError(f"the trace would take {size / 1e9:.1f} GB; record fewer steps or a smaller network")
    state = gba.init(gba.random_params(config, d), config)
    trace = Trace(config, [state_arrays(state)])
    for t, rows in enumerate(np.split(X.astype(np.float64), N // L), start=1):
        trace.quantities.append({"rows": rows})
        step = trace.step(t)  # what the reference computes on its way
        gba.step(state, unit_rows(rows))
        if step.adapts:
            gba.adapt(state)
        after = state_arrays(state)
        for name in names(config, t):
            trace.at(t)[name] = np.array(after[name] if name in after else step[name])
    return trace


def state_arrays(state: gba.State) -> dict[str, Value]:
    """The state of a run by the names in `stepwise.STATE`, as copies."""
    arrays: dict[str, Any] = {**state.params.arrays(), "held": state.held}
    for name, adam in state.optimiser.items():
        arrays |= {f"updates.{name}": adam.t, f"m.{name}": adam.m, f"v.{name}": adam.v}
    buffer = state.buffer
    arrays |= {"left.seen": buffer.rows, "left.counts": buffer.counts, "left.peaks": buffer.peaks}
    return {name: np.array(arrays[name]) for name in STATE if name in arrays}


def checked_trace(config: GBAConfig, arrays: Mapping[str, Value]) -> Trace:
    """A trace of arrays that may be anything; InputError, naming the array, unless it is whole and sound."""
    steps = sum(name.endswith("/rows") for name in arrays)
    wanted = [f"{t}/{name}" for t in range(steps + 1) for name in names(config, t)]
    for name in wanted if steps else ["1/rows"]:
        if name not in arrays:
            raise InputError(f"no trace: {name} is missing")
    for name in sorted(arrays.keys() - set(wanted)):
        raise InputError(f"no trace: {brief(name)} does not belong to one of {steps} steps")
    if arrays["0/b_pre"].ndim != 1:
        raise InputError(f"0/b_pre has shape {arrays['0/b_pre'].shape}, it should have one dimension")
    by_step = _by_step(arrays)
    trace = Trace(config, [by_step[t] for t in range(steps + 1)])
    for name, value in _checked(trace, arrays).items():
        kind = DTYPES[QUANTITIES[name.split("/")[1]].kind]
        if value.dtype != kind:
            raise InputError(f"{name} holds {value.dtype}, in a trace it should hold {kind}")
    return trace


def _by_step(arrays: Mapping[str, Value]) -> dict[int, dict[str, Value]]:
    by_step: dict[int, dict[str, Value]] = defaultdict(dict)
    for name, value in arrays.items():
        t, _, quantity = name.partition("/")
        by_step[int(t)][quantity] = value
    return dict(by_step)


def _state(values: Mapping[str, Value]) -> dict[str, Value]:
    return {name: values[name] for name in STATE if name in values}


# ---- comparing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deviation:
    """The first quantity that is not as it should be.

    index: of the entry that is off by most.  expected, got: that entry; expected is None where there should be nothing.
    allowed: by how much it may be off.  off, entries: how many entries are off, and how many there are.
    causes: known mistakes that give what was given; none: none does.  needs: what the quantity is computed from,
    "before" what the step found.  unseen: those of them that were not given.
    """

    name: str
    step: int
    index: list[int]
    expected: float | None
    got: float
    allowed: float
    off: int
    entries: int
    causes: list[str]
    needs: list[str]
    unseen: list[str]

    def __str__(self) -> str:
        """In a few lines, for a person."""
        where = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        told = [f"step {self.step}: {self.name} deviates  ({QUANTITIES[self.name].line})"]
        if self.expected is None:
            told.append(f"  there should be no {self.name} at this step")
        else:
            kind = QUANTITIES[self.name].kind
            told.append(f"  {self.name}{where} should be {SHOWN[kind](self.expected)!r}, is {SHOWN[kind](self.got)!r}")
            off = f"off by {abs(self.got - self.expected):.3g}, where {self.allowed:.3g} is allowed"
            told.append(f"  {off if kind == 'f' else 'it has to be equal'}")
            told[-1] += f"; so are {self.off} of {self.entries} entries" if self.entries > 1 else ""
        if self.causes:
            told += [f"  likely cause: {cause}" for cause in self.causes]
        else:
            told.append("  no known mistake gives these numbers")
        if self.needs:
            told.append(f"  computed from: {', '.join(self.needs)}")
        if self.unseen:
            told.append(f"  of these not in the dump, so not checked: {', '.join(self.unseen)}")
        return "\n".join(told)


@dataclass(frozen=True)
class Report:
    """What a comparison found.

    compared: how many quantities agree.  steps: those they are of.  flips: (step, row, neuron) of gates that differ
    where y is within its tolerance of 0, which is no deviation.  nearest: the share of what is allowed by which the
    worst of those that agree is off, its step and name.
    """

    compared: int
    steps: list[int]
    tolerance: float
    flips: list[tuple[int, int, int]]
    nearest: tuple[float, int, str]
    deviation: Deviation | None

    @property
    def agrees(self) -> bool:
        """Whether nothing deviates."""
        return self.deviation is None

    def __str__(self) -> str:
        """In a few lines, for a person."""
        share, t, name = self.nearest
        told = [str(self.deviation)] if self.deviation else []
        of = "before it" if self.deviation else f"of {len(self.steps)} steps"
        agree = f"{self.compared} quantities {of} agree to {self.tolerance:g} of their size"
        told.append(agree + (f"; the nearest to its bound is {name} at step {t}, {share:.2g} of it" if share else ""))
        if self.flips:
            shown = ", ".join(f"step {t} [{row}, {m}]" for t, row, m in self.flips[:5])
            told.append(f"{len(self.flips)} gates flipped where y is within rounding of 0: {shown}")
        return "\n".join(told)


def compare(
    trace: Trace, candidate: Mapping[str, Value], starts: Starts = "trace", tolerance: float | None = None
) -> Report:
    """Where another implementation first deviates from a trace, if it does, and why.

    candidate: arrays, or what NumPy takes for them, named as in the trace, any part of them.  starts: "trace" when
    every step began with the trace's state before it, `Trace.before`; "own" when the implementation ran on by itself.
    tolerance: relative to the size of each quantity (`rounding`); TOLERANCE by the dtype when it is None.  InputError
    for an empty candidate, names that are unknown, wrong shapes or dtypes, and NaN.

    A port whose gradients of W are right at the first step, and twice too large at the second:

    >>> from refgba.config import GBAConfig
    >>> from refgba.model import SyntheticModel, Uniform
    >>> from refgba.oracle import compare, record
    >>> X = SyntheticModel(Uniform(6, (2,)), d=3).draw(0, 10).X
    >>> trace = record(GBAConfig(width=4, groups=2, steps=2, batch=5), X)
    >>> found = compare(trace, {"1/dW": trace.at(1)["dW"], "2/dW": 2 * trace.at(2)["dW"]})
    >>> found.compared, found.deviation.step, found.deviation.name
    (1, 2, 'dW')
    >>> found.deviation.causes[0]
    'the loss lacks its 1/2, and so do the gradients'
    """
    checked = _checked(trace, candidate)
    if tolerance is None:
        dtypes = {str(value.dtype) for value in checked.values() if value.dtype.kind == "f"}
        tolerance = max((TOLERANCE[dtype] for dtype in dtypes), default=TOLERANCE["float64"])
    if not 0 < tolerance < 1:
        raise InputError(f"the tolerance should be between 0 and 1, not {tolerance}")
    given = _by_step(checked)
    steps = sorted(given)
    done, flips, nearest = 0, list[tuple[int, int, int]](), (0.0, 0, "")
    with np.errstate(all="ignore"):  # mistakes divide by zero
        for t in steps:
            place = _Place(trace, given, t, starts, tolerance) if t else _Beginning(trace, given, tolerance)
            flips += place.flipped
            for name in place.ordered:
                share = place.share(name)
                if share > 1:
                    return Report(done, steps, tolerance, flips, nearest, place.deviation(name))
                done, nearest = done + 1, max(nearest, (share, t, name))
    return Report(done, steps, tolerance, flips, nearest, None)


class _Beginning:
    """What a candidate gave of the state before the first step, and what was expected."""

    def __init__(self, trace: Trace, given: Given, tolerance: float) -> None:
        self.values, self.expected, self.tolerance = given[0], trace.at(0), tolerance
        self.ordered = [name for name in STATE if name in self.values]
        self.flipped: list[tuple[int, int, int]] = []

    def allowed(self, name: str) -> Any:
        """By how much each entry of a quantity may be off."""
        return self.tolerance * abs(self.expected[name].astype(np.float64)) + TINY

    def share(self, name: str) -> float:
        """The largest error, in shares of what is allowed."""
        return _share(self.values[name], self.expected[name], self.allowed(name))

    def deviation(self, name: str) -> Deviation:
        """What to tell of a quantity that deviates."""
        why = ["the port does not begin with the trace's state"]
        return _deviation(name, 0, self.expected[name], self.values[name], self.allowed(name), why, [], [])


class _Place:
    """What a candidate gave of one step t = 1.., and what was expected."""

    def __init__(self, trace: Trace, given: Given, t: int, starts: Starts, tolerance: float) -> None:
        self.trace, self.given, self.t, self.starts, self.tolerance = trace, given, t, starts, tolerance
        self.values, self.there = given[t], names(trace.config, t)
        self.ordered = [name for name in QUANTITIES if name in self.values]
        before, own = trace.before(t), _state(given.get(t - 1, {}))
        own = {name: value.astype(before[name].dtype) for name, value in own.items() if name in before}
        self.state, self.other = before, own if own.keys() == before.keys() else None
        if starts == "own" and self.other:
            self.state, self.other = self.other, self.state
        self.step = trace.step(t, self.state, values=trace.at(t) if self.state is before else {})
        gates = self._flipped_gates()
        self.flipped = [(t, int(row), int(m)) for row, m in np.argwhere(gates)]
        self.gates: dict[str, Value] = {}
        if self.flipped:  # all that follows is expected with the gates that were given
            self.gates["on"] = self.step["on"] ^ gates
            self.step = trace.step(t, self.state, values=self.gates)
        self.sizes = Sizes(self.step, tolerance)

    def _flipped_gates(self) -> Value:
        """Which gates (L, M) differ where rounding may flip them."""
        on: Value = self.step["on"]
        if "on" in self.values:
            given = self.values["on"]
        else:
            given = self.values["y"] > 0 if "y" in self.values else on
        flipped: Value = (given != on) & Sizes(self.step, self.tolerance).near
        return flipped

    def allowed(self, name: str) -> Any:
        """By how much each entry of a quantity may be off."""
        if name in ("counts", "left.counts") and not {"y", "on"} & self.values.keys():
            return self.sizes.near.sum(axis=0)  # gates that flipped, if any did, were not given
        return self.sizes.allowed(name)

    def share(self, name: str) -> float:
        """The largest error, in shares of what is allowed; infinite where nothing should be."""
        return _share(self.values[name], self.step[name], self.allowed(name)) if name in self.there else np.inf

    def deviation(self, name: str) -> Deviation:
        """What to tell of a quantity that deviates."""
        if name not in self.there:
            why = [_why_nothing(name, self.trace.config)]
            return _deviation(name, self.t, None, self.values[name], 0.0, why, [], [])
        needed = needs(name, self.step)
        unseen = [part for part in needed if part not in self.values and part in QUANTITIES]
        allowed, causes = self.allowed(name), self.causes(name)
        return _deviation(name, self.t, self.step[name], self.values[name], allowed, causes, needed, unseen)

    def causes(self, name: str) -> list[str]:
        """The known mistakes that give all that was given of this step up to `name`.

        Of several, those that fit most of the rest: of this step, and of the steps after it.
        """
        upto = self.ordered[: self.ordered.index(name) + 1]
        other = [OTHER_STATE[self.starts]] if self.other is not None else []
        found = [text for text in (*MISTAKES, *other) if self._explains(text, name, upto)]
        if len(found) < 2:
            return found
        later = (_Place(self.trace, self.given, t, self.starts, self.tolerance) for t in self.given if t > self.t)
        places = [self, *later]
        fits = {text: sum(sum(place.fits(text, place.ordered)) for place in places) for text in found}
        return [text for text in found if fits[text] == max(fits.values())]

    def _explains(self, text: str, name: str, upto: list[str]) -> bool:
        """Whether a mistake fits, and comes at least twice as near to what was given as what was expected does."""
        first = _first(text)
        if ORDER[name] < first or not all(self.fits(text, [part for part in upto if ORDER[part] >= first])):
            return False
        got, allowed = self.values[name], self.allowed(name)
        return 2 * _share(got, self.mistaken(text)[name], allowed) <= _share(got, self.step[name], allowed)

    def mistaken(self, text: str) -> Step:
        """This step with a mistake; what comes before the mistake is as it should be."""
        if text not in MISTAKES:
            return self.trace.step(self.t, self.other)
        values = {name: self.step[name] for name in self.there if ORDER[name] < _first(text)}
        return self.trace.step(self.t, self.state, values=values | self.gates, instead=MISTAKES[text])

    def fits(self, text: str, named: list[str]) -> Iterator[bool]:
        """Of each of the quantities, whether this step with a mistake gives what was given."""
        step = self.mistaken(text)
        sizes = Sizes(step, self.tolerance)
        return (self._fits(step, sizes, name) for name in named)

    def _fits(self, step: Step, sizes: Sizes, name: str) -> bool:
        try:
            value = np.asarray(step[name], np.float64)
            own = self.tolerance * abs(value)  # the size of what is wrong is its own, at least
            return name in self.there and _share(self.values[name], value, sizes.allowed(name) + own) <= 1
        except InputError:  # the mistake leaves a row without a direction
            return False


def _first(text: str) -> int:
    """The place in the algorithm from which on a mistake may be seen."""
    return min(ORDER[name] for name in MISTAKES.get(text, ORDER))


def _share(got: Value, expected: Any, allowed: Any) -> float:
    """The largest error in shares of what is allowed."""
    error = abs(got.astype(np.float64) - np.asarray(expected, np.float64))
    share = np.where(error == 0, 0, error / allowed)
    return float(np.max(np.where(np.isnan(share), np.inf, share), initial=0))


def _deviation(
    name: str, t: int, expected: Any, got: Value, allowed: Any, causes: list[str], needed: list[str], unseen: list[str]
) -> Deviation:
    """A deviation at the entry that is off by most."""
    got = got.astype(np.float64)
    if expected is None:
        return Deviation(name, t, [0] * got.ndim, None, float(got.flat[0]), 0.0, got.size, got.size, causes, [], [])
    expected = np.asarray(expected, np.float64)
    error, allowed = abs(got - expected), np.broadcast_to(allowed, got.shape)
    off = error > allowed
    at = np.unravel_index(np.argmax(np.where(off, error, -1)), got.shape)
    told = float(expected[at]), float(got[at]), float(allowed[at])
    return Deviation(name, t, [int(i) for i in at], *told, int(off.sum()), got.size, causes, needed, unseen)


def _why_nothing(name: str, config: GBAConfig) -> str:
    if name in ADAPTATION:
        return f"biases are adapted at this step, but only after steps that adapt_every = {config.adapt_every} divides"
    return "there is no decoder of its own at this step"


# ---- what may be compared --------------------------------------------------------------------------------------------


def _checked(trace: Trace, candidate: Mapping[str, Value]) -> dict[str, Value]:
    """The arrays of a candidate, all of them known by name and sound; InputError names the first that is not."""
    if not candidate:
        raise InputError("nothing to compare: the dump holds no arrays")
    given = {name: np.asarray(value) for name, value in candidate.items()}
    letters = {"L": trace.config.batch, "d": trace.d, "M": trace.config.width, "K": trace.config.groups}
    for name, value in given.items():
        t, _, quantity = name.partition("/")
        if not (t.isascii() and t.isdecimal() and len(t) < 10 and str(int(t)) == t and int(t) <= trace.steps):
            raise InputError(f"{brief(name)}: names are STEP/QUANTITY, like 1/dW, with steps 0 to {trace.steps}")
        known = names(trace.config, 0) if t == "0" else list(QUANTITIES)
        if quantity not in known:
            near = get_close_matches(quantity, known, 1)
            hint = f"; is it {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise InputError(f"{brief(name)}: step {t} has no quantity {brief(quantity)!r}{hint}")
        shape = tuple(letters[letter] for letter in QUANTITIES[quantity].shape)
        given[name] = value.reshape(shape) if value.shape == (1,) and not shape else value
        _check(name, given[name], shape, QUANTITIES[quantity].kind)
    return given


def _check(name: str, value: Value, shape: tuple[int, ...], kind: str) -> None:
    if value.shape != shape:
        turned = "; it looks transposed" if value.shape == shape[::-1] else ""
        raise InputError(f"{name} has shape {value.shape}, it should be {shape}{turned}")
    right = str(value.dtype) in TOLERANCE if kind == "f" else value.dtype.kind in ("iu" if kind == "i" else "b")
    if not right:
        raise InputError(f"{name} holds {value.dtype}, it should hold {KINDS[kind]}")
    broken = np.argwhere(~np.isfinite(value))
    if len(broken):
        at = tuple(int(i) for i in broken[0])
        raise InputError(
            f"{name} holds {float(value[at])} at {list(at)}; {len(broken)} of its {value.size} entries are not finite"
        )
