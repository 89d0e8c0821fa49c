"""Neurons read blind: drawn at random from several runs, shown in one shuffled list that does not say whose each is.

    python benchmarks/blind.py draw RUN RUN --store STORE -o FOLDER      writes FOLDER/contexts.txt and FOLDER/key.json
    python benchmarks/blind.py open FOLDER ANSWERS -o RESULT.json        joins the answers and the key

A reader goes through contexts.txt without the key, and writes ANSWERS: a JSON object with, for each number, one
recognisable theme in a few words, or null where there is none, and what was seen instead:

    {"1": {"theme": "the word after a full stop"}, "2": {"theme": null, "seen": "punctuation of all kinds"}}

Beside the numbers, "remarks" may hold a few sentences.  A theme has to cover the contexts of all quantiles, not the
highest alone.  Activations are shown in per cent of the neuron's highest, and neither scales nor frequencies are, since
these would tell the methods apart.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from refgba.llm.dashboard import Features, survey_features
from refgba.llm.dashboard.examples import Examples
from refgba.runs import folder

SHOWN = {"top": 8, "quantiles": 5, "examples": 2, "window": 32}  # of `refgba.llm.dashboard.survey.Choice`
STRONG = 0.5  # Tokens with so much of the activation at the token shown are marked, too.
HEAD = """\
{count} neurons.  Of each: the contexts where it is highest (top), then some of five quantiles of all its contexts, q1
the strongest to q5 the weakest.  The number is its activation in per cent of its highest.  【 】 holds the token that
has it, ‹ › others with at least half as much.  ⏎ is the end of a line.
"""


def drawn(features: Features, count: int, rng: np.random.Generator) -> list[int]:
    """So many of the neurons that fire on the store, in order."""
    alive = np.flatnonzero(features.survey.count)
    return sorted(rng.choice(alive, count, replace=False).tolist())


def lines(found: Examples, neuron: int, peak: float) -> list[str]:
    """The contexts of a neuron as text."""
    shown = []
    mine = found.of(neuron)
    for e in range(mine.start, mine.stop):
        pieces = found.tokens(e)
        for i, activation in enumerate(found.activation[e, : len(pieces)].tolist()):
            if i == found.peak(e):
                pieces[i] = f"【{pieces[i]}】"
            elif activation >= STRONG * found.value[e]:  # not so where it is NaN, in rows that were left out
                pieces[i] = f"‹{pieces[i]}›"
        text = "".join(c if c.isprintable() else "⏎" if c == "\n" else "→" for c in "".join(pieces))
        part = "top" if found.part[e] == 0 else f"q{found.part[e]}"
        shown.append(f"{part:>3} {100 * found.value[e] / peak:4.0f}  {text}")
    return shown


def draw(runs: list[Path], store: Path, count: int, seed: int, out: Path) -> None:
    """Write the contexts and the key."""
    rng, entries = np.random.default_rng(seed), []
    for run in runs:
        features = survey_features(run, store, seed=seed, **SHOWN)
        method = folder.open_network(run).config.method
        chosen = drawn(features, count, rng)
        found = features.examples(chosen)
        for m in chosen:
            key: dict[str, Any] = {"method": method, "neuron": m, "frequency": float(features.frequency[m])}
            if features.target is not None:
                key["target"] = float(features.target[m])
            key["l0"] = float(features.frequency.sum())
            entries.append((key, lines(found, m, float(features.peak[m]))))
    order = rng.permutation(len(entries)).tolist()
    out.mkdir()
    parts = [HEAD.format(count=len(entries))]
    for number, i in enumerate(order, 1):
        parts.append("\n".join([f"#{number}", *entries[i][1], ""]))
    (out / "contexts.txt").write_text("\n".join(parts), encoding="utf-8")
    key = {"seed": seed, "shown": SHOWN, "neurons": {str(n): entries[i][0] for n, i in enumerate(order, 1)}}
    (out / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


def opened(place: Path, answers: Path) -> dict[str, Any]:
    """Answers and key together, and how many neurons of each method show a theme."""
    key = json.loads((place / "key.json").read_text(encoding="utf-8"))
    read = json.loads(answers.read_text(encoding="utf-8"))
    remarks = read.pop("remarks", "")
    if set(read) != set(key["neurons"]):
        raise SystemExit(f"{answers}: should answer the numbers 1 to {len(key['neurons'])}, each once")
    neurons = [{"number": int(n), **about, **read[n]} for n, about in key["neurons"].items()]
    methods = sorted({neuron["method"] for neuron in neurons})
    totals = {}
    for method in methods:
        mine = [neuron for neuron in neurons if neuron["method"] == method]
        themes = sum(neuron["theme"] is not None for neuron in mine)
        totals[method] = {"neurons": len(mine), "themes": themes, "l0": mine[0]["l0"]}
    return {"seed": key["seed"], "shown": key["shown"], "totals": totals, "remarks": remarks, "neurons": neurons}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    drawing = verbs.add_parser("draw")
    drawing.add_argument("runs", nargs="+", type=Path)
    drawing.add_argument("--store", type=Path, required=True)
    drawing.add_argument("--neurons", type=int, default=30, help="of each run")
    drawing.add_argument("--seed", type=int, default=0)
    opening = verbs.add_parser("open")
    opening.add_argument("folder", type=Path)
    opening.add_argument("answers", type=Path)
    for verb in (drawing, opening):
        verb.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    if given.verb == "draw":
        draw(given.runs, given.store, given.neurons, given.seed, given.out)
    else:
        whole = opened(given.folder, given.answers)
        given.out.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(json.dumps(whole["totals"]))
