"""What a language model loses by GBA, TopK and BatchTopK at the same L0: trained on harvests, put back into the model.

    LIB=$(python -c 'import os; print(os.path.dirname(os.__file__))')
    refgba harvest MODEL --site model.layers.4.mlp --site model.layers.15.mlp --site model.layers.26.mlp \\
        $(ls -d $LIB/[a-p]* | sed 's/^/--text /') --files '*.py' --shuffle 0 --tokens 166000 -o STORES
    python benchmarks/llm.py MODEL STORES/* --runs RUNS -o benchmarks/results/llm-loss-recovered.json \\
        $(ls -d $LIB/[s-z]* | grep -v site-packages | sed 's/^/--text /') --files '*.py' --per-document 2 \\
        --corpus "files of Python's standard library"

GBA is trained first, by its defaults; its L0 on the text is the K of TopK and BatchTopK, which are trained at LR, which
suits them best at such sites, and otherwise by the same settings.  BatchTopK, and GBA by the recipe measured, whose
thresholds are fixed, let another number of neurons through on the text than they were told: where it is off by more
than NEAR, they are trained again, told as much more or less, up to ATTEMPTS times.  The text should be another than
that of the harvest.
Runs and measurements that RUNS holds are not made again, so a call that was stopped can be given again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refgba import llm
from refgba.cli import main
from refgba.data.activations import Activations, reopen
from refgba.llm import evaluation
from refgba.llm.effects import survey
from refgba.llm.models import Model
from refgba.llm.networks import Coder, open_network
from refgba.llm.splice import place
from refgba.llm.text import TextOptions
from refgba.runs import folder, judging

METHODS = ("gba", "measured", "topk", "batchtopk")  # measured: GBA by the recipe of this name
LR = "3e-3"  # of TopK and BatchTopK
FIXED = ("measured", "batchtopk")  # thresholds, so that L0 depends on the rows
NEAR, ATTEMPTS = 0.03, 3
OFF, ON = "-uncentred", "-centred"  # at the end of a network's name: --centre off and on; without them it is auto
ROWS = 2048  # that are reconstructed at a time


def flags(name: str, shared: list[str], k: int | None) -> list[str]:
    """The flags of `refgba train` that make a network."""
    method = name.split("-")[0]
    centre = "off" if name.endswith(OFF) else "on" if name.endswith(ON) else "auto"
    own = {"gba": [], "measured": ["--recipe", "measured", "--l0", str(k)]}
    given = own[method] if method in own else ["--method", method, "--lr", LR, "--k", str(k)]
    return ["--centre", centre, *shared, *given]


def trained(store: Path, run: Path, given: list[str]) -> Path:
    """Train on a store, or go on where an earlier call was stopped."""
    if not (run / "final").exists():
        what = ["--resume", str(run)] if run.exists() else [str(store), "-o", str(run), *given]
        if status := main(["train", *what], standalone_mode=False):
            raise SystemExit(status)
    return run


def wanted(names: list[str], centred: bool) -> Iterator[str]:
    """The networks that differ: where rows are centred by themselves, `--centre on` is nothing else, and so is off."""
    for name in names:
        if not name.endswith(ON if centred else OFF):
            yield name


def on_held_out(run: Path) -> dict[str, float]:
    """L0, dead neurons and FVU on the held-out rows as the network takes them, and FVU at the place and scale of rows.

    Only the last can be compared between runs that are centred and those that are not.
    """
    record = folder.read_record(run)
    rows: Activations = reopen(record.about["data"], record.dropped, record.crc, None, record.held_out, record.centre)
    judged = judging.judge(run, rows, backend="numba").result
    coder = Coder(open_network(run).dictionary)
    parts = list(rows.held(ROWS))
    mean = np.concatenate(parts).mean(axis=0, dtype=np.float64)
    missing = total = 0.0
    with torch.inference_mode():
        for x in parts:
            back = coder.reconstruct(torch.from_numpy(np.ascontiguousarray(x, np.float32))).numpy()
            missing += float(np.square(x - back, dtype=np.float64).sum())
            total += float(np.square(x - mean).sum())
    return {name: judged[name] for name in ("l0", "dead", "fvu")} | {"fvu_of_rows": missing / total}


def about(run: Path) -> dict[str, Any]:
    """What a network was trained by."""
    config, record = folder.read_config(run), folder.read_about(run)
    settings = {n: getattr(config, n) for n in ("method", "steps", "lr", "seed", "k", "htf") if hasattr(config, n)}
    return settings | {"centred": bool(record["data"].get("centred", False)), "rows": record["data"]["rows"]}


def measure(
    model: Model, store: Path, runs: Path, text: TextOptions, tokens: int, names: list[str], shared: list[str],
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Each network's L0, FVU, KL and loss recovered on the text, and what it does on held-out rows."""

    def made(name: str, k: int | None, told: str = "") -> Path:
        return trained(store, runs / f"{store.name}-{name}{told}-{seed}", flags(name, shared, k))

    def l0(run: Path) -> float:
        fires = survey(place(open_network(run), model), text, min(tokens, evaluation.MEAN_TOKENS))
        return float(fires.frequency.sum())

    def matched(name: str) -> tuple[Path, int]:
        run, told = made(name, k), k
        for _ in range(ATTEMPTS if name in FIXED else 0):
            if abs((there := l0(run)) / k - 1) <= NEAR:
                break
            told = round(told * k / there)
            run = made(name, told, f"-{told}")
        return run, told

    first = made("gba", None)
    k = round(l0(first))
    of = {name: matched(name) for name in wanted(names, about(first)["centred"])}
    missing = [name for name, (run, _) in of.items() if not judged_file(run, tokens).exists()]
    if missing:
        places = [place(open_network(of[name][0]), model) for name in missing]
        for name, result in zip(missing, evaluation.compare(places, text, tokens, sinks=False), strict=True):
            run, told = of[name]
            found = result.record() | {"network": run.name, "model": Path(model.name).name}
            found |= {"trained": about(run) | {"told": told}, "held_out": on_held_out(run)}
            judged_file(run, tokens).write_text(json.dumps(found), encoding="utf-8")
    return {name: json.loads(judged_file(run, tokens).read_text(encoding="utf-8")) for name, (run, _) in of.items()}


def judged_file(run: Path, tokens: int) -> Path:
    """Where the measurements of a run are kept."""
    return run.parent / f"{run.name}-{tokens}.json"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--text", required=True, action="append", type=Path)
    parser.add_argument("--corpus", default="documents", help="what text and harvest are, in words, for the page")
    parser.add_argument("--files", help="of folders, such as '*.py'")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--per-document", type=int, default=1, help="contexts of each document")
    parser.add_argument("--networks", nargs="+", default=list(METHODS), help=f"methods, with {OFF} or {ON} behind them")
    parser.add_argument("--width", default="4608")
    parser.add_argument("--steps", default="2000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="folder of the runs  [default: a temporary one]")
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    shared = ["--width", given.width, "--steps", given.steps, "--seed", str(given.seed)]
    shared += ["--dtype", "float32", "--backend", "numba"]
    text = TextOptions(tuple(given.text), pattern=given.files, shuffle=1, per_document=given.per_document)
    model = llm.open_model(given.model)
    with tempfile.TemporaryDirectory() as temporary:
        runs = given.runs or Path(temporary)
        sites = [
            measure(model, store, runs, text, given.tokens, given.networks, shared, given.seed)
            for store in given.stores
        ]
    whole = {
        "corpus": given.corpus,
        "width": int(given.width),
        "contexts_per_document": given.per_document,
        "sites": sites,
    }
    given.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
