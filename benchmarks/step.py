"""Time of one training step: the backends, what users would pick instead (peers.py), and the floors of the hardware.

    python benchmarks/step.py                  one step; also with --dtype all, and with several --width and --batch
    python benchmarks/step.py --adaptation     adapting the biases, as a share of the time to train
    python benchmarks/step.py --memory         peak memory of the first steps (memory.py)

One process measures every candidate in turn: first a round to warm up, then in every round one sample of each.  A
sample is a rest, a step that is not timed, since in a run each step follows another, then several steps with one wait
at the end (candidates.py).  Reported are medians.  Rows and weights are random directions, and one bias for all neurons
sets how many of them are active (setting.py); nothing learns, so that this stays.  Samples are bursts.  With
--sustained each candidate afterwards runs for so many seconds without a rest, and is reported beside them.

The floors (floors.py), of which `ratio` is a multiple, are `encode_ms`, one (L, d) @ (d, M) product, plus `adam_ms`,
reading W, m, v and g and writing W, m and v once; for what runs on a GPU both as measured there.
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import click
from candidates import Candidate, backend, first_line, peers, usable
from floors import adam_stream, cpu_floors, floors, gpu_floors
from memory import peaks
from setting import DTYPES, Data, Result, Setting, environment

# Numbers of threads, which libraries read when they are imported.  So nothing above imports NumPy.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def timed(s: Setting) -> Result:
    """The times at one width and batch."""
    from refgba.errors import InputError

    data, unavailable, candidates = Data(s), dict[str, str](), list[Candidate]()
    for module, name, dtype in usable(s, unavailable):
        try:
            candidates.append(backend(s, data, module, name, dtype))
        except InputError as error:
            unavailable[s.label(name, dtype)] = str(error)
    if not s.adaptation:
        candidates += peers(s, data, unavailable) if s.peers else ()
        for dtype in sorted({c.dtype for c in candidates if c.device == "cpu"}):
            candidates += cpu_floors(s, data, dtype)
        for dtype in sorted({c.dtype for c in candidates if c.device == "cuda"}):
            candidates += gpu_floors(s, dtype)
    for round in range(s.rounds + 1):
        for c in candidates.copy():
            try:
                c.sample(round)
            except Exception as error:
                if c.kind != "peers" or round:
                    raise
                unavailable[s.label(c.name, c.dtype)] = first_line(error)
                candidates.remove(c)
    lasting = {id(c): c.sustain(s.sustained) for c in candidates} if s.sustained else {}
    result: Result = {"backends": {}, "peers": {}, "floor": {}}
    for dtype in s.dtypes:
        measured = [c for c in candidates if c.kind == "floor" and c.dtype == dtype]
        floor = floors(s, measured)
        for c in measured:
            if c.name in floor and id(c) in lasting:  # a floor's own name, not that of the copy
                floor[f"sustained_{c.name}"] = lasting[id(c)][0]
        result["floor"] |= {s.label(name, dtype): value for name, value in floor.items()}
        if dtype == "float32":
            result["floor"] |= floor  # under its bare names beside others
        for c in candidates:
            if c.kind != "floor" and c.dtype == dtype:
                own = figures(s, c, candidates, floor)
                if id(c) in lasting:
                    own["sustained_ms"], own["clock"] = lasting[id(c)]
                    if c.device == "cuda":
                        own["sustained_five_gemm_ratio"] = own["sustained_ms"] / floor["sustained_five_gemm_ms"]
                result[c.kind][s.label(c.name, dtype)] = own
    if result["floor"]:
        result["floor"]["adam_by"] = adam_stream()[1]
    asked = [wanted.split()[0] for wanted in s.only]
    result["unavailable"] = {
        name: why
        for name, why in unavailable.items()
        if s.wants(name) or name in asked or any(wanted.startswith(f"{name} ") for wanted in s.only)
    }
    return result | {"setting": asdict(s) | {"active": data.active}}


def figures(s: Setting, c: Candidate, candidates: list[Candidate], floor: dict[str, float]) -> dict[str, Any]:
    """The figures of a backend or a peer, by their keys in COLUMNS."""
    if c.adapt:
        every, ms = s.config(c.dtype).adapt_every, statistics.median(c.adapt_times[1:])
        return {"ms": c.ms, "adapt_ms": ms, "adapt_every": every, "share": ms / (every * c.ms + ms)}
    on = "gpu_" if c.device == "cuda" else ""
    result = {"ms": c.ms, "ratio": c.ms / (floor[f"{on}encode_ms"] + floor[f"{on}adam_ms"])}
    if c.device == "cuda":
        result["five_gemm_ratio"] = c.ms / floor["five_gemm_ms"]
    rivals = [p.ms for p in candidates if p.kind == "peers" and (p.device, p.dtype) == (c.device, c.dtype)]
    if rivals:
        result["speedup"] = min(rivals) / c.ms
    result["ms_per_1000"] = 1e3 * c.ms / s.width
    if c.last is not None:
        result["active"] = float(c.last.l0) / s.width
    return result


# ---- the command -----------------------------------------------------------------------------------------------------

COLUMNS = {  # key of a figure: its heading and format
    "ms": ("ms", ".3f"),
    "ratio": ("x floor", ".2f"),
    "five_gemm_ratio": ("x 5 GEMMs", ".2f"),
    "sustained_ms": ("ms sustained", ".3f"),
    "sustained_five_gemm_ratio": ("x 5 GEMMs sustained", ".2f"),
    "clock": ("clock, power, heat", ""),
    "speedup": ("x faster than fastest peer", ".2f"),
    "ms_per_1000": ("ms per 1000 neurons", ".3f"),
    "active": ("active", ".2%"),
    "adapt_ms": ("ms to adapt", ".3f"),
    "adapt_every": ("every", "d"),
    "bytes": ("peak bytes", ",d"),
    "copies": ("copies of W", ".2f"),
    "promised_bytes": ("promised", ",d"),
    "share": ("share", ".2%"),
}


def show(s: Setting, result: Result) -> None:
    """Print a result as a table."""
    active, tied = result["setting"].get("active", s.density), "untied" if s.untied else "tied"
    click.echo(f"d {s.d}, M {s.width}, L {s.batch}, {active:.2%} active, {s.dtype}, {tied}, {s.rounds} rounds")
    rows = result["backends"] | result.get("peers", {})
    keys = [key for key in COLUMNS if any(key in figures for figures in rows.values())]
    lines = [["", *(COLUMNS[key][0] for key in keys)]]
    for name, figures in rows.items():
        lines.append([name, *(format(figures[key], COLUMNS[key][1]) if key in figures else "" for key in keys)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        click.echo("  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]))
    for prefix, part in {"floor ": result.get("floor", {}), "": result["unavailable"]}.items():
        for name, value in part.items():
            click.echo(f"{prefix}{name}: {value if isinstance(value, str) else format(value, '.3f')}")
    click.echo()


@click.command(context_settings={"show_default": True}, help=(__doc__ or "").partition("\n")[0])
@click.option("--d", type=click.IntRange(2), default=768, help="dimensions")
@click.option("--width", "widths", type=click.IntRange(1), multiple=True, default=[8192], help="M, neurons; repeatable")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=[512], help="L, rows; repeatable")
@click.option("--density", type=click.FloatRange(0, 1, min_open=True), default=0.02, help="share of neurons active")
@click.option("--dtype", type=click.Choice([*DTYPES, "all"]), default="float32")
@click.option("--threads", type=click.IntRange(1), default=2, help="of every library on the CPU")
@click.option("--rounds", type=click.IntRange(1), default=20)
@click.option("--steps", type=click.IntRange(1), default=4000, help="of the run whose recipe --adaptation takes")
@click.option("--untied", is_flag=True)
@click.option("--only", multiple=True, help="a name or its first words, like 'torch cpu'; repeatable")
@click.option(
    "--no-peers", "peers", flag_value=False, default=True, show_default=False, help="backends and floors only"
)
@click.option("--sustained", type=click.FloatRange(0), default=0.0, help="seconds that each runs without a rest, too")
@click.option("--adaptation", is_flag=True, help="the share of the time to train that adapting takes")
@click.option("--memory", is_flag=True, help="peak memory instead of times")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object as the last line of stdout")
def main(
    widths: tuple[int, ...], batches: tuple[int, ...], threads: int, memory: bool, as_json: bool, **options: Any
) -> None:
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    machine, results = environment(), []
    for width, batch in product(widths, batches):
        s = Setting(width=width, batch=batch, threads=threads, **options)
        results.append(peaks(s) if memory else timed(s))
        results[-1]["setting"] |= machine
        names = [name for part in ("backends", "peers", "unavailable") for name in results[-1].get(part, ())]
        for wanted in s.only:
            known = any(replace(s, only=(wanted,)).wants(name) for name in names)
            if not known and not any(wanted.startswith(f"{name} ") for name in results[-1]["unavailable"]):
                raise click.UsageError(f"nothing that can be measured is called {wanted!r}")
        show(s, results[-1])
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    click.echo(f"{machine['cpu']}, {threads} of {machine['cores']} cores, GPU: {machine['gpu'] or 'none'}; {versions}")
    if as_json:
        click.echo(json.dumps(results[-1] | ({"rows": results} if len(results) > 1 else {})))


if __name__ == "__main__":
    main()
