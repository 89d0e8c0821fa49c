"""The commands of `refgba oracle`: they parse, call and print."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast, get_args

import click

from refgba import backends
from refgba.config import GBAConfig
from refgba.data import files
from refgba.errors import InputError
from refgba.oracle import derived, traces
from refgba.oracle.place import Starts
from refgba.oracle.window import opened
from refgba.recipe import RECIPES
from refgba.runs import console
from refgba.runs.given import given, refuse_unused
from refgba.runs.options import PATH, Finite, json_option, output_option
from refgba.runs.settings import Request
from refgba.types import Activation, Dtype

PAGE = Path(__file__).with_name("format.md")


@click.group("oracle", short_help="Check another implementation of GBA.")
def oracle_group() -> None:
    """Check another implementation of GBA: what every step must give, and which quantity is the first to differ."""


class Steps(click.ParamType[tuple[int, int]]):
    """Two numbers of steps, START:STOP, both of which are meant."""

    name = "START:STOP"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The first and the last step."""
        parts = str(value).split(":")
        if len(parts) != 2 or not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
            self.fail(f"{value!r} should be two numbers of steps, like 1599:1602", param, ctx)
        return int(parts[0]), int(parts[1])


@oracle_group.command("record", short_help="Record the reference, step by step.")
@output_option(files.refuse_full_folder, files.refuse_place, required=True, help="new folder")
@click.option("--recipe", type=click.Choice(list(RECIPES)), default="default", help="what fills in the rest")
@click.option("--config", "config_file", type=PATH, help="JSON file of settings; flags win over it")
@click.option("--d", type=click.IntRange(1), default=5, help="dimensions of the rows")
@click.option("--width", type=int, help=f"M  [default: {traces.SMALL['width']}]")
@click.option("--batch", type=int, help=f"L  [default: {traces.SMALL['batch']}]")
@click.option("--steps", type=int, help=f"T  [default: {traces.SMALL['steps']}]")
@click.option("--first", type=click.IntRange(1), help="record only so many of the steps")
@click.option("--seed", type=int, help=f"of weights and rows  [default: {traces.SMALL['seed']}]")
@click.option("--activation", type=click.Choice(get_args(Activation)), help="what passes an open gate")
@click.option("--untied/--tied", default=None, help="a decoder of its own")
@click.option("--ties", is_flag=True, help="decisions exactly at their limits, with settings of its own")
@click.option("--run", type=PATH, help="record steps of the run in this folder, on its data, whatever its dtype")
@click.option("--window", type=Steps(), help="which steps of --run  [default: two on each side of the change of phase]")
@click.option("--data", type=PATH, help="where the data of --run are, if they have moved")
def oracle_record(
    out: Path, recipe: str, config_file: Path | None, d: int, first: int | None, ties: bool,
    run: Path | None, window: tuple[int, int] | None, data: Path | None, **flags: Any,
) -> None:  # fmt: skip
    """Record a trace of the reference in float64: every quantity of every step, on synthetic rows or those of a run."""
    if run is None:
        refuse_unused(("window", "data"), "without --run, the run that it is of")
    else:
        refuse_unused(given().keys() - {"out", "run", "window", "data"}, "with --run, which has settings of its own")
    if ties:
        refuse_unused(given().keys() - {"out", "ties"}, "with --ties, which has settings of its own")
    origin: dict[str, Any] = {}
    if run is not None:
        part = opened(run, window, data)
        with console.counting("repeating", part.repeated) as tick:
            trace, origin = part.trace(tick), part.origin
    elif ties:
        trace = traces.ties()
    else:
        config = cast(GBAConfig, Request(flags, "gba", recipe, config_file, strict=True).config(d, **traces.SMALL))
        trace = traces.example(replace(config, dtype="float64"), d, first)
    traces.write_trace(trace, out, origin)
    steps = f"steps {trace.first} to {trace.numbers[-1]}" if origin else f"{trace.steps} steps"
    came = f", from a state in {origin['dtype']}" if origin else ""
    neurons = f"{trace.config.width} neurons, d = {trace.d}"
    console.line(f"Wrote {out}: {steps} of {neurons}, {len(trace.arrays)} arrays{came}")


@oracle_group.command("settings", short_help="Print the settings that `train` derives.")
@click.argument("given", type=PATH, required=False)
@click.option("--d", type=click.IntRange(1), required=True, help="dimensions of the rows")
@click.option("--recipe", type=click.Choice(list(RECIPES)), default="default", help="what fills in the rest")
@click.option("--config", "config_file", type=PATH, help="JSON file of settings that are chosen; flags win over it")
@click.option("--width", type=int, help="M  [default: from the recipe]")
@click.option("--steps", type=int, help="T  [default: from the recipe]")
@click.option("--batch", type=int, help="L  [default: from the recipe]")
@json_option
@click.pass_context
def oracle_settings(
    ctx: click.Context,
    /,
    given: Path | None,
    d: int,
    recipe: str,
    config_file: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Print what `train` derives on rows of --d dimensions: settings, F, and the groups' sizes and targets.

    With GIVEN, a JSON object of such settings that a port derived, say which of them differ; exit status 1 when any
    does.
    """
    config = cast(GBAConfig, Request(flags, "gba", recipe, config_file, strict=True).config(d))
    right = derived.derived(config)
    if given is None:
        lines = (f"{name:13} {value}" for name, value in right.items())
        console.lines(json.dumps(right) if as_json else "\n".join(lines))
        return
    try:
        wrong = derived.differences(right, files.read_json(given))
    except InputError as error:
        raise InputError(str(error) if str(given) in str(error) else f"{given}: {error}") from None
    if as_json:
        console.lines(json.dumps({"agrees": not wrong, "differences": wrong, "settings": right}))
    else:
        console.lines("\n".join(wrong) if wrong else "all settings given are as `train` derives them")
    ctx.exit(1 if wrong else 0)


@oracle_group.command("check", short_help="Name the first quantity that deviates.")
@click.argument("trace", type=PATH)
@click.argument("candidate", type=PATH)
@click.option(
    "--tolerance",
    type=Finite(0, 1, True, True),
    help="relative to the size of each quantity  [default: by the dtype]",
)
@json_option
@click.pass_context
def oracle_check(ctx: click.Context, trace: Path, candidate: Path, tolerance: float | None, as_json: bool) -> None:
    """Compare CANDIDATE, another implementation's dump, with TRACE: the first quantity that deviates, and why.

    Exit status 1 when one does.  `refgba oracle format` says what a dump is.
    """
    report = traces.check(trace, candidate, tolerance)
    console.lines(json.dumps({"agrees": report.agrees} | asdict(report)) if as_json else str(report))
    ctx.exit(0 if report.agrees else 1)


@oracle_group.command("dump", short_help="Write down what one of our backends does.")
@click.argument("trace", type=PATH)
@output_option(files.refuse_full_folder, files.refuse_place, required=True, help="new folder")
@click.option("--backend", required=True, help="what computes; see `refgba backends`")
@click.option("--dtype", type=click.Choice(get_args(Dtype)), default="float32", help="arithmetic")
@click.option("--starts", type=click.Choice(traces.STARTS), default="trace", help="from which state each step starts")
def oracle_dump(trace: Path, out: Path, backend: str, dtype: Dtype, starts: Starts) -> None:
    """Write down what one of our own backends makes of TRACE, for `refgba oracle check`."""
    recorded = traces.read_trace(trace)
    arrays = traces.dump(recorded, backends.load(backend, dtype), dtype, starts)
    traces.write_candidate(arrays, starts, out, recorded)
    console.line(f"Wrote {out}: {len(arrays)} arrays of {backend} in {dtype}")


@oracle_group.command("format", short_help="Print how traces and dumps are written.")
def oracle_format() -> None:
    """Print the page that describes traces and dumps."""
    console.lines(PAGE.read_text(encoding="utf-8").removesuffix("\n"))
