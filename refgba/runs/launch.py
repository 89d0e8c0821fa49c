"""A run made ready to train: settings, backend, folder and data, each refused in the order in which it costs least.

`begin` makes a new run ready, `go_on` one that was stopped or is extended; both give a `Launch`, which has done nothing
to the folder yet.  Training is `refgba.runs.trainer`, judging what came out `refgba.runs.judging`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from refgba import backends
from refgba.backends.base import AnyConfig, Backend
from refgba.backends.comm import ALONE, Ranks
from refgba.data.activations import Activations, open_activations, reopen
from refgba.data.centre import Centring, centred
from refgba.data.survey import Survey, refuse_share, survey
from refgba.errors import InputError
from refgba.runs import capacity, checkpoints, folder, held_out
from refgba.runs.held_out import HeldOut
from refgba.runs.judging import Counting, silent
from refgba.runs.log import Progress
from refgba.runs.parallel import require_agreement, surveyed
from refgba.runs.settings import CUSTOMARY, Request, remarks, switch
from refgba.runs.trainer import Saving, extended, resume_run, train_run

Say = Callable[[str], object]  # It is told a remark.
Waiting = Callable[[str], AbstractContextManager[object]]  # It shows what is waited for, if that takes long.
NOTHING = held_out.Choice(share=0)
COMPILING = "Loading numba, which compiles the first time on a machine, for some 20 s"


class LargeBatch(InputError):
    """A batch is more than all rows to train on."""


@dataclass(frozen=True)
class Launch:
    """A run that is ready to train.

    steps: what trains, given what is asked after each step whether to stop, as `refgba.runs.trainer.train_run`.
    remarks: what a user should know of the data.  name: that of the backend.
    done: the step from which it goes on, if its newest checkpoint is sound.  ranks: those that share its network.
    held_out: rows to judge it on, besides.
    """

    path: Path
    config: AnyConfig
    data: Activations
    backend: Backend
    steps: Callable[[Callable[[], int]], Iterator[Progress]]
    name: str
    remarks: tuple[str, ...] = ()
    done: int = 0
    held_out: HeldOut | None = None
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class Plan:
    """How a new run in the folder `path` is to be trained, before its data have been looked at."""

    path: Path
    config: AnyConfig
    saving: Saving
    backend: Backend
    names: dict[str, str]
    ranks: Ranks = ALONE

    def launch(
        self,
        data: Activations,
        drop_zero_rows: bool = False,
        tick: Callable[[int], object] = id,
        drop_below: float = 0.0,
        centring: Centring = "auto",
        choice: held_out.Choice = NOTHING,
        look: Callable[[Any], object] = id,
    ) -> Launch:
        """The run on these data, all of which are read and checked first; InputError as `survey`.

        choice: what is held out of them.  look: as for `refgba.runs.trainer.train_run`.
        """
        ranks, config = self.ranks, self.config

        def check() -> tuple[Activations, Survey]:
            rows, location = centred(data, centring)
            return survey(rows, config.master, drop_zero_rows, tick, drop_below, location)

        checked, found = surveyed(ranks, data, check)
        remarks = [*found.remarks()]
        checked, kept = held_out.keep_back(checked, choice, remarks.append)
        self.refuse_batch(len(checked), len(checked.held_out))
        if choice.data is not None:
            kept = held_out.open_other(choice.data, data.d, config.master, drop_zero_rows, drop_below, ranks)
        names: dict[str, Any] = dict(self.names)
        if kept is not None:
            names[folder.HELD_OUT] = kept.record
        agree(ranks, self.path, config, checked, names | asdict(self.saving))
        chosen = checked, found, config, self.backend, names, self.path, self.saving
        steps, name = partial(train_run, *chosen, ranks=ranks, look=look), self.names["backend"]
        return Launch(self.path, config, checked, self.backend, steps, name, tuple(remarks), 0, kept, ranks)

    def refuse_batch(self, rows: int, kept: int = 0) -> None:
        """LargeBatch where a batch is more than all rows to train on.  kept: how many others are held out."""
        if self.config.batch > rows:
            besides = f" beside the {kept} held out" if kept else ""
            raise LargeBatch(
                f"--batch {self.config.batch} is more than the {rows} rows to train on{besides}; choose --batch {rows} "
                "or less"
            )


def agree(ranks: Ranks, path: Path, config: AnyConfig, data: Activations, how: dict[str, Any]) -> None:
    """InputError unless all ranks are about to train the same run."""
    about = {"settings": asdict(config) | how, "data": data.fingerprint, "folder": str(path.absolute())}
    require_agreement(ranks, about)


def customary(request: Request) -> tuple[Request, dict[str, Any]]:
    """A request of the command line, and the settings that are defaults there: the backend AUTO, and CUSTOMARY.

    The paper's recipe keeps to the paper in this too: numpy and float64, as the reference.
    """
    request = replace(request, strict=True)
    if request.recipe == "paper":
        return request, {}
    return replace(request, backend=request.backend or backends.AUTO), dict(CUSTOMARY)


def plan(
    path: Path, request: Request, d: int, say: Say = id, waiting: Waiting = nullcontext, ranks: Ranks = ALONE,
    **defaults: Any,
) -> Plan:  # fmt: skip
    """A new run on data of d dimensions.  defaults: settings of the command's own.

    InputError for settings, a backend or a folder that cannot be.
    """
    choices = choose(request, d, say, waiting, ranks, **defaults)
    folder.refuse_existing(path)
    return Plan(path, *choices, ranks)


class Choices(NamedTuple):
    """What a request comes to on data of some dimensions, wherever the run is to be."""

    config: AnyConfig
    saving: Saving
    backend: Backend
    names: dict[str, str]


def choose(
    request: Request, d: int, say: Say = id, waiting: Waiting = nullcontext, ranks: Ranks = ALONE, **defaults: Any
) -> Choices:  # fmt: skip
    """Settings, checkpoints and backend of a new run on data of d dimensions; InputError for those that cannot be."""
    config = request.config(d, **defaults)
    for remark in remarks(config, switch if request.strict else str):
        say(remark)
    saving = Saving.of(config, request.checkpoint_every, request.keep)
    name = request.backend or "numpy"
    with waiting(COMPILING):
        if name == backends.AUTO:
            name, why = ranks.first(lambda: backends.automatic(config))
            if why is not None:
                say(f"{why}; numpy computes instead, and slower")
        ranks.first(lambda: backends.load_for(name, config) and None)  # which compiles what all then find compiled
        backend = backends.load_for(name, config)
    backends.refuse_ranks(name, backend, config, ranks)
    capacity.refuse_too_large(name, config, d, ranks.size, ranks.here)
    return Choices(config, saving, backend, {"backend": name, "recipe": request.recipe})


def begin(
    path: Path,
    data: Path,
    request: Request,
    drop_zero_rows: bool = False,
    drop_below: float = 0.0,
    centring: Centring | None = None,
    counting: Counting = silent,
    say: Say = id,
    waiting: Waiting = nullcontext,
    choice: held_out.Choice = NOTHING,
    ranks: Ranks = ALONE,
) -> Launch:
    """A new run in the folder `path` on the activations `data`, with the defaults that are `customary`.

    choice: what is held out.  centring: None is "auto", and with the paper's recipe "off".  InputError as `plan`, and
    for bad data.
    """
    centring = centring or ("off" if request.recipe == "paper" else "auto")
    refuse_share(drop_below)
    activations = _opened(data, choice, say)
    trained, _ = held_out.keep_back(activations, choice)  # as far as the header tells: all that is wrong so is told now
    request, defaults = customary(request)
    planned = plan(path, request, activations.d, say, waiting, ranks, **defaults)
    all_count = not drop_zero_rows and drop_below == 0
    planned.refuse_batch(len(trained if all_count else activations), len(trained.held_out) if all_count else 0)
    with counting("checking", len(activations)) as tick:
        launch = planned.launch(activations, drop_zero_rows, tick, drop_below, centring, choice)
    for remark in launch.remarks:
        say(remark)
    return launch


def _opened(data: Path, choice: held_out.Choice, say: Say) -> Activations:
    """The rows to train on; others to judge on are opened too, and refused before all rows are read.

    `say` is told of those that have not been written to their end.
    """
    activations = open_activations(data)
    others = [] if choice.data is None else [open_activations(choice.data, activations.d)]
    for opened in (activations, *others):
        if opened.store.unfinished is not None:
            say(opened.store.unfinished)
    return activations


def rehearse(
    path: Path | None, data: Path, request: Request, drop_zero_rows: bool = False, drop_below: float = 0.0,
    say: Say = id, waiting: Waiting = nullcontext, choice: held_out.Choice = NOTHING, ranks: Ranks = ALONE,
) -> Launch:  # fmt: skip
    """The run that `begin` would make ready, but with no steps: its rows are not read, and nothing is written.

    So rows that would be left out are counted, and `say` is told of that.  InputError as `plan`, for a batch that is
    too large, and for other data to judge on that cannot be opened; without a path no folder is looked at.
    """
    refuse_share(drop_below)
    activations = _opened(data, choice, say)
    request, defaults = customary(request)
    choices = choose(request, activations.d, say, waiting, ranks, **defaults)
    if path is not None:
        folder.refuse_existing(path)
    activations, _ = held_out.keep_back(activations, choice, say)
    Plan(path or Path(), *choices).refuse_batch(len(activations), len(activations.held_out))
    asked = " and ".join(["--drop-zero-rows"] * drop_zero_rows + [f"--drop-below {drop_below:g}"] * (drop_below > 0))
    if asked:
        say(f"which rows {asked} leaves out is known once they are read, which a dry run does not: here all count")
    name = choices.names["backend"]
    config, backend = choices.config, choices.backend
    return Launch(path or Path(), config, activations, backend, lambda _stop: iter(()), name, ranks=ranks)


def go_on(
    path: Path, data: Path | None, request: Request, say: Say = id, waiting: Waiting = nullcontext,
    other: Path | None = None, ranks: Ranks = ALONE,
) -> Launch:  # fmt: skip
    """A run that goes on, with its own settings, data and backend unless others are asked for.

    data: where its data are, if they have moved.  other: rows to judge it on, instead of those it had.  InputError
    when it is no run, or cannot go on so.
    """
    record = folder.read_record(path)
    config, about = record.config, record.about
    steps = request.settings.get("steps", config.steps)
    if steps != config.steps:
        config = extended(config, steps)
    kept = about["checkpoints"]
    every, keep = request.checkpoint_every, request.keep
    saving = Saving.of(config, kept["every"] if every is None else every, kept["keep"] if keep is None else keep)
    name = about["backend"] if request.backend in (None, backends.AUTO) else request.backend
    with waiting(COMPILING):
        ranks.first(lambda: backends.load_for(name, config) and None)
        backend = backends.load_for(name, config)
    backends.refuse_ranks(name, backend, config, ranks)
    if data is None and not about["data"]["path"]:
        raise InputError(f"{path}: was trained on an array in memory; save those rows to a file and give it as DATA")
    capacity.refuse_too_large(name, config, about["data"]["d"], ranks.size, ranks.here)
    if about.get(folder.DIVERGED) is not None and (config, name) == (record.config, about["backend"]):
        raise InputError(f"{path}: {folder.diverged(path)}: as it is, it would only diverge again")
    activations = reopen(about["data"], record.dropped, record.crc, data, record.held_out, record.centre)
    kept = _held_out_of(record, config, activations, other, ranks)
    on_others = kept.record if kept else None
    if name != about["backend"]:
        say(f"the run began with backend {about['backend']}; with {name} it will not be the same to the bit")

    def train(stop: Callable[[], int]) -> Iterator[Progress]:
        return resume_run(record, activations, config, backend, saving, stop, say, on_others, ranks)

    agree(ranks, path, config, activations, {"backend": name, folder.HELD_OUT: on_others} | asdict(saving))
    newest = checkpoints.found(path)
    done = checkpoints.step_of(newest[0]) if newest else 0
    return Launch(path, config, activations, backend, train, name, done=done, held_out=kept, ranks=ranks)


def _held_out_of(
    record: folder.Record, config: AnyConfig, data: Activations, other: Path | None, ranks: Ranks
) -> HeldOut | None:
    """What a run that goes on is judged on besides its own rows."""
    kept, drop_below = record.about.get(folder.HELD_OUT), record.about["data"].get("drop_below") or 0.0
    if other is not None:
        return held_out.open_other(other, data.d, config.master, bool(len(data.dropped)), drop_below, ranks)
    if kept is None or kept.get("path") is None:
        return None if kept is None else HeldOut(data, kept)
    return held_out.reopen_other(kept, data.d, drop_below, ranks)


def free_folder(path: Path) -> Path:
    """`path` itself, or the first of path-2, path-3, ... that does not exist."""
    numbered = (path.with_name(f"{path.name}-{k}") for k in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())
