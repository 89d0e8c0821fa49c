"""Train on activations with any backend, in a run folder that survives: `train_run` begins, `resume_run` goes on.

Both run Algorithm 1's loop (`refgba.gba.train`) with a log and checkpoints.  They yield a `Progress` now and then, for
a progress bar or the caller's own use, and log the same.  On the CPU backends a run that was killed or stopped and goes
on is the same to the bit as one that never paused.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refgba import __version__, gba
from refgba.backends import begin
from refgba.backends import go_on as proceed
from refgba.backends.base import AnyConfig, Backend
from refgba.backends.comm import ALONE, Ranks
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
from refgba.runs.parallel import entered
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
            raise InputError(f"--checkpoint-every must not be negative, not {saving.every}")
        if saving.keep < 1:
            raise InputError(f"--keep must be at least 1, not {saving.keep}")
        return saving


class TrainingError(RuntimeError):
    """Training cannot go on: it diverged, or its folder cannot be written.  The message is one line."""

    def __init__(self, what: str, remedy: str, goes_on: bool = False) -> None:
        """what: what happened.  remedy: what can be done.  goes_on: whether the run then goes on from where it is."""
        super().__init__(what, remedy, goes_on)
        self.what, self.remedy, self.goes_on = what, remedy, goes_on

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


class Diverged(TrainingError):
    """The loss or the parameters are no longer finite; the run cannot go on, and has no result."""

    def __init__(self, what: str) -> None:
        """what: what is not finite, and where."""
        super().__init__(what, REMEDY)


def train_run(
    data: Activations,
    survey: Survey,
    config: AnyConfig,
    backend: Backend,
    names: dict[str, Any],
    out: Path,
    saving: Saving | None = None,
    stop: Callable[[], int] = int,
    ranks: Ranks = ALONE,
    look: Callable[[Any], object] = id,
) -> Iterator[Progress]:
    """Train and write the run folder `out`, which must not hold a run yet; yields about `LOGS` times and at the end.

    data and survey come from `refgba.data.activations.survey`; names, such as {"backend": "numpy"}, go to about.json.
    look is called with the backend's state, of several ranks each with its own neurons, before the first step and at
    every Progress.
    stop is called after each step; once it returns the number of a signal, not 0, training writes a checkpoint and
    raises Stopped.  ranks: those that share the network; all of them call this alike, and rank 0 writes the folder.
    Raises InputError before anything is written when `out` cannot take the run, and later when the data are no longer
    what they were; TrainingError when the loss is no longer finite, or the folder cannot be written.
    """
    saving = saving or Saving.of(config)
    about = described(data, survey, names, saving)
    state = begin(backend, config, data.d, ranks)
    ranks.first(lambda: folder.create(out, config, about, data))
    with ExitStack() as stack:
        entered(ranks, stack, lambda: folder.locked(out))
        look(state)
        for progress in Training(out, config, about, data, backend, saving, stop, ranks).run(state):
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
    ranks: Ranks = ALONE,
) -> Iterator[Progress]:
    """Go on with the run of a `folder.read_record` from its newest checkpoint, or from its beginning; as `train_run`.

    data comes from `refgba.data.activations.reopen`; where they lie now is remembered.  config has the run's settings,
    or those of `extended`.  held_out: what about.json is to say of other rows to judge on.  Calls say with remarks
    on damaged checkpoints and on what an extension means.  Yields nothing where all steps are done.
    """
    path = record.path
    with ExitStack() as stack:
        entered(ranks, stack, lambda: folder.locked(path))
        for place in (path, path / checkpoints.CHECKPOINTS):
            ranks.first(partial(files.sweep, place))
        checkpoint = checkpoints.newest(path, record.config, data.fingerprint, say, ranks)
        done = checkpoint[0].t if checkpoint else 0
        about = record.about | {"data": record.about["data"] | {"path": data.record()["path"]}}
        about.pop(folder.DIVERGED, None)  # it goes on otherwise than it did then
        if held_out is not None:
            about |= {folder.HELD_OUT: held_out}
        if config != record.config:
            say(METHODS[config.method].extension(config, done))
            about |= {"extended": [*about.get("extended", []), {"at": done, "steps": config.steps}]}

        def remember() -> None:
            if about != record.about:
                folder.write_about(path, about)
            if config != record.config:
                folder.write_config(path, config)

        ranks.first(remember)
        if checkpoint:
            checkpoint[0].config = config  # both are of the run's method
            state = proceed(backend, checkpoint[0], ranks)
        else:
            state = begin(backend, config, data.d, ranks)
        ranks.first(lambda: log.cut(path, done))
        seconds = checkpoint[1] if checkpoint else 0.0
        yield from Training(path, config, about, data, backend, saving, stop, ranks, done, seconds).run(state)


def extended(config: AnyConfig, steps: int) -> AnyConfig:
    """The settings of a run that goes on to more steps than it began with; InputError unless they are more."""
    if steps <= config.steps:
        raise InputError(f"--steps can only be more than the run's {config.steps}, not {steps}")
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
    ranks: Ranks = ALONE
    saved: int = 0  # The step of the newest checkpoint.
    seconds: float = 0.0  # The time that the run took before this process.
    began: float = 0.0  # When the run would have begun without its pauses, on the clock of time.perf_counter.

    def run(self, state: Any) -> Iterator[Progress]:
        """Algorithm 1 from the state's step to the end."""
        every = max(1, self.config.steps // LOGS)
        self.began = time.perf_counter() - self.seconds
        writes = self.path if self.ranks.rank == 0 else None
        try:
            with closing(Log(writes) if writes else NoLog()) as lines, closing(self._batches(state)) as batches:
                for metrics in gba.train(state, batches, self.backend.step, self.backend.adapt):
                    asked = self.ranks.agreed(self.stop)
                    due = self.saving.every and state.t % self.saving.every == 0
                    if state.t % every == 0 or state.t == self.config.steps:
                        progress = self._progress(state, metrics)
                        lines.append(progress)
                        yield progress
                    if due or state.t == self.config.steps or asked:
                        lines.sync()
                        self._save(state)
                    if asked and state.t < self.config.steps:
                        raise self._stopped(state.t, asked)
                self._finish(state)
        except InputError:
            if self.ranks.together():
                self._save(state)  # the data failed: what was learned so far is kept
            raise
        except Diverged:
            if writes:
                with suppress(OSError):  # of the two failures the divergence is the one to be told
                    folder.write_about(writes, self.about | {folder.DIVERGED: state.t})
            raise
        except OSError as error:
            if self.path is None:
                raise
            raise TrainingError(
                f"{self.path}: step {state.t}: {error.strerror or error}",
                f"the run is not complete, {self._resumable()}",
                True,
            ) from None

    def _batches(self, state: Any) -> Generator[Any]:
        """The minibatches to come, on the device, read ahead by a thread."""
        config = self.config
        rows = feed.minibatches(self.data, config, state.t)
        if not self.ranks.broadcasts:
            return prefetched(self.backend.put(state, x) for x in rows)
        shape, left = (config.batch, self.data.d), config.steps - state.t
        sent = self.ranks.broadcast(prefetched(rows), shape, config.master, left)
        return (self.backend.put(state, x) for x in sent)

    def _progress(self, state: Any, metrics: gba.Metrics) -> Progress:
        loss, config = float(metrics.loss), self.config
        if not math.isfinite(loss):
            raise Diverged(f"step {state.t}: the loss is {loss}")
        counters, own = self.backend.counters(state), self.ranks.own(config.width)
        frequency, groups = counters.counts / counters.rows, METHODS[config.method].groups(config)
        met = 0 if groups is None else np.count_nonzero(frequency <= groups.target[groups.group[own]])
        dead, within = self.ranks.totals(np.count_nonzero(counters.counts == 0), met)
        return Progress(
            step=state.t,
            loss=loss,
            l0=float(metrics.l0),
            fvu=2 * loss / self.about["data"]["variance"],
            dead=float(dead / config.width),
            within=None if groups is None else float(within / config.width),
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
        # `_progress` sees few losses, of one step ago.
        broken = [name for name, array in host.params.arrays().items() if not np.isfinite(array).all()]
        for parameter in [name for names in self.ranks.everyone(broken) for name in names]:
            raise Diverged(f"step {state.t}: {parameter} is not finite")
        if self.path:
            checkpoints.save(self.path, host, self.origin(), self.saving.keep, self.data.centre, self.ranks)
        self.saved = state.t

    def _finish(self, state: Any) -> None:
        if self.path:
            origin = {"step": state.t} | self.origin()
            result, params = self.path / folder.FINAL, self.backend.params(state)
            folder.write_result(result, params, self.config, origin, self.data.centre, self.ranks)

    def _resumable(self) -> str:
        since = f"from its checkpoint at step {self.saved}" if self.saved else "from its beginning"
        assert self.path is not None  # nothing stops a run in memory
        return f"`refgba train --resume {files.quoted(self.path)}` goes on {since}"

    def _stopped(self, step: int, number: int) -> Stopped:
        return Stopped(
            f"{self.path}: stopped after step {step} by {signal.Signals(number).name}; {self._resumable()}", number
        )
