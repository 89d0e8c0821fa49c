"""Sites of a language model: what is left unexplained of held-out rows, at one L0, over several seeds.

    python benchmarks/sites.py STORE STORE ... -o benchmarks/results/llm-sites.json

A store is a harvest of a site.  A tenth of its rows, drawn at random, is held out; rows are centred where `train` would
centre them, and have unit norm.  TopK has K, and so has BatchTopK, whose L0 on the rows held out, by the threshold that
it keeps, is the l0 that GBA with measured targets aims at in the run of the same seed.  BatchTopK and TopK have LR,
which suited them best on MiniLM (`refgba reproduce frontier`), where everything in the recipe was chosen too: no site
is tuned for.  As many networks are trained at once as there are cores.  What the file has already is not measured
again.
"""

from __future__ import annotations

import argparse
import json
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import agreement
import numpy as np

from refgba import gba, recipe
from refgba.backends.base import AnyConfig
from refgba.config import BaselineConfig
from refgba.data import files
from refgba.experiments import workers
from refgba.experiments.training import trained
from refgba.runs.judging import evaluate
from refgba.types import Array

LR = 3e-3
HELD_OUT = 0.1
CHUNK = 2048
BACKEND = "numba"


class Task(NamedTuple):
    """A network to train.  l0: K, or the l0 of measured targets."""

    store: Path
    method: str
    l0: float
    seed: int


@cache
def rows(store: Path) -> tuple[Array, Array]:
    """Rows to train on and rows to judge on, as training sees them."""
    x = agreement.real(store)
    held_out = int(len(x) * HELD_OUT)
    return x[held_out:], x[:held_out]


def configure(task: Task, d: int, width: int, steps: int) -> AnyConfig:
    """The settings of a task, on rows of d dimensions."""
    given: dict[str, Any] = {"width": width, "steps": steps, "seed": task.seed, "dtype": "float32"}
    if task.method == "measured":
        return recipe.measured(d, l0=task.l0, **given)
    method: Any = task.method
    return BaselineConfig(method=method, k=int(task.l0), lr=LR, **given)


def network(task: Task, width: int, steps: int) -> dict[str, Any]:
    """Train a network, and judge it on the rows held out."""
    train, held_out = rows(task.store)
    config = configure(task, train.shape[1], width, steps)
    engine, state = trained(gba.minibatches(train, config), train.shape[1], config, BACKEND)
    chunks = np.array_split(held_out, -(-len(held_out) // CHUNK))
    summary = evaluate(engine.params(state), config, engine, chunks).summary()
    found = {name: round(summary[name], 5) for name in ("fvu", "l0", "dead")}
    about = {"rows": len(train), "held_out": len(held_out), "d": train.shape[1]}
    return {"site": task.store.name, "method": task.method, "asked": task.l0, "seed": task.seed} | about | found


def measure(stores: list[Path], k: int, seeds: int, width: int, steps: int, out: Path) -> None:
    """Every network of every site, written as they come."""
    settings = {"k": k, "width": width, "steps": steps, "batch": 512, "lr": LR, "seeds": seeds}
    whole: dict[str, Any] = {"settings": settings, "networks": []}
    if out.exists():
        whole = json.loads(out.read_text(encoding="utf-8"))
        if whole["settings"] != settings:
            raise SystemExit(f"{out}: was begun with {whole['settings']}, not {settings}")
    for store in stores:
        there = {(n["method"], n["seed"]): n for n in whole["networks"] if n["site"] == store.name}
        first = [Task(store, method, k, seed) for method in ("batchtopk", "topk") for seed in range(seeds)]
        for tasks in (first, None):
            if tasks is None:  # BatchTopK's L0 is known by now
                tasks = [Task(store, "measured", there["batchtopk", seed]["l0"], seed) for seed in range(seeds)]
            work = partial(network, width=width, steps=steps)
            found = workers.at_once(work, [t for t in tasks if (t.method, t.seed) not in there], BACKEND, print)
            there |= {(n["method"], n["seed"]): n for n in found}
            whole["networks"] += found
            files.write(out, (json.dumps(whole, indent=1) + "\n").encode())
            for n in found:
                print(
                    f"{n['site']} {n['method']} {n['seed']}: FVU {n['fvu']:.4f}, L0 {n['l0']:.1f}, dead {n['dead']:.2%}"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--k", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    measure([store.absolute() for store in given.stores], given.k, given.seeds, given.width, given.steps, given.out)
