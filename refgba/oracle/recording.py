"""A trace: what the reference did, recorded in float64, quantity by quantity.

`record` runs `gba.step` and `gba.adapt` and keeps all that `stepwise` computes on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refgba import gba
from refgba.config import GBAConfig
from refgba.errors import InputError
from refgba.oracle.stepwise import STATE, Step, Value, names
from refgba.sae import Params, unit_rows
from refgba.types import Array

LARGEST = 2**32  # bytes of a trace


@dataclass(frozen=True, eq=False)
class Trace:
    """What the reference did: the settings, and the quantities of consecutive steps by name.

    quantities: first the state before the first recorded step (`stepwise.STATE`), then of each step all that
    `stepwise.names` lists.  first: the number of the first recorded step, 1 unless a window of a run was recorded.
    """

    config: GBAConfig
    quantities: list[dict[str, Value]]
    first: int = 1

    @property
    def steps(self) -> int:
        """Number of recorded steps."""
        return len(self.quantities) - 1

    @property
    def numbers(self) -> range:
        """The numbers of the recorded steps."""
        return range(self.first, self.first + self.steps)

    @property
    def d(self) -> int:
        """Dimensions of the rows."""
        return int(self.quantities[0]["b_pre"].size)

    @property
    def arrays(self) -> dict[str, Value]:
        """All arrays by step and name, "3/dW"."""
        numbered = enumerate(self.quantities, start=self.first - 1)
        return {f"{t}/{name}": value for t, step in numbered for name, value in step.items()}

    def at(self, t: int) -> dict[str, Value]:
        """The quantities of step t by name; of the step before the first, the state after it."""
        if t < self.first - 1:
            raise IndexError(f"step {t} is before the recorded ones")
        return self.quantities[t - self.first + 1]

    def before(self, t: int) -> dict[str, Value]:
        """What a port takes over before a recorded step t: what step t - 1 left, by the names in `stepwise.STATE`."""
        return state_of(self.at(t - 1))

    def step(self, t: int, state: Mapping[str, Value] | None = None, **more: Mapping[str, Any]) -> Step:
        """Step t from the trace's state or another; `more` goes to `stepwise.Step`."""
        every = self.config.adapt_every
        adapted = (t - 1) // every * every  # the last step before t that line 6 followed
        known = adapted >= self.first
        last = self.at(adapted) | {"b before": self.at(adapted - 1)["b"]} if known else None
        return Step(self.config, t, self.at(t)["rows"], state or self.before(t), last=last, **more)


def record(config: GBAConfig, X: Array, start: Params | None = None) -> Trace:
    """The first N / L steps of a run, from the parameters `start` or else from the reference's own random ones.

    X: (N, d) rows of any norm; step t takes rows (t - 1) L to t L of them, so that no port has to draw what NumPy
    draws.  Raises InputError unless X is a whole number of batches, at most as many as the run has; for another dtype
    than float64 in the settings, for a row of zeros, and for a trace of more than LARGEST bytes.
    """
    L, (N, d) = config.batch, X.shape
    if N % L or not 0 < N // L <= config.steps:
        raise InputError(f"{N} rows should be from 1 to {config.steps} batches of {L} rows")
    if config.dtype != "float64":
        raise InputError(f"a trace is recorded in float64, not in {config.dtype}")
    refuse(config, d, N // L)
    state = gba.init(start or gba.random_params(config, d), config)
    return continued(state, np.split(X.astype(np.float64), N // L))


def refuse(config: GBAConfig, d: int, steps: int) -> None:
    """InputError where a trace of so many steps would have more than LARGEST bytes, or lack what line 6 looks at."""
    if config.targets_from == "data":
        raise InputError("a trace is of Algorithm 2 with the targets of groups, and those of this run are measured")
    L, M = config.batch, config.width
    if (size := 8 * steps * (L * (3 * d + 2 * M) + 10 * M * d)) > LARGEST:
        raise InputError(f"the trace would take {size / 1e9:.1f} GB; record fewer steps or a smaller network")


def continued(state: gba.State, batches: Iterable[Array]) -> Trace:
    """The next steps of a run, from its state, which goes on; all of it is in float64, and so are the batches."""
    config = state.config
    trace = Trace(config, [state_arrays(state)], state.t + 1)
    for t, rows in enumerate(batches, start=trace.first):
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


def state_of(quantities: Mapping[str, Value]) -> dict[str, Value]:
    """Those of a step's quantities that make up the state after it."""
    return {name: quantities[name] for name in STATE if name in quantities}
