"""Features that are not Gaussian: which laws of V recovery survives, beside how coherent the features are (V1).

Three laws with independent entries, and two in which features lean on one another: entries of low rank, and one
direction that all features share.  The last is a constant part of the rows.  Modified BA has no b_pre to take it up, so
it is also run on centred rows, where what it can find is V without the mean of the features; GBA's b_pre does take it
up once neurons are trained to reconstruct, so GBA is judged against both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from refgba import recipe
from refgba.experiments import drawing, measures, training, workers
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.outcome import Verdict, resolved
from refgba.metrics import cosine
from refgba.model import FEATURES, Uniform, features
from refgba.sae import unit_rows
from refgba.streams import stream
from refgba.types import Array, Float64

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = (
    "The theory takes V Gaussian, but identifiability asks only that features be incoherent, max |cos(v_i, v_j)| = "
    "o(1): other laws should do as well while that holds."
)
TAKES_DATA = False
CENTRED = "Modified BA, rows centred, for V - mean"
RELATIVE = "GBA, for V - mean"
METHODS = ("Modified BA", CENTRED, "GBA", RELATIVE)
OWN_NOISE = 0.3  # A low-rank feature also has entries of its own, of this standard deviation beside 1.


@dataclass(frozen=True)
class Sizes:
    """Settings: laws are keys of FEATURES, `rank R` or `shared Q`; Modified BA is run at p = 1/n."""

    n: int
    d: int
    s: int
    laws: tuple[str, ...]
    rows: int
    M: int
    modified_steps: int
    steps: int
    batch: int
    seeds: int


KEEPS = "{} recovers under every law as incoherent as Gaussian features"
BEYOND_QUICK = (KEEPS.format("Modified BA"),)  # The quick run has fewer laws, and fewer features.
SIZES = {
    "quick": Sizes(
        n=64, d=48, s=3, laws=("gaussian", "laplace", "student-t", "rank 24", "rank 12", "shared 0.2"), rows=8192,
        M=512, modified_steps=4, steps=1000, batch=256, seeds=3,
    ),
    "full": Sizes(
        n=128, d=64, s=3, rows=16384, M=1024, modified_steps=4, steps=1200, batch=256, seeds=3,
        laws=("gaussian", "laplace", "student-t", "rank 48", "rank 32", "rank 16", "shared 0.05", "shared 0.2"),
    ),
}  # fmt: skip


def draw(law: str, n: int, d: int, seed: int) -> Array:
    """V, unit rows (n, d), by a law's name.

    `rank R`: v = z B + OWN_NOISE g with z, B, g Gaussian and B (R, d) common to all features, so that they crowd in R
    dimensions.  `shared Q`: a share Q of the energy of every feature lies in one direction common to all.
    """
    rng = stream(seed, "features")
    if law in FEATURES:
        return features(n, d, law, rng)
    kind, value = law.split()
    G = features(n, d, "gaussian", rng)
    if kind == "rank":
        R = int(value)
        low = rng.standard_normal((n, R)) @ rng.standard_normal((R, d)) / (R * d) ** 0.5  # rows of norm about 1
        return unit_rows(low + OWN_NOISE * G)
    Q = float(value)
    common_direction = unit_rows(rng.standard_normal((1, d)))
    return unit_rows((1 - Q) ** 0.5 * G + Q**0.5 * common_direction)


def measure(sizes: Sizes, backend: str, tick: Tick) -> dict[str, Any]:
    """Of each law and seed every feature's largest |cos| to another, and of each method that to the nearest neuron."""
    runs = list(product(sizes.laws, range(sizes.seeds)))
    found = workers.at_once(partial(of_seed, sizes=sizes, backend=backend), runs, backend, tick)
    by_law: dict[str, dict[str, list[list[float]]]] = {
        law: {
            name: [one[name] for (its, _), one in zip(runs, found, strict=True) if its == law]
            for name in ("coherence", *METHODS)
        }
        for law in sizes.laws
    }
    # `identifiability` compares V1 with what Gaussian features of this shape reach.
    return {"laws": by_law, "threshold": float(np.sqrt(4 * np.log(sizes.n) / sizes.d))}


def of_seed(run: tuple[str, int], sizes: Sizes, backend: str) -> dict[str, list[float]]:
    """Of a law and a seed every feature's largest |cos| to another, and of each method that to the nearest neuron."""
    law, seed = run
    V = draw(law, sizes.n, sizes.d, seed)
    X = training.mixture(Uniform(sizes.n, (sizes.s,)), V, sizes.rows, seed)
    W = training.neurons(sizes.M, sizes.d, seed)
    climbed = training.climb(X, W, 1 / sizes.n, sizes.modified_steps)
    centred = training.climb(unit_rows(X - X.mean(axis=0)), W, 1 / sizes.n, sizes.modified_steps)
    config = recipe.default(
        sizes.d, width=sizes.M, steps=sizes.steps, batch=sizes.batch, seed=seed, dtype="float32"
    )  # fmt: skip
    trained = training.train(X, config, backend).neurons
    return {
        "coherence": coherence(V).round(4).tolist(),
        "Modified BA": measures.nearest(V, climbed),
        CENTRED: measures.nearest(V - V.mean(axis=0), centred),
        "GBA": measures.nearest(V, trained),
        RELATIVE: measures.nearest(V - V.mean(axis=0), trained),
    }


def coherence(V: Array) -> Float64:
    """max_{j != i} |cos(v_i, v_j)| for every feature, (n,)."""
    largest: Float64 = np.abs(cosine(V, V) - np.eye(len(V))).max(axis=1)
    return largest


# ---- what the numbers say --------------------------------------------------------------------------------------------


def frr(data: dict[str, Any], law: str, method: str) -> list[float]:
    """FRR of each seed."""
    return [measures.recovery(seed) for seed in data["laws"][law][method]]


def incoherence(data: dict[str, Any], law: str) -> float:
    """max_{i != j} |cos(v_i, v_j)|, the mean over seeds."""
    return float(np.mean(np.max(data["laws"][law]["coherence"], axis=1)))


def verdict(data: dict[str, Any]) -> Verdict:
    """Does each method keep its recovery under every law that is as incoherent as Gaussian features are?

    What happens beyond is reported, but not judged: incoherence is said to be enough, not to be needed.
    """
    laws, threshold = list(data["laws"]), data["threshold"]
    incoherent = [law for law in laws if incoherence(data, law) <= threshold]
    coherent = [law for law in laws if law not in incoherent]
    lost = {
        method: [law for law in laws if np.mean(frr(data, law, method)) < measures.RECOVERED]
        for method in ("Modified BA", "GBA")
    }
    claims = {KEEPS.format(method): bool(incoherent) and not set(lost[method]) & set(incoherent) for method in lost}
    within = "; ".join(f"{m} {_keeps([law for law in incoherent if law in lost[m]])}" for m in lost)
    beyond = "; ".join(f"{m} {_keeps([law for law in coherent if law in lost[m]])}" for m in lost)
    return Verdict(
        resolved(claims, data, BEYOND_QUICK),
        f"of the laws with max |cos| up to {threshold:.2f} ({', '.join(incoherent) or 'none'}) "
        f"{within}; of those above ({', '.join(coherent) or 'none'}) {beyond}.",
    )


def _keeps(lost: list[str]) -> str:
    return f"loses {' and '.join(lost)}" if lost else "loses none"


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: dict[str, Any]) -> list[Picture]:
    """FRR beside incoherence for each law, and the two feature by feature."""
    where = f"n = {data['settings']['n']}, d = {data['settings']['d']}, s = {data['settings']['s']}"
    rows = -(-len(data["laws"]) // 4)
    return [
        Picture(
            f"Recovery under laws of V other than the theory's: {where}",
            f"Above, bars of FRR at cosine {measures.TAU} for Modified BA and GBA, each also against features without "
            "their mean, for each law of the features, with one point per seed; below, the incoherence of each law "
            "against what Gaussian features reach.",
            lambda figure: _by_law(figure, data),
            (9, 6),
        ),
        Picture(
            f"Feature by feature, GBA: {where}",
            "Scatter plots, one per law: each feature's largest cosine to another feature across, the cosine of its "
            "nearest neuron upwards, with a line at the cosine from which it counts as recovered.",
            lambda figure: _by_feature(figure, data),
            (10, 0.8 + 2.5 * rows),
        ),
    ]


def _by_law(figure: Figure, data: dict[str, Any]) -> None:
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    laws = list(data["laws"])
    for shift, method, style in zip((-0.3, -0.1, 0.1, 0.3), METHODS, drawing.STYLES, strict=False):
        for x, law in enumerate(laws):
            shares = frr(data, law, method)
            above.bar(x + shift, np.mean(shares), width=0.19, color=style["color"], alpha=0.45)
            above.plot([x + shift] * len(shares), shares, style["marker"], color=style["color"], markersize=4)
        above.plot([], [], style["marker"], color=style["color"], label=method)
    drawing.share_axis(above, f"FRR({measures.TAU}), mean and each seed")
    figure.legend(fontsize=9, loc="outside lower center", ncols=4, frameon=False)
    for x, law in enumerate(laws):
        values = np.max(data["laws"][law]["coherence"], axis=1)
        below.plot([x] * len(values), values, "D", color="0.35", markersize=5)
    below.axhline(data["threshold"], color="black", linestyle=":", label=r"$\sqrt{4 \log n / d}$, Gaussian features")
    below.set(ylim=(0, 1), ylabel=r"max $|\cos(v_i, v_j)|$")
    below.set_xticks(range(len(laws)), laws)
    below.grid(alpha=0.25)
    below.legend(fontsize=9, loc="lower left")


def _by_feature(figure: Figure, data: dict[str, Any]) -> None:
    laws = list(data["laws"])
    panels = figure.subplots(-(-len(laws) // 4), 4, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(laws) :]:
        axes.set_visible(False)
    for k, (axes, law) in enumerate(zip(panels.flat, laws, strict=False)):
        of = data["laws"][law]
        axes.plot(np.ravel(of["coherence"]), np.ravel(of["GBA"]), ".", color=drawing.STYLES[0]["color"], alpha=0.4)
        axes.axhline(measures.TAU, color="black", linestyle=":", linewidth=1)
        axes.set_title(law, fontsize=10)
        axes.grid(alpha=0.25)
        axes.tick_params(labelbottom=k + 4 >= len(laws))
    figure.supxlabel("largest |cos| to another feature", fontsize=10)
    figure.supylabel("cosine of the nearest neuron", fontsize=10)
