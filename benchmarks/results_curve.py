"""The sections of benchmarks/results/README.md on equal L0: a curve on real activations, sites of a language model.

They are made of what opponents.py wrote with measured targets among its methods, and of what sites.py wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from results_llm import Table
from results_opponents import TITLES, command

from refgba.experiments import frontier

CURVE, SITES = "curve.json", "llm-sites.json"


def sections(folder: Path, table: Table) -> Iterator[str]:
    """Both sections."""
    yield of_curve(json.loads((folder / CURVE).read_text(encoding="utf-8")), table)
    yield of_sites(json.loads((folder / SITES).read_text(encoding="utf-8")), table)


def span(values: list[float], form: str, times: float = 1) -> list[str]:
    """A mean, and its ends."""
    return [f"{times * value:{form}}" for value in (np.mean(values), min(values), max(values))]


def of_curve(data: dict[str, Any], table: Table) -> str:
    """FVU against L0, each method at its best learning rate."""
    sizes, rows, beyond = data["settings"], [], []
    for method in dict.fromkeys(p["method"] for p in data["points"]):
        points = sorted(frontier.kept(data, method).items(), key=lambda found: found[0] or 0)
        apart = frontier.apart(data, method, tuple(name for name in frontier.ABREAST if name != method))
        beyond += apart if method == "measured" else []
        for (setting, seeds), over in zip(points, apart, strict=True):
            rows.append([
                TITLES.get(method, method), f"{setting or ''}", f"{seeds[0]['lr']:g}",
                *span([p["fvu"] for p in seeds], ".4f"), f"{np.mean([p['l0'] for p in seeds]):.1f}",
                f"{100 * (over - 1):+z.1f}", f"{100 * np.mean([p['dead'] for p in seeds]):.1f}",
            ])  # fmt: skip
    heads = (
        "method", "K or l0", "learning rate", "FVU", "lowest", "highest", "L0",
        "FVU over the lowest line of the others, %", "dead neurons, %",
    )  # fmt: skip
    return (
        "## The curve\n\n"
        f"{verdict(beyond)}  Networks of {sizes['width']} neurons after {sizes['steps']} steps of {frontier.BATCH} "
        f"rows of the real activations, {sizes['seeds']} seeds.  TopK, BatchTopK and Matryoshka keep at each K the "
        f"learning rate, of {' and '.join(f'{lr:g}' for lr in sizes['lr'])}, that is best with the first seed on the "
        "first half of the held-out rows, which no number of the table is from.  GBA has its recipe's: with measured "
        "targets it aims at the L0 that is asked for, by default at what its groups add up to.  The line of a method "
        "is straight between its points in the logarithms, its ends drawn on, and others are TopK, BatchTopK and "
        "Matryoshka.\n\n"
        f"[{CURVE}]({CURVE}) has every number.  `{command(data, CURVE)}` measures them again, which took "
        f"{data['seconds']:.0f} s on two cores that other programs used too.\n\n"
    ) + table(heads, rows)


def verdict(ratios: list[float]) -> str:
    """Where measured targets are under the lines of the others, by their FVU over the lowest, at each L0."""
    under = sum(ratio <= 1 for ratio in ratios)
    ends = f"{100 * (min(ratios) - 1):+z.1f} to {100 * (max(ratios) - 1):+z.1f}%"
    if under == len(ratios):
        return f"With measured targets GBA is under all lines at every L0, by {ends}."
    return f"With measured targets GBA is under all lines at {under} of {len(ratios)} L0: {ends} from the lowest."


def of_sites(data: dict[str, Any], table: Table) -> str:
    """FVU at equal L0 on sites of a language model."""
    sizes, rows = data["settings"], []
    for site in dict.fromkeys(n["site"] for n in data["networks"]):
        found = {
            method: [n for n in data["networks"] if (n["site"], n["method"]) == (site, method)]
            for method in ("measured", "batchtopk", "topk")
        }
        ours = np.mean([n["fvu"] for n in found["measured"]])
        for method, seeds in found.items():
            theirs = np.mean([n["fvu"] for n in seeds])
            rows.append([
                site, TITLES.get(method, method), *span([n["fvu"] for n in seeds], ".4f"),
                "" if method == "measured" else f"{100 * (ours / theirs - 1):+z.1f}",
                f"{np.mean([n['l0'] for n in seeds]):.1f}", *span([n["dead"] for n in seeds], ".1f", 100),
            ])  # fmt: skip
    heads = (
        "site", "network", "FVU", "lowest", "highest", "measured targets over it, %", "L0", "dead neurons, %", "lowest",
        "highest",
    )  # fmt: skip
    first = data["networks"][0]
    return (
        "## Sites of a language model\n\n"
        f"SmolLM2-135M, d = {first['d']}, on Python's standard library; some {first['rows'] // 1000} thousand rows of "
        f"a site to train on, {first['held_out'] // 1000} thousand to judge on.  Networks of {sizes['width']} neurons "
        f"after {sizes['steps']} steps of {sizes['batch']} rows, {sizes['seeds']} seeds.  K is {sizes['k']}; measured "
        "targets aim at the L0 that BatchTopK has on the rows held out.  All sites are reported only: settings were "
        f"chosen on MiniLM, the learning rate {sizes['lr']:g} of TopK and BatchTopK too.\n\n"
        f"[{SITES}]({SITES}) has every number.  `python benchmarks/sites.py STORE STORE ... --k {sizes['k']} "
        f"--width {sizes['width']} --steps {sizes['steps']} -o {SITES}` measures them again, on harvests of "
        "the sites.\n\n"
    ) + table(heads, rows)
