"""The section of benchmarks/results/README.md on how far seeds agree, from what benchmarks/agreement.py wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from agreement import ACTIVE, FEATURES
from agreement import D as DIMENSIONS
from results_llm import Table

FILE = "agreement.json"
HEADS = (
    "rows of", "rows", "M", "network", "L0", "FVU", "MCS ≥ 0.9, %", "one to one ≥ 0.9, %", "one to one ≥ 0.7, %",
    "mean cosine, one to one", "of random dictionaries", "distinct, %", "at a true feature, %", "true features found",
    "seeds",
)  # fmt: skip
TAIL = (64, 192, 768, FEATURES - 1024)  # features in the parts of `recovered`, the most frequent first

Cell = dict[str, Any]


def sections(folder: Path, table: Table) -> Iterator[str]:
    """The one section."""
    cells: list[Cell] = json.loads((folder / FILE).read_text(encoding="utf-8"))["cells"]
    yield (
        "## Agreement of seeds\n\n"
        f"How far two networks agree that differ in their seed alone, by width, rows and method.  The world has "
        f"{FEATURES} features in {DIMENSIONS} dimensions, {ACTIVE} of them active in a row in the mean, with Zipf's "
        "frequencies; real rows are the output of a middle MLP of SmolLM2-135M.  Networks took 3000 steps of 512 rows "
        "in the world and 1500 on real rows, however many rows there are, TopK and BatchTopK at a learning rate of "
        "3e-3 throughout and with GBA's L0 as K; in the world GBA's targets are the default's times 1024 / M, which "
        "keeps L0 at one level.  A neuron has an MCS of 0.9 if any "
        "neuron of the other seed is that near; one to one, no neuron of the other seed serves twice.  Random "
        "dictionaries are Gaussian with the second moments of the trained one.  Distinct neurons are those left when "
        "all within 0.9 of a more frequent one are left out.\n\n"
        f"{words(cells)}\n\n"
        f"[{FILE}]({FILE}) has every number.  `python benchmarks/agreement.py -o FILE --store STORE` measures them "
        "again; its first lines have the settings.\n\n" + table(HEADS, [row(cell) for cell in cells])
    )


def row(cell: Cell) -> list[str]:
    """A line of the table."""
    found = cell["agreement"]
    method = "GBA, recipe measured" if cell["method"] == "measured" else cell["method"]
    named = method + "".join(f", {name} = {value:g}" for name, value in cell["given"].items())
    true = [f"{100 * mean(cell['true']):.1f}", f"{features(cell):.0f}"] if "true" in cell else ["", ""]
    return [
        {"world": "the world", "real": "an MLP"}[cell["data"]], f"{cell['rows']:,}", str(cell["width"]), named,
        f"{mean(cell['l0']):.1f}", f"{mean(cell['fvu']):.3f}", f"{100 * found['mcs'][1]:.1f}",
        f"{100 * found['matched'][1]:.1f}", f"{100 * found['matched'][0]:.1f}", f"{found['matched_mean']:.2f}",
        f"{cell['null']['matched_mean']:.2f}", f"{100 * mean(cell['distinct']):.1f}", *true, str(cell["seeds"]),
    ]  # fmt: skip


def features(cell: Cell) -> float:
    """How many features of the world have a neuron within 0.9, mean over the seeds."""
    return sum(share * n for share, n in zip(cell["recovered"], TAIL, strict=True))


def one(cells: list[Cell], data: str, rows: int, width: int, method: str, **given: float) -> Cell:
    """The cell of these settings."""
    wanted = {"data": data, "rows": rows, "width": width, "method": method, "given": given}
    [cell] = [cell for cell in cells if all(cell[name] == value for name, value in wanted.items())]
    return cell


def words(cells: list[Cell]) -> str:
    """What the numbers say: the trend, what makes seeds agree, and what that means at the paper's size."""
    world = {(c["rows"], c["width"], c["method"]): c for c in cells if c["data"] == "world" and not c["given"]}
    real = {(c["rows"], c["width"], c["method"]): c for c in cells if c["data"] == "real" and not c["given"]}
    wide, mid, narrow = world[300_000, 16_384, "GBA"], world[300_000, 4096, "GBA"], world[300_000, 1024, "GBA"]
    top, few_ours, few_top = (
        world[300_000, 4096, "TopK"],
        world[8000, 4096, "GBA"],
        world[8000, 4096, "TopK"],
    )
    free = one(cells, "world", 300_000, 4096, "GBA", hold=1.0)
    unformed = one(cells, "world", 300_000, 4096, "GBA", form=0.0)
    ours, theirs = (real[150_000, 2048, method] for method in ("GBA", "TopK"))
    small, small_top = (real[150_000, 1024, method] for method in ("GBA", "TopK"))
    longer = one(cells, "real", 150_000, 1024, "GBA", steps=4500)
    own = one(cells, "world", 300_000, 4096, "GBA", htf=0.08, ltf=1e-3)
    asked, counts = (one(cells, "world", 300_000, 4096, "measured", **given) for given in ({}, {"l0": 0.0}))
    measured = real[150_000, 2048, "measured"]
    few_real, few_real_top = (real[8000, 2048, method] for method in ("GBA", "TopK"))
    some_real = real[50_000, 2048, "GBA"]
    chance = max(max(cell["null"]["mcs"]) for cell in cells)
    distinct = [100 * mean(cell["distinct"]) for cell in (narrow, mid, wide)]
    nearest = [at(cell, 0.9, "mcs") for cell in (narrow, mid, wide)]
    return "\n".join([
        f"- **Few rows: GBA's seeds agree more than TopK's.**  With 8,000 rows {at(few_ours):.0f}% of 4096 neurons "
        f"agree one to one in the world, and {at(few_top):.1f}% of TopK's; on real rows {at(few_real, 0.7):.1f}% and "
        f"{at(few_real_top, 0.7):.1f}% agree to 0.7, and hardly any to 0.9.",
        f"- **More rows: both agree more, and TopK overtakes.**  With 300,000 rows of the world {at(mid):.0f}% and "
        f"{at(top):.0f}% agree; with 150,000 real ones {at(ours, 0.7):.0f}% and {at(theirs, 0.7):.0f}% to 0.7, but "
        f"{at(ours):.1f}% and {at(theirs):.1f}% to 0.9.  Of random dictionaries {100 * chance:.0f}% agree to 0.7.",
        "- **Width raises GBA's MCS by copies.**  From 1024 to 4096 and 16384 neurons its MCS is 0.9 for "
        f"{nearest[0]:.0f}, {nearest[1]:.0f} and {nearest[2]:.0f}% of the neurons, while the distinct ones fall from "
        f"{distinct[0]:.0f} to {distinct[1]:.0f} and {distinct[2]:.0f}%, and FVU rises.  At 4096 it has neurons at "
        f"{features(mid):,.0f} of the {FEATURES:,} features, TopK, without a copy, at {features(top):,.0f}; with the "
        f"default's own targets, L0 {mean(own['l0']):.0f}, {100 * mean(own['distinct']):.0f}% are distinct, at "
        f"{features(own):,.0f} features.",
        "- **On real rows, with hardly any copies, width lowers agreement**: from 1024 to 2048 neurons, 146 to 73 "
        f"rows per neuron, {at(small, 0.7):.0f} and {at(ours, 0.7):.0f}% of GBA's agree to 0.7 and {at(small):.0f} and "
        f"{at(ours):.1f}% to 0.9, of TopK's {at(small_top, 0.7):.0f} and {at(theirs, 0.7):.0f}%, {at(small_top):.0f} "
        f"and {at(theirs):.1f}%.",
        "- **What makes two seeds agree** is that neurons reach the features there are, by enough rows and steps, and "
        f"in GBA by forming and holding: {at(mid, 0.9, 'mcs'):.0f}% have an MCS of 0.9 by default, "
        f"{at(unformed, 0.9, 'mcs'):.0f}% without forming, and {at(free, 0.9, 'mcs'):.0f}% where features form and "
        f"nothing is held.  The share of neurons at a true feature is then {true(mid)}, {true(unformed)} and "
        f"{true(free)}%, and {features(mid):,.0f}, {features(unformed):,.0f} and {features(free):,.0f} features are "
        "found: holding keeps copies, so it buys agreement and not features.",
        f"- **With targets from the data**, {at(asked):.0f}% agree one to one in the world at the same L0, at "
        f"{features(asked):,.0f} features, and {at(counts):.0f}% at {features(counts):,.0f} where the recipe "
        f"counts by itself, L0 {mean(counts['l0']):.1f}; {100 * mean(asked['distinct']):.0f} and "
        f"{100 * mean(counts['distinct']):.0f}% of the neurons are distinct.  On real rows {at(measured, 0.7):.0f}% "
        f"agree to 0.7 and {at(measured):.1f}% to 0.9, at an FVU of {mean(measured['fvu']):.3f}.",
        "- **At the paper's 66 thousand neurons and 100 million tokens**, some 1500 rows per neuron against 73 here, "
        "more should agree than here, of both methods.  How many these numbers do not say: on real rows those of "
        f"GBA's 2048 neurons that agree to 0.7 are {at(few_real, 0.7):.0f}, {at(some_real, 0.7):.0f} and "
        f"{at(ours, 0.7):.0f}% with 8,000, 50,000 and 150,000 rows, which levels off at this length of training; "
        "width lowers them, and three times the steps raise them, at 1024 neurons from "
        f"{at(small, 0.7):.0f} to {at(longer, 0.7):.0f}%, and to 0.9 from {at(small):.0f} to {at(longer):.0f}% (TopK "
        "not measured).  That GBA is ahead there does not follow, since its lead shrinks with the rows.  It would be "
        "by MCS if its neurons copied each other as in the wide world, which matching one to one does not reward.",
    ])  # fmt: skip


def at(cell: Cell, level: float = 0.9, kind: str = "matched") -> float:
    """The percentage of neurons that agree to a level."""
    return 100 * float(cell["agreement"][kind][(0.7, 0.9).index(level)])


def true(cell: Cell) -> str:
    """The percentage of neurons at a true feature."""
    return f"{100 * mean(cell['true']):.0f}"
