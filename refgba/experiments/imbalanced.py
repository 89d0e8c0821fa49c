"""The paper's table (section 7): features recovered on the imbalanced set, by every method.

The paper's TopK recovers nearly all features at K = 20, the baseline here does not.  Two variants tell why not.  `tied`
is TopK in GBA's own network, which may be what the paper has.  `from the truth` is the baseline with n neurons that
begin as the features: whether training stays where a random start does not get to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refgba import baselines, gba, model, recipe, sae
from refgba.adam import AdamW
from refgba.config import BaselineConfig, GBAConfig
from refgba.experiments import drawing, training, workers
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.outcome import Verdict, resolved
from refgba.metrics import mcs
from refgba.types import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = (
    "On n = 128 features in d = 42 dimensions, half of the rows with 3 of them and half with 20, GBA recovers all "
    "features untuned, and TopK fewer the further K is from the truth."
)
TAKES_DATA = False
PAPER = {  # FRR(0.8), FRR(0.9)
    "GBA": (1.0, 1.0), "TopK, K = 20": (1.0, 0.984), "TopK, K = 30": (0.984, 0.242), "TopK, K = 50": (0.945, 0.234),
    "GBA, wrong range": (0.383, 0.039),
}  # fmt: skip
LEVELS = (0.8, 0.9)
ALL = "GBA recovers all features at cosine 0.8, and 98% at 0.9"
FEWER = "TopK recovers the fewer the further K is from the truth"
BEYOND_QUICK = (ALL, FEWER)  # The quick run has half of the neurons and of the steps, and one seed.


@dataclass(frozen=True)
class Sizes:
    """Settings.  Learning rates are tried on the first seed, and each baseline keeps that which recovers most."""

    rows: int
    M: int
    steps: int
    lr: tuple[float, ...]
    seeds: int
    few: int  # seeds of what is slow, the wrong range where every neuron fires all the time, and of TopK's variants


SIZES = {
    "quick": Sizes(rows=20_000, M=512, steps=1500, lr=(1e-2,), seeds=1, few=1),
    "full": Sizes(rows=50_000, M=1024, steps=3000, lr=(1e-3, 3e-3, 1e-2), seeds=10, few=2),
}
KS = (20, 30, 50)
WRONG = "GBA, wrong range"
VARIANTS: dict[str, dict[str, Any]] = {
    "GBA": {},
    "GBA, tied": {"untied": False},
    WRONG: {"htf": 0.9, "ltf": 0.5},  # The features' f = 0.09 lies far below.
    "BA, p = 0.02": {"groups": 1, "htf": 0.02},
}
BASELINES: dict[str, dict[str, Any]] = {
    **{f"TopK, K = {k}": {"method": "topk", "k": k} for k in KS},
    "BatchTopK, K = 20": {"method": "batchtopk", "k": 20},
    "JumpReLU": {"method": "jumprelu", "sparsity": 0.002},
    "L1": {"method": "l1", "sparsity": 0.05},
}
FROM_TRUTH, TIED = "TopK, K = {}, from the truth", "TopK, K = {}, tied"


def measure(sizes: Sizes, backend: str, tick: Tick) -> dict[str, Any]:
    """For each method FRR at both levels, [seed][level], and the learning rate that a baseline kept."""
    first, kept = of_seed(0, sizes, backend, None, tick)
    others = partial(of_seed, sizes=sizes, backend=backend, kept=kept)
    seeds = [first, *(one for one, _ in workers.at_once(others, range(1, sizes.seeds), backend, tick))]
    frr = {name: [one[name] for one in seeds if name in one] for name in first}
    return {"frr": frr, "lr": kept, "paper": PAPER}


def of_seed(
    seed: int, sizes: Sizes, backend: str, kept: dict[str, float] | None, tick: Tick = id
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """FRR of each method at both levels, and the learning rates that baselines kept; `kept` if they are known."""
    truth = model.imbalanced(seed)
    X = truth.draw(0, sizes.rows).X
    frr: dict[str, list[float]] = {}
    best = dict(kept or {})
    for name, given in VARIANTS.items():
        if name == WRONG and seed >= sizes.few:
            continue
        tick(f"{name}, seed {seed}")
        config = recipe.default(truth.d, width=sizes.M, steps=sizes.steps, seed=seed, dtype="float32", **given)
        frr[name] = rates(training.train(X, config, backend).neurons, truth.V)
    for name, given in BASELINES.items():
        frr_by_rate = {}
        for lr in sizes.lr if kept is None else (kept[name],):
            tick(f"{name}, lr {lr:g}, seed {seed}")
            baseline = BaselineConfig(width=sizes.M, steps=sizes.steps, seed=seed, lr=lr, dtype="float32", **given)
            frr_by_rate[lr] = rates(trained(X, baseline, backend), truth.V)
        best[name] = max(frr_by_rate, key=lambda lr: sum(frr_by_rate[lr]))
        frr[name] = frr_by_rate[best[name]]
    for k in KS if seed < sizes.few else ():
        tick(f"TopK, K = {k}, from the truth and tied, seed {seed}")
        given = {"width": truth.n, "steps": sizes.steps, "seed": seed, "dtype": "float32"}
        baseline = BaselineConfig(method="topk", k=k, **given)
        frr[FROM_TRUTH.format(k)] = rates(trained(X, baseline, backend, truth.V), truth.V)
        config = GBAConfig(lr=1e-2, lr_decay=0.5, **given | {"width": sizes.M})
        frr[TIED.format(k)] = rates(tied(X, config, k), truth.V)
    return frr, best


def trained(X: Array, config: BaselineConfig, backend: str, W: Array | None = None) -> Array:
    """The decoder rows (M, d) of a baseline trained on rows X (N, d): what its neurons stand for.

    W: (M, d) encoder and decoder rows to begin with, instead of random ones.
    """
    d = X.shape[1]
    params = None if W is None else replace(baselines.random_params(config, d), W=W, W_dec=W)
    engine, state = training.trained(gba.minibatches(X, config), d, config, backend, params)
    V: Array = engine.params(state).V
    return V


def tied(X: Array, config: GBAConfig, k: int) -> Array:
    """The neurons (M, d) of GBA's tied network trained on rows X (N, d), with TopK as its gate: b = 0 throughout."""
    params = gba.random_params(config, X.shape[1])
    optimiser = {name: AdamW.like(getattr(params, name)) for name in ("W", "a", "b_pre")}
    for t, x in enumerate(gba.minibatches(X, config), start=1):
        y, _, _ = sae.encode(params, x, config.activation)
        on = baselines.largest(y, k)
        grads = sae.gradients(params, x, sae.Forward(y, on, on * y, sae.decode(params, on * y)))
        for name, adam in optimiser.items():
            theta = adam.update(getattr(params, name), getattr(grads, name), recipe.learning_rate(config, t), config)
            setattr(params, name, theta)
        params.W = sae.unit_rows(params.W)
    return params.W


def rates(W: Array, V: Array) -> list[float]:
    """FRR of the features V (n, d) by the neurons W (M, d), at each level."""
    cosines = mcs(V, W)
    return [round(float(np.mean(cosines >= level)), 4) for level in LEVELS]


# ---- what the numbers say --------------------------------------------------------------------------------------------


def mean(data: dict[str, Any], name: str) -> tuple[float, float]:
    """Mean FRR of a method at both levels."""
    low, high = np.mean(data["frr"][name], axis=0).tolist()
    return low, high


def verdict(data: dict[str, Any]) -> Verdict:
    """Does GBA recover all, TopK nearly all at K = 20 and ever fewer from there on, and GBA little in a wrong range?"""
    gba, wrong = mean(data, "GBA"), mean(data, WRONG)
    top = [mean(data, f"TopK, K = {k}") for k in KS]
    truth, tied = [[mean(data, name.format(k)) for k in KS] for name in (FROM_TRUTH, TIED)]
    claims = {
        ALL: gba[0] >= 0.995 and gba[1] >= 0.98,
        FEWER: top[0][1] >= top[1][1] >= top[2][1] and top[0][1] > top[2][1],
        "TopK recovers 98% at cosine 0.8 where K is the truth": top[0][0] >= 0.98,
        "TopK in GBA's tied network recovers the fewer the further K is from it": tied[0] > tied[1] >= tied[2],
        "GBA with targets in a wrong range recovers less than half": wrong[1] < 0.5,
    }
    rest = [name for name in BASELINES if not name.startswith("TopK")]
    best = max(rest, key=lambda name: sum(mean(data, name)))
    return Verdict(
        resolved(claims, data, BEYOND_QUICK),
        f"at cosine 0.8 / 0.9 GBA recovers {shares(gba)} (paper 100 / 100%), TopK at K = "
        f"20, 30, 50 {listed(top)} (paper 100 / 98.4, 98.4 / 24.2, 94.5 / 23.4%), in GBA's tied network "
        f"{listed(tied)}; begun as the features it keeps {listed(truth)}. GBA in a wrong range {shares(wrong)} (paper "
        f"38.3 / 3.9%); of the others {best} does best, {shares(mean(data, best))}.",
    )


def shares(at: tuple[float, float]) -> str:
    """FRR at both levels."""
    return f"{100 * at[0]:.1f} / {at[1]:.1%}"


def listed(means: list[tuple[float, float]]) -> str:
    """FRR at both levels of several."""
    return ", ".join(map(shares, means))


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: dict[str, Any]) -> list[Picture]:
    """Both levels, method by method."""
    settings = data["settings"]
    seeds = f"{settings['seeds']} seed{'s' * (settings['seeds'] > 1)}"
    return [
        Picture(
            f"The imbalanced set: M = {settings['M']}, {settings['steps']} steps, {seeds}",
            "For each method bars of the mean FRR at cosine 0.8 and 0.9, a point for each seed, and a line where the "
            "paper gives a number.",
            lambda figure: _draw(figure, data),
            (8.0, 5.0),
        )
    ]


def _draw(figure: Figure, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    names = list(data["frr"])
    for k, (level, style) in enumerate(zip(LEVELS, drawing.STYLES, strict=False)):
        x = np.arange(len(names)) + 0.4 * k - 0.2
        seeds = [[seed[k] for seed in data["frr"][name]] for name in names]
        axes.bar(x, [np.mean(of) for of in seeds], 0.36, color=style["color"], alpha=0.45, label=f"FRR({level})")
        for at, name, of in zip(x, names, seeds, strict=True):
            axes.plot([at] * len(of), of, style["marker"], color=style["color"], markersize=3)
            if name in data["paper"]:
                axes.hlines(data["paper"][name][k], at - 0.2, at + 0.2, color="black", linewidth=1.5)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=9)
    drawing.share_axis(axes, "share of features; black: the paper")
    axes.legend(fontsize=9)
