"""FRR(0.9) on the imbalanced set with a constant added to one coordinate of every row: "Offsets" in recipe.md.

    python benchmarks/offsets.py [--seeds 3] [--width 512] [--steps 1500] [--offsets 0 0.5 1 2 5 20]

The constant is in units of the median norm of the rows.  Data and weights are both drawn from the seed.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np

import refgba
from refgba.data.centre import locate
from refgba.data.memory import held
from refgba.model import imbalanced

ROWS = 50_000

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--width", type=int, default=512)
parser.add_argument("--steps", type=int, default=1500)
parser.add_argument("--offsets", type=float, nargs="+", default=[0, 0.5, 1, 2, 5, 20])
parser.add_argument("--centre", nargs="+", default=["off", "auto", "on"], choices=["off", "auto", "on"])
arguments = parser.parse_args()

print("| constant | gamma | offset | " + " | ".join(f"FRR(0.9), --centre {name}" for name in arguments.centre) + " |")
print("|---" * (3 + len(arguments.centre)) + "|")
for size in arguments.offsets:
    found: dict[str, list[float]] = {name: [] for name in arguments.centre}
    for seed in range(arguments.seeds):
        truth = imbalanced(seed)
        rows = truth.draw(0, ROWS).X
        rows[:, 0] += size * np.median(np.linalg.norm(rows, axis=1))
        for name, shares in found.items():
            model = refgba.GBA(
                width=arguments.width, steps=arguments.steps, seed=seed, backend="numba", dtype="float32",
                centre=name, verbose=False,
            )  # fmt: skip
            shares.append(model.fit(rows).frr(truth.V))
    where = locate(held(rows))
    cells = [f"{statistics.mean(shares):.1%} (lowest {min(shares):.1%})" for shares in found.values()]
    print(f"| {size:g} | {where.gamma:.2f} | {where.offset:.2f} | " + " | ".join(cells) + " |", flush=True)
