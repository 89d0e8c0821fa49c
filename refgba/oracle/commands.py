"""The command line of the oracle: `refgba oracle record | check | dump | format`."""

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
from refgba.oracle import traces
from refgba.oracle.place import Starts
from refgba.recipe import RECIPES
from refgba.runs import console
from refgba.runs.options import json_option, output_option
from refgba.runs.settings import Request
from refgba.types import Activation, Dtype


@click.group("oracle")
def oracle_group() -> None:
    """Check another implementation of GBA: what every step must give, and which quantity is the first to differ."""


@oracle_group.command("record")
@output_option(files.refuse_existing, files.refuse_place, required=True, help="new folder")
@click.option("--recipe", type=click.Choice(list(RECIPES)), default="default", help="what fills in the rest")
@click.option("--config", "config_file", type=Path, help="JSON file of settings; flags win over it")
@click.option("--d", type=click.IntRange(1), default=5, help="dimensions of the rows")
@click.option("--width", type=int, help=f"M  [default: {traces.SMALL['width']}]")
@click.option("--batch", type=int, help=f"L  [default: {traces.SMALL['batch']}]")
@click.option("--steps", type=int, help=f"T  [default: {traces.SMALL['steps']}]")
@click.option("--first", type=click.IntRange(1), help="record only so many of the steps")
@click.option("--seed", type=int, help=f"of weights and rows  [default: {traces.SMALL['seed']}]")
@click.option("--activation", type=click.Choice(get_args(Activation)), help="what passes an open gate")
@click.option("--untied/--tied", default=None, help="a decoder of its own")
@click.option("--ties", is_flag=True, help="decisions exactly at their limits, with settings of its own")
def oracle_record(
    out: Path, recipe: str, config_file: Path | None, d: int, first: int | None, ties: bool, **flags: Any
) -> None:  # fmt: skip
    """Record a trace of the reference in float64, on synthetic rows: every quantity of every step."""
    if ties:
        if config_file is not None or first is not None or any(value is not None for value in flags.values()):
            raise InputError("--ties has settings of its own; no other can be given")
        trace = traces.ties()
    else:
        config = cast(GBAConfig, Request(flags, "gba", recipe, config_file).config(d, **traces.SMALL))
        trace = traces.example(replace(config, dtype="float64"), d, first)
    traces.write_trace(trace, out)
    neurons = f"{trace.config.width} neurons, d = {trace.d}"
    console.line(f"Wrote {out}: {trace.steps} steps of {neurons}, {len(trace.arrays)} arrays")


@oracle_group.command("check")
@click.argument("trace", type=Path)
@click.argument("candidate", type=Path)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1, True, True),
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


@oracle_group.command("dump")
@click.argument("trace", type=Path)
@output_option(files.refuse_existing, files.refuse_place, required=True, help="new folder")
@click.option("--backend", required=True, help="what computes; see `refgba backends`")
@click.option("--dtype", type=click.Choice(get_args(Dtype)), default="float32", help="arithmetic")
@click.option("--starts", type=click.Choice(traces.STARTS), default="trace", help="from which state each step starts")
def oracle_dump(trace: Path, out: Path, backend: str, dtype: Dtype, starts: Starts) -> None:
    """Write down what one of our own backends makes of TRACE, for `refgba oracle check`."""
    recorded = traces.read_trace(trace)
    arrays = traces.dump(recorded, backends.load(backend, dtype), dtype, starts)
    traces.write_candidate(arrays, starts, out, recorded)
    console.line(f"Wrote {out}: {len(arrays)} arrays of {backend} in {dtype}")


@oracle_group.command("format")
def oracle_format() -> None:
    """Print the page that describes traces and dumps."""
    console.lines(Path(__file__).with_name("format.md").read_text(encoding="utf-8").removesuffix("\n"))
