"""How often real features occur, estimated, and what that says about HTF and LTF (ours; the paper has no estimate).

How often a neuron fires says nothing of its feature: the group's target set it.  So here only its direction is used.
Features are directions that networks of different seeds agree on; the rows in which one occurs are counted by
`occurrence`, which knows no target.  It is tried on known features first, and GBA is tried beside GBA with a wider
range and L1, which has no targets: an estimate that followed the method would be one of the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm, spearmanr

from refgba import gba, recipe
from refgba.backends.base import AnyConfig
from refgba.config import BaselineConfig
from refgba.data.laws import zipf_frequencies
from refgba.experiments import drawing, measures, training, workers
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.outcome import Verdict
from refgba.metrics import cosine, mcs
from refgba.model import Independent, SyntheticModel
from refgba.sae import unit_rows
from refgba.types import Array, Float64, Mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUESTION = (
    "A range of targets with HTF 0.1 or 0.5 and LTF 1e-3 or 1e-4 covers the features of real data. The paper does not "
    "say how often these occur."
)
TAKES_DATA = True
WEIGHTS = ("constant", "half-normal")  # laws of the known features' strengths
LEVELS = (3.0, 4.0, 5.0)  # Rows are counted beyond this many standard deviations.
LEVEL = 4.0  # This one is best on known features; the others show how much hangs on it.
WIDE: dict[str, Any] = {"htf": 0.5, "ltf": 1e-4}  # This is the range of the conference version.
FEW = 0.05  # A range covers the features if no more of them lie above it, and no more below.
SAME = 0.8  # Directions this near count as one: two neurons, each at TAU from one feature, are about that near.
ROUNDS = 30
BINS = 8


@dataclass(frozen=True)
class Sizes:
    """Settings of the real networks, and of n known features, s per row on average.

    width: 0 is the default recipe's.  l1: the sparsity of L1.  l0: what measured targets aim at.
    """

    width: int
    steps: int
    l1: float
    l0: float
    n: int
    d: int
    s: int
    rows: int
    M: int
    known_steps: int
    seeds: int


SIZES = {
    "quick": Sizes(
        width=512, steps=400, l1=0.08, l0=16, n=256, d=128, s=3, rows=16384, M=1024, known_steps=600, seeds=3
    ),
    "full": Sizes(
        width=0, steps=2000, l1=0.06, l0=32, n=512, d=256, s=3, rows=65536, M=2048, known_steps=2000, seeds=4
    ),
}  # fmt: skip


def measure(sizes: Sizes, backend: str, tick: Tick, data: tuple[Path, Path] | None) -> dict[str, Any]:
    """The estimator on known features, by the law of their strengths, and on real ones, by method."""
    real = training.opened_once(data)
    default = recipe.default(real.train.d)
    return {
        "data": real.about(),
        "range": {"htf": default.htf, "ltf": default.ltf},
        "target": default.target().tolist(),
        "levels": LEVELS,
        "known": {weights: on_known(weights, sizes, backend, tick) for weights in WEIGHTS},
        "real": {name: on_real(name, c, data, sizes, backend, tick) for name, c in methods(sizes, real.train.d)},
    }


def methods(sizes: Sizes, d: int) -> list[tuple[str, AnyConfig]]:
    """The networks trained on real activations, with the first seed."""
    given: dict[str, Any] = {"steps": sizes.steps, "dtype": "float32"} | ({"width": sizes.width} if sizes.width else {})
    default = recipe.default(d, **given)
    l1 = BaselineConfig(method="l1", sparsity=sizes.l1, lr=3e-3, **(given | {"width": default.width}))
    measured = recipe.measured(d, l0=sizes.l0, **given)
    wide = replace(default, **WIDE)
    return [("GBA", default), ("GBA, wide", wide), ("L1", l1), ("GBA, measured targets", measured)]


# ---- the estimate ----------------------------------------------------------------------------------------------------


def occurrence(z: Array, k: float) -> Float64:
    """How often the feature of each column of projections z (N, M) occurs (ours), (M,): the excess beyond the bulk,

        f = P(z > m + k s) - P(z < m - k s) ,

    with m and s the centre and the standard deviation of the rows without it, which fall below it as often as above: m
    is their median, m - s their 16% quantile.  Those rows being the lowest 1 - f, this is solved by iteration, from f =
    1/2 down: a feature of half of the rows would otherwise shift m and s so far that it is not seen.  A strength below
    k s is missed, so f is rather too low.  Only symmetry is assumed of the bulk, not that it is Gaussian.
    """
    z = np.sort(z, axis=0)
    N, M = z.shape
    f = np.full(M, 0.5)

    def quantile(q: Float64) -> Array:
        at: Array = z[(q * N).astype(np.int64), np.arange(M)]
        return at

    for _ in range(ROUNDS):
        m = quantile((1 - f) / 2)
        s = m - quantile((1 - f) * norm.cdf(-1))
        f = np.clip(np.mean(z > m + k * s, axis=0) - np.mean(z < m - k * s, axis=0), 0, 0.9)
    return f


def agreed(V: Sequence[Array]) -> list[tuple[int, int]]:
    """What the decoders of several seeds, V (M, d) each, agree on: (seed, neuron) of each direction, once.

    Two seeds agree on a neuron where the cosine of theirs is at least TAU.  Those with the highest cosine go first, and
    later ones within SAME of one before count as the same.
    """
    nearest = np.stack([
        np.max([mcs(a, b) for j, b in enumerate(V) if j != i], axis=0) for i, a in enumerate(V)
    ])  # (seeds, M)  # fmt: skip
    kept: list[tuple[int, int]] = []
    for flat in np.argsort(-nearest, axis=None, kind="stable")[: np.count_nonzero(nearest >= measures.TAU)]:
        i, m = divmod(int(flat), nearest.shape[1])
        if not kept or max(cosine(V[i][m : m + 1], np.stack([V[j][l] for j, l in kept]))[0]) < SAME:
            kept.append((i, m))
    return kept


def estimates(W: Array, X: Array) -> list[list[float]]:
    """The `occurrence` in rows X (N, d) of features that are detected by W (features, d), [feature][level]."""
    z = X @ unit_rows(W).T if len(W) else np.empty((len(X), 0))
    by_level: list[list[float]] = np.stack([occurrence(z, k) for k in LEVELS], axis=1).round(6).tolist()
    return by_level


def on_known(weights: str, sizes: Sizes, backend: str, tick: Tick) -> dict[str, Any]:
    """Zipf features: f of all, which of them are found, and for each direction `agreed` on [f, estimate at each level].

    A feature is found where such a direction is within TAU of it; f is None for directions that are near no feature.
    Trained on some rows and judged on others; f is how often a feature occurs in the latter.
    """
    f = zipf_frequencies(sizes.n, sizes.s / sizes.n)
    model = SyntheticModel(Independent(f), sizes.d, weights, dtype=np.float32)
    X, _ = _kept(model, 0, sizes.rows)
    judged, support = _kept(model, sizes.rows, 2 * sizes.rows)
    V = []
    for seed in range(sizes.seeds):
        tick(f"known features of {weights} weights, seed {seed}")
        config = recipe.default(sizes.d, width=sizes.M, steps=sizes.known_steps, seed=seed, dtype="float32")
        engine, state = training.trained(gba.minibatches(X, config), sizes.d, config, backend)
        V.append(engine.params(state).V)
    W = np.array([V[seed][m] for seed, m in agreed(V)]).reshape(-1, sizes.d)
    nearest = cosine(W, model.V) if len(W) else np.zeros((0, sizes.n))
    feature = np.where(nearest.max(axis=1) >= measures.TAU, nearest.argmax(axis=1), -1)
    occurs = support.mean(axis=0).round(6).tolist()
    estimated = estimates(W, judged - X.mean(axis=0))
    return {
        "f": occurs,
        "found": sorted({int(i) for i in feature if i >= 0}),
        "points": [[None if i < 0 else occurs[i], *levels] for i, levels in zip(feature, estimated, strict=True)],
    }


def _kept(model: SyntheticModel, start: int, stop: int) -> tuple[Array, Mask]:
    """Rows at unit norm and their supports, without those that hold no feature."""
    draw = model.draw(start, stop)
    on = draw.support.any(axis=1)
    return unit_rows(draw.X[on]), draw.support[on]


def on_real(
    name: str, config: AnyConfig, data: tuple[Path, Path] | None, sizes: Sizes, backend: str, tick: Tick
) -> dict[str, Any]:
    """L0 and FVU; of each of the features that the seeds agree on how often its neuron fires, and the estimates."""
    tick(name)
    seeds = [replace(config, seed=seed) for seed in range(sizes.seeds)]
    runs = workers.at_once(partial(training.evaluated_once, backend=backend, data=data), seeds, backend, tick)
    V = [params.V for params, _ in runs]
    features = agreed(V)
    real = training.opened_once(data)
    W = np.array([V[seed][m] for seed, m in features]).reshape(-1, real.train.d)
    X = unit_rows(np.concatenate(list(real.judged(config))).astype(config.master))
    return {
        "l0": [round(evaluation.l0, 3) for _, evaluation in runs],
        "fvu": [round(evaluation.fvu, 5) for _, evaluation in runs],
        "firing": [round(float(runs[seed][1].frequency[m]), 6) for seed, m in features],
        "estimates": estimates(W, X - X.mean(axis=0)),
    }


# ---- what the numbers say --------------------------------------------------------------------------------------------


def at_level(rows: Sequence[Sequence[float]], level: float = LEVEL) -> Float64:
    """The estimates at a level, (features,); the last entries of a row are the estimates, one per level."""
    return np.array([row[LEVELS.index(level) - len(LEVELS)] for row in rows], np.float64)


def matched(data: dict[str, Any], weights: str) -> list[list[float]]:
    """The points of known features that were found."""
    return [point for point in data["known"][weights]["points"] if point[0] is not None]


def accuracy(data: dict[str, Any], weights: str, level: float = LEVEL) -> tuple[float, float]:
    """On known features the median of estimate over truth, and the rank correlation; 0 with fewer than 3."""
    points = matched(data, weights)
    true, estimate = np.array([p[0] for p in points]), at_level(points, level)
    if len(points) < 3 or np.ptp(true) == 0 or np.ptp(estimate) == 0:
        return 0.0, 0.0
    return float(np.median(estimate / true)), float(spearmanr(estimate, true).statistic)


def outside(data: dict[str, Any], name: str) -> tuple[float, float, float]:
    """The shares of a method's features above HTF, below LTF, and without a target in the band of the theory.

    The band of f, p from f to min(sqrt f, f d), is that of section 6 without its constants; what was seen in no row is
    put at one row.
    """
    f = np.maximum(at_level(data["real"][name]["estimates"]), 1 / data["data"]["held_out"])
    target, d = np.array(data["target"])[:, None], data["data"]["d"]
    covered = np.any((target >= f) & (target <= np.minimum(np.sqrt(f), f * d)), axis=0)
    above, below = f > data["range"]["htf"], f < data["range"]["ltf"]
    return float(np.mean(above)), float(np.mean(below)), float(np.mean(~covered))


def verdict(data: dict[str, Any]) -> Verdict:
    """If the estimator is good enough to tell: do few features lie above HTF, and few below LTF?"""
    known = [accuracy(data, weights) for weights in WEIGHTS]
    good = all(0.5 <= ratio <= 2 and rho >= 0.8 for ratio, rho in known)
    claims: dict[str, bool] = {}
    shares = []
    for name, network in data["real"].items():
        f = at_level(network["estimates"])
        if not len(f):
            shares.append(f"{name} none")
            continue
        above, below, uncovered = outside(data, name)
        claims |= {
            f"few features that {name} finds occur more often than HTF": good and above <= FEW,
            f"few that {name} finds occur less often than LTF": good and below <= FEW,
        }
        shares.append(f"{name} ({len(f)}, median {np.median(f):.2g}) {above:.0%}, {below:.0%}, {uncovered:.0%}")
    ratios, rhos = (", ".join(f"{value:.2f}" for value in values) for values in zip(*known, strict=True))
    return Verdict(
        claims or {"there are features that seeds agree on": False},
        f"known features are estimated at {ratios} of the truth "
        f"({', '.join(WEIGHTS)} strengths; rank correlation {rhos}){'' if good else ', too poor to tell'}. Of the "
        f"real ones that seeds agree on lie above HTF {data['range']['htf']:g}, below LTF "
        f"{data['range']['ltf']:g} or unseen, in no target's theoretical band: {'; '.join(shares)}.",
    )


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: dict[str, Any]) -> list[Picture]:
    """The estimator on known features, the distribution of real ones, and how little their neurons' firing tells."""
    about = data["data"]
    where = f"{about['name']}, {about['held_out']:,} held-out rows"
    return [
        Picture(
            f"The estimator on known features: Zipf, n = {data['settings']['n']}, d = {data['settings']['d']}",
            "Estimated against true frequencies of the features that seeds of GBA agree on, for two laws of their "
            "strengths, with the diagonal; the share of all features that was found; and the distributions "
            "of all true frequencies and of the estimates of all directions that seeds agree on, the false ones, which "
            "are near no feature, among them.",
            lambda figure: _known(figure, data),
            (12.0, 4.4),
        ),
        Picture(
            f"How often real features occur: {where}",
            "The share of features that occur at most so often, a curve for each method's features, with lighter "
            "curves for other levels of the estimator and lines at HTF and LTF.",
            lambda figure: _distribution(figure, data),
        ),
        Picture(
            f"Estimate against how often the neuron fires: {where}",
            "A point for each feature that seeds agree on: how often its neuron fires, which GBA's targets set, and "
            "how often the feature is estimated to occur, with the diagonal.",
            lambda figure: _firing(figure, data),
        ),
    ]


def _known(figure: Figure, data: dict[str, Any]) -> None:
    left, middle, right = figure.subplots(1, 3)
    for (weights, known), style in zip(data["known"].items(), drawing.STYLES, strict=False):
        f, points = np.array(known["f"]), matched(data, weights)
        ratio, rho = accuracy(data, weights)
        left.plot(
            [p[0] for p in points], at_level(points), style["marker"], color=style["color"], markersize=4, alpha=0.6,
            label=f"{weights}: median ratio {ratio:.2f}, rank corr. {rho:.2f}",
        )  # fmt: skip
        bins = np.array_split(np.argsort(-f), BINS)
        share = [float(np.isin(i, known["found"]).mean()) for i in bins]
        middle.plot([float(np.median(f[i])) for i in bins], share, label=weights, **style)
        false = f"{len(known['points']) - len(points)} of {len(known['points'])} false"
        for values, kind, width in ((f, "true", 0.9), (at_level(known["points"]), false, 2.0)):
            _cumulative(right, values, 1e-4, color=style["color"], linewidth=width, label=f"{weights}, {kind}")
    ends = (1e-4, 1.0)
    left.plot(ends, ends, color="0.5", linewidth=1)
    left.set(yscale="log", ylim=ends, xlabel="true frequency", ylabel="estimate")
    middle.set_xlabel("true frequency, median of a bin")
    drawing.share_axis(middle, "share of features that seeds agree on")
    right.set_xlabel("frequency: true, and estimated (thick)")
    drawing.share_axis(right, "share of directions")
    for axes, where in ((left, "upper left"), (middle, "lower right"), (right, "lower right")):
        axes.set(xscale="log", xlim=ends)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7.5, loc=where)


def _cumulative(axes: Axes, f: Float64, least: float, **style: Any) -> None:
    """The share of f up to each frequency, those below `least` at it."""
    axes.step(np.sort(np.maximum(f, least)), np.arange(1, len(f) + 1) / max(1, len(f)), where="post", **style)


def _distribution(figure: Figure, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    least = 1 / data["data"]["held_out"]
    for (name, network), style in zip(data["real"].items(), drawing.STYLES, strict=False):
        for level in data["levels"]:
            f, main = at_level(network["estimates"], level), level == LEVEL
            _cumulative(
                axes, f, least, color=style["color"], linestyle=style["linestyle"], linewidth=2 if main else 0.8,
                alpha=1 if main else 0.5, label=f"{name}, {len(f)} features" if main else None,
            )  # fmt: skip
    for name, at in data["range"].items():
        axes.axvline(at, color="0.3", linewidth=1)
        axes.annotate(name.upper(), (at, 1.0), xytext=(3, -2), textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="estimated frequency; leftmost: in one row or none")
    drawing.share_axis(axes, "share of features")
    axes.legend(fontsize=9)


def _firing(figure: Figure, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    least = 1 / data["data"]["held_out"]
    for (name, network), style in zip(data["real"].items(), drawing.STYLES, strict=False):
        x, y = np.maximum(network["firing"], least), np.maximum(at_level(network["estimates"]), least)
        axes.plot(x, y, style["marker"], color=style["color"], markersize=5, alpha=0.6, label=name)
    axes.plot((least, 1), (least, 1), color="0.5", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="how often the neuron fires", ylabel="estimated frequency")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
