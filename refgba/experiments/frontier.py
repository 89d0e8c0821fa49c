"""Reconstruction against sparsity on real activations: every method at several settings, GBA without any.

Every other method is given its best learning rate and batch size at every setting, for the same number of rows seen:
all are tried with the first seed, those that are best on the first half of the held-out rows are kept, and what is
reported of any network is measured on the other half.  Networks are trained as many at once as there are cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refgba import recipe
from refgba.backends.base import AnyConfig
from refgba.config import BaselineConfig
from refgba.data import feed
from refgba.experiments import drawing, random_directions, training, workers
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.outcome import Verdict, resolved
from refgba.runs.accumulate import Evaluation
from refgba.runs.judging import evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = (
    "GBA, with nothing to choose, lies on the frontier of reconstruction against sparsity together with TopK, and far "
    "above L1 and BA; with targets measured from the data (ours), it lies there at every L0."
)
TAKES_DATA = True
GBA = ("GBA", "GBA, tied")  # These are the default and the paper's network.
OURS: dict[str, Callable[..., AnyConfig]] = {
    "GBA": recipe.default,
    "GBA, tied": partial(recipe.default, untied=False),
    "BA": partial(recipe.default, groups=1),
    "measured": recipe.measured,
}
DIALS = training.DIALS | {"BA": "htf", "measured": "l0"}
LABELS = {"matryoshka": "Matryoshka", "gated": "Gated", "measured": "GBA, measured targets"}
PALE: tuple[dict[str, Any], ...] = (  # styles beyond those that all pictures share
    {"color": "#7F3C8D", "marker": "X", "linestyle": "-"},
    {"color": "#E69F00", "marker": "P", "linestyle": "-"},
    {"color": "#888888", "marker": "<", "linestyle": "--"},
    {"color": "#888888", "marker": ">", "linestyle": ":"},
)


BATCH = 512  # GBA's; a run with other batches has as many more or fewer steps, and sees the same number of rows


@dataclass(frozen=True)
class Sizes:
    """Settings; width 0 is the default recipe's.

    steps: of batches of BATCH rows.  k: of TopK, BatchTopK, Matryoshka and the networks with random directions, and the
    L0 of measured targets.  htf: of BA.  l1, jumprelu, gated: the sparsity.  lr, batch: those that a method's best is
    found among; ours have their recipe's.
    """

    width: int
    steps: int
    k: tuple[int, ...]
    htf: tuple[float, ...]
    l1: tuple[float, ...]
    jumprelu: tuple[float, ...]
    gated: tuple[float, ...]
    lr: tuple[float, ...]
    batch: tuple[int, ...]
    seeds: int

    def dials(self) -> dict[str, tuple[float | None, ...]]:
        """The settings of each method, TopK first; None for a method without."""
        by_k = ("topk", "batchtopk", "matryoshka", *random_directions.NAMES, "measured")
        sparsity = {"l1": self.l1, "jumprelu": self.jumprelu, "gated": self.gated}
        return dict.fromkeys(by_k, self.k) | sparsity | {"BA": self.htf} | dict.fromkeys(GBA, (None,))


AS_WELL = "{} reconstructs at least as well as TopK and BatchTopK at its L0"
BETTER = "{} reconstructs better than L1 and BA"
ABREAST = ("topk", "batchtopk", "matryoshka")
MEASURED = "Measured targets reconstruct at least as well as TopK, BatchTopK and Matryoshka at every L0"
BEYOND_QUICK = (AS_WELL.format("GBA, tied"), BETTER.format("GBA, tied"), MEASURED)  # The quick run is short.
SIZES = {
    "quick": Sizes(
        width=512, steps=500, k=(16, 64), htf=(0.01, 0.04), l1=(0.02, 0.08), jumprelu=(0.001, 0.004),
        gated=(0.05, 0.15), lr=(1e-3, 3e-3), batch=(512,), seeds=1,
    ),
    "full": Sizes(
        width=0, steps=4000, k=(16, 32, 64, 128), htf=(0.01, 0.02), l1=(0.03, 0.08), jumprelu=(0.0007, 0.002),
        gated=(0.05, 0.1), lr=(1e-3, 3e-3, 1e-2), batch=(256, 512, 1024), seeds=3,
    ),
}  # fmt: skip


class Task(NamedTuple):
    """A network to train: method, its setting, and lr and batch, where they are not those of a recipe of ours."""

    method: str
    setting: float | None
    seed: int
    lr: float | None = None
    batch: int = BATCH


def measure(sizes: Sizes, backend: str, tick: Tick, data: tuple[Path, Path] | None) -> dict[str, Any]:
    """Every point: a `Task`, FVU, L0 and dead share on the second half of the held-out rows, and whether it was kept.

    `choosing`: FVU and L0 on the first half.
    """
    points = curves(list(sizes.dials()), [], sizes, backend, tick, data)
    return {"data": training.opened_once(data).about(), "points": points}


def curves(
    methods: list[str], points: list[dict[str, Any]], sizes: Sizes, backend: str, tick: Tick,
    data: tuple[Path, Path] | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The points of methods at their settings: all that were tried with the first seed, and others of what was kept.

    points: those there are already.  TopK is among them or among the methods, since its line says what is best.
    """
    work = partial(point, sizes=sizes, backend=backend, data=data)
    ways = list(product(sizes.lr, sizes.batch))
    tried = [
        Task(method, setting, 0, *way)
        for method in methods
        for setting, way in product(sizes.dials()[method], [(None, BATCH)] if method in OURS else ways)
    ]
    found = workers.at_once(work, tried, backend, tick)
    keep([*(p for p in points if not p["seed"]), *found])
    best = [task for task, p in zip(tried, found, strict=True) if p["kept"]]
    more = [task._replace(seed=seed) for task in best for seed in range(1, sizes.seeds)]
    return [*found, *(p | {"kept": True} for p in workers.at_once(work, more, backend, tick))]


def point(task: Task, sizes: Sizes, backend: str, data: tuple[Path, Path] | None) -> dict[str, Any]:
    """Train a network, and judge it on both halves of the held-out rows."""
    real = training.opened_once(data)
    config: Any = configure(task, sizes, real.train.d)
    params: Any
    if task.method in random_directions.NAMES:
        engine, params = random_directions.trained(real, config, backend, task.method)
    else:
        rows = feed.minibatches(real.train, config)
        engine, state = training.trained(rows, real.train.d, config, backend)
        params = engine.params(state)
    choosing, reported = (judged(evaluate(params, config, engine, real.judged(config, half))) for half in (0, 1))
    seen = {name: choosing[name] for name in ("fvu", "l0")}
    return task._asdict() | {"lr": config.lr, "batch": config.batch, "choosing": seen} | reported


def configure(task: Task, sizes: Sizes, d: int) -> AnyConfig:
    """The settings of a task, on rows of d dimensions."""
    steps = max(1, round(sizes.steps * BATCH / task.batch))
    given: dict[str, Any] = {"steps": steps, "batch": task.batch, "dtype": "float32", "seed": task.seed}
    given["width"] = sizes.width or max(1024, 8 * d)
    if task.lr is not None:
        given["lr"] = task.lr
    dial: dict[str, Any] = {} if task.setting is None else {DIALS.get(task.method, "k"): task.setting}
    if task.method in OURS:
        return OURS[task.method](d, **given, **dial)
    method: Any = "topk" if task.method in random_directions.NAMES else task.method
    return BaselineConfig(method=method, **given, **dial)


def keep(points: list[dict[str, Any]]) -> None:
    """Note in each point whether it is kept: of a method's setting, the best learning rate and batch.

    The best TopK has the lowest FVU.  Where L0 too depends on both, the lowest FVU alone would be the densest network:
    of all others the best has the lowest FVU in relation to TopK's line at its L0.
    """
    settings: dict[Any, list[dict[str, Any]]] = {}
    for p in points:
        settings.setdefault((p["method"], p["setting"], p["seed"]), []).append(p)
    top = [min((p["choosing"] for p in here), key=fvu) for (name, *_), here in settings.items() if name == "topk"]
    line_of_topk = sorted((found["l0"], found["fvu"]) for found in top)
    for (name, *_), here in settings.items():
        score = fvu if name == "topk" else partial(excess, points=line_of_topk)
        best = min(here, key=lambda p: score(p["choosing"]))
        for p in here:
            p["kept"] = p is best


def fvu(found: dict[str, float]) -> float:
    """FVU."""
    return found["fvu"]


def excess(found: dict[str, float], points: list[tuple[float, float]]) -> float:
    """FVU over that of the line through points at the same L0; infinite without an active neuron."""
    return found["fvu"] / line(points, found["l0"]) if found["l0"] > 0 else np.inf


def judged(evaluation: Evaluation) -> dict[str, float]:
    """FVU, L0 and dead, rounded."""
    summary = evaluation.summary()
    return {name: round(summary[name], 5) for name in ("fvu", "l0", "dead")}


# ---- what the numbers say --------------------------------------------------------------------------------------------


def kept(data: dict[str, Any], method: str) -> dict[Any, list[dict[str, Any]]]:
    """The points of a method by setting, each at the learning rate and batch that the method keeps.

    What earlier versions wrote tells of none that are kept: there it is the rate with the lowest FVU.
    """
    settings: dict[Any, list[dict[str, Any]]] = {}
    for p in data["points"]:
        if p["method"] == method:
            settings.setdefault(p["setting"], []).append(p)
    for setting, here in settings.items():
        lr = min(here, key=lambda p: p["fvu"])["lr"]
        settings[setting] = [p for p in here if p.get("kept", p["lr"] == lr)]
    return settings


def best(data: dict[str, Any], method: str) -> list[tuple[float, float]]:
    """(L0, FVU) of each setting of a method at the learning rate and batch it kept, means over the seeds, by L0."""
    return sorted(
        (float(np.mean([p["l0"] for p in here])), float(np.mean([p["fvu"] for p in here])))
        for here in kept(data, method).values()
    )


def line(points: list[tuple[float, float]], l0: float) -> float:
    """FVU at this L0 on the line through points, straight in the logarithms, its ends drawn on.

    Networks without an active neuron are no part of it.
    """
    x, y = np.log(np.array([point for point in points if point[0] > 0])).T
    at = int(np.clip(np.searchsorted(x, np.log(l0)), 1, len(x) - 1))
    slope = (y[at] - y[at - 1]) / (x[at] - x[at - 1])
    return float(np.exp(y[at] + slope * (np.log(l0) - x[at])))


def against(data: dict[str, Any], method: str, lines: tuple[str, ...]) -> float:
    """The FVU of a method over the lowest of these methods' lines at its L0, where it is worst."""
    return max(apart(data, method, lines))


def apart(data: dict[str, Any], method: str, lines: tuple[str, ...]) -> list[float]:
    """The FVU of a method at each setting over the lowest of these methods' lines at the same L0."""
    return [fvu / min(line(best(data, name), l0) for name in lines) for l0, fvu in best(data, method)]


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
    at = "at the best of its learning rates"
    if any("kept" in p for p in data["points"]):
        at += " and batches, which other held-out rows chose"
        sentences.append(_beside(data))
    if any(p["method"] == "measured" for p in data["points"]):
        ratios, at_l0 = apart(data, "measured", ABREAST), [l0 for l0, _ in best(data, "measured")]
        claims[MEASURED] = max(ratios) <= 1
        sentences.append(
            f"with measured targets FVU is {min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%} from the lowest of the "
            f"lines of TopK, BatchTopK and Matryoshka at L0 {at_l0[0]:.0f} to {at_l0[-1]:.0f}"
        )
    return Verdict(resolved(claims, data, BEYOND_QUICK), f"{'; '.join(sentences)}; each of them {at}.")


def _beside(data: dict[str, Any]) -> str:
    """How far GBA is from the lines of the methods that its claims do not name."""
    names = ("matryoshka", "gated", "jumprelu", *random_directions.NAMES)
    ratios = [f"{against(data, GBA[0], (name,)) - 1:+.1%} from {LABELS.get(name, name)}" for name in names]
    return f"{GBA[0]} is {', '.join(ratios)}"


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: dict[str, Any]) -> list[Picture]:
    """The frontier."""
    about = data["data"]
    return [
        Picture(
            f"Reconstruction against sparsity: {about['name']}, {about['rows']:,} rows of d = {about['d']}",
            "FVU on held-out rows against L0, both logarithmic: a line through the settings of each method at its best "
            "learning rate and batch, and a star for each variant of GBA, which has no setting.",
            lambda figure: _draw(figure, data),
            (8.0, 5.5),
        )
    ]


def _draw(figure: Figure, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    there = {p["method"] for p in data["points"]}
    names = ("topk", "batchtopk", "jumprelu", "l1", "BA", "matryoshka", "measured", "gated", *random_directions.NAMES)
    for name, style in zip(names, (*drawing.STYLES, *PALE), strict=False):
        if name in there:
            x, y = np.array(best(data, name)).T
            axes.plot(x, y, label=LABELS.get(name, name), markersize=6, **style)
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
