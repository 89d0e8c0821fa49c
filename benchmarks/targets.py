"""Targets from the data against those of the groups, on worlds whose features are known.

    python benchmarks/targets.py [--seeds 1] [--steps 2500] [--worlds 3:128 10:256 30:512] [--methods ...] [--l0 0]

A world K:D has 1024 features of weight 1 in D dimensions, K of them active in a row in the mean, their frequencies
falling as i^-2/3; `imbalanced` is the set of `refgba.model.imbalanced`.  `default` and `measured` are recipes of which
nothing is set but width and steps (--l0 asks for an L0); `batchtopk` is told how many features are active, and has the
learning rate 3e-3, the best of 1e-3, 3e-3 and 7.5e-3 on seed 0.  The table is in recipe.md.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from refgba import backends, gba
from refgba.baselines import METHODS
from refgba.config import Baseline, BaselineConfig
from refgba.data.laws import zipf_frequencies
from refgba.experiments.training import trained
from refgba.model import Independent, SyntheticModel, imbalanced
from refgba.recipe import RECIPES
from refgba.sae import unit_rows
from refgba.types import Array, Mask

FEATURES = 1024
ROWS, JUDGED = 90_000, 10_000
HEAD = ("world", "method", "seed", "mean cosine", "FRR(0.9)", "uniqueness", "F1", "L0", "truth", "FVU", "dead", "s")


def world(name: str, seed: int) -> SyntheticModel:
    """The model of a world K:D, or of the imbalanced set."""
    if name == "imbalanced":
        return imbalanced(seed)
    active, d = map(float, name.split(":"))
    law = Independent(zipf_frequencies(FEATURES, active / FEATURES, 2 / 3))
    return SyntheticModel(law, d=int(d), seed=seed)


def judged(config: Any, params: Any, x: Array, support: Mask, V: Array) -> list[str]:
    """Against the truth, on rows x (L, d): neurons and features are matched one to one, by the sum of their cosines."""
    _, s = METHODS[config.method].evaluation_codes(params, x, config)
    on, f = s != 0, METHODS[config.method].decode(params, s)
    cosine = params.V @ V.T  # (M, n)
    neuron, feature = linear_sum_assignment(-cosine)
    open_, true = on[:, neuron], support[:, feature]
    f1 = 2 * (open_ & true).sum(axis=0) / np.maximum(1, open_.sum(axis=0) + true.sum(axis=0))
    return [
        f"{cosine[neuron, feature].mean():.3f}",
        f"{(cosine.max(axis=0) > 0.9).mean():.1%}",
        f"{len(set(cosine.argmax(axis=1))) / len(cosine):.3f}",
        f"{f1.mean():.3f}",
        f"{on.sum(axis=1).mean():.1f}",
        f"{support.sum(axis=1).mean():.1f}",
        f"{((f - x) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum():.3f}",
        f"{(~on.any(axis=0)).mean():.1%}",
    ]


def main() -> None:
    """Train, judge, and print the table as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--width", type=int, default=FEATURES)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--l0", type=float, default=0)
    parser.add_argument("--worlds", nargs="+", default=["3:128", "10:256", "30:512"])
    parser.add_argument("--methods", nargs="+", default=["default", "measured", "batchtopk"])
    given = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for name in given.worlds:
        for seed in range(given.seeds):
            truth = world(name, seed)
            rows = truth.draw(0, ROWS + JUDGED)
            kept = rows.support.any(axis=1)  # a row without a feature has no direction
            x, support = unit_rows(rows.X[kept]).astype(np.float32), rows.support[kept]
            settings: dict[str, Any] = {
                "width": given.width, "steps": given.steps, "seed": seed, "dtype": "float32",
            }  # fmt: skip
            for method in given.methods:
                if method in RECIPES:
                    more = {"l0": given.l0} if method == "measured" else {}
                    config: Any = RECIPES[method](truth.d, **settings, **more)
                else:
                    baseline: Baseline = method
                    k = round(support.sum(axis=1).mean())
                    config = BaselineConfig(method=baseline, k=k, lr=3e-3, **settings)
                began = time.perf_counter()
                engine, state = trained(gba.minibatches(x[:-JUDGED], config), truth.d, config, "numba")
                seconds = f"{time.perf_counter() - began:.0f}"
                V = truth.V.astype(np.float32)
                figures = judged(config, engine.params(state), x[-JUDGED:], support[-JUDGED:], V)
                print(f"| {name} | {method} | {seed} | {' | '.join([*figures, seconds])} |", flush=True)


if __name__ == "__main__":
    backends.load("numba", "float32")
    main()
