"""Options of the command line that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from refgba.baselines import CHOICES
from refgba.data.held_out import MOST
from refgba.errors import InputError
from refgba.recipe import RECIPES
from refgba.runs import settings
from refgba.runs.held_out import SHARE, Choice
from refgba.runs.settings import Request


class Finite(click.FloatRange):
    """A number in a range: never NaN, which click lets through, as it is neither too small nor too large."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


EMPTY = "is empty; name a file or a folder"


class Given(click.ParamType[Path]):
    """A path that is not empty: what a variable that is not set leaves would otherwise be the current folder."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path."""
        if value == "":
            self.fail(EMPTY, param, ctx)
        return Path(value)


class Word(click.ParamType[str]):
    """A name that is not empty."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name."""
        if value == "":
            self.fail("is empty; give a name", param, ctx)
        return str(value)


PATH, WORD = Given(), Word()

_drop_zero_rows = click.option(
    "--drop-zero-rows", is_flag=True, help="skip rows that are all zeros instead of refusing them"
)
_drop_below = click.option(
    "--drop-below", default=0.0, metavar="SHARE", help="skip rows with less than this of the median norm"
)


def drop_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say which rows of the data are left out: `drop_zero_rows` and `drop_below`."""
    return _drop_zero_rows(_drop_below(command))


def held_out_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say what a run is not trained on but judged on; the command takes them as one `held_out`."""

    @wraps(command)
    def with_choice(held_out: Path | None, held_out_share: float | None, **others: Any) -> Any:
        if held_out is not None and held_out_share:
            raise InputError("--held-out names rows to judge on, and --held-out-share takes some of DATA: give one")
        return command(held_out=Choice(held_out_share, held_out), **others)

    share = f"share of the rows not to train on but to judge on, 0: none  [default: {SHARE}, at most {MOST:,} rows]"
    other = "other rows to judge on, as DATA; then all of DATA is trained on"
    with_choice = click.option("--held-out-share", type=float, metavar="SHARE", help=share)(with_choice)
    return click.option("--held-out", type=PATH, metavar="ROWS", help=other)(with_choice)


json_option = click.option("--json", "as_json", is_flag=True, help="print one JSON object as the last line of stdout")


class Output(click.Path):
    """A path to write to, refused while flags are read, before anything is computed, if that could not be done."""

    def __init__(self, *refusals: Callable[[Path], object]) -> None:
        """refusals: what raises InputError for a path that cannot be written to."""
        super().__init__(readable=False)
        self.refusals = refusals

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path, if nothing refuses it."""
        if value == "":  # of a variable that is not set; a Path would be this folder
            self.fail(EMPTY, param, ctx)
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if str(path) == "-" != value:
            path = path.absolute()  # of "./-": a Path forgets the dot
        for refuse in self.refusals:
            refuse(path)
        return path


def output_option(*refusals: Callable[[Path], object], **named: Any) -> Callable[..., Any]:
    """The flag -o for a path that none of these functions of `refgba.data.files` refuses.

    named: as for click.option.
    """
    return click.option("-o", "--out", type=Output(*refusals), **named)


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A flag for every setting of every method and for how a run is run; the command takes them as one `request`."""

    @wraps(command)
    def with_request(
        method: str | None, recipe: str, config_file: Path | None, backend: str | None, checkpoint_every: int | None,
        keep: int | None, **others: Any,
    ) -> Any:  # fmt: skip
        flags = {flag.name: others.pop(flag.name) for flag in settings.flags()}
        request = Request(flags, method, recipe, config_file, backend, checkpoint_every, keep)
        return command(request=request, **others)

    options = [
        click.option("--method", type=click.Choice(CHOICES), help="ba is gba of one group  [default: gba]"),
        click.option("--recipe", type=click.Choice(list(RECIPES)), default="default", help="what fills in the rest"),
        click.option("--config", "config_file", type=PATH, help="JSON file of settings; flags win over it"),
        click.option(
            "--backend", help="what computes; see `refgba backends`  [default: auto, numba where it runs, else numpy]"
        ),
        click.option(
            "--checkpoint-every", type=int, help="steps between checkpoints, 0: none  [default: a tenth of them]"
        ),
        click.option("--keep", type=int, help="how many checkpoints stay, the newest  [default: 2]"),
    ]
    for flag in settings.flags():
        choice = click.Choice(get_args(flag.kind)) if get_origin(flag.kind) is Literal else flag.kind
        options.append(click.option(flag.declaration, flag.name, type=choice, default=None, help=flag.help))
    for option in reversed(options):
        with_request = option(with_request)
    return with_request
