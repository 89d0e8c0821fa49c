"""The settings of a run, put together from all who have a say: a command, a file, flags, and the recipe.

`Request` is what a user asks for, on the command line or in Python; `Request.config` makes of it the settings of a run
on data of d dimensions.  Flags win over the file, the file over the command's own defaults, and the recipe fills in
what none of them names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from refgba.backends.base import AnyConfig
from refgba.baselines import METHODS, VARIANTS, chosen, flag
from refgba.config import Settings, settings_from_json
from refgba.data.files import LARGEST_JSON
from refgba.errors import InputError
from refgba.recipe import RECIPES

CUSTOMARY = {"dtype": "float32"}  # what `train` and `demo` choose where the default recipe is left to choose
# Dimensions of rows, and settings that are given: what is not the same in all of these is derived from them.
PROBES: tuple[tuple[int, dict[str, Any]], ...] = ((4, {}), (512, {}), (64, {"steps": 10_000}))
DERIVED = "from the data and the run"
COMMON = ("default", "paper")  # recipes that mean something for every method: the paper's, numpy and float64
OPPOSITES = {"untied": "tied"}  # the flag that switches off each setting that is true or false


@dataclass(frozen=True)
class Request:
    """What a user asks of a run.  None stands for a choice left to the recipe, or to the run that goes on.

    flags: settings by name, of any method; a value of None counts as left out.  method: one of `baselines.CHOICES`.
    recipe: a key of `refgba.recipe.RECIPES`.  file: a JSON object of settings.  backend, checkpoint_every, keep: as for
    `train`.  strict: whether a flag without effect is a mistake, as it is where a person typed it.
    """

    flags: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    recipe: str = "default"
    file: Path | None = None
    backend: str | None = None
    checkpoint_every: int | None = None
    keep: int | None = None
    strict: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The flags that have a value."""
        return {name: value for name, value in self.flags.items() if value is not None}

    def config(self, d: int, **defaults: Any) -> AnyConfig:
        """The settings of a run on data of d dimensions.  defaults: the command's own.

        InputError for a setting that the method lacks, or a value that cannot be; where the file may be at fault it is
        named.
        """
        stored = {} if self.file is None else read_settings(self.file)
        wanted = defaults | stored | self.settings
        named = wanted.pop("method", "gba")
        method, settings = chosen(self.method or named, wanted, lambda name: switch(name, self.settings.get(name)))
        try:
            config: AnyConfig = method.configure(d, self.recipe, **settings)
        except InputError as error:
            told = self._in_flags(str(error), method.Config)
            from_file = "" if self.file is None else f" (from {self.file} and the flags)"
            raise InputError(f"{told}{from_file}") from None
        if self.strict:
            self._refuse_unused(config)
        return config

    def _in_flags(self, complaint: str, config: type[Settings]) -> str:
        """A complaint of settings, which calls them by their names, in the words of those who gave them as flags."""
        if not self.strict:
            return complaint
        flagged = [f.name for f in fields(config) if self.file is None or f.name in self.settings]
        named = re.compile(rf"(?<![\w-])({'|'.join(flagged)})(?= \(| must )")  # the name (its value) must ..
        return named.sub(lambda found: switch(found[1]), complaint) if flagged else complaint

    def _refuse_unused(self, config: AnyConfig) -> None:
        """InputError for the first flag that has no effect on these settings."""
        reasons = {switch(name, value): config.without_effect(name) for name, value in self.settings.items()}
        if self.method in VARIANTS:
            reasons |= {f"--method {self.method}": config.without_effect(name) for name in VARIANTS[self.method].fixed}
        if not config.by_recipe and self.recipe not in COMMON:
            reasons[f"--recipe {self.recipe}"] = f"method {config.method} is not trained by recipes"
        for given, why in reasons.items():
            if why:
                raise InputError(f"{given} has no effect here: {why}; leave it out")

    def refuse_to_resume(self, **others: object) -> None:
        """InputError when anything is asked for that a run that goes on has already: all but steps, and how it is run.

        others: further flags, by name, and whether each was given.
        """
        asked = [switch(name, value) for name, value in self.settings.items() if name != "steps"]
        asked += [name for name, value in others.items() if value]
        asked += ["--config"] * (self.file is not None) + ["--recipe"] * (self.recipe != "default")
        asked += ["--method"] * (self.method is not None)
        if asked:
            raise InputError(f"a run that goes on keeps its settings: {asked[0]} cannot be given with --resume")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a JSON file, or a pipe such as a shell makes, names; InputError, naming it, for all else."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_JSON + 1)
        if len(data) > LARGEST_JSON:
            raise InputError(f"larger than {LARGEST_JSON:,} bytes")
        return settings_from_json(data.decode("utf-8-sig"))  # some editors begin with a byte order mark
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def remarks(config: AnyConfig, named: Callable[[str], str] = str) -> Iterator[str]:
    """What a user should know of settings that are allowed and of no use.  named: what a setting is called."""
    if config.adapt_every > config.steps:
        every, steps = named("adapt_every"), named("steps")
        yield f"{every} {config.adapt_every} is more than {steps} {config.steps}: no bias will adapt"


# ---- settings as flags -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flag:
    """A setting as a flag of the command line.

    declaration: `--name`, or `--name/--opposite` where it is true or false.  kind: its type, a Literal where it has
    choices.  help: what it does, and what it is where it is not given.
    """

    name: str
    declaration: str
    kind: Any
    help: str


def flags() -> Iterator[Flag]:
    """Every setting of every method, GBA's first, in the order in which people are to read them."""
    known = {"method"}  # it has an option of its own
    for config in dict.fromkeys(method.Config for method in METHODS.values()):
        kinds = get_type_hints(config)
        for setting in fields(config):
            name = setting.name
            if name not in known:
                known.add(name)
                about = f"{setting.metadata['help']}  [{_default(name)}]"
                yield Flag(name, _declaration(name, kinds[name]), kinds[name], about)


def switch(name: str, value: Any = None) -> str:
    """The flag that gives a setting this value."""
    return flag(OPPOSITES[name] if value is False else name)


def _declaration(name: str, kind: Any) -> str:
    return f"{switch(name)}/{switch(name, False)}" if kind is bool else switch(name)


def _default(name: str) -> str:
    """What a setting is that is not given: by default, and where that differs, in baselines and by other recipes.

    A way of choosing settings in which this one has no effect is left out.
    """
    told = {way: text for way, runs in _ways().items() if (text := _value(runs, name))}
    first = next(iter(told.values()))
    return "; ".join([f"default: {first}", *(f"{way}: {text}" for way, text in told.items() if text != first)])


@cache
def _ways() -> dict[str, list[list[AnyConfig]]]:
    """The ways of choosing settings, the default recipe first: of each of its methods the settings at all PROBES."""

    def probed(recipe: str, by_recipe: bool = True) -> list[list[AnyConfig]]:
        methods = [method for method in METHODS.values() if method.Config.by_recipe == by_recipe]
        given = {} if recipe == "paper" else CUSTOMARY
        return [[method.configure(d, recipe, **given | more) for d, more in PROBES] for method in methods]

    ways = {"recipe default": probed("default"), "baselines": probed("default", by_recipe=False)}
    return ways | {f"recipe {recipe}": probed(recipe) for recipe in RECIPES if recipe != "default"}


def _value(runs: list[list[AnyConfig]], name: str) -> str:
    """What a setting is in runs where it has an effect, in words; nothing where there is none."""
    texts = set()
    for probed in runs:
        pairs = [(config, given) for config, (_, given) in zip(probed, PROBES, strict=True) if name not in given]
        having = [c for c, _ in pairs if name in c.__dataclass_fields__ and not c.without_effect(name)]
        values = {str(getattr(config, name)) for config in having}
        texts |= values if len(values) < 2 else {DERIVED}
    return ", ".join(sorted(texts))
