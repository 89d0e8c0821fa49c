"""Train on activations with any backend, in a run folder that survives: `train_run` begins, `resume_run` goes on.

Both run Algorithm 1's loop (`refgba.gba.train`) with a log and checkpoints.  They yield a `Progress` now and then, for
a progress bar or the caller's own use, and log the same.  On the CPU backends a run that was killed or stopped and goes
on is the same to the bit as one that never paused.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refgba import __version__, gba
from refgba.backends import begin
from refgba.backends.base import AnyConfig, Backend
from refgba.baselines import METHODS
from refgba.config import Settings
from refgba.data import feed, files
from refgba.data.activations import Activations
from refgba.data.prefetch import prefetched
from refgba.data.survey import Survey
from refgba.errors import InputError
from refgba.runs import checkpoints, folder, log
from refgba.runs.folder import Record
from refgba.runs.log import Log, NoLog, Progress
from refgba.runs.signals import Stopped

REMEDY = "training diverged, the run has no result: try a lower lr, and other settings nearer their defaults"
LOGS = 200  # A run logs about this many lines.
CHECKPOINTS = 10  # A run writes this many checkpoints unless `checkpoint-every` says otherwise.


@dataclass(frozen=True)
class Saving:
    """When a run writes checkpoints: every `every` steps (0: never), and always at its end; the newest `keep` stay."""

    every: int
    keep: int = 2

    @classmethod
    def of(cls, config: Settings, every: int | None = None, keep: int | None = None) -> Saving:
        """The values given, by default CHECKPOINTS per run and the newest two kept; InputError for impossible ones."""
        saving = cls(-(-config.steps // CHECKPOINTS) if every is None else every, cls.keep if keep is None else keep)
        if saving.every < 0:
            raise InputError(f"checkpoint-every must not be negative, not {saving.every}")
        if saving.keep < 1:
            raise InputError(f"keep must be at least 1, not {saving.keep}")
        return saving


class TrainingError(RuntimeError):
    """Training cannot go on: it diverged, or its folder cannot be written.  The message is one line."""


def train_run(
    data: Activations,
    survey: Survey,
    config: AnyConfig,
    backend: Backend,
    names: dict[str, Any],
    out: Path,
    saving: Saving | None = None,
    stop: Callable[[], int] = int,
    look: Callable[[Any], object] = id,
) -> Iterator[Progress]:
    """Train and write the run folder `out`, which must not hold a run yet; yields about `LOGS` times and at the end.

    data and survey come from `refgba.data.activations.survey`; names, such as {"backend": "numpy"}, go to about.json.
    look is called with the backend's state before the first step and at every Progress.
    stop is called after each step; once it returns the number of a signal, not 0, training writes a checkpoint and
    raises Stopped.  Raises InputError before anything is written when `out` cannot take the run, and later when the
    data are no longer what they were; TrainingError when the loss is no longer finite, or the folder cannot be written.
    """
    saving = saving or Saving.of(config)
    about = described(data, survey, names, saving)
    state = begin(backend, config, data.d)
    folder.create(out, config, about, data)
    with folder.locked(out):
        look(state)
        for progress in Training(out, config, about, data, backend, saving, stop).run(state):
            look(state)
            yield progress


def described(data: Activations, survey: Survey, names: dict[str, Any], saving: Saving) -> dict[str, Any]:
    """The about.json of a new run, as `train_run` has it."""
    of_data = data.record() | survey.record()
    return names | {"refgba": __version__, "checkpoints": asdict(saving), "data": of_data}


def resume_run(
    record: Record,
    data: Activations,
    config: AnyConfig,
    backend: Backend,
    saving: Saving,
    stop: Callable[[], int] = int,
    say: Callable[[str], object] = id,
    held_out: dict[str, Any] | None = None,
) -> Iterator[Progress]:
    """Go on with the run of a `folder.read_record` from its newest checkpoint, or from its beginning; as `train_run`.

    data comes from `refgba.data.activations.reopen`; where they lie now is remembered.  config has the run's settings,
    or those of `extended`.  held_out: what about.json is to say of other rows to judge on.  Calls say with remarks
    on damaged checkpoints and on what an extension means.  Yields nothing where all steps are done.
    """
    path = record.path
    with folder.locked(path):
        files.sweep(path)
        files.sweep(path / checkpoints.CHECKPOINTS)
        checkpoint = checkpoints.newest(path, record.config, data.fingerprint, say)
        done = checkpoint[0].t if checkpoint else 0
        about = record.about | {"data": record.about["data"] | {"path": data.record()["path"]}}
        if held_out is not None:
            about |= {folder.HELD_OUT: held_out}
        if config != record.config:
            say(METHODS[config.method].extension(config, done))
            about |= {"extended": [*about.get("extended", []), {"at": done, "steps": config.steps}]}
        if about != record.about:
            folder.write_about(path, about)
        if config != record.config:
            folder.write_config(path, config)
        if checkpoint:
            checkpoint[0].config = config  # both are of the run's method
            state = backend.restore(checkpoint[0])
        else:
            state = begin(backend, config, data.d)
        log.cut(path, done)
        seconds = checkpoint[1] if checkpoint else 0.0
        yield from Training(path, config, about, data, backend, saving, stop, done, seconds).run(state)


def extended(config: AnyConfig, steps: int) -> AnyConfig:
    """The settings of a run that goes on to more steps than it began with; InputError unless they are more."""
    if steps <= config.steps:
        raise InputError(f"steps can only be more than the run's {config.steps}, not {steps}")
    longer: AnyConfig = METHODS[config.method].extended(config, steps)
    return longer


@dataclass
class Training:
    """One process's part of a run: in its folder `path`, or where that is None in memory, with nothing written."""

    path: Path | None
    config: AnyConfig
    about: dict[str, Any]
    data: Activations
    backend: Backend
    saving: Saving
    stop: Callable[[], int]
    saved: int = 0  # The step of the newest checkpoint.
    seconds: float = 0.0  # The time that the run took before this process.
    began: float = 0.0  # When the run would have begun without its pauses, on the clock of time.perf_counter.

    def run(self, state: Any) -> Iterator[Progress]:
        """Algorithm 1 from the state's step to the end."""
        every = max(1, self.config.steps // LOGS)
        self.began = time.perf_counter() - self.seconds
        rows = (self.backend.put(state, x) for x in feed.minibatches(self.data, self.config, state.t))
        try:
            with closing(Log(self.path) if self.path else NoLog()) as lines, closing(prefetched(rows)) as batches:
                for metrics in gba.train(state, batches, self.backend.step, self.backend.adapt):
                    due = self.saving.every and state.t % self.saving.every == 0
                    if state.t % every == 0 or state.t == self.config.steps:
                        progress = self._progress(state, metrics)
                        lines.append(progress)
                        yield progress
                    if due or state.t == self.config.steps or self.stop():
                        lines.sync()
                        self._save(state)
                    if self.stop() and state.t < self.config.steps:
                        raise self._stopped(state.t)
                self._finish(state)
        except InputError:
            self._save(state)  # the data failed: what was learned so far is kept
            raise
        except OSError as error:
            if self.path is None:
                raise
            raise TrainingError(
                f"{self.path}: step {state.t}: {error.strerror or error}; the run is not complete, {self._resumable()}"
            ) from None

    def _progress(self, state: Any, metrics: gba.Metrics) -> Progress:
        loss, config = float(metrics.loss), self.config
        if not math.isfinite(loss):
            raise TrainingError(f"step {state.t}: the loss is {loss}; {REMEDY}")
        counters = self.backend.counters(state)
        frequency, groups = counters.counts / counters.rows, METHODS[config.method].groups(config)
        return Progress(
            step=state.t,
            loss=loss,
            l0=float(metrics.l0),
            fvu=2 * loss / self.about["data"]["variance"],
            dead=float((counters.counts == 0).mean()),
            within=None if groups is None else float((frequency <= groups.target[groups.group]).mean()),
            seconds=time.perf_counter() - self.began,
        )

    def origin(self) -> dict[str, Any]:
        """Where a network comes from, for its state.json."""
        data = self.about["data"]
        return {
            "backend": self.about.get("backend"),
            "data": {name: data[name] for name in ("fingerprint", "rows", "d", "dtype")},
            "seconds": time.perf_counter() - self.began,
        }

    def _save(self, state: Any) -> None:
        """Write a checkpoint of the state, unless there is one."""
        if state.t == self.saved:
            return
        host = self.backend.export(state)
        for parameter, array in host.params.arrays().items():  # `_progress` sees few losses, of one step ago
            if not np.isfinite(array).all():
                raise TrainingError(f"step {state.t}: {parameter} is not finite; {REMEDY}")
        if self.path:
            checkpoints.save(self.path, host, self.origin(), self.saving.keep, self.data.centre)
        self.saved = state.t

    def _finish(self, state: Any) -> None:
        if self.path:
            origin = {"step": state.t} | self.origin()
            params, centre = self.backend.params(state), self.data.centre
            folder.write_network(self.path / folder.FINAL, params, self.config, origin, centre=centre)

    def _resumable(self) -> str:
        since = f"from its checkpoint at step {self.saved}" if self.saved else "from its beginning"
        return f"`refgba train --resume {self.path}` goes on {since}"

    def _stopped(self, step: int) -> Stopped:
        number = self.stop()
        return Stopped(
            f"{self.path}: stopped after step {step} by {signal.Signals(number).name}; {self._resumable()}", number
        )
