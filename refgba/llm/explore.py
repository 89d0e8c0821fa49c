"""`refgba llm explore`: from a model and a text to a dashboard, by the other commands one after another.

    OUT/store        what `refgba harvest` writes
    OUT/run          what `refgba train` writes
    OUT/dashboard    what `refgba llm dashboard` writes, with MODEL

Given again after whatever stopped it, it goes on: with the harvest, with the run, or with the dashboard.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from refgba.backends.base import AnyConfig
from refgba.data.activations import Activations
from refgba.data.store import Shard, Store
from refgba.errors import InputError
from refgba.llm import harvesting, sites
from refgba.llm.contexts import batches, contexts
from refgba.llm.dashboard import direct_effects, survey_features, write_dashboard
from refgba.llm.models import Model
from refgba.llm.text import Fingerprint, TextOptions
from refgba.llm.unembedding import Unembedding
from refgba.runs import folder, launch
from refgba.runs.forecast import forecast, told
from refgba.runs.held_out import Choice
from refgba.runs.judging import Counting, silent
from refgba.runs.launch import Launch, Say, Waiting
from refgba.runs.settings import Request

TOKENS = 200_000
TIMED = 2  # batches that are timed for the forecast, after one that is not
BLOCK = 512  # rows whose codes are timed
PASSES = 2  # of the dashboard over the store


@dataclass(frozen=True)
class Expected:
    """Seconds that each part is expected to take on an idle machine, from nothing."""

    harvest: float
    training: float
    dashboard: float

    def __str__(self) -> str:
        whole = self.harvest + self.training + self.dashboard
        return (
            f"about {told(whole)} altogether: {told(self.harvest)} to harvest, {told(self.training)} to train, "
            f"{told(self.dashboard)} for the dashboard"
        )


@dataclass(frozen=True, eq=False)
class Exploration:
    """A model, one site in it and a text, on the way to a dashboard in the folder `out`."""

    model: Model
    site: str
    text: TextOptions
    out: Path
    settings: harvesting.Settings
    request: Request

    @property
    def page(self) -> Path:
        """What is to be opened in the end."""
        return self.out / "dashboard" / "index.html"

    def expected(self, waiting: Waiting = nullcontext) -> Expected:
        """How long it will take: some batches, steps of training and codes are timed on what will be computed."""
        length = self.settings.context or min(harvesting.CONTEXT, self.model.longest or harvesting.CONTEXT)
        source = contexts(self.text, self.model.tokenizer, length, self.settings.pack, Fingerprint())
        seen, seconds, d = 0, 0.0, 1
        for k, batch in enumerate(islice(batches(source, self.settings.batch, self.settings.tokens), 1 + TIMED)):
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
        store = Store(self.out, (Shard(self.out, tokens, d, "float32", 0),))  # forecasts look at its size alone
        training = forecast(choices.config, choices.backend, Activations(store, BLOCK, 1)).seconds
        x = np.ones((BLOCK, d), np.float32)
        began = perf_counter()
        x @ np.ones((d, choices.config.width), np.float32)
        return Expected(seconds * tokens / seen, training, PASSES * (perf_counter() - began) * tokens / BLOCK)

    def harvest(self, tick: Callable[[harvesting.Progress], object] = id, remark: Callable[[str], object] = id) -> None:
        """Write the store, or go on with it."""
        place = self.out / "store"
        harvesting.harvest(self.model, (self.site,), self.text, place, self.settings, tick, remark)

    def launch(self, counting: Counting = silent, say: Say = id, waiting: Waiting = nullcontext) -> Launch:
        """The run, made ready to train or to go on; InputError where it was begun with other settings."""
        run, store = self.out / "run", self.out / "store"
        if not (run / folder.ABOUT).exists():
            options: dict[str, Any] = {"counting": counting, "say": say, "waiting": waiting, "choice": Choice()}
            return launch.begin(run, store, self.request, **options)
        record = folder.read_record(run)
        if (begun := record.about.get("recipe") or "default") != self.request.recipe:
            raise InputError(f"{run}: was begun with --recipe {begun}, not {self.request.recipe}; give the same")
        request, defaults = launch.customary(self.request)
        refuse_other(run, record.config, request.config(int(record.about["data"]["d"]), **defaults))
        return launch.go_on(run, store, Request(), say, waiting)

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
    model: Model, pattern: str, text: TextOptions, out: Path, settings: harvesting.Settings, request: Request
) -> Exploration:  # fmt: skip
    """One site of a model to be explored; InputError for a pattern that does not match exactly one, or a context."""
    [site, *more] = sites.find(model.module, (pattern,), model.name)
    if more:
        raise InputError(f"--site names {1 + len(more)} sites; a dashboard is of one, such as {site}")
    if settings.context is not None:
        model.refuse_context(settings.context)
    return Exploration(model, site, text, out, settings, request)


def refuse_other(run: Path, begun: AnyConfig, asked: AnyConfig) -> None:
    """InputError, naming the setting, where a run was begun with other settings than those asked for."""
    for setting in fields(begun):
        before, now = getattr(begun, setting.name), getattr(asked, setting.name, None)
        if before != now:
            raise InputError(f"{run}: was begun with {setting.name} = {before}, not {now}; give the same")
