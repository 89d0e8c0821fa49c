"""Unequal frequencies: which features GBA's groups recover, and which BA's one target, by how often each occurs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refgba import recipe
from refgba.data.laws import zipf_frequencies
from refgba.experiments import drawing, measures, training, workers
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.outcome import Verdict
from refgba.model import Independent
from refgba.types import Array, Float64

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = (
    "Groups with targets from high to low cover features of every frequency, where BA's one target suits some of them "
    "only: BA is worse than GBA everywhere."
)
TAKES_DATA = False


@dataclass(frozen=True)
class Sizes:
    """Settings: Zipf frequencies of that exponent with s features per row on average; BA is run at each target p."""

    n: int
    d: int
    s: int
    exponent: float
    p: tuple[float, ...]
    bins: int
    rows: int
    M: int
    steps: int
    batch: int
    seeds: int


SIZES = {
    "quick": Sizes(
        n=64, d=48, s=3, exponent=1.0, p=(0.003, 0.01, 0.03, 0.1), bins=8, rows=16384, M=512, steps=1200, batch=256,
        seeds=3,
    ),
    "full": Sizes(
        n=128, d=64, s=3, exponent=1.0, p=(0.001, 0.003, 0.01, 0.03, 0.1), bins=8, rows=32768, M=1024, steps=1500,
        batch=256, seeds=3,
    ),
}  # fmt: skip


def measure(sizes: Sizes, backend: str, tick: Tick) -> dict[str, Any]:
    """For each method the cosine of every feature's nearest neuron, [seed][feature]; both by the default recipe."""
    f = zipf_frequencies(sizes.n, sizes.s / sizes.n, sizes.exponent)
    methods: dict[str, dict[str, Any]] = {"GBA": {}}
    methods |= {f"BA, p = {p:g}": {"groups": 1, "htf": p} for p in sizes.p}
    work = partial(of_seed, methods=methods, f=f, sizes=sizes, backend=backend)
    seeds = workers.at_once(work, range(sizes.seeds), backend, tick)
    return {"f": f.tolist(), "cosine": {name: [seed[name] for seed in seeds] for name in methods}}


def of_seed(
    seed: int, methods: dict[str, dict[str, Any]], f: Array, sizes: Sizes, backend: str
) -> dict[str, list[float]]:  # fmt: skip
    """Of one seed, for each method the cosine of every feature's nearest neuron."""
    V = training.gaussian(sizes.n, sizes.d, seed)
    X = training.mixture(Independent(f), V, sizes.rows, seed)
    shared: dict[str, Any] = {"width": sizes.M, "steps": sizes.steps, "batch": sizes.batch, "dtype": "float32"}
    return {
        name: measures.nearest(
            V, training.train(X, recipe.default(sizes.d, seed=seed, **shared, **given), backend).neurons
        )
        for name, given in methods.items()
    }


# ---- what the numbers say --------------------------------------------------------------------------------------------


def recovered(data: dict[str, Any], name: str) -> Float64:
    """Which features a method recovered, 0 or 1, (seeds, n), the most frequent first."""
    return (np.asarray(data["cosine"][name]) >= measures.TAU).astype(np.float64)


def verdict(data: dict[str, Any]) -> Verdict:
    """Is GBA above BA at every target, over all features and over the commonest and the rarest quarter?"""
    quarter = len(data["f"]) // 4
    parts = {"all": slice(None), "commonest quarter": slice(quarter), "rarest quarter": slice(-quarter, None)}
    frr = {name: {part: recovered(data, name)[:, at].mean() for part, at in parts.items()} for name in data["cosine"]}
    ba = [name for name in frr if name != "GBA"]
    best = {part: max(ba, key=lambda name: frr[name][part]) for part in parts}
    claims = {
        f"GBA recovers more than BA at any one target, of {'all features' if part == 'all' else f'the {part}'}": (
            frr["GBA"][part] > frr[best[part]][part]
        )
        for part in parts
    }
    spread = measures.spread(recovered(data, "GBA").mean(axis=1).tolist())
    best_spread = measures.spread(recovered(data, best["all"]).mean(axis=1).tolist())
    worst = min(ba, key=lambda name: frr[name]["all"])
    comparisons = " and ".join(
        f"{frr['GBA'][part]:.1%} against {frr[best[part]][part]:.1%} ({best[part]}) of the {part}"
        for part in ("commonest quarter", "rarest quarter")
    )
    return Verdict(
        claims,
        f"with frequencies from {data['f'][-1]:.4f} to {data['f'][0]:.2f} GBA recovers "
        f"{spread} of the features, BA {best_spread} at the best of its targets ({best['all']}) and "
        f"{frr[worst]['all']:.1%} at the worst ({worst}); {comparisons}, each against the BA best there.",
    )


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: dict[str, Any]) -> list[Picture]:
    """FRR by frequency, and overall."""
    settings = data["settings"]
    where = f"n = {settings['n']}, d = {settings['d']}, Zipf exponent {settings['exponent']:g}"
    return [
        Picture(
            f"Recovery against how often a feature occurs: {where}",
            f"Lines of FRR at cosine {measures.TAU} against feature frequency, in {settings['bins']} bins of equally "
            "many features, for GBA and for BA at several targets.",
            lambda figure: _by_frequency(figure, data),
        ),
        Picture(
            f"Features recovered by each method: {where}",
            "For GBA and BA at several targets the share of all features that is recovered, and of the commonest and "
            "the rarest quarter, one point per seed and a bar at the mean.",
            lambda figure: _overall(figure, data),
        ),
    ]


def _by_frequency(figure: Figure, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    bins = np.array_split(np.arange(len(data["f"])), data["settings"]["bins"])
    at = [float(np.exp(np.mean(np.log(np.take(data["f"], i))))) for i in bins]
    for k, (name, style) in enumerate(zip(data["cosine"], drawing.STYLES, strict=False)):
        shares = np.array([[seed[i].mean() for i in bins] for seed in recovered(data, name)])
        mean = shares.mean(axis=0)
        reach = np.abs(np.stack([shares.min(axis=0), shares.max(axis=0)]) - mean)
        x = np.array(at) * 1.012 ** (k - len(data["cosine"]) / 2)  # The error bars stand beside one another.
        axes.errorbar(x, mean, reach, label=name, markersize=4.5, linewidth=1.5, elinewidth=0.8, capsize=2, **style)
    axes.set(xscale="log", xlabel="frequency f of the features in a bin, geometric mean")
    drawing.share_axis(axes, f"FRR({measures.TAU}), mean and range of seeds")
    axes.legend(fontsize=9, loc="best")


def _overall(figure: Figure, data: dict[str, Any]) -> None:
    n = len(data["f"])
    parts = {"all features": slice(None), "commonest quarter": slice(n // 4), "rarest quarter": slice(-(n // 4), None)}
    names = list(data["cosine"])
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (part, at) in zip(panels, parts.items(), strict=True):
        for x, (name, style) in enumerate(zip(names, drawing.STYLES, strict=False)):
            shares = recovered(data, name)[:, at].mean(axis=1)
            axes.bar(x, shares.mean(), color=style["color"], alpha=0.35, width=0.7)
            axes.plot([x] * len(shares), shares, style["marker"], color=style["color"], markersize=5)
        axes.set_title(part, fontsize=10)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=9)
        drawing.share_axis(axes, f"FRR({measures.TAU})")
        axes.label_outer()
