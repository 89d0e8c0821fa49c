"""Bias adaptation seen: pre-activations and activation frequencies before it and after, against each group's target.

The default recipe on real activations, looked at before the first step, after the forming steps, and at the end.
Pre-activations of neurons of one group are pooled in units of each one's standard deviation, from its mean; its gate is
at y = 0, so where that lies among them is what its bias has done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.stats import binom

from refgba import backends, gba, recipe, sae
from refgba.config import GBAConfig
from refgba.data import feed
from refgba.experiments import drawing, training
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.outcome import Verdict
from refgba.runs.accumulate import Evaluation
from refgba.runs.judging import evaluate
from refgba.sae import Params, unit_rows
from refgba.types import Array, Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUESTION = (
    "Neurons that all start by firing equally often end up firing as often as their group's target says, because "
    "bias adaptation moves their gates out into the tail of their pre-activations."
)
TAKES_DATA = True
STAGES = ("start", "formed", "end")
ROWS = ("train", "held_out")
MET = 0.8  # Targets are met where this share of neurons fires between half as often as its target and as often.
EDGES = np.linspace(-6, 16, 89)  # These bins of histograms are in standard deviations.


@dataclass(frozen=True)
class Sizes:
    """Settings; width 0 is the default recipe's."""

    width: int
    steps: int
    seeds: int


SIZES = {"quick": Sizes(width=512, steps=500, seeds=2), "full": Sizes(width=0, steps=4000, seeds=3)}


def measure(sizes: Sizes, backend: str, tick: Tick, data: tuple[Path, Path] | None) -> dict[str, Any]:
    """What `frequencies` and, of the first seed, `pooled` and `single` find at each stage."""
    real = training.opened(data)
    given: dict[str, Any] = {"width": sizes.width} if sizes.width else {}
    default = recipe.default(real.train.d, steps=sizes.steps, dtype="float32", **given)
    result: dict[str, Any] = {
        "data": real.about(), "target": default.target().tolist(), "edges": EDGES.tolist(),
        "steps": dict(zip(STAGES, stops(default), strict=True)), "drawn": drawn(default),
        "frequency": {stage: {rows: [] for rows in ROWS} for stage in STAGES}, "by_chance": [],
    }  # fmt: skip
    for seed in range(sizes.seeds):
        tick(f"seed {seed}")
        config = recipe.default(real.train.d, steps=sizes.steps, dtype="float32", seed=seed, **given)
        engine = backends.load_for(backend, config)
        seen = dict(zip(STAGES, snapshots(real, config, engine), strict=True))
        judged: dict[str, Evaluation] = {}
        for stage, params in seen.items():
            trained = evaluate(params, config, engine, real.seen(config))
            judged[stage] = evaluate(params, config, engine, real.judged(config))
            for rows, evaluation in zip(ROWS, (trained, judged[stage]), strict=True):
                result["frequency"][stage][rows].append(frequencies(evaluation.frequency, config))
        result["by_chance"].append(by_chance(trained.frequency, len(real.held_out), config))
        if seed == 0:
            X = unit_rows(np.concatenate(list(real.judged(config))).astype(config.master))
            y = {stage: sae.encode(params, X, config.activation)[0] for stage, params in seen.items()}
            result["pooled"] = {stage: pooled(y[stage], judged[stage], config) for stage in STAGES}
            result["single"] = single(y, seen, judged["end"].frequency, config)
    return result


def stops(config: GBAConfig) -> tuple[int, ...]:
    """The steps after which each stage is looked at."""
    return 0, recipe.forming_steps(config), config.steps


def drawn(config: GBAConfig) -> list[int]:
    """The groups whose pre-activations are drawn: the first, the middle and the last."""
    return sorted({0, config.groups // 2, config.groups - 1})


def snapshots(real: training.Real, config: GBAConfig, engine: backends.Backend) -> Iterator[Params]:
    """The parameters of a run at each stage."""
    state = backends.begin(engine, config, real.train.d)
    yield cast(Params, engine.params(state))
    minibatches = (engine.put(state, x) for x in feed.minibatches(real.train, config))
    for _ in gba.train(state, minibatches, engine.step, engine.adapt):
        if state.t in stops(config):
            yield cast(Params, engine.params(state))


def frequencies(p: Float64, config: GBAConfig) -> list[dict[str, float]]:
    """For each group the 10%, 50% and 90% quantiles of frequencies p (M,), and the shares of neurons by p_m / p_k.

    within: from 1/2 to 1.  above: over 1.  below: under 1/2.  never: 0, which are below as well.
    """
    groups = []
    for k, target in enumerate(config.target()):
        here = p[config.group() == k] / target
        low, median, high = np.quantile(here, (0.1, 0.5, 0.9)) * target
        shares = {
            "within": np.mean((here >= 0.5) & (here <= 1)),
            "above": np.mean(here > 1),
            "below": np.mean(here < 0.5),
            "never": np.mean(here == 0),
        }
        quantiles = {"low": low, "median": median, "high": high}
        groups.append({name: float(f"{value:.4g}") for name, value in (quantiles | shares).items()})
    return groups


def by_chance(p: Float64, rows: int, config: GBAConfig) -> float:
    """The share of neurons that counting would find between half of their target and it on so many rows.

    p: (M,) their frequencies, were they the same there as on the rows trained on.
    """
    most = rows * config.target()[config.group()]
    return round(float(np.mean(binom.cdf(most, rows, p) - binom.cdf(np.ceil(most / 2) - 1, rows, p))), 5)


def pooled(y: Array, evaluation: Evaluation, config: GBAConfig) -> list[dict[str, Any]]:
    """For each group drawn the density of its neurons' pre-activations y (N, M) between EDGES, and its gates.

    Both in standard deviations of each neuron from its mean; gate: the quartiles over neurons.
    """
    mean, std = evaluation.mean, np.maximum(evaluation.std, np.finfo(np.float32).tiny)
    gate, groups = -mean / std, []
    for k in drawn(config):
        group = config.group() == k
        standard = ((y[:, group] - mean[group]) / std[group]).ravel()
        counts, _ = np.histogram(standard, EDGES)
        density = counts / (standard.size * np.diff(EDGES))
        groups.append({"density": _rounded(density), "gate": _rounded(np.percentile(gate[group], (25, 50, 75)))})
    return groups


def single(
    y: dict[str, Array], params: dict[str, Params], frequency: Float64, config: GBAConfig
) -> list[dict[str, Any]]:
    """Of each group drawn the neuron of median frequency at the end: histograms of its projections z = y - b."""
    neurons = []
    for k in drawn(config):
        group = np.flatnonzero(config.group() == k)
        m = int(group[np.argsort(frequency[group], kind="stable")[len(group) // 2]])
        z = {stage: y[stage][:, m] - params[stage].b[m] for stage in STAGES}
        edges = np.linspace(min(v.min() for v in z.values()), max(v.max() for v in z.values()), 61)
        neurons.append({
            "neuron": m, "edges": _rounded(edges), "gate": {s: round(float(-params[s].b[m]), 5) for s in STAGES},
            "counts": {stage: np.histogram(v, edges)[0].tolist() for stage, v in z.items()},
        })  # fmt: skip
    return neurons


def _rounded(values: Float64) -> list[float]:
    return [float(f"{v:.4g}") for v in values]


# ---- what the numbers say --------------------------------------------------------------------------------------------


def by_group(data: dict[str, Any], stage: str, rows: str, name: str) -> Float64:
    """A statistic of `frequencies`, (seeds, K)."""
    return np.array([[group[name] for group in seed] for seed in data["frequency"][stage][rows]], np.float64)


def verdict(data: dict[str, Any]) -> Verdict:
    """Do neurons fire as often as their targets say at the end, on the rows trained on: the medians, and nearly all?"""
    share = {rows: by_group(data, "end", rows, "within").mean(axis=0) for rows in ROWS}
    never = by_group(data, "end", "train", "never").mean()
    above, below = (by_group(data, "end", "train", name).mean() for name in ("above", "below"))
    ratio = by_group(data, "end", "train", "median").mean(axis=0) / data["target"]
    met = (ratio >= 0.5) & (ratio <= 1)
    claims = {
        "the median neuron of every group ends between half of its target and it": bool(met.all()),
        f"so do {MET:.0%} of all neurons": bool(share["train"].mean() >= MET),
    }
    start = by_group(data, "start", "train", "median").mean()
    worst = int(np.argmin(share["train"]))
    return Verdict(
        claims,
        f"neurons that fired on {start:.0%} of the rows end between half of their target and "
        f"it in {share['train'].mean():.0%} of cases ({above:.0%} above, {below:.0%} below, {never:.0%} silent), the "
        f"medians of {met.sum()} of {len(met)} groups; worst {share['train'][worst]:.0%}, at p = "
        f"{data['target'][worst]:.2g}. On held-out rows {share['held_out'].mean():.0%}, where counting noise alone "
        f"would leave {np.mean(data['by_chance']):.0%}.",
    )


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: dict[str, Any]) -> list[Picture]:
    """Frequencies by group; pre-activations pooled by group; those of single neurons."""
    about, settings = data["data"], data["settings"]
    where = f"{about['name']}, {settings['steps']} steps"
    return [
        Picture(
            f"Activation frequencies against targets: {where}",
            "Median and 10% to 90% range of the frequencies of each group's neurons against its target, before the "
            "first step, after the forming steps and at the end, with a band from half of the target to it; beside it "
            "the share of neurons in the band, above and below it.",
            lambda figure: _frequencies(figure, data),
            (10.0, 4.8),
        ),
        Picture(
            f"Pre-activations of three groups before and after: {where}",
            "Densities of pre-activations pooled over the neurons of a group, in standard deviations and on a "
            "logarithmic axis, at each stage, with a Gaussian to compare, and the median gate of the group.",
            lambda figure: _pooled(figure, data),
            (11.0, 4.4),
        ),
        Picture(
            f"Projections of single neurons before and after: {where}",
            "For the neuron of median frequency in three groups the histogram of its projections at each stage, one "
            "above the other, with a line at its gate.",
            lambda figure: _single(figure, data),
            (11.0, 6.0),
        ),
    ]


def _frequencies(figure: Figure, data: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    target = np.array(data["target"])
    left.fill_between(target, target / 2, target, color="0.85", label="half of the target to the target")
    for stage, style in zip(STAGES, drawing.STYLES, strict=False):
        low, median, high = (by_group(data, stage, "train", name).mean(axis=0) for name in ("low", "median", "high"))
        label = f"{stage}, step {data['steps'][stage]}"
        left.plot(target, median, label=label, markersize=5, **style)
        left.fill_between(target, low, high, color=style["color"], alpha=0.15, linewidth=0)
    left.set(xscale="log", yscale="log", xlabel="target p_k of the group", ylabel="frequency on the rows trained on")
    left.grid(alpha=0.25)
    left.legend(fontsize=9)
    for name, style in zip(("within", "above", "below"), drawing.STYLES, strict=False):
        drawing.band(right, data["target"], by_group(data, "end", "train", name).tolist(), style, name)
    right.set(xscale="log", xlabel="target p_k of the group")
    drawing.share_axis(right, "share of neurons at the end")
    right.legend(fontsize=9)


def _pooled(figure: Figure, data: dict[str, Any]) -> None:
    panels = np.atleast_1d(figure.subplots(1, len(data["drawn"]), sharey=True))
    middles = (np.array(data["edges"])[1:] + np.array(data["edges"])[:-1]) / 2
    for i, (axes, k) in enumerate(zip(panels, data["drawn"], strict=True)):
        axes.plot(middles, np.exp(-(middles**2) / 2) / np.sqrt(2 * np.pi), color="0.6", linewidth=1, label="Gaussian")
        for stage, style in zip(STAGES, drawing.STYLES, strict=False):
            group = data["pooled"][stage][i]
            density = np.array(group["density"])
            axes.step(middles, np.where(density > 0, density, np.nan), where="mid", color=style["color"], label=stage)
            _gate(axes, group["gate"][1], style["color"])
        axes.set(yscale="log", ylim=(1e-5, 1), xlabel="(y - mean) / std on held-out rows")
        axes.set_title(f"group {k + 1}, target {data['target'][k]:.2g}; gates dashed", fontsize=10)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("density")
    panels[0].legend(fontsize=9)


def _single(figure: Figure, data: dict[str, Any]) -> None:
    grid = figure.subplots(len(STAGES), len(data["drawn"]), sharex="col", squeeze=False)
    for column, (k, neuron) in enumerate(zip(data["drawn"], data["single"], strict=True)):
        for row, (stage, style) in enumerate(zip(STAGES, drawing.STYLES, strict=False)):
            axes = grid[row, column]
            axes.stairs(neuron["counts"][stage], neuron["edges"], fill=True, alpha=0.5, color=style["color"])
            axes.set_yscale("symlog", linthresh=1)
            _gate(axes, neuron["gate"][stage], style["color"])
            axes.set_ylabel(f"{stage}: rows" if column == 0 else "")
        target = data["target"][k]
        grid[0, column].set_title(f"neuron {neuron['neuron']}, target {target:.2g}; gate dashed", fontsize=10)
        grid[-1, column].set_xlabel("w . (x - b_pre) on held-out rows")


def _gate(axes: Axes, at: float, colour: str) -> None:
    axes.axvline(at, color=colour, linestyle="--", linewidth=1.4)
