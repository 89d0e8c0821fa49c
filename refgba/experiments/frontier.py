"""Reconstruction against sparsity on real activations: every method at several settings, GBA without any."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refgba import recipe
from refgba.backends.base import AnyConfig
from refgba.config import BaselineConfig
from refgba.experiments import drawing, training
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.outcome import Verdict, resolved
from refgba.runs.accumulate import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = (
    "GBA, with nothing to choose, lies on the frontier of reconstruction against sparsity together with TopK, and far "
    "above L1 and BA."
)
TAKES_DATA = True
GBA = ("GBA", "GBA, tied")  # These are the default and the paper's network.


@dataclass(frozen=True)
class Sizes:
    """Settings; width 0 is the default recipe's.

    Learning rates are tried with the first seed at the middle one of a method's settings; the method keeps the best.
    """

    width: int
    steps: int
    k: tuple[int, ...]
    htf: tuple[float, ...]
    l1: tuple[float, ...]
    jumprelu: tuple[float, ...]
    lr: tuple[float, ...]
    seeds: int


AS_WELL = "{} reconstructs at least as well as TopK and BatchTopK at its L0"
BETTER = "{} reconstructs better than L1 and BA"
BEYOND_QUICK = (AS_WELL.format("GBA, tied"), BETTER.format("GBA, tied"))  # The quick run is short, on few rows.
SIZES = {
    "quick": Sizes(
        width=512, steps=500, k=(16, 64), htf=(0.01, 0.04), l1=(0.02, 0.08), jumprelu=(0.001, 0.004),
        lr=(1e-3, 3e-3), seeds=1,
    ),
    "full": Sizes(
        width=0, steps=4000, k=(32, 45, 64), htf=(0.01, 0.02), l1=(0.03, 0.08), jumprelu=(0.0007, 0.002),
        lr=(1e-3, 3e-3), seeds=3,
    ),
}  # fmt: skip


def measure(sizes: Sizes, backend: str, tick: Tick, data: tuple[Path, Path] | None) -> dict[str, Any]:
    """Every point: method, setting, lr, seed, and FVU, L0 and dead share on the held-out rows."""
    real = training.opened(data)
    d = real.train.d
    points: list[dict[str, Any]] = []

    def point(method: str, setting: float | None, config: AnyConfig) -> dict[str, Any]:
        tick(f"{method} {'' if setting is None else setting}, lr {config.lr:g}, seed {config.seed}")
        summary = judged(training.evaluated(real, config, backend)[1])
        points.append({"method": method, "setting": setting, "lr": config.lr, "seed": config.seed} | summary)
        return points[-1]

    width = {"width": sizes.width} if sizes.width else {}
    given: dict[str, Any] = {"steps": sizes.steps, "dtype": "float32"} | width
    for seed in range(sizes.seeds):
        for name in GBA:
            point(name, None, recipe.default(d, seed=seed, untied=name == "GBA", **given))
        for htf in sizes.htf:
            point("BA", htf, recipe.default(d, seed=seed, groups=1, htf=htf, **given))
    given = {"width": max(1024, 8 * d)} | given

    def network(method: Any, value: float, lr: float, seed: int) -> dict[str, Any]:
        chosen: Any = {"method": method, training.DIALS[method]: value}
        return point(method, value, BaselineConfig(lr=lr, seed=seed, **given, **chosen))

    settings = {"topk": sizes.k, "batchtopk": sizes.k, "l1": sizes.l1, "jumprelu": sizes.jumprelu}
    for method, values in settings.items():
        middle = values[len(values) // 2]
        best = min((network(method, middle, lr, 0) for lr in sizes.lr), key=lambda p: float(p["fvu"]))["lr"]
        for value, seed in product(values, range(sizes.seeds)):
            if (value, seed) != (middle, 0):
                network(method, value, best, seed)
    return {"data": real.about(), "points": points}


def judged(evaluation: Evaluation) -> dict[str, float]:
    """FVU, L0 and dead, rounded."""
    summary = evaluation.summary()
    return {name: round(summary[name], 5) for name in ("fvu", "l0", "dead")}


# ---- what the numbers say --------------------------------------------------------------------------------------------


def best(data: dict[str, Any], method: str) -> list[tuple[float, float]]:
    """(L0, FVU) of each setting of a method at the learning rate it kept, means over the seeds, by L0."""
    points = [p for p in data["points"] if p["method"] == method]
    averages = []
    for setting in {p["setting"] for p in points}:
        here = [p for p in points if p["setting"] == setting]
        lr = min(here, key=lambda p: p["fvu"])["lr"]
        kept = [p for p in here if p["lr"] == lr]
        averages.append((float(np.mean([p["l0"] for p in kept])), float(np.mean([p["fvu"] for p in kept]))))
    return sorted(averages)


def line(points: list[tuple[float, float]], l0: float) -> float:
    """FVU at this L0 on the line through points, straight in the logarithms, its ends drawn on.

    Networks without an active neuron are no part of it.
    """
    x, y = np.log(np.array([point for point in points if point[0] > 0])).T
    at = int(np.clip(np.searchsorted(x, np.log(l0)), 1, len(x) - 1))
    slope = (y[at] - y[at - 1]) / (x[at] - x[at - 1])
    return float(np.exp(y[at] + slope * (np.log(l0) - x[at])))


def against(data: dict[str, Any], method: str, lines: tuple[str, ...]) -> float:
    """The FVU of a method without settings over the lowest of these methods' lines at its L0."""
    [(l0, fvu)] = best(data, method)
    return fvu / min(line(best(data, name), l0) for name in lines)


def verdict(data: dict[str, Any]) -> Verdict:
    """Is GBA on or under the line of TopK and BatchTopK, and under those of L1 and BA?"""
    claims: dict[str, bool] = {}
    sentences = []
    for method in GBA:
        top, other = against(data, method, ("topk", "batchtopk")), against(data, method, ("l1", "BA"))
        claims |= {
            AS_WELL.format(method): top <= 1,
            BETTER.format(method): other < 1,
        }
        [(l0, fvu)] = best(data, method)
        dead = np.mean([p["dead"] for p in data["points"] if p["method"] == method])
        sentences.append(
            f"{method} has FVU {fvu:.3f} at L0 {l0:.0f} with {dead:.1%} dead, {top - 1:+.1%} from the line of TopK and "
            f"BatchTopK and {other - 1:+.1%} from that of L1 and BA"
        )
    return Verdict(
        resolved(claims, data, BEYOND_QUICK), f"{'; '.join(sentences)}; each of them at the best of its learning rates."
    )


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: dict[str, Any]) -> list[Picture]:
    """The frontier."""
    about = data["data"]
    return [
        Picture(
            f"Reconstruction against sparsity: {about['name']}, {about['rows']:,} rows of d = {about['d']}",
            "FVU on held-out rows against L0, both logarithmic: a line through the settings of each method at its best "
            "learning rate, and a star for each variant of GBA, which has no setting.",
            lambda figure: _draw(figure, data),
            (8.0, 5.5),
        )
    ]


def _draw(figure: Figure, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    names = ("topk", "batchtopk", "jumprelu", "l1", "BA")
    for name, style in zip(names, drawing.STYLES, strict=False):
        x, y = np.array(best(data, name)).T
        axes.plot(x, y, label=name, markersize=6, **style)
    for name, colour in zip(GBA, ("#E69F00", "#56B4E9"), strict=True):
        runs = [p for p in data["points"] if p["method"] == name]
        axes.plot(
            [p["l0"] for p in runs], [p["fvu"] for p in runs], "*", color=colour, markeredgecolor="black",
            markersize=15, label=name,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="L0, active neurons per row", ylabel="FVU on held-out rows")
    drawing.log_ticks(axes.xaxis, (1, 2, 3, 5))
    drawing.log_ticks(axes.yaxis, (1, 1.5, 2, 3, 5))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
