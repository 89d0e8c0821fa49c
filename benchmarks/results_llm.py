"""The sections of benchmarks/results/README.md on language models, from what benchmarks/llm.py and blind.py wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

LOSS = "llm-loss-recovered.json"
BLIND = {
    "llm-blind.json": "neurons read blind",
    "llm-blind-measured.json": "neurons read blind, targets from the data",
    "llm-blind-relative-before.json": "neurons read blind, relative thresholds, at too high a learning rate",
    "llm-blind-relative.json": "neurons read blind, relative thresholds",
}
MEASURED = "GBA, recipe measured"
METHODS = {"gba": "GBA", "topk": "TopK", "batchtopk": "BatchTopK"}

ENDS = ("value", "low", "high")

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]  # heads and rows in Markdown


def sections(folder: Path, table: Table) -> Iterator[str]:
    """All sections."""
    yield loss_recovered(json.loads((folder / LOSS).read_text(encoding="utf-8")), table)
    for file, title in BLIND.items():
        yield read_blind(json.loads((folder / file).read_text(encoding="utf-8")), table, file, title)


def loss_recovered(data: dict[str, Any], table: Table) -> str:
    """What a language model loses by networks at some sites."""
    heads = (
        "site", "network", "rows centred", "seed", "learning rate", "told", "L0", "KL, nats per token",
        "loss recovered of zeros, %", "lowest", "highest", "of the mean row, %", "lowest", "highest",
        "FVU", "L0 on rows held out", "FVU of rows held out",
    )  # fmt: skip
    rows, networks = [], [item for site in data["sites"] for item in site.items()]
    for kind, network in networks:
        trained, kept = network["trained"], network["kept"]
        shares = [kept["loss_recovered"][against][end] for against in ("zero", "mean") for end in ENDS]
        of_run = (
            network["site"],
            MEASURED if kind == "measured" else METHODS[trained["method"]],
            "yes" if trained["centred"] else "no",
            str(trained["seed"]),
        )
        told = "" if trained["method"] == "gba" and kind != "measured" else str(trained.get("told", trained.get("k")))
        numbers = f"{trained['lr']:g}", told, f"{network['l0']:.1f}", f"{kept['spliced']['kl']['value']:.4f}"
        held_out = (
            f"{network['fvu']:.3f}",
            f"{network['held_out']['l0']:.1f}",
            f"{network['held_out']['fvu_of_rows']:.4f}",
        )
        rows.append((*of_run, *numbers, *(f"{100 * share:.1f}" for share in shares), *held_out))
    first = networks[0][1]
    corpus, trained, words = data["corpus"], first["trained"], verdict(data["sites"])
    return (
        "## loss recovered in a language model\n\n"
        f"What {first['model']} loses when the output of an MLP is replaced by its reconstruction, at all positions "
        f"but the first of a context: {first['tokens']} tokens, at most {data['contexts_per_document']} contexts of "
        f"each of {first['documents']} {corpus}, with 95% intervals over these.  Networks have {data['width']} neurons "
        f"and took {trained['steps']} steps on {trained['rows']} rows of other {corpus}.  The L0 that GBA by its "
        "defaults has on this text is what the others are to have: TopK by its K, and BatchTopK and GBA by the recipe "
        "measured, whose thresholds are fixed and let more neurons through here than where they were trained, by the K "
        "and the l0 that they were told (`told`).  TopK and BatchTopK have the learning rate that suits them best at "
        "such sites.  Rows held out are of the documents that were trained on, where GBA has fewer active neurons than "
        "on this text: there FVU is not at one L0.  It is "
        f"that of rows as the model has them, whether a network takes them centred or not.  {words}\n\n"
        f"[{LOSS}]({LOSS}) has every number.  `python benchmarks/llm.py MODEL STORE --text TEXT -o FILE` measures them "
        f"again; its first lines say how.\n\n{table(heads, rows)}"
    )


def verdict(sites: Sequence[dict[str, Any]]) -> str:
    """How GBA compares with TopK at each site, and what its centre does, by the loss of zeros that is recovered."""
    said = []
    for site in sites:
        share = {name: 100 * n["kept"]["loss_recovered"]["zero"]["value"] for name, n in site.items()}
        name = f"{site['gba']['site']}, seed {site['gba']['trained']['seed']},"
        said.append(f"At {name} GBA is {compared(share['gba'] - share['topk'])} TopK.")
        if "measured" in site:
            over = {kind: 100 * (site["measured"]["fvu"] / site[kind]["fvu"] - 1) for kind in ("topk", "batchtopk")}
            said.append(
                f"By the recipe measured it is there {compared(share['measured'] - share['topk'])} TopK and "
                f"{compared(share['measured'] - share['batchtopk'])} BatchTopK, and its FVU on this text is "
                f"{over['topk']:+.1f}% from TopK's and {over['batchtopk']:+.1f}% from BatchTopK's."
            )
        for other, n in site.items():
            if other.startswith("gba-"):
                with_, without = ("gba-centred", "gba") if n["trained"]["centred"] else ("gba", "gba-uncentred")
                said.append(
                    f"With its rows centred it is there {compared(share[with_] - share[without])} itself without that, "
                    f"at an L0 of {site[with_]['l0']:.0f} instead of {site[without]['l0']:.0f}."
                )
    return " ".join(said)


def compared(points: float) -> str:
    """A difference in words."""
    return f"{abs(points):.1f} points {'ahead of' if points > 0 else 'behind'}"


FREQUENCIES = (0.01, 0.002)  # shares of rows by which neurons are grouped


def by_frequency(neurons: Sequence[dict[str, Any]]) -> list[str]:
    """How many of the neurons have a theme, of how many: frequent ones, medium ones and rare ones."""
    cells = []
    for high, low in pairwise((2.0, *FREQUENCIES, 0.0)):
        here = [n["theme"] is not None for n in neurons if low <= n["frequency"] < high]
        cells += [str(sum(here)), str(len(here))]
    return cells


def read_blind(data: dict[str, Any], table: Table, file: str, title: str) -> str:
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
        f"## {title}\n\n{data['remarks']}\n\n[{file}]({file}) has the answers by the number under which "
        f"each neuron was read, in the order of `python benchmarks/blind.py draw --seed {data['seed']}`.\n\n"
        + table(heads, totals)
        + "\n"
        + table(("method", "neuron", "fires on, % of rows", "target, %", "one theme", "theme, or what was seen"), rows)
    )
