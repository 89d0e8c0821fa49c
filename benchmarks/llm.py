"""What a language model loses by GBA, TopK and BatchTopK at the same L0: trained on a harvest, put back into the model.

    refgba harvest MODEL --site model.layers.15.mlp ... -o STORE
    python benchmarks/llm.py MODEL STORE --text TEXT -o benchmarks/results/llm-loss-recovered.json

GBA is trained first, by its defaults; the others get the K that is its L0, and otherwise the same settings.  The text
should be another than that of the harvest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from refgba import llm
from refgba.cli import main
from refgba.llm.models import Model
from refgba.llm.text import TextOptions


def trained(method: str, store: Path, out: Path, flags: list[str], k: int | None) -> None:
    """Train on a store, or go on where an earlier call has done so."""
    if not (out / "final").exists():
        more = [] if k is None else ["--k", str(k)]
        main(["train", str(store), "-o", str(out), "--method", method, *flags, *more], standalone_mode=False)


def measure(model: Model, store: Path, runs: Path, text: TextOptions, tokens: int, flags: list[str]) -> dict:
    """Each method's L0, FVU, KL and loss recovered on the text."""
    results, k = {}, None
    for method in ("gba", "topk", "batchtopk"):
        trained(method, store, runs / f"{store.name}-{method}", flags, k)
        judged = runs / f"{store.name}-{method}-{tokens}.json"  # so that a call that was stopped can be given again
        if not judged.exists():
            result = llm.evaluate(runs / f"{store.name}-{method}", model, text, tokens).record()
            result |= {"network": f"{store.name}-{method}", "model": Path(model.name).name}
            judged.write_text(json.dumps(result), encoding="utf-8")
        results[method] = json.loads(judged.read_text(encoding="utf-8"))
        k = k or round(results[method]["l0"])
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--text", required=True, action="append", type=Path)
    parser.add_argument("--files")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", default="4608")
    parser.add_argument("--steps", default="2000")
    parser.add_argument("--runs", type=Path, help="folder of the runs  [default: a temporary one]")
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    flags = ["--width", given.width, "--steps", given.steps, "--dtype", "float32", "--backend", "numba"]
    text = TextOptions(tuple(given.text), pattern=given.files, shuffle=1, per_document=1)
    model = llm.open_model(given.model)
    with tempfile.TemporaryDirectory() as folder:
        runs = given.runs or Path(folder)
        sites = [measure(model, store, runs, text, given.tokens, flags) for store in given.stores]
    whole = {"flags": flags, "rows": [len(llm.open_harvest(store)) for store in given.stores], "sites": sites}
    given.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
