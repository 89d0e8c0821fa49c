"""The command line of the planner: `refgba plan`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from refgba.planning import calibration, plans
from refgba.planning.calibration import Calibration
from refgba.planning.devices import DEVICES, MEASURED, NETWORKS, PRODUCTS, STREAMS
from refgba.planning.plans import HERE, Plan, Wish
from refgba.runs import capacity, console
from refgba.runs.forecast import sized, told
from refgba.runs.options import PATH, Finite, json_option, output_option
from refgba.types import Dtype

COUNT = click.IntRange(1, 10**15)


@click.command("plan", short_help="Say what a run would take elsewhere.")
@click.option("--d", type=click.IntRange(1, 2**24), required=True, help="dimensions of the activations")
@click.option("--width", type=click.IntRange(10, 2**40), required=True, help="M, the number of neurons")
@click.option("--tokens", type=COUNT, required=True, help="rows to train on, each seen once")
@click.option("--batch", type=click.IntRange(1, 2**24), default=4096, help="L, rows per minibatch")
@click.option("--dtype", type=click.Choice(get_args(Dtype)), help="[default: bfloat16; float32 for --device here]")
@click.option("--untied/--tied", default=True, help="a decoder of its own, as the default recipe has")
@click.option("--device", default="h100", help=f"{HERE}: this processor with numba; or {', '.join(DEVICES)}")
@click.option("--ranks", type=click.IntRange(1, plans.MOST_RANKS), default=1, help="P, how many of them")
@click.option("--network", default="infiniband", help=f"between machines: {', '.join(NETWORKS)}")
@click.option("--hours", type=Finite(0, min_open=True), help="most hours that the smallest machine may train")
@click.option("--model", type=COUNT, default=8 * 10**9, help="parameters of the language model that is harvested")
@click.option("--measure", is_flag=True, help="calibrate the numba backend here first, in a minute")
@click.option(
    "--calibration", "source", type=PATH, help="file that --measure -o wrote  [default: one that comes along]"
)
@output_option(calibration.OUTPUT.refuse, help="with --measure: write the calibration to this .json file")
@json_option
def plan_command(
    d: int, width: int, tokens: int, batch: int, dtype: str | None, untied: bool, device: str, ranks: int, network: str,
    hours: float | None, model: int, measure: bool, source: Path | None, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """What a run would take on other machines: memory, time, traffic, disk, and the smallest machine that is enough.

    GPUs are judged by the peak numbers that their makers state and by shares of them that one H100 confirmed.
    The numba backend is judged by a calibration, which says how wrong it was at sizes that it was not fitted to.

    \b
    refgba plan --d 8192 --width 16777216 --tokens 40000000000 --device h100 --ranks 64
    """
    if out is not None and not measure:
        raise click.UsageError("-o writes what --measure measures; give both")
    wish = Wish(d, width, tokens, batch, dtype or ("float32" if device == HERE else "bfloat16"), untied, model)
    here = calibration.read(source)
    plans.planned(wish, device, ranks, network, here, 0.0)  # refuses what cannot be before a minute of measuring
    old = None
    if measure:
        old, here = here, measured(here)
        if out is not None:
            calibration.write(here, out)
    memory = float(capacity.machine_bytes())
    plan = plans.planned(wish, device, ranks, network, here, memory)

    def fits(M: int) -> bool:
        return plans.planned(replace(wish, M=max(M, ranks)), device, ranks, network, here, memory).fits

    most = plans.largest(fits)
    least = plans.smallest(wish, network, here, memory, hours)
    if as_json:
        errors = {name: here.worst(name) for name in ("time_error", "memory_error")}
        result: dict[str, Any] = {"plan": plan.record(), "largest_width": most, "calibration": errors}
        result["smallest"] = None if least is None else least.record()
        return click.echo(json.dumps(result))
    show(wish, plan)
    console.line(f"The largest width that fits on {_devices(plan)}: about {most:,}")
    limit = "" if hours is None else f" in {hours:g} hours"
    if least is None:
        console.line(f"No machine of the table with up to {plans.MOST_RANKS:,} devices does it{limit}")
    else:
        console.line(
            f"The smallest machine that does it{limit}: {_devices(least)}, {sized(least.bytes)} each, "
            f"{told(least.hours * 3600)}"
        )
    return show_errors(plan, here, old)


def measured(before: Calibration) -> Calibration:
    """A calibration of this machine, judged at sizes that it was not fitted to."""
    sizes = [*calibration.CALIBRATED, *calibration.JUDGED]
    with console.counting("measuring", len(sizes)) as tick:
        found = []
        for size in sizes:
            found += calibration.measure((size,))
            tick(1)
    here = calibration.fitted(found[: len(calibration.CALIBRATED)])
    judged = found[len(calibration.CALIBRATED) :]
    past = [before.judged(size)["time_error"] for size in judged]
    console.remark(
        f"the calibration before, of {before.machine}, was wrong by up to {max(map(abs, past)):.0%} in the time of "
        "a step"
    )
    return replace(here, checks=tuple(here.judged(size) for size in judged))


def show(wish: Wish, plan: Plan) -> None:
    """A plan, line by line."""
    rows = [
        ("memory per rank", sized(plan.bytes) + ("" if plan.fits else ": more than there is")),
        ("step", f"{plan.step * 1e3:.3g} ms, most of it {plan.limit}"),
        ("FLOPs per step and rank", "" if plan.flops is None else f"{plan.flops:.3g} in products"),
        ("bytes per step and rank", "" if plan.passes is None else f"{plan.passes:.3g} in passes over memory"),
        ("shared per step", f"{plan.shared:.3g} bytes per rank"),
        ("steps", f"{plan.steps:,} of {wish.L} rows"),
        (
            "training",
            f"{told(plan.hours * 3600)}, of it {told(plan.hold_hours * 3600)} to compare all pairs of neurons",
        ),
        ("activations on disk", f"{sized(plan.disk)} in float16"),
        (
            "harvest",
            ""
            if plan.harvest_hours is None
            else f"{told(plan.harvest_hours * 3600)} on the same devices, with {wish.model:,} parameters",
        ),
    ]
    console.line(f"M = {wish.M:,}, d = {wish.d}, {wish.tokens:,} rows in {wish.dtype} on {_devices(plan)}")
    for name, text in rows:
        if text:
            console.line(f"  {name:24} {text}")


def show_errors(plan: Plan, here: Calibration, old: Calibration | None) -> None:
    """How far such predictions were from what was measured."""
    if plan.device != HERE:
        console.remark(
            f"products are taken to reach {PRODUCTS:.0%} of the peak, passes {STREAMS:.0%} of the bandwidth, and "
            f"nothing to overlap: {MEASURED}"
        )
        return
    when = "just now" if old is not None else "when it was made"
    if here.checks:
        console.remark(
            f"calibrated on {here.machine}, {here.threads} threads per rank; at {len(here.checks)} other sizes it was "
            f"wrong {when} by up to {here.worst('time_error'):.0%} in time, {here.worst('memory_error'):.0%} in memory"
        )


def _devices(plan: Plan) -> str:
    if plan.device == HERE:
        return f"this machine, {plan.ranks} ranks" if plan.ranks > 1 else "this machine"
    return f"{plan.ranks:,} {plan.device}"
