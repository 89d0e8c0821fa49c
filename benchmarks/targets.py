"""An experiment, not yet a recipe: targets measured from the data in place of the groups'.

    python benchmarks/targets.py [--seeds 1] [--steps 2500] [--worlds 3:128 10:256 30:512] [--alone]

A world K:D has 1024 features of weight 1 in D dimensions, K of them active in a row in the mean, their frequencies
falling as i^-2/3.  Every network has 1024 neurons and the default recipe's settings; the table is in recipe.md.
`measured` departs from Algorithm 2 and from the recipe (all of it ours) in three things:

    release   when forming ends, of neurons that agree (cos >= `hold`) one is kept, the others begin again at random
    target    p_m is how often matching pursuit uses v_m on a sample of rows, before the fit and after each eighth of it
    floor     a neuron is raised below 0.8 p_m, where the recipe has 0.5

Pursuit takes the feature v_m with the largest v_m · r from the residual r, again and again, until that is no more than
sqrt(2 ln M) ||r|| / sqrt(d): what the largest of M random directions has with a residual that is noise.  So a row is
given as many features as it shows, and copies of a feature share its frequency.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from refgba import gba, recipe, sae
from refgba.bias import Buffer, moved
from refgba.config import GBAConfig
from refgba.data.laws import zipf_frequencies
from refgba.experiments.training import trained
from refgba.model import Independent, SyntheticModel, imbalanced
from refgba.sae import Params, unit_rows
from refgba.types import Array, Mask

FEATURES = 1024
ROWS, JUDGED, SAMPLE = 90_000, 10_000, 8192
RAREST = 5e-4  # no target is lower: about 40 of ROWS
FLOOR = 0.8
LOOKS = 8  # times that targets are measured


def pursued(x: Array, V: Array, most: int = 100) -> Mask:
    """Which features V (M, d) nonnegative matching pursuit uses in rows x (L, d), (L, M); at most so many per row."""
    (L, d), M = x.shape, len(V)
    alpha = np.sqrt(2 * np.log(M) / d)
    cosines, dots = V @ V.T, x @ V.T  # (M, M), (L, M)  v_m · r
    left = (x**2).sum(axis=1)  # (L,)  ||r||^2
    used = np.zeros((L, M), bool)
    rows = np.arange(L)  # those that go on
    for _ in range(most):
        best = dots[rows].argmax(axis=1)
        size = dots[rows, best]
        on = (size > alpha * np.sqrt(np.maximum(left[rows], 0))) & (size > 1e-3)
        rows, best, size = rows[on], best[on], size[on]
        used[rows, best] = True
        left[rows] -= size**2
        dots[rows] -= size[:, None] * cosines[best]
    return used


def targets(x: Array, V: Array) -> Array:
    """How often pursuit uses each feature in rows x, (M,), at least RAREST."""
    return np.maximum(pursued(x, unit_rows(V)).mean(axis=0), RAREST)


def distinct(W: Array, tau: float) -> Array:
    """The rows of W (M, d) that are within cosine tau of no row taken before; those with most such neighbours first."""
    near = tau <= W @ W.T  # (M, M)
    taken: list[int] = []
    for m in np.argsort(-near.sum(axis=1), kind="stable"):
        if not near[m, taken].any():
            taken.append(int(m))
    return W[taken]


def adapt(state: gba.State, target: Array) -> None:
    """Algorithm 2 with a target (M,) for each neuron, T the mean positive peak of all, and FLOOR."""
    config, buffer = state.config, state.buffer
    p, r = buffer.counts / buffer.rows, buffer.peaks
    T = np.full(len(r), r.sum() / max(1, np.count_nonzero(r)))
    b = moved(state.params.b, r, T, p > target, p < FLOOR * target, config.gamma_minus, config.gamma_plus)
    state.params.b = b.astype(state.params.b.dtype)
    state.last, state.buffer = buffer, Buffer(len(r))


def measured(x: Array, config: GBAConfig) -> Params:
    """A network trained on unit rows x (N, d): formed as by the recipe, fitted to measured targets."""
    rng = np.random.default_rng(config.seed)
    forming = replace(config, steps=recipe.forming_steps(config), form=1.0, hold=1.0)
    engine, state = trained(gba.minibatches(x, forming), x.shape[1], forming, "numba")
    W = distinct(engine.params(state).W, config.hold)
    fresh = unit_rows(rng.standard_normal((config.width - len(W), x.shape[1])))
    W = np.concatenate([W, fresh.astype(x.dtype)])  # (M, d)
    target = targets(x[:SAMPLE], W)
    y = np.sort(x[:SAMPLE] @ W.T, axis=0)  # (L, M)
    b = -np.clip(y[((1 - target) * SAMPLE).astype(int), np.arange(len(W))], 1e-3, 1)  # fires as often as its target
    fitting = replace(config, steps=config.steps - forming.steps, form=0.0, hold=1.0, seed=config.seed + 1)
    start = Params(W, np.full(len(W), 0.5), b, np.zeros(x.shape[1]), W.copy())
    state = engine.init(start.astype(fitting.master), fitting)
    look = max(1, fitting.steps // LOOKS)
    for rows in gba.minibatches(x, fitting):
        engine.step(state, rows)
        if state.t % fitting.adapt_every == 0:
            adapt(state, target)
        if state.t % look == 0 and state.t < fitting.steps:
            sample = x[rng.choice(len(x), SAMPLE, replace=False)]
            target = targets(sample, engine.params(state).V)
    return engine.params(state)


def default(x: Array, config: GBAConfig) -> Params:
    """A network trained on unit rows x (N, d) by the default recipe."""
    engine, state = trained(gba.minibatches(x, config), x.shape[1], config, "numba")
    return engine.params(state)


def judged(params: Params, x: Array, support: Mask, V: Array) -> list[str]:
    """Against the truth: neurons and features are matched one to one, by the sum of their cosines."""
    forward = sae.forward(params, x, "jumprelu")
    cosine = params.V @ V.T  # (M, n)
    neuron, feature = linear_sum_assignment(-cosine)
    on, true = forward.on[:, neuron], support[:, feature]
    f1 = 2 * (on & true).sum(axis=0) / np.maximum(1, on.sum(axis=0) + true.sum(axis=0))
    residual = ((forward.f - x) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    return [
        f"{cosine[neuron, feature].mean():.3f}",
        f"{(cosine.max(axis=0) > 0.9).mean():.1%}",
        f"{len(set(cosine.argmax(axis=1))) / len(cosine):.3f}",
        f"{f1.mean():.3f}",
        f"{forward.on.sum(axis=1).mean():.1f}",
        f"{support.sum(axis=1).mean():.1f}",
        f"{residual:.3f}",
    ]


def world(name: str, seed: int) -> SyntheticModel:
    """The model of a world K:D, or of the imbalanced set."""
    if name == "imbalanced":
        return imbalanced(seed)
    active, d = map(float, name.split(":"))
    law = Independent(zipf_frequencies(FEATURES, active / FEATURES, 2 / 3))
    return SyntheticModel(law, d=int(d), seed=seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--width", type=int, default=FEATURES)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--worlds", nargs="+", default=["3:128", "10:256", "30:512"])
    parser.add_argument("--alone", action="store_true", help="only the measured targets, not the default beside them")
    given = parser.parse_args()
    head = (
        "world",
        "targets",
        "seed",
        "mean cosine",
        "FRR(0.9)",
        "uniqueness",
        "F1 of gates",
        "L0",
        "truth",
        "FVU",
        "s",
    )
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name in given.worlds:
        for seed in range(given.seeds):
            truth = world(name, seed)
            rows = truth.draw(0, ROWS + JUDGED)
            kept = rows.support.any(axis=1)  # a row without a feature has no direction
            x, support = unit_rows(rows.X[kept]).astype(np.float32), rows.support[kept]
            config = recipe.default(truth.d, width=given.width, steps=given.steps, seed=seed, dtype="float32")
            for method in (measured,) if given.alone else (default, measured):
                began = time.perf_counter()
                params = method(x[:-JUDGED], config)
                seconds = f"{time.perf_counter() - began:.0f}"
                figures = judged(params, x[-JUDGED:], support[-JUDGED:], truth.V.astype(np.float32))
                print(f"| {name} | {method.__name__} | {seed} | {' | '.join([*figures, seconds])} |", flush=True)
