"""The sections of benchmarks/results/README.md on several processes: weak scaling, and what the planner predicted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from results_llm import Table

from refgba.planning.devices import DEVICES, LOCAL_LATENCY, NETWORKS, PRODUCTS, STREAMS


def sections(folder: Path, table: Table) -> Iterator[str]:
    """Both sections."""
    yield of_scaling(folder, table)
    yield of_plan(folder, table)


def of_scaling(folder: Path, table: Table) -> str:
    """Weak scaling, measured and simulated, with the model of the network."""
    found = json.loads((folder / "scaling.json").read_text(encoding="utf-8"))
    here, there = found["measured"]["setting"], found["simulated"]["setting"]
    gpu, network = DEVICES[there["device"]], NETWORKS[there["network"]]
    rows = [
        [row["ranks"], kind, f"{row['ms']:.2f}", f"{100 * row['efficiency']:.1f}", f"{row[sum_ms]:.2f}"]
        for kind, sum_ms in (("measured", "sum_ms"), ("simulated", "network_ms"))
        for row in found[kind]["ranks"]
    ]
    heads = "ranks", "kind", "ms per step", "efficiency, %", "ms of it to add up over ranks"
    return (
        "## Several processes\n\n"
        "Weak scaling: each rank has as many neurons, whatever their number.  `python benchmarks/scaling.py` measures "
        f"it with `numba` and one thread per rank, d = {here['d']}, {here['width_per_rank']} neurons per rank, "
        f"L = {here['batch']}, on two cores, of which other programs used {found['load']:.1f}.  It compares P "
        "ranks with P processes that share nothing; with one rank both are the same, and the difference is noise.\n\n"
        f"Simulated: {there['device']} GPUs with {there['width']} neurons each, d = {there['d']}, "
        f"L = {there['batch']}, {there['dtype']}, by peak numbers that their makers state.  Products reach "
        f"{PRODUCTS:.0%} of the peak, passes over memory {STREAMS:.0%} of the bandwidth, and nothing overlaps.  An "
        f"all-reduce is a ring in each machine of {gpu.per_machine}, at {gpu.link / 1e9:.0f} GB/s and "
        f"{LOCAL_LATENCY * 1e6:.0f} µs per message, and one between machines for each device in them, at "
        f"{network.bytes / 1e9:.0f} GB/s per GPU and {network.latency * 1e6:.0f} µs.\n\n"
    ) + table(heads, [[str(cell) for cell in row] for row in rows])


def of_plan(folder: Path, table: Table) -> str:
    """What `refgba plan` predicted at sizes that it was not calibrated on."""
    found = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    rows = [
        [str(c[name]) for name in ("d", "M", "L")]
        + [f"{1e3 * c[name]:.2f}" for name in ("predicted_seconds", "seconds")] + [f"{100 * c['time_error']:+.1f}"]
        + [f"{c[name] / 1e6:.0f}" for name in ("predicted_bytes", "bytes")] + [f"{100 * c['memory_error']:+.1f}"]
        for c in found["checks"]
    ]  # fmt: skip
    heads = (
        "d", "M", "L", "step predicted, ms", "measured, ms", "error, %", "peak memory predicted, MB", "measured, MB",
        "error, %",
    )  # fmt: skip
    return (
        "## The planner\n\n"
        "`refgba plan --device here --measure` fits the rates of the `numba` backend to twelve sizes, and is judged at "
        f"five others: here one thread of an {found['machine']}, float32, by the processor's own time.\n\n"
    ) + table(heads, rows)
