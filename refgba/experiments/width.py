"""Width (Theorem 6.1): how many neurons Modified BA needs, M >~ n p^(-s / (1-e)^2), against s at some p in the band.

Neurons of Modified BA do not interact, so one run with many of them tells what fewer would find: if a share h_i of the
neurons ends within TAU of feature i, M neurons recover  FRR(M) = mean_i 1 - (1 - h_i)^M  on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from refgba import theory
from refgba.experiments import drawing, measures, training
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.outcome import Verdict
from refgba.metrics import cosine
from refgba.model import Uniform
from refgba.types import Float64

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = (
    "The number of neurons that recover every feature grows with the features s in a row as M >~ n p^(-s/(1-e)^2): at "
    "a fixed p in the band each further feature in a row multiplies it by 1/p."
)
TAKES_DATA = False


@dataclass(frozen=True)
class Sizes:
    """Settings: M neurons are run, at each of s and p; FRR is looked at after each of `after` steps."""

    n: int
    d: int
    s: tuple[int, ...]
    p: tuple[float, ...]
    rows: int
    M: int
    after: tuple[int, ...]
    seeds: int


SIZES = {
    "quick": Sizes(n=128, d=96, s=(2, 3, 4, 5), p=(0.01, 0.02), rows=8192, M=4096, after=(2, 6), seeds=2),
    "full": Sizes(n=128, d=96, s=(2, 3, 4, 5, 6), p=(0.01, 0.02, 0.035), rows=8192, M=8192, after=(2, 6), seeds=3),
}


def measure(sizes: Sizes, _backend: str, tick: Tick) -> dict[str, Any]:
    """FRR against M as [s][p][after][seed][M], and the M that reaches RECOVERED, None where all are too few.

    floor: the M that it takes even if every neuron finds a feature, each equally likely,  1 - (1 - 1/n)^M = RECOVERED.
    """
    M = [int(m) for m in np.unique(np.geomspace(8, sizes.M, 25).round())]
    frr: list[Any] = []
    needed: list[Any] = []
    for s in sizes.s:
        curves = np.zeros((len(sizes.p), len(sizes.after), sizes.seeds, len(M)))
        enough: list[list[list[float | None]]] = [[[] for _ in sizes.after] for _ in sizes.p]
        for seed in range(sizes.seeds):
            V = training.gaussian(sizes.n, sizes.d, seed)
            X = training.mixture(Uniform(sizes.n, (s,)), V, sizes.rows, seed)
            W = training.neurons(sizes.M, sizes.d, seed)
            for k, p in enumerate(sizes.p):
                tick(f"s = {s}, p = {p}, seed {seed}")
                for t, w in enumerate(theory.modified_ba(X, W, p, max(sizes.after)), start=1):
                    if t in sizes.after:
                        h = np.mean(cosine(w, V.astype(np.float32)) >= measures.TAU, axis=0)  # (n,)
                        step = sizes.after.index(t)
                        curves[k, step, seed] = [expected(h, m) for m in M]
                        enough[k][step].append(smallest(h, sizes.M))
        frr.append(curves.round(5).tolist())
        needed.append(enough)
    bound = [[theory.width_bound(sizes.n, p, s) for p in sizes.p] for s in sizes.s]
    band = [[b.low, b.high] for b in (theory.resonance_band(sizes.n, sizes.d, s) for s in sizes.s)]
    floor = float(np.log(1 - measures.RECOVERED) / np.log(1 - 1 / sizes.n))
    return {"M": M, "frr": frr, "needed": needed, "bound": bound, "band": band, "floor": floor}


def expected(h: Float64, M: float) -> float:
    """FRR of M neurons on average, of which each finds feature i with probability h_i, (n,)."""
    return float(np.mean(1 - (1 - h) ** M))


def smallest(h: Float64, most: int) -> float | None:
    """The smallest M whose `expected` FRR is RECOVERED; None if it is more than `most`, where h says too little."""
    if expected(h, most) < measures.RECOVERED:
        return None
    low, high = 0.0, float(most)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if expected(h, middle) >= measures.RECOVERED else (middle, high)
    return round(high, 1)


# ---- what the numbers say --------------------------------------------------------------------------------------------


def growth(data: dict[str, Any], k: int, after: int) -> float | None:
    """The factor in M for each further feature in a row at the k-th p, of those s for which every seed got there.

    None if these are fewer than two.
    """
    pairs = [(s, M) for s, M in zip(data["settings"]["s"], needed(data, k, after), strict=True) if M]
    if len(pairs) < 2:
        return None
    s, M = zip(*pairs, strict=True)
    return float(np.exp(np.polyfit(s, np.log(M), 1)[0]))


def needed(data: dict[str, Any], k: int, after: int) -> list[float | None]:
    """For every s the M needed at the k-th p, the geometric mean of the seeds; None where one never got there."""
    per_s = [at_s[k][after] for at_s in data["needed"]]
    return [None if None in seeds else float(np.exp(np.mean(np.log(seeds)))) for seeds in per_s]


def verdict(data: dict[str, Any]) -> Verdict:
    """Does the bound hold, does M grow with s, and by the factor it says?"""
    settings = data["settings"]
    p = settings["p"]
    k = max(range(len(p)), key=lambda k: (sum(M is not None for M in needed(data, k, -1)), -k))
    M, factor, early = needed(data, k, -1), growth(data, k, -1), growth(data, k, 0)
    reached = [(s, m) for s, m in zip(settings["s"], M, strict=True) if m]
    missed = [s for s, m in zip(settings["s"], M, strict=True) if not m]
    bound = [at_s[k] for at_s in data["bound"]]
    largest = data["M"][-1]
    enough = all(m <= b if m else b > largest for m, b in zip(M, bound, strict=True))
    grows_so = factor is not None and 0.5 <= np.log(factor) / np.log(1 / p[k]) <= 2
    claims = {
        "the width of the bound is enough": enough,
        "it takes more neurons the more features a row has": len(reached) > 1
        and all(a < b for (_, a), (_, b) in pairwise(reached)),
        "it takes more by the factor of the bound": grows_so,
    }
    widths = ", ".join(f"{m:.0f} for s = {s}" for s, m in reached) or "more than was tried"
    short = f" (s = {', '.join(map(str, missed))}: not with {largest})" if missed else ""
    steps = settings["after"]
    return Verdict(
        claims,
        f"at n = {settings['n']}, d = {settings['d']}, p = {p[k]} FRR({measures.TAU}) of "
        f"{measures.RECOVERED:.0%} takes M = {widths}{short}, {_times(factor)} as many for each further feature in a "
        f"row after {steps[-1]} steps and {_times(early)} after {steps[0]}, where the bound says "
        f"{1 / p[k]:.0f} times; the bound, from {min(bound):.1e} to {max(bound):.1e}, is "
        f"{'enough' if enough else 'not enough'}"
        f"{'' if grows_so else ', but its growth is not what was seen'}.",
    )


def _times(factor: float | None) -> str:
    return "an unknown number of times" if factor is None else f"{factor:.2f} times"


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: dict[str, Any]) -> list[Picture]:
    """FRR against M for every s, and the M needed against s."""
    settings = data["settings"]
    where = f"n = {settings['n']}, d = {settings['d']}"
    k = len(settings["p"]) // 2
    return [
        Picture(
            f"Recovery against width: {where}, p = {settings['p'][k]}, after {settings['after'][-1]} steps",
            f"Lines of FRR at cosine {measures.TAU} against the number of neurons M, one for each number s of features "
            "in a row, with the range over seeds.",
            lambda figure: _curves(figure, data, k),
        ),
        Picture(
            f"Neurons needed for FRR of {measures.RECOVERED:.0%}: {where}",
            "Neurons needed against the number s of features in a row, on a logarithmic scale, after a few steps and "
            "after more, for each p, with the bound of Theorem 6.1 and with what is needed if every neuron finds a "
            "feature.",
            lambda figure: _needed(figure, data),
            (10, 5),
        ),
    ]


def _curves(figure: Figure, data: dict[str, Any], k: int) -> None:
    axes = figure.subplots()
    for s, at_s, style in zip(data["settings"]["s"], data["frr"], drawing.STYLES, strict=False):
        drawing.band(axes, data["M"], at_s[k][-1], style, f"s = {s}")
    axes.axhline(measures.RECOVERED, color="0.4", linewidth=1)
    axes.set(xscale="log", xlabel="M, neurons")
    drawing.share_axis(axes, f"FRR({measures.TAU}), mean and range of seeds")
    axes.legend(fontsize=9)


def _needed(figure: Figure, data: dict[str, Any]) -> None:
    settings = data["settings"]
    panels = figure.subplots(1, 2, sharey=True)
    for axes, after in zip(panels, (0, len(settings["after"]) - 1), strict=True):
        for k, (p, style) in enumerate(zip(settings["p"], drawing.STYLES, strict=False)):
            points = [(s, m) for s, m in zip(settings["s"], needed(data, k, after), strict=True) if m]
            if points:
                axes.plot(*zip(*points, strict=True), **style, label=f"p = {p}")
            bound = [at_s[k] for at_s in data["bound"]]
            axes.plot(settings["s"], bound, color=style["color"], linewidth=0.9, alpha=0.7)
        axes.axhline(data["M"][-1], color="0.4", linestyle=":", linewidth=1)
        axes.annotate("most neurons tried", (settings["s"][0], data["M"][-1]), (0, 3), textcoords="offset points")
        axes.axhline(data["floor"], color="0.4", linestyle="--", linewidth=1)
        steps = settings["after"][after]
        axes.set(yscale="log", xlabel="s, features in a row", title=f"after {steps} step{'s' if steps > 1 else ''}")
        axes.set_xticks(settings["s"])
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("M, neurons needed")
    panels[1].plot([], [], color="0.4", linewidth=0.9, label="$n p^{-s}$, Theorem 6.1, same colours")
    panels[1].plot([], [], color="0.4", linestyle="--", linewidth=1, label="if every neuron found a feature")
    panels[1].legend(fontsize=9, loc="upper left")
