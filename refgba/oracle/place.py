"""One step of a candidate held against what the trace leads to expect: by how much each quantity is off, and may be.

`Beginning` is the state before the first step, `Place` any step after it.  A `Place` can also be worked through with a
known mistake (`Place.mistaken`); `causes` uses that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from refgba import recipe
from refgba.errors import InputError
from refgba.oracle.mistakes import MISTAKES
from refgba.oracle.recording import Trace, state_of
from refgba.oracle.rounding import TINY, Sizes
from refgba.oracle.stepwise import CONSTANT, ORDER, QUANTITIES, STATE, Step, Value, names

Starts: TypeAlias = Literal["trace", "own"]
Steps: TypeAlias = Mapping[int, dict[str, Value]]  # a candidate's arrays by step and name


class Beginning:
    """What a candidate holds of the state before the first step, and what was expected."""

    def __init__(self, trace: Trace, candidate: Steps, tolerance: float) -> None:
        """From a candidate that holds some of it; tolerance is relative to each value."""
        self.t = trace.first - 1
        self.values, self.expected, self.tolerance = candidate[self.t], trace.at(self.t), tolerance
        self.ordered = [name for name in STATE if name in self.values]
        self.flipped: list[tuple[int, int, int]] = []

    def allowed(self, name: str) -> Any:
        """By how much each entry of a quantity may be off."""
        return self.tolerance * abs(self.expected[name].astype(np.float64)) + TINY

    def share(self, name: str) -> float:
        """The largest error, in shares of what is allowed."""
        return share_of(self.values[name], self.expected[name], self.allowed(name))


class Place:
    """What a candidate holds of one recorded step t, and what was expected.

    ordered: the names of its quantities in the order of the algorithm.  there: the names that the step has.  flipped:
    (step, row, neuron) of the gates that rounding may have flipped.  unsure: by how much the state before the step may
    be off.  other: the state that the step would start from if `starts` were the other one, None where the candidate
    does not hold all of it.
    """

    def __init__(
        self, trace: Trace, candidate: Steps, t: int, starts: Starts, tolerance: float, last: Place | None = None
    ) -> None:
        """Step t, which the candidate may lack; last: the step before it, None for the trace's first.

        tolerance: relative to the size of each quantity (`rounding`).
        """
        self.trace, self.t, self.starts, self.tolerance = trace, t, starts, tolerance
        self.values, self.there = candidate.get(t, {}), {*names(trace.config, t), *CONSTANT}
        self.ordered = [name for name in QUANTITIES if name in self.values]
        before, own = trace.before(t), state_of(candidate.get(t - 1, {}))
        own = {name: value.astype(before[name].dtype) for name, value in own.items() if name in before}
        whole = own.keys() == before.keys()
        self.unsure: dict[str, Any] = {}
        if starts == "trace":
            self.state, self.other = before, own if whole else None
        else:  # the port's own state, and where the candidate lacks it, what follows from the steps before
            recomputed, off = last.after() if last else (before, {})
            self.state, self.other = recomputed | own, before if whole else None
            self.unsure = {name: value for name, value in off.items() if name not in own}
            if trace.config.untied and recipe.fit_begins(trace.config, t):
                of_W = {"W", "m.W", "v.W"} & self.unsure.keys()
                self.unsure |= {name.replace("W", "W_dec"): self.unsure[name] for name in of_W}
        self.step = trace.step(t, self.state, values=trace.at(t) if self.state is before else {})
        gates = self._flipped_gates()
        self.flipped = [(t, int(row), int(m)) for row, m in np.argwhere(gates)]
        self.gates: dict[str, Value] = {}
        if self.flipped:  # all that follows is expected with the candidate's gates
            self.gates["on"] = self.step["on"] ^ gates
            self.step = trace.step(t, self.state, values=self.gates)
        self.sizes = self._sizes(self.step)

    def _sizes(self, step: Step) -> Sizes:
        return Sizes(step, self.tolerance, self.unsure, bool({"y", "on"} & self.values.keys()))

    def after(self) -> tuple[dict[str, Value], dict[str, Any]]:
        """The port's state after the step, recomputed, and by how much each of its quantities may be off."""
        state = [name for name in STATE if name in self.there]
        return {name: np.asarray(self.step[name]) for name in state}, {name: self.allowed(name) for name in state}

    def _flipped_gates(self) -> Value:
        """Which gates (L, M) differ where rounding may flip them."""
        on: Value = self.step["on"]
        if "on" in self.values:
            candidate = self.values["on"]
        else:
            candidate = self.values["y"] > 0 if "y" in self.values else on
        flipped: Value = (candidate != on) & self._sizes(self.step).near
        return flipped

    def allowed(self, name: str) -> Any:
        """By how much each entry of a quantity may be off."""
        return self.sizes.allowed(name)

    def share(self, name: str) -> float:
        """The largest error, in shares of what is allowed; infinite where there should be nothing."""
        return share_of(self.values[name], self.step[name], self.allowed(name)) if name in self.there else np.inf

    def off(self, name: str) -> Any:
        """Which entries of a quantity are off by more than is allowed."""
        return abs(self.values[name].astype(np.float64) - self.step[name]) > self.allowed(name)

    # ---- with a known mistake ----------------------------------------------------------------------------------------

    def mistaken(self, text: str) -> Step:
        """This step with a mistake; what comes before the mistake is as it should be.

        A text that is none of MISTAKES stands for the step from the other state.
        """
        if text not in MISTAKES:
            return self.trace.step(self.t, self.other)
        values = {name: self.step[name] for name in self.there if ORDER[name] < first_place(text)}
        return self.trace.step(self.t, self.state, values=values | self.gates, instead=MISTAKES[text])

    def fits(self, text: str, named: list[str]) -> Iterator[bool]:
        """For each of the quantities, whether this step with a mistake gives the candidate's numbers."""
        step = self.mistaken(text)
        sizes = self._sizes(step)
        return (self._fits(step, sizes, name) for name in named)

    def _fits(self, step: Step, sizes: Sizes, name: str) -> bool:
        try:
            value = np.asarray(step[name], np.float64)
            own = self.tolerance * abs(value)  # the size of what is wrong is its own, at least
            return name in self.there and share_of(self.values[name], value, sizes.allowed(name) + own) <= 1
        except InputError:  # the mistake leaves a row without a direction
            return False


def first_place(text: str) -> int:
    """The place in the algorithm from which on a mistake may show."""
    return min(ORDER[name] for name in MISTAKES.get(text, ORDER))


def share_of(got: Value, expected: Any, allowed: Any) -> float:
    """The largest error in shares of what is allowed."""
    error = abs(got.astype(np.float64) - np.asarray(expected, np.float64))
    share = np.where(error == 0, 0, error / allowed)
    return float(np.max(np.where(np.isnan(share), np.inf, share), initial=0))


def places(
    trace: Trace, candidate: Steps, starts: Starts, tolerance: float, last: Place | None = None
) -> Iterator[Place]:
    """The steps of a candidate that come after the step `last`, in order; all of them if it is None."""
    for t in range(last.t + 1 if last else trace.first, max(candidate) + 1):
        if starts == "own" or t in candidate:
            last = Place(trace, candidate, t, starts, tolerance, last)
            yield last
