"""Co-occurrence (H3 of section 5): recovery when features come in pairs, against how often the two come together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refgba import recipe
from refgba.data.laws import Pairs
from refgba.experiments import drawing, measures, training, workers
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.outcome import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = (
    "Features are identifiable while they seldom come together: rho_2 = max |D_i n D_j| / |D_i| much below n^-1/2 is "
    "enough (Theorem 5.3)."
)
TAKES_DATA = False


@dataclass(frozen=True)
class Sizes:
    """Settings: n features in d dimensions, s of them in a row on average, in pairs of co-occurrence rho_2."""

    n: int
    d: int
    s: int
    rho_2: tuple[float, ...]
    rows: int
    M: int
    modified_steps: int
    steps: int
    batch: int
    seeds: int


SIZES = {
    "quick": Sizes(
        n=64, d=48, s=3, rho_2=(0.05, 0.125, 0.35, 0.6, 0.8, 0.9, 1.0), rows=8192, M=512, modified_steps=4, steps=800,
        batch=256, seeds=3,
    ),
    "full": Sizes(
        n=128, d=64, s=3, rho_2=(0.025, 0.088, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0), rows=16384, M=1024,
        modified_steps=4, steps=1200, batch=256, seeds=3,
    ),
}  # fmt: skip


def measure(sizes: Sizes, backend: str, tick: Tick) -> dict[str, Any]:
    """FRR of each method as [seed][rho_2]: Modified BA at p = 1/n, and GBA by its default recipe."""
    work = partial(of_seed, sizes=sizes, backend=backend)
    seeds = workers.at_once(work, range(sizes.seeds), backend, tick)
    frr = {name: [seed[name] for seed in seeds] for name in ("Modified BA", "GBA")}
    return {"rho_2": list(sizes.rho_2), "frr": frr, "bound": sizes.n**-0.5}


def of_seed(seed: int, sizes: Sizes, backend: str) -> dict[str, list[float]]:
    """FRR of each method as [rho_2] for one seed."""
    V, W = training.gaussian(sizes.n, sizes.d, seed), training.neurons(sizes.M, sizes.d, seed)
    config = recipe.default(
        sizes.d, width=sizes.M, steps=sizes.steps, batch=sizes.batch, seed=seed, dtype="float32"
    )  # fmt: skip
    frr: dict[str, list[float]] = {"Modified BA": [], "GBA": []}
    for rho_2 in sizes.rho_2:
        X = training.mixture(Pairs(sizes.n, sizes.s / sizes.n, rho_2), V, sizes.rows, seed)
        climbed = training.climb(X, W, 1 / sizes.n, sizes.modified_steps)
        frr["Modified BA"].append(measures.recovery(measures.nearest(V, climbed)))
        frr["GBA"].append(measures.recovery(measures.nearest(V, training.train(X, config, backend).neurons)))
    return frr


# ---- what the numbers say --------------------------------------------------------------------------------------------


def limit(data: dict[str, Any], name: str) -> float:
    """The rho_2 up to which a method's mean FRR stays at RECOVERED or above, from the smallest on; 0 if not even there.

    Linear between the points.
    """
    rho_2, frr = data["rho_2"], np.mean(data["frr"][name], axis=0)
    below = np.flatnonzero(frr < measures.RECOVERED)
    if not len(below):
        return float(rho_2[-1])
    k = int(below[0])
    if k == 0:
        return 0.0
    return float(rho_2[k - 1] + (frr[k - 1] - measures.RECOVERED) / (frr[k - 1] - frr[k]) * (rho_2[k] - rho_2[k - 1]))


def verdict(data: dict[str, Any]) -> Verdict:
    """Is n^-1/2 enough, and does more co-occurrence end the recovery?"""
    bound, last = data["bound"], data["rho_2"][-1]
    limits = {name: limit(data, name) for name in data["frr"]}
    at_last = {name: [seed[-1] for seed in seeds] for name, seeds in data["frr"].items()}
    enough = min(limits.values()) >= bound
    claims = {
        "features are recovered up to rho_2 = n^-1/2": enough,
        f"they are not where rho_2 = {last:g}": all(np.mean(v) < 0.5 for v in at_last.values()),
    }
    limits_by_method = ", ".join(f"{rho:.2f} ({rho / bound:.1f} n^-1/2) for {name}" for name, rho in limits.items())
    ends = "; ".join(f"{measures.spread(v)} for {name}" for name, v in at_last.items())
    return Verdict(
        claims,
        f"FRR({measures.TAU}) stays at {measures.RECOVERED:.0%} up to rho_2 = {limits_by_method}, so that "
        f"n^-1/2 = {bound:.3f} is {'enough' if enough else 'not always enough'}"
        f"{' and more than the data ask for' if min(limits.values()) > 2 * bound else ''}; at rho_2 = {last:g} FRR is "
        f"{ends}.",
    )


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: dict[str, Any]) -> list[Picture]:
    """FRR against rho_2."""
    settings = data["settings"]
    return [
        Picture(
            f"Recovery of features that come in pairs: n = {settings['n']}, d = {settings['d']}, s = {settings['s']}",
            f"Lines of FRR at cosine {measures.TAU} against the co-occurrence rho_2 from independence to 1, for "
            "Modified BA and for GBA, with a vertical line at n to the power -1/2.",
            lambda figure: _draw(figure, data),
        )
    ]


def _draw(figure: Figure, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    for (name, seeds), style in zip(data["frr"].items(), drawing.STYLES, strict=False):
        drawing.band(axes, data["rho_2"], seeds, style, name)
    axes.axvline(data["bound"], color="black", linestyle=":", label="$n^{-1/2}$")
    axes.set_xlabel(r"co-occurrence $\rho_2$ within a pair")
    drawing.share_axis(axes, f"FRR({measures.TAU}), mean and range of seeds")
    axes.legend(fontsize=9, loc="upper right")
