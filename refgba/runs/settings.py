"""The settings of a run, put together from all who have a say: a command, a file, flags, and the recipe.

`Request` is what a user asks for, on the command line or in Python; `Request.config` makes of it the settings of a run
on data of d dimensions.  Flags win over the file, the file over the command's own defaults, and the recipe fills in
what none of them names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from refgba.backends.base import AnyConfig
from refgba.baselines import METHODS, chosen, flag
from refgba.config import Settings, settings_from_json
from refgba.data.files import LARGEST_JSON
from refgba.errors import InputError
from refgba.recipe import FIXED, derive

CUSTOMARY = {"dtype": "float32"}  # what `train` and `demo` choose where the default recipe is left to choose
OPPOSITES = {"untied": "tied"}  # the flag that switches off each setting that is true or false


@dataclass(frozen=True)
class Request:
    """What a user asks of a run.  None stands for a choice left to the recipe, or to the run that goes on.

    flags: settings by name, of any method; a value of None counts as left out.  method: one of `baselines.CHOICES`.
    recipe: a key of `refgba.recipe.RECIPES`.  file: a JSON object of settings.  backend, checkpoint_every, keep: as for
    `train`.
    """

    flags: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    recipe: str = "default"
    file: Path | None = None
    backend: str | None = None
    checkpoint_every: int | None = None
    keep: int | None = None

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
            return config
        except InputError as error:
            if self.file is None:
                raise
            raise InputError(f"{error} (from {self.file} and the flags)") from None

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
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def remarks(config: AnyConfig) -> Iterator[str]:
    """What a user should know of settings that are allowed and of no use."""
    if config.adapt_every > config.steps:
        yield f"adapt_every {config.adapt_every} > steps {config.steps}: no bias will adapt"


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
    configs = [method.configure(1, "default", **CUSTOMARY) for method in METHODS.values()]
    for config in dict.fromkeys(method.Config for method in METHODS.values()):
        for setting in fields(config):
            name = setting.name
            if name not in known:
                known.add(name)
                about = f"{setting.metadata['help']}  [{_default(name, setting.default, configs)}]"
                yield Flag(name, _declaration(config, name), get_type_hints(config)[name], about)


def switch(name: str, value: Any = None) -> str:
    """The flag that gives a setting this value."""
    return flag(OPPOSITES[name] if value is False else name)


def _declaration(config: type[Settings], name: str) -> str:
    return f"{switch(name)}/{switch(name, False)}" if get_type_hints(config)[name] is bool else switch(name)


def _default(name: str, paper: Any, configs: list[AnyConfig]) -> str:
    """What a setting is that is not given: by default, in baselines if that differs, and by the paper's recipe.

    configs: of all methods, where nothing is given.
    """
    if name in derive(1):
        return f"default: from the data and the run; recipe paper: {paper}"
    fixed = (FIXED | CUSTOMARY).get(name, paper)
    others = sorted({getattr(config, name) for config in configs if hasattr(config, name)} - {fixed})
    parts = [f"default: {fixed}", *(f"baselines: {value}" for value in others)]
    return "; ".join(parts + [f"recipe paper: {paper}"] * (fixed != paper))
