"""`refgba llm explore`: from a model and a text to a dashboard, by the other commands one after another.

    OUT/store        what `refgba harvest` writes
    OUT/run          what `refgba train` writes
    OUT/dashboard    what `refgba llm dashboard` writes, with MODEL

Given again after whatever stopped it, it goes on: with the harvest, with the run, or with the dashboard.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from refgba.backends import AUTO
from refgba.backends.base import AnyConfig
from refgba.data import files
from refgba.data.activations import Activations
from refgba.data.centre import Centring
from refgba.data.store import META, Shard, Store, open_store
from refgba.data.survey import refuse_share
from refgba.errors import InputError, brief
from refgba.llm import harvesting, sites
from refgba.llm.contexts import Context, batches, contexts
from refgba.llm.dashboard import direct_effects, survey_features, write_dashboard
from refgba.llm.dashboard.folder import is_of
from refgba.llm.keeping import Keeping
from refgba.llm.models import Model
from refgba.llm.text import Fingerprint, TextOptions
from refgba.llm.unembedding import Unembedding
from refgba.runs import folder, launch
from refgba.runs.forecast import about, forecast, told
from refgba.runs.held_out import FEWEST, SHARE, Choice
from refgba.runs.judging import Counting, silent
from refgba.runs.launch import Launch, Say, Waiting
from refgba.runs.settings import Request
from refgba.runs.trainer import Diverged, TrainingError

PARTS = ("store", "run", "dashboard")  # The folder has these parts.
TIMED = 2  # The forecast times this many batches, after one that it does not.
BLOCK = 512  # It times the codes of this many rows.
PASSES = 2  # The dashboard reads the store this many times.


@dataclass(frozen=True)
class Expected:
    """Seconds that each part is expected to take on an idle machine, from nothing."""

    harvest: float
    training: float
    dashboard: float

    def __str__(self) -> str:
        whole = self.harvest + self.training + self.dashboard
        return (
            f"{about(whole)} altogether: {told(self.harvest)} to harvest, {told(self.training)} to train, "
            f"{told(self.dashboard)} for the dashboard"
        )


@dataclass(frozen=True)
class Rows:
    """Which rows are trained on, as `refgba train` has it: what is left out of the store's, and what all lose."""

    drop_zero_rows: bool = False
    drop_below: float = 0.0
    centre: Centring | None = None


@dataclass(frozen=True, eq=False)
class Exploration:
    """A model, one site in it and a text, on the way to a dashboard in the folder `out`."""

    model: Model
    site: str
    text: TextOptions
    out: Path
    settings: harvesting.Settings
    request: Request
    rows: Rows = Rows()

    @property
    def trained(self) -> bool:
        """Whether the run has finished."""
        return (self.out / "run" / folder.FINAL).is_dir()

    @property
    def page(self) -> Path:
        """What is to be opened in the end."""
        return self.out / "dashboard" / "index.html"

    def expected(self, waiting: Waiting = nullcontext) -> Expected:
        """How long it will take: some batches, steps of training and codes are timed on what will be computed."""
        seen, seconds, d = 0, 0.0, 1
        for k, batch in enumerate(islice(self._batches(), 1 + TIMED)):
            began = perf_counter()
            rows = harvesting.run(self.model, [self.site], self.settings.of, batch)[self.site]
            if k or not seen:  # the first is timed too where there is no other
                taken, tokens = perf_counter() - began, sum(len(context) for context in batch)
                seen, seconds = (seen + tokens, seconds + taken) if k > 1 else (tokens, taken)
            d = int(rows.shape[-1])
        if not seen:
            raise InputError(f"{', '.join(str(path) for path in self.text.paths)}: the text holds no token")
        tokens = self.settings.tokens or seen
        request, defaults = launch.customary(self.request)
        choices = launch.choose(request, d, waiting=waiting, **defaults)
        self._refuse_little_text(choices.config.batch)
        store = Store(self.out, (Shard(self.out, tokens, d, "float32", 0),))  # forecasts look at its size alone
        training = forecast(choices.config, choices.backend, Activations(store, BLOCK, 1)).seconds
        x = np.ones((BLOCK, d), np.float32)
        began = perf_counter()
        x @ np.ones((d, choices.config.width), np.float32)
        return Expected(seconds * tokens / seen, training, PASSES * (perf_counter() - began) * tokens / BLOCK)

    def _batches(self) -> Iterator[list[Context]]:
        """What the model will see."""
        length = self.settings.context or min(harvesting.CONTEXT, self.model.longest or harvesting.CONTEXT)
        text = replace(self.text, left_out=id)  # the harvest tells of what is left out
        source = contexts(text, self.model.tokenizer, length, self.settings.pack, Fingerprint())
        return batches(source, self.settings.batch, self.settings.tokens)

    def _refuse_little_text(self, size: int) -> None:
        """InputError where the text, or what is read of it, gives fewer rows to train on than a batch has."""
        special = frozenset() if self.settings.keep_special else frozenset(self.model.tokenizer.special)
        keeping = Keeping(self.settings.drop_first, special)
        rows = tokens = 0
        for batch in self._batches():
            rows += harvesting.rows_in(batch, keeping, self.model.pad)
            tokens += sum(len(context) for context in batch)
            if rows >= 2 * size:  # whatever is held out of them
                return
        if trained_on(rows) >= size:
            return
        if not rows:
            raise InputError(
                f"{tokens} tokens give no row to train on: the first of each context is left out, and special tokens "
                "are; give longer documents with --text"
            )
        needed = -(-tokens * size // max(1, rows))
        more = f"give at least --tokens {needed}" if tokens == self.settings.tokens else "give more with --text"
        raise InputError(f"{tokens} tokens give {rows} rows to train on, fewer than the {size} of a batch: {more}")

    def harvest(self, tick: Callable[[harvesting.Progress], object] = id, remark: Callable[[str], object] = id) -> None:
        """Write the store, or go on with it."""
        place = self.out / "store"
        harvesting.harvest(self.model, (self.site,), self.text, place, self.settings, tick, remark)

    def launch(self, counting: Counting = silent, say: Say = id, waiting: Waiting = nullcontext) -> Launch:
        """The run, made ready to train or to go on; InputError as `begin` and `go_on` of `refgba.runs.launch`."""
        run, store = self.out / "run", self.out / "store"
        if self.begun and folder.diverged(run):
            raise InputError(str(self.failed(Diverged(f"{run}: has no result"))))
        if self.begun:
            return launch.go_on(run, store, Request(), say, waiting)
        self._sweep(run)
        harvested = open_store(store)
        request, defaults = launch.customary(self.request)
        rows, size = len(harvested), request.config(harvested.d, **defaults).batch
        too_few = f"too few for a batch of {size}; choose another folder, and more --tokens"
        if trained_on(rows) < size:
            raise InputError(f"{store}: has {rows} rows, {too_few}")
        choice = Choice(remedy="another folder and more --tokens would give more")
        options: dict[str, Any] = {"counting": counting, "say": say, "waiting": waiting, "choice": choice}
        chosen = self.rows.drop_zero_rows, self.rows.drop_below, self.rows.centre
        try:
            return launch.begin(run, store, self.request, *chosen, **options)
        except launch.LargeBatch:
            raise InputError(f"{store}: has {rows} rows, some are left out, and the others are {too_few}") from None

    def failed(self, error: TrainingError) -> TrainingError:
        """What ended the training, with what can be done about it here."""
        if error.goes_on:
            return TrainingError(error.what, "the run is not complete; the same command goes on", True)
        anew = f"training diverged: remove {self.out / 'run'} and try another --seed, --width or --recipe"
        store = shlex.quote(str(self.out / "store"))
        return TrainingError(error.what, f"{anew}, or `refgba train {store}`, which has --lr")

    def _sweep(self, run: Path) -> None:
        """Remove what is there of a run that was killed while its folder was made; InputError for anything else."""
        inside = sorted(path.name for path in run.iterdir()) if run.is_dir() else []
        if any(name not in (folder.DATA, folder.ABOUT) and not name.startswith(files.PARTIAL) for name in inside):
            lacks = folder.CONFIG if folder.CONFIG not in inside else folder.ABOUT
            raise InputError(f"{run}: is no whole run, it has no {lacks}; remove it, and the same command trains anew")
        for name in inside:
            (run / name).unlink()

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with, whose folder is whole."""
        return (self.out / "run" / folder.CONFIG).exists() and (self.out / "run" / folder.ABOUT).exists()

    def refuse_others(self) -> None:
        """InputError where `out` holds anything else, a run with other settings, or a dashboard of another run."""
        files.refuse_folder(self.out)
        inside = sorted(path.name for path in self.out.iterdir()) if self.out.exists() else []
        strange = [name for name in inside if name not in PARTS and not name.startswith(files.PARTIAL)]
        if strange:
            raise InputError(
                f"{self.out}: holds {brief(strange[0])}, which no `explore` wrote; choose another folder, or a new one "
                "in it"
            )
        run, store = self.out / "run", self.out / "store"
        if self.begun:
            record = folder.read_record(run)
            if (begun := record.about.get("recipe") or "default") != self.request.recipe:
                raise InputError(f"{run}: was begun with --recipe {begun}, not {self.request.recipe}; give the same")
            if self.request.backend not in (None, AUTO, record.about["backend"]):
                named = f"--backend {record.about['backend']}"
                raise InputError(f"{run}: was begun with {named}, not {self.request.backend}; give the same")
            request, defaults = launch.customary(self.request)
            asked = request.config(int(record.about["data"]["d"]), **defaults)
            refuse_other(run, record.config, asked, tuple(request.flags))
            self._refuse_other_rows(run, record.about["data"])
        there = self.trained and (store / META).is_file()
        if self.page.exists() and not (there and is_of(self.page, run, store)):
            raise InputError(
                f"{self.page.parent}: is not of the run and the store that are beside it now; remove it, and the same "
                "command writes a new one"
            )

    def _refuse_other_rows(self, run: Path, data: Mapping[str, Any]) -> None:
        """InputError where a run was begun on other rows of its store, by `data` of its about.json."""
        below = data.get("drop_below") or 0.0
        if below != self.rows.drop_below:
            same = f"--drop-below {below:g}" if below else "no --drop-below"
            raise InputError(f"{run}: was begun with drop-below = {below:g}, not {self.rows.drop_below:g}; give {same}")
        centred = "on" if data.get("centred") else "off"
        if self.rows.centre not in (None, "auto", centred):
            raise InputError(f"{run}: was begun with centre {centred}, not {self.rows.centre}; give --centre {centred}")

    def dashboard(self, counting: Counting = silent, say: Say = id) -> None:
        """Write the dashboard, with effects on logits where the site allows; nothing where it is there."""
        if self.page.exists():
            say(f"{self.page.parent} is there already")
            return
        features = survey_features(self.out / "run", self.out / "store", counting=counting)
        why_not = self._why_no_effects(features.harvest.store.d)
        if why_not is not None:
            say(f"no effects on logits: {why_not}")
        effects = direct_effects(features, self.model, counting=counting) if why_not is None else None
        write_dashboard(features, self.page.parent, effects, counting=counting)

    def _why_no_effects(self, d: int) -> str | None:
        if self.model.kind == "encoder":
            return f"{type(self.model.module).__name__} has no language-model head"
        return Unembedding(self.model, self.site, self.settings.of, d).why_not


def explore(
    model: Model, pattern: str, text: TextOptions, out: Path, settings: harvesting.Settings, request: Request,
    rows: Rows = Rows(),
) -> Exploration:  # fmt: skip
    """One site of a model to be explored.

    InputError for a pattern that does not match exactly one, for a context, for rows that cannot be left out so, and as
    `Exploration.refuse_others`.
    """
    refuse_share(rows.drop_below)
    [site, *more] = sites.find(model.module, (pattern,), model.name)
    if more:
        raise InputError(f"--site names {1 + len(more)} sites; a dashboard is of one, such as {site}")
    if settings.context is not None:
        model.refuse_context(settings.context)
    exploration = Exploration(model, site, text, out, settings, request, rows)
    exploration.refuse_others()
    return exploration


def trained_on(rows: int) -> int:
    """How many of so many rows a run is trained on, beside those that are held out."""
    kept = round(SHARE * rows)
    return rows - (kept if kept >= FEWEST else 0)


def refuse_other(run: Path, begun: AnyConfig, asked: AnyConfig, flags: tuple[str, ...]) -> None:
    """InputError, naming the setting, where a run was begun with other settings than those asked for.

    flags: settings that can be asked for.  All others follow from them, and a run that an earlier version began goes on
    with what followed then.
    """
    for name in flags:
        before, now = getattr(begun, name, None), getattr(asked, name, None)
        if before != now:
            given = f"{before:g}" if isinstance(before, float) else before
            same = f"--{name} {given}" if before else f"no --{name}"
            raise InputError(f"{run}: was begun with {name} = {before}, not {now}; give {same}")
