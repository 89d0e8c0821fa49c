"""The sections of benchmarks/results/README.md on language models, from what benchmarks/blind.py wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

BLIND = "llm-blind.json"
METHODS = {"gba": "GBA", "topk": "TopK", "batchtopk": "BatchTopK"}

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]  # heads and rows in Markdown


def sections(folder: Path, table: Table) -> Iterator[str]:
    """All sections."""
    yield read_blind(json.loads((folder / BLIND).read_text(encoding="utf-8")), table)


FREQUENCIES = (0.01, 0.002)  # shares of rows by which neurons are grouped


def by_frequency(neurons: Sequence[dict[str, Any]]) -> list[str]:
    """How many of the neurons have a theme, of how many: frequent ones, medium ones and rare ones."""
    cells = []
    for high, low in pairwise((2.0, *FREQUENCIES, 0.0)):
        here = [n["theme"] is not None for n in neurons if low <= n["frequency"] < high]
        cells += [str(sum(here)), str(len(here))]
    return cells


def read_blind(data: dict[str, Any], table: Table) -> str:
    """Which neurons showed a theme to a reader who did not know whose they were."""
    more, less = (f"{100 * share:g}%" for share in FREQUENCIES)
    parts = (f"on {more} of rows or more", f"on {less} to {more}", f"on less than {less}")
    heads = (
        "method",
        "L0",
        "with one theme",
        "read",
        *(f"{what}, {part}" for part in parts for what in ("theme", "read")),
    )
    totals = [
        (
            METHODS[method], f"{total['l0']:.1f}", str(total["themes"]), str(total["neurons"]),
            *by_frequency([n for n in data["neurons"] if n["method"] == method]),
        )
        for method, total in data["totals"].items()
    ]  # fmt: skip
    rows = []
    for n in sorted(data["neurons"], key=lambda n: (n["method"], n["theme"] is None, -n["frequency"])):
        target = f"{100 * n['target']:.2f}" if "target" in n else ""
        seen = ("no", n["seen"]) if n["theme"] is None else ("yes", n["theme"])
        rows.append((METHODS[n["method"]], str(n["neuron"]), f"{100 * n['frequency']:.2f}", target, *seen))
    return (
        f"## neurons read blind\n\n{data['remarks']}\n\n[{BLIND}]({BLIND}) has the answers by the number under which "
        f"each neuron was read, in the order of `python benchmarks/blind.py draw --seed {data['seed']}`.\n\n"
        + table(heads, totals)
        + "\n"
        + table(("method", "neuron", "fires on, % of rows", "target, %", "one theme", "theme, or what was seen"), rows)
    )
