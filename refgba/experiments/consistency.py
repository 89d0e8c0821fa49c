"""Do runs from other seeds find the same neurons? MCS on real activations, every method, by the paper's selections.

The MCS (section 6) of a neuron of run A is the largest cosine of a neuron of run B.  Runs differ in their seed: in the
initial neurons and in the order of the rows, which are the same.  What a neuron stands for is its decoder row, as in
`imbalanced`.  One neuron of B may be the nearest of many of A, as of copies; so neurons are matched one to one, too,
and both are held against random dictionaries with the spectrum of the trained ones (`agreement`).  Encoder rows of
untied networks also lean away from other neurons, to tell features apart; their MCS is reported as well.  Frequency,
peak and Z-score of the pre-activations are those on the held-out rows; for TopK they are what
`baselines.evaluation_codes` says.  The trend over widths and rows is benchmarks/agreement.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations, islice, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from refgba import recipe
from refgba.backends.base import AnyConfig, AnyParams
from refgba.config import BaselineConfig
from refgba.experiments import agreement, drawing, measures, training, workers
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.outcome import Verdict, resolved
from refgba.metrics import TOP_SHARES, mcs, mcs_share
from refgba.runs.accumulate import Evaluation
from refgba.types import Array, Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUESTION = (
    "Two runs of GBA from different seeds agree on more of their neurons than two runs of TopK, at every threshold of "
    "the cosine and over the paper's selections of neurons."
)
TAKES_DATA = True
THRESHOLDS = (0.7, 0.8, 0.9, 0.95)
SELECTED_BY = ("peak", "frequency")
SCORES = ("frequency", "peak", "z_score")
MEASURED = "GBA, measured targets"
MOSTLY = "seeds of GBA agree more than those of TopK at most thresholds and selections"
BEYOND_QUICK = (MOSTLY,)  # The quick run has so few neurons and rows that seeds share the most frequent features only.
BINS = 12  # Each bin has equally many neurons.
PALE: dict[str, Any] = {"color": "#56B4E9", "marker": "X", "linestyle": (0, (1, 1))}
OURS: dict[str, Any] = {"color": "#E69F00", "marker": "P", "linestyle": "-"}
METHODS = ("GBA", "GBA, tied", "BA", "TopK", "BatchTopK", "JumpReLU", "L1", MEASURED)
STYLES = dict(zip(METHODS, (*drawing.STYLES, PALE, OURS), strict=True))
LABELS = {"frequency": "activation frequency", "peak": "peak pre-activation", "z_score": "Z-score of the peak"}


@dataclass(frozen=True)
class Sizes:
    """Settings; width 0 is the default recipe's.  Baselines keep the lr with the lowest FVU of the first seed.

    k: several, around the L0 of GBA, so that the comparison hangs on none.  measured: the l0 of measured targets.
    """

    width: int
    steps: int
    k: tuple[int, ...]
    measured: tuple[float, ...]
    batchtopk: tuple[int, ...]
    jumprelu: tuple[float, ...]
    l1: tuple[float, ...]
    htf: float
    lr: tuple[float, ...]
    seeds: int


SIZES = {
    "quick": Sizes(
        width=512, steps=400, k=(10, 20), measured=(10,), batchtopk=(10,), jumprelu=(0.004,), l1=(0.08,), htf=0.03,
        lr=(3e-3,), seeds=3,
    ),
    "full": Sizes(
        width=0, steps=1250, k=(32, 56, 96), measured=(32, 56), batchtopk=(56,), jumprelu=(0.001,), l1=(0.03, 0.06),
        htf=0.02, lr=(1e-3, 3e-3), seeds=6,
    ),
}  # fmt: skip


def measure(sizes: Sizes, backend: str, tick: Tick, data: tuple[Path, Path] | None) -> dict[str, Any]:
    """For each network, a method at a setting, what `compared` finds of its seeds."""
    real = training.opened_once(data)
    work = partial(training.evaluated_once, backend=backend, data=data)
    asked = candidates(sizes, real.train.d)
    trials = iter(workers.at_once(work, [config for *_, configs in asked for config in configs], backend, tick))
    kept = []
    for *_, configs in asked:
        tried = list(zip(configs, islice(trials, len(configs)), strict=True))
        kept.append(min(tried, key=lambda trial: trial[1][1].fvu))
    seeds = [replace(config, seed=seed) for config, _ in kept for seed in range(1, sizes.seeds)]
    others = iter(workers.at_once(work, seeds, backend, tick))
    networks = [
        {"method": method, "setting": setting, "lr": config.lr} | compared([first, *islice(others, sizes.seeds - 1)])
        for (method, setting, _), (config, first) in zip(asked, kept, strict=True)
    ]
    return {"data": real.about(), "thresholds": THRESHOLDS, "selections": TOP_SHARES, "networks": networks}


def candidates(sizes: Sizes, d: int) -> list[tuple[str, float | None, list[AnyConfig]]]:
    """Each method at each setting, with the first seed, at every learning rate to try."""
    given: dict[str, Any] = {"steps": sizes.steps, "dtype": "float32"} | ({"width": sizes.width} if sizes.width else {})
    default = partial(recipe.default, d, **given)
    width = default().width
    networks: list[tuple[str, float | None, list[AnyConfig]]] = [
        ("GBA", None, [default()]),
        ("GBA, tied", None, [default(untied=False)]),
        ("BA", sizes.htf, [default(groups=1, htf=sizes.htf)]),
    ]
    networks += [(MEASURED, l0, [recipe.measured(d, **given, l0=l0)]) for l0 in sizes.measured]
    settings = {"topk": sizes.k, "batchtopk": sizes.batchtopk, "jumprelu": sizes.jumprelu, "l1": sizes.l1}
    names = {"topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "l1": "L1"}
    for method, values in settings.items():
        for value in values:
            chosen: Any = {"method": method, training.DIALS[method]: value}
            rates: list[AnyConfig] = [BaselineConfig(lr=lr, **(given | {"width": width} | chosen)) for lr in sizes.lr]
            networks.append((names[method], value, rates))
    return networks


def compared(runs: Sequence[tuple[AnyParams, Evaluation]]) -> dict[str, Any]:
    """What the runs of a network, one per seed, have in common.

    share: [seed A][selected by][selection][threshold] of neurons of A, a mean over the other seeds B.  encoder: [seed
    A][threshold] over all neurons by encoder rows.  distinct: [seed] the share of neurons with a mean MCS above
    `measures.TAU`, those that are within TAU of one with a higher peak counted as one.  agreement: the mean over pairs
    of seeds of `agreement.Agreement`, and null: that of random dictionaries.  spearman: {score: [seed]}, and
    curves: {score: bins of pooled neurons}, of the mean MCS over B, among neurons that fire.
    """
    seeds = range(len(runs))
    decoders, encoders = [params.V for params, _ in runs], [params.W for params, _ in runs]
    shared: dict[str, Any] = {name: [round(e.summary()[name], 5) for _, e in runs] for name in ("fvu", "l0", "dead")}
    cosines = {(a, b): mcs(decoders[a], decoders[b]) for a, b in permutations(seeds, 2)}
    means = [np.mean([cosines[a, b] for b in seeds if b != a], axis=0) for a in seeds]  # (M,) each
    shared["share"] = [
        np.mean([selected(cosines[a, b], runs[a][1]) for b in seeds if b != a], axis=0).round(5).tolist() for a in seeds
    ]
    by_encoder = {(a, b): mcs(encoders[a], encoders[b]) for a, b in permutations(seeds, 2)}
    shared["encoder"] = [
        [round(float(np.mean([by_encoder[a, b] > tau for b in seeds if b != a])), 5) for tau in THRESHOLDS]
        for a in seeds
    ]
    shared["distinct"] = [distinct(decoders[a], runs[a][1].peak, means[a] > measures.TAU) for a in seeds]
    pairs = [agreement.agreement(decoders[a], decoders[b]) for a, b in combinations(seeds, 2)]
    shared["agreement"] = asdict(agreement.mean(pairs))
    shared["null"] = asdict(agreement.null(decoders[0]))
    alive = [evaluation.frequency > 0 for _, evaluation in runs]
    scores = {name: [getattr(e, name)[on] for (_, e), on in zip(runs, alive, strict=True)] for name in SCORES}
    firing = [m[on] for m, on in zip(means, alive, strict=True)]
    shared["spearman"] = {name: list(map(correlation, scores[name], firing)) for name in SCORES}
    shared["curves"] = {name: curve(np.concatenate(scores[name]), np.concatenate(firing)) for name in SCORES}
    return shared


def selected(cosines: Array, evaluation: Evaluation) -> Float64:
    """Shares of neurons above each threshold of the MCS (M,), [selected by][selection][threshold]."""
    return np.array([
        [[mcs_share(cosines, getattr(evaluation, by), share, tau) for tau in THRESHOLDS] for share in TOP_SHARES]
        for by in SELECTED_BY
    ])  # fmt: skip


def distinct(V: Array, peak: Float64, chosen: Array) -> float:
    """The share of all neurons, rows of V (M, d), that are chosen and farther than TAU from each one chosen before.

    Those with the highest peak go first.
    """
    kept = np.empty((0, V.shape[1]), V.dtype)
    for v in V[chosen][np.argsort(-peak[chosen], kind="stable")]:
        if not len(kept) or (kept @ v).max() <= measures.TAU:
            kept = np.concatenate([kept, v[None]])
    return round(len(kept) / len(V), 5)


def correlation(x: Array, y: Array) -> float | None:
    """Spearman's; None where it is not defined."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return round(float(spearmanr(x, y).statistic), 4)


def curve(x: Array, y: Array) -> list[list[float]]:
    """Bins of x with equally many points: [median x, and the quartiles of y] of each."""
    parts = [part for part in np.array_split(np.argsort(x, kind="stable"), BINS) if len(part)]
    return [[float(f"{v:.4g}") for v in (np.median(x[i]), *np.percentile(y[i], (25, 50, 75)))] for i in parts]


# ---- what the numbers say --------------------------------------------------------------------------------------------


def shares(network: dict[str, Any]) -> Float64:
    """[selected by][selection][threshold], means over the seeds."""
    mean: Float64 = np.mean(network["share"], axis=0)
    return mean


def consistent(network: dict[str, Any]) -> float:
    """The share of all neurons with an MCS above TAU, mean over the seeds."""
    return float(shares(network)[0, TOP_SHARES.index(1.0), THRESHOLDS.index(measures.TAU)])


def by_encoder(network: dict[str, Any]) -> float:
    """The same by encoder rows."""
    return float(np.mean(network["encoder"], axis=0)[THRESHOLDS.index(measures.TAU)])


def one_to_one(network: dict[str, Any], of: str = "agreement") -> float:
    """The share of neurons that agree to TAU once they are matched one to one; of="null": of random dictionaries."""
    return float(network[of]["matched"][agreement.LEVELS.index(measures.TAU)])


def named(data: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """The networks of a method."""
    return [network for network in data["networks"] if network["method"] == method]


def comparable(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each method the network whose L0 is nearest that of GBA."""
    [gba] = named(data, "GBA")
    methods = dict.fromkeys(network["method"] for network in data["networks"])

    def distance(network: dict[str, Any]) -> float:
        return abs(float(np.mean(network["l0"]) - np.mean(gba["l0"])))

    return [min(named(data, method), key=distance) for method in methods]


def verdict(data: dict[str, Any]) -> Verdict:
    """Is GBA above TopK, or both at 100%, at every threshold and selection, or at most, at the K nearest in L0?"""
    [gba], [tied] = named(data, "GBA"), named(data, "GBA, tied")
    [top] = [network for network in comparable(data) if network["method"] == "TopK"]
    ours, theirs = shares(gba), shares(top)
    above = (ours > theirs) | (ours == 1)
    every = np.all([(ours > shares(k)) | (ours == 1) for k in named(data, "TopK")], axis=0)
    best = max((n for n in data["networks"] if not n["method"].startswith("GBA")), key=consistent)
    matched = ""
    if "agreement" in gba and "agreement" in top:  # not in what earlier versions measured
        chance = max(one_to_one(network, "null") for network in (gba, top))
        matched = (
            f" Matched one to one {one_to_one(gba):.1%} against {one_to_one(top):.1%} do, of random dictionaries with "
            f"these spectra {chance:.1%}."
        )
    if targeted := named(data, MEASURED):  # ours, and not in what earlier versions measured
        matched += "".join(
            f" With measured targets (L0 {np.mean(n['l0']):.0f}) it is above that TopK in {(shares(n) > theirs).sum()}"
            f", and {consistent(n):.1%} exceed {measures.TAU}, {one_to_one(n):.1%} matched one to one."
            for n in targeted
        )
    claims = {
        "seeds of GBA agree more than those of TopK at every threshold and selection": bool(above.all()),
        MOSTLY: bool(above.mean() > 0.5),
    }
    return Verdict(
        resolved(claims, data, BEYOND_QUICK),
        f"of {above.size} comparisons (threshold by selection) GBA (L0 "
        f"{np.mean(gba['l0']):.0f}) is above TopK (K = {top['setting']}) in {above.sum()}, below in "
        f"{(ours < theirs).sum()}, above every K in {every.sum()}; of all neurons {consistent(gba):.1%} against "
        f"{consistent(top):.1%} ({by_encoder(top):.1%} by encoder rows) exceed {measures.TAU}, tied "
        f"{consistent(tied):.1%}. Of the others {label(best)} is the most consistent, {consistent(best):.1%}.{matched}",
    )


# ---- pictures --------------------------------------------------------------------------------------------------------


def title(method: str, setting: float | None) -> str:
    """A method and its setting, if it has one."""
    return method if setting is None else f"{method} {setting:g}"


def label(network: dict[str, Any]) -> str:
    """A network's method, setting and L0."""
    return f"{title(network['method'], network['setting'])} (L0 {np.mean(network['l0']):.0f})"


def pictures(data: dict[str, Any]) -> list[Picture]:
    """Selections and thresholds, the L0 of each network, and what goes with a high MCS."""
    about = data["data"]
    where = f"{about['name']}, {about['rows']:,} rows, {data['settings']['seeds']} seeds"
    return [
        Picture(
            f"Neurons that another seed finds too: {where}",
            f"The share of neurons with an MCS above {measures.TAU} among those with the highest peak and among the "
            "most frequent, and the share of all neurons against the threshold, one line per method at comparable L0.",
            lambda figure: _by_selection(figure, data),
            (11.0, 5.2),
        ),
        Picture(
            f"Consistency against sparsity: {where}",
            f"The share of all neurons with an MCS above {measures.TAU} against L0, a point for each network, with the "
            "range of seeds; hollow points count neurons that are alike as one.",
            lambda figure: _by_sparsity(figure, data),
        ),
        Picture(
            f"MCS against frequency, peak and Z-score: {where}",
            "Median and quartiles of the MCS in bins of equally many neurons that fire, against their activation "
            "frequency, their peak and their Z-score, one line per method at comparable L0.",
            lambda figure: _by_score(figure, data),
            (11.0, 5.2),
        ),
    ]


def _by_selection(figure: Figure, data: dict[str, Any]) -> None:
    panels = figure.subplots(1, 3, sharey=True)
    level = data["thresholds"].index(measures.TAU)
    for network in comparable(data):
        style = STYLES[network["method"]]
        seeds = np.array(network["share"])  # (seeds, by, selections, thresholds)
        for axes, by in zip(panels, range(len(SELECTED_BY)), strict=False):
            percents = [100 * share for share in data["selections"]]
            drawing.band(axes, percents, seeds[:, by, :, level].tolist(), style, "")
        drawing.band(panels[2], data["thresholds"], seeds[:, 0, -1].tolist(), style, label(network))
    for axes, score in zip(panels, SELECTED_BY, strict=False):
        axes.set(xscale="log", xlabel=f"% of neurons with the highest {score}")
        drawing.plain_ticks(axes.xaxis, [100 * share for share in data["selections"]])
        drawing.share_axis(axes, f"share with MCS above {measures.TAU}")
    panels[2].set(xlabel="threshold of the MCS, all neurons", xticks=data["thresholds"])
    drawing.share_axis(panels[2], "share above the threshold")
    _legend(figure, panels[2])


def _by_sparsity(figure: Figure, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    level = data["thresholds"].index(measures.TAU)
    for method in dict.fromkeys(network["method"] for network in data["networks"]):
        style = STYLES[method]
        networks = sorted(named(data, method), key=lambda network: float(np.mean(network["l0"])))
        x = [float(np.mean(network["l0"])) for network in networks]
        seeds = np.array([np.array(network["share"])[:, 0, -1, level] for network in networks])  # (networks, seeds)
        mean = seeds.mean(axis=1)
        reach = [mean - seeds.min(axis=1), seeds.max(axis=1) - mean]
        axes.errorbar(x, mean, reach, label=method, capsize=3, markersize=7, **style)
        once = [np.mean(network["distinct"]) for network in networks]
        axes.plot(x, once, style["marker"], color=style["color"], markersize=7, markerfacecolor="none")
    axes.set(xlabel="L0, active neurons per row")
    drawing.share_axis(axes, f"share of neurons with MCS above {measures.TAU}")
    axes.set_ylim(auto=True)
    axes.autoscale(axis="y")
    axes.legend(fontsize=9)


def _by_score(figure: Figure, data: dict[str, Any]) -> None:
    panels = figure.subplots(1, 3, sharey=True)
    for network in comparable(data):
        style = STYLES[network["method"]]
        for axes, score in zip(panels, SCORES, strict=True):
            x, low, median, high = np.array(network["curves"][score]).T
            axes.plot(x, median, label=label(network), markersize=4, linewidth=1.5, **style)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.08, linewidth=0)
    for axes, score in zip(panels, SCORES, strict=True):
        axes.set(xscale="log" if score == "frequency" else "linear", xlabel=f"{LABELS[score]}, median of a bin")
        axes.grid(alpha=0.25)
    panels[0].set(ylabel="MCS, median and quartiles", ylim=(0, 1.02))
    _legend(figure, panels[2])


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
