"""A window of a real run as a trace: from the run's own state before it, on the run's own rows.

A run of thousands of steps is too long to record, and its first steps never reach the change of phase.  So the run is
repeated up to the window, by its own backend in its own dtype, from the newest checkpoint before the window or from its
beginning.  From there on the reference goes on in float64, and is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from refgba import backends, gba, recipe
from refgba.adam import AdamW
from refgba.backends.base import Backend
from refgba.baselines import METHODS
from refgba.bias import Buffer
from refgba.config import GBAConfig
from refgba.data import feed
from refgba.data.activations import Activations, reopen
from refgba.data.prefetch import prefetched
from refgba.errors import InputError
from refgba.oracle.recording import Trace, continued, refuse
from refgba.runs import checkpoints, folder
from refgba.runs.folder import Record

AROUND = 2  # steps recorded on each side of the change of phase


@dataclass(frozen=True)
class Window:
    """Steps `first`..`last` of a run, to be recorded.

    start: of how many steps of the run the state is known, from a checkpoint; 0 for its beginning.  origin: where the
    trace comes from, for its index.json.
    """

    record: Record
    data: Activations
    backend: Backend
    first: int
    last: int
    start: int
    origin: dict[str, Any]

    @property
    def config(self) -> GBAConfig:
        """The settings of the run."""
        return cast(GBAConfig, self.record.config)  # `opened` has refused others

    @property
    def repeated(self) -> int:
        """How many steps are repeated before the first that is recorded."""
        return self.first - 1 - self.start

    def trace(self, tick: Callable[[int], object] = id) -> Trace:
        """Repeat the steps before the window and record it; `tick` is called with 1 after each repeated step.

        InputError when the data are no longer what they were.
        """
        with closing(prefetched(feed.minibatches(self.data, self.config, self.start))) as batches:
            state = self._state()
            rows = (self.backend.put(state, x) for x in islice(batches, self.repeated))
            for _ in gba.train(state, rows, self.backend.step, self.backend.adapt):
                tick(1)
            before = _widened(cast(gba.State, self.backend.export(state)))
            return continued(before, _in_float64(islice(batches, self.last - self.first + 1)))

    def _state(self) -> Any:
        if not self.start:
            return backends.begin(self.backend, self.config, self.data.d)
        path = self.record.path / checkpoints.CHECKPOINTS / f"step-{self.start}"
        return self.backend.restore(checkpoints.load(path, self.config, self.data.fingerprint)[0])


def opened(run: Path, steps: tuple[int, int] | None = None, data: Path | None = None) -> Window:
    """A window of the run in a folder, which may be unfinished: its first and last step, by default around the change.

    data: where the run's data are, if they have moved.  InputError when the folder holds no run of GBA, when the steps
    are not in it, when no steps are given and the run has one phase, and for a trace that would be too large.
    """
    record = folder.read_record(run)
    config, about = record.config, record.about
    if METHODS[config.method].Config is not GBAConfig:
        raise InputError(f"{run}: a run of {config.method}; a trace is of GBA")
    first, last = steps or around_change(run, cast(GBAConfig, config))
    if not 1 <= first <= last <= config.steps:
        raise InputError(f"{run}: it has steps 1 to {config.steps}, so --window cannot be {first}:{last}")
    if data is None and not about["data"]["path"]:
        raise InputError(f"{run}: was trained on an array in memory; save those rows to a file and give it with --data")
    rows = reopen(about["data"], record.dropped, record.crc, data, record.held_out, record.centre)
    refuse(cast(GBAConfig, config), rows.d, last - first + 1)
    backend = backends.load_for(about["backend"], config)
    saved = (int(path.name.removeprefix("step-")) for path in checkpoints.found(run))
    start = max((t for t in saved if t < first), default=0)
    origin = {"dtype": config.dtype, "backend": about["backend"], "checkpoint": start}
    return Window(record, rows, backend, first, last, start, origin)


def around_change(run: Path, config: GBAConfig) -> tuple[int, int]:
    """The steps around the one with which fitting begins; InputError where there is none."""
    formed = recipe.forming_steps(config)
    if not 0 < formed < config.steps:
        raise InputError(f"{run}: has one phase; say which steps to record with --window")
    return max(1, formed - AROUND + 1), min(config.steps, formed + AROUND)


def _in_float64(batches: Iterable[Any]) -> Iterator[Any]:
    return (x.astype(np.float64) for x in batches)


def _widened(state: gba.State) -> gba.State:
    """A copy of a state in float64, whatever the run computes in."""
    optimiser = {
        name: AdamW(adam.m.astype(np.float64), adam.v.astype(np.float64), adam.t)
        for name, adam in state.optimiser.items()
    }
    buffer = Buffer(state.config.width, state.buffer.rows)
    buffer.counts, buffer.peaks = state.buffer.counts.copy(), state.buffer.peaks.copy()
    config = replace(state.config, dtype="float64")
    return gba.State(config, state.params.astype("float64"), optimiser, buffer, None, state.held.copy(), state.t)
