"""The section of benchmarks/results/README.md on the opponents: networks of `benchmarks/opponents.py`, in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from results_llm import Table

from refgba.experiments import frontier, random_directions

TITLES = frontier.LABELS | {"topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "l1": "L1"}


def command(found: dict[str, Any], out: str) -> str:
    """What measures a file of opponents.py again."""
    sizes, methods = found["settings"], list(dict.fromkeys(p["method"] for p in found["points"]))
    names = " ".join(f'"{name}"' if " " in name else name for name in methods if name != "topk")
    dials = ("k", *(name for name in ("l1", "jumprelu", "gated") if name in methods), "lr", "batch")
    several = " ".join(f"--{dial} {' '.join(f'{value:g}' for value in sizes[dial])}" for dial in dials)
    seeds = f" --seeds {sizes['seeds']}" if sizes["seeds"] > 1 else ""
    return (
        f"python benchmarks/opponents.py D/X.npy --held-out D/Y.npy --methods {names} --width {sizes['width']} "
        f"--steps {sizes['steps']} {several}{seeds} -o {out}"
    )


def section(folder: Path, table: Table) -> str:
    """Each network at the learning rate and batch that it keeps."""
    found = json.loads((folder / "opponents.json").read_text(encoding="utf-8"))
    sizes, rows, line = found["settings"], [], frontier.best(found, "topk")
    methods = list(dict.fromkeys(p["method"] for p in found["points"]))
    for method in methods:
        for setting, points in sorted(frontier.kept(found, method).items()):
            for p in points:
                over = 100 * (p["fvu"] / frontier.line(line, p["l0"]) - 1)
                rows.append(
                    [TITLES.get(method, method), f"{setting:g}", f"{p['lr']:g}", f"{p['fvu']:.4f}", f"{over:+z.1f}",
                     f"{p['l0']:.1f}", f"{100 * p['dead']:.1f}"]
                )  # fmt: skip
    heads = (
        "method", "K, or λ of Gated", "learning rate", "FVU", "FVU over TopK's line at the same L0, %", "L0",
        "dead neurons, %",
    )  # fmt: skip
    apart = " and ".join(random_directions.NAMES)
    rates = " and ".join(f"{lr:g}" for lr in sizes["lr"])
    chosen = f"Each has the learning rate, of {rates}, that is best on the first half of the held-out rows"
    if len(sizes["lr"]) == 1:
        chosen = (
            f"All have the learning rate {rates}, which TopK and BatchTopK keep above and which may not suit others"
        )
    return (
        "## Opponents\n\n"
        f"Networks of {sizes['width']} neurons after {sizes['steps']} steps of {frontier.BATCH} rows, one seed.  These "
        f"runs are shorter than those of the frontier above, so compare them with each other only.  {chosen}; the "
        f"second half of the held-out rows is what they are judged on.  {apart.capitalize()} are TopK networks whose "
        "directions are not learned: rows of the data less the mean, or random units, of which only scales, thresholds "
        "and b_pre are fitted.\n\n"
        f"[opponents.json](opponents.json) has every number.  `{command(found, 'opponents.json')}` measures them "
        f"again, which took {found['seconds']:.0f} s on two cores that other programs used too.\n\n"
    ) + table(heads, rows)
