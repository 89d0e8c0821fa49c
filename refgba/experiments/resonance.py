"""Neuron resonance (Theorem 6.1): at which frequencies p are features recovered, and how that depends on d and n.

Maps of FRR over (d, p) and (n, p), for Modified BA, which hits p exactly at every step, and for BA as one would run it:
GBA with one group of target p, at the small fixed output scale of the recipe's forming phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from refgba import recipe, theory
from refgba.experiments import drawing, measures, training
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.outcome import Verdict, resolved
from refgba.model import Uniform
from refgba.types import Array, Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUESTION = (
    "Features are recovered only in a band of activation frequencies, 1/n <~ p <~ n^-(1+1/s)/2 and the other limits of "
    "Theorem 6.1, which is narrow in heavy superposition (d < sqrt n) and wide in light (d > sqrt n)."
)
TAKES_DATA = False
HALF = 0.5  # This FRR marks the edges of a band, whose dependence on n is compared with the theorem's.


@dataclass(frozen=True)
class Sizes:
    """Settings: s features per row.  The (d, p) map has n features; of the (n, p) maps one has d = few, one d = n / 2.

    So the first crosses d = sqrt n and the second stays on its light side, as the theorem's limits without d ask for.
    """

    n: int
    s: int
    d: tuple[int, ...]
    ns: tuple[int, ...]
    few: int
    p: tuple[float, ...]
    rows: int
    lower: int  # n of the map, at d = n / 2, that asks whether the lower edge is a matter of n or of the number of rows
    more_rows: int
    per_feature: int  # neurons for each feature
    steps: int
    seeds: int
    ba_d: tuple[int, ...]
    ba_ns: tuple[int, ...]
    ba_p: tuple[float, ...]
    ba_per_feature: int
    ba_steps: int
    ba_batch: int


def grid(low: float, high: float, points: int) -> tuple[float, ...]:
    """Frequencies at equal ratios, three digits each."""
    return tuple(float(f"{p:.3g}") for p in np.geomspace(low, high, points))


UPPER_EDGE = "its upper edge moves with n as the theorem's"
BEYOND_QUICK = (UPPER_EDGE,)  # The quick run has three n, and frequencies further apart.
SIZES = {
    "quick": Sizes(
        n=128, s=3, d=(8, 16, 32, 64, 128), ns=(64, 128, 256), few=12, p=grid(0.001, 0.25, 9), rows=4096, lower=128,
        more_rows=16384, per_feature=6, steps=3, seeds=2, ba_d=(8, 32, 128), ba_ns=(64, 128), ba_p=grid(0.001, 0.25, 5),
        ba_per_feature=3, ba_steps=400, ba_batch=256,
    ),
    "full": Sizes(
        n=256, s=3, d=(12, 16, 24, 32, 64, 128, 256), ns=(64, 128, 256, 512), few=16, p=grid(0.0005, 0.25, 11),
        rows=8192, lower=128, more_rows=32768, per_feature=8, steps=3, seeds=3, ba_d=(12, 32, 64, 256),
        ba_ns=(64, 128, 256), ba_p=grid(0.0005, 0.25, 7), ba_per_feature=3, ba_steps=500, ba_batch=256,
    ),
}  # fmt: skip


def measure(sizes: Sizes, backend: str, tick: Tick) -> dict[str, Any]:
    """All maps, each FRR as [seed][place][p]; those over n at d = few, then at d = n / 2."""
    return {
        "modified d": _map("Modified BA", [(sizes.n, d) for d in sizes.d], sizes, None, tick),
        "ba d": _map("BA", [(sizes.n, d) for d in sizes.ba_d], sizes, backend, tick),
        "modified n": [_map("Modified BA", places, sizes, None, tick) for places in _over_n(sizes.ns, sizes.few)],
        "ba n": [_map("BA", places, sizes, backend, tick) for places in _over_n(sizes.ba_ns, sizes.few)],
        "lower": measure_lower(sizes, tick),
    }


def measure_lower(sizes: Sizes, tick: Tick) -> dict[str, Any]:
    """Modified BA at one n and d, on fewer rows and on more."""
    place, rows = [(sizes.lower, sizes.lower // 2)], (sizes.rows, sizes.more_rows)
    return {"rows": rows, "modified": [_map("Modified BA", place, replace(sizes, rows=N), None, tick) for N in rows]}


def _over_n(ns: Sequence[int], few: int) -> list[list[tuple[int, int]]]:
    return [[(n, few) for n in ns], [(n, n // 2) for n in ns]]


def _map(name: str, places: list[tuple[int, int]], sizes: Sizes, backend: str | None, tick: Tick) -> dict[str, Any]:
    """FRR at every (n, d) and p, of Modified BA, or with a backend of BA; and of the random neurons it began with."""
    p = sizes.ba_p if backend else sizes.p
    frr: list[list[list[float]]] = []
    chance: list[list[float]] = []
    for seed in range(sizes.seeds):
        frr.append([])
        chance.append([])
        for n, d in places:
            tick(f"{name}, n = {n}, d = {d}, seed {seed}")
            V = training.gaussian(n, d, seed)
            X = training.mixture(Uniform(n, (sizes.s,)), V, sizes.rows, seed)
            M = n * (sizes.ba_per_feature if backend else sizes.per_feature)
            W = training.neurons(M, d, seed)
            chance[-1].append(measures.recovery(measures.nearest(V, W)))
            if backend:
                neurons = [_ba(X, M, q, seed, sizes, backend) for q in p]
            else:
                neurons = [training.climb(X, W, q, sizes.steps) for q in p]
            frr[-1].append([measures.recovery(measures.nearest(V, w)) for w in neurons])
    return {
        "n": [n for n, _ in places],
        "d": [d for _, d in places],
        "p": list(p),
        "frr": frr,
        "chance": chance,
        "theorem": [[b.low, b.high] for b in (theory.resonance_band(n, d, sizes.s) for n, d in places)],
        "by frequency": [[b.low, b.high] for b in (theory.frequency_band(n, d, sizes.s) for n, d in places)],
    }


def _ba(X: Array, M: int, p: float, seed: int, sizes: Sizes, backend: str) -> Array:
    """BA's neurons: the recipe's forming phase, and nothing after it, with one group."""
    config = recipe.default(
        X.shape[1], width=M, groups=1, htf=p, form=1.0, steps=sizes.ba_steps, batch=sizes.ba_batch, seed=seed,
        dtype="float32",
    )  # fmt: skip
    return training.train(X, config, backend).neurons


# ---- what the numbers say --------------------------------------------------------------------------------------------


def mean(measured: dict[str, Any]) -> Float64:
    """FRR of a map over its seeds, (places, p)."""
    frr: Float64 = np.mean(measured["frr"], axis=0)
    return frr


def widths(measured: dict[str, Any]) -> list[float]:
    """For each place of a map the decades of p over which its mean FRR is at least RECOVERED."""
    return [measures.decades(measured["p"], curve, measures.RECOVERED) for curve in mean(measured).tolist()]


def exponents(measured: dict[str, Any]) -> tuple[float | None, float | None]:
    """How the band's edges, at FRR HALF, move with n: k of p ~ n^k, of the lower one and of the upper one."""
    bands = [measures.edges(measured["p"], curve, HALF) for curve in mean(measured).tolist()]
    at = [n for n, pair in zip(measured["n"], bands, strict=True) if pair]
    pairs = [pair for pair in bands if pair]
    return measures.power(at, [low for low, _ in pairs]), measures.power(at, [high for _, high in pairs])


def theorem_exponents(measured: dict[str, Any]) -> tuple[float | None, float | None]:
    """The same of the theorem's edges."""
    low, high = zip(*measured["theorem"], strict=True)
    return measures.power(measured["n"], low), measures.power(measured["n"], high)


def verdict(data: dict[str, Any]) -> Verdict:
    """Is there a band, is it wider in light superposition, does its upper edge move with n as the theorem's does?"""
    n, s = data["settings"]["n"], data["settings"]["s"]
    modified, ba = data["modified d"], data["ba d"]
    (low, high), (low_t, high_t) = exponents(data["modified n"][1]), theorem_exponents(data["modified n"][1])
    heavy, light, first = _sides(modified, n)
    ba_heavy, ba_light, _ = _sides(ba, n)
    fewer, more = lower_edges(data)
    moved = fewer is None or more is None or more < 0.8 * fewer
    claims = {
        "Modified BA recovers in a band of frequencies, and little below and above it": _both_sides(modified),
        "its band is wider in light superposition than in heavy": light > heavy,
        UPPER_EDGE: high is not None and high_t is not None and abs(high - high_t) <= 0.2,
        "so does its lower edge": not moved and low is not None and low_t is not None and abs(low - low_t) <= 0.2,
        "BA has such a band too, wider in light superposition": ba_light > ba_heavy and _both_sides(ba),
    }
    opens = f"first at d = {first} = {first / n**0.5:.1f} sqrt n" if first else "at no d"
    at_lowest, at_lowest_modified = mean(ba)[-1][0], mean(modified)[-1][0]
    least = "at least " if at_lowest >= measures.RECOVERED else ""  # The band goes on below the lowest p.
    passing = " as biases pass through the band on their way down" if at_lowest > at_lowest_modified + 0.2 else ""
    return Verdict(
        resolved(claims, data, BEYOND_QUICK),
        f"at n = {n}, s = {s} Modified BA recovers over {light:.2f} decades of p at "
        f"d = {modified['d'][-1]} and over {heavy:.2f} where d < sqrt n, {opens}, the real BA over {least}"
        f"{ba_light:.2f} and {ba_heavy:.2f}, with {at_lowest:.0%} recovered at p = {ba['p'][0]}{passing}, against "
        f"{at_lowest_modified:.0%} by Modified BA at p = {modified['p'][0]}; with d = n / 2 the edges move as "
        f"n^{_digits(low)} and n^{_digits(high)}, the theorem's as n^{_digits(low_t)} and n^{_digits(high_t)}, and the "
        f"lower one is {'a matter of the number of rows' if moved else 'the same with more rows'}: "
        f"{_digits(fewer, 4)} at n = {data['settings']['lower']} with {data['lower']['rows'][0]} rows, "
        f"{_digits(more, 4)} with {data['lower']['rows'][1]}.",
    )


def lower_edges(data: dict[str, Any]) -> tuple[float | None, float | None]:
    """The lower edge of the band, at FRR HALF, with fewer rows and with more."""
    bands = [measures.edges(m["p"], mean(m)[0].tolist(), HALF) for m in data["lower"]["modified"]]
    fewer, more = (pair[0] if pair else None for pair in bands)
    return fewer, more


def _sides(measured: dict[str, Any], n: int) -> tuple[float, float, int | None]:
    """The widest band where d < sqrt n, the band at the largest d, and the smallest d that has a band."""
    width = widths(measured)
    heavy = max((w for w, d in zip(width, measured["d"], strict=True) if d < n**0.5), default=0.0)
    first = next((d for w, d in zip(width, measured["d"], strict=True) if w > 0), None)
    return heavy, width[-1], first


def _both_sides(measured: dict[str, Any]) -> bool:
    """Whether FRR at the largest d ends below half of its peak at both ends of the range of p."""
    curve = mean(measured)[-1]
    return bool(max(curve[0], curve[-1]) < curve.max() / 2)


def _digits(k: float | None, digits: int = 2) -> str:
    return "?" if k is None else f"{k:.{digits}f}"


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: dict[str, Any]) -> list[Picture]:
    """The maps over (d, p), the maps over (n, p), the width of the band, and what more rows do to it."""
    s, n = data["settings"]["s"], data["settings"]["n"]
    few = data["settings"]["few"]
    return [
        Picture(
            f"Recovery against d and p: n = {n}, s = {s}",
            f"Two heat maps of FRR at cosine {measures.TAU}, dimension d across and frequency p upwards, for Modified "
            "BA and for BA, with the band of Theorem 6.1 and the line d = sqrt n drawn on them.",
            lambda figure: _maps(figure, [("Modified BA", data["modified d"]), ("BA", data["ba d"])], "d", n**0.5),
            (10, 4.6),
        ),
        Picture(
            f"Recovery against n and p: s = {s}",
            f"Four heat maps of FRR at cosine {measures.TAU}, number of features n across and frequency p upwards, for "
            f"Modified BA and BA, at d = {few} and at d = n / 2, with the band of Theorem 6.1 and the line d = sqrt n.",
            lambda figure: _maps(
                figure,
                [(f"Modified BA, d = {d}", m) for d, m in zip((few, "n / 2"), data["modified n"], strict=True)]
                + [(f"BA, d = {d}", m) for d, m in zip((few, "n / 2"), data["ba n"], strict=True)],
                "n",
                few**2,
            ),
            (10, 8.2),
        ),
        Picture(
            f"Width of the band against d: n = {n}, s = {s}",
            f"Decades of p in which FRR is at least {measures.RECOVERED:.0%}, against d, for Modified BA and BA, with "
            "the theorem's width and the line d = sqrt n.",
            lambda figure: _width_picture(figure, data),
        ),
        Picture(
            f"The band with fewer rows and with more: n = {data['settings']['lower']}, d = n / 2, s = {s}",
            f"FRR of Modified BA at cosine {measures.TAU} against frequency p, for two numbers of rows, with the "
            "theorem's lower limit 1/n and its upper limit.",
            lambda figure: _rows_picture(figure, data["lower"]),
        ),
    ]


def _edges_of_cells(x: Sequence[float]) -> Float64:
    """Borders between cells centred, on a logarithmic axis, at x."""
    log = np.log(x)
    middle = (log[1:] + log[:-1]) / 2
    borders: Float64 = np.exp(np.concatenate([[2 * log[0] - middle[0]], middle, [2 * log[-1] - middle[-1]]]))
    return borders


def _maps(figure: Figure, panels: list[tuple[str, dict[str, Any]]], across: str, boundary: float) -> None:
    """Heat maps, two in a row; boundary: where d = sqrt n, on the map whose d or n alone varies."""
    grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False, sharey=True)
    for axes, (title, measured) in zip(grid.flat, panels, strict=True):
        x = measured[across]
        mesh = axes.pcolormesh(
            _edges_of_cells(x), _edges_of_cells(measured["p"]), mean(measured).T, vmin=0, vmax=1, cmap=drawing.HEAT
        )  # fmt: skip
        axes.set(xscale="log", yscale="log", title=title, xlabel=f"{across}{_meaning(across)}")
        drawing.plain_ticks(axes.xaxis, x)
        alone = len(set(measured["n"])) == 1 or len(set(measured["d"])) == 1
        _overlay(axes, x, measured, boundary if alone else np.nan)
    for axes in grid[:, 0]:
        axes.set_ylabel("frequency p")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False, handlelength=3.2)
    figure.colorbar(mesh, ax=grid, label=f"FRR({measures.TAU}), mean over seeds", format="{x:.0%}")


def _meaning(across: str) -> str:
    return ", dimensions" if across == "d" else ", features"


def _overlay(axes: Axes, x: list[float], measured: dict[str, Any], boundary: float) -> None:
    """The theorem's band, the band by frequency, and where d = sqrt n, on white so that they show on every colour."""
    from matplotlib.patheffects import Normal, Stroke

    halo = [Stroke(linewidth=4, foreground="black"), Normal()]
    low, high = np.transpose(measured["theorem"])
    f = [low for low, _ in measured["by frequency"]]
    axes.plot(x, low, color="white", linewidth=1.8, path_effects=halo, label="Theorem 6.1: lower limit 1/n")
    axes.plot(x, high, color="white", linewidth=1.8, linestyle="--", path_effects=halo, label="upper limit")
    axes.plot(x, f, color="#FF9E9E", linewidth=1.4, path_effects=halo, label="f = s/n")
    limits = _edges_of_cells(x)
    if limits[0] < boundary < limits[-1]:
        axes.axvline(boundary, color="white", linewidth=1.4, linestyle=":", path_effects=halo, label=r"$d = \sqrt{n}$")
    axes.set(xlim=(limits[0], limits[-1]), ylim=(measured["p"][0], measured["p"][-1]))


def _width_picture(figure: Figure, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    for (name, key), style in zip((("Modified BA", "modified d"), ("BA", "ba d")), drawing.STYLES, strict=False):
        measured = data[key]
        per_seed = [
            [measures.decades(measured["p"], curve, measures.RECOVERED) for curve in seed] for seed in measured["frr"]
        ]
        drawing.band(axes, measured["d"], per_seed, style, f"{name}, mean over seeds, lowest to highest")
    measured = data["modified d"]
    theorem = [max(0.0, float(np.log10(high / low))) for low, high in measured["theorem"]]
    axes.plot(measured["d"], theorem, color="0.45", linewidth=1.2, label="Theorem 6.1, constants set to 1")
    axes.axvline(data["settings"]["n"] ** 0.5, color="black", linestyle=":", label=r"$d = \sqrt{n}$")
    axes.set(xscale="log", xlabel="d, dimensions", ylabel=f"decades of p with FRR ≥ {measures.RECOVERED:.0%}")
    drawing.plain_ticks(axes.xaxis, measured["d"])
    axes.grid(alpha=0.25)
    figure.legend(fontsize=9, loc="outside lower center", ncols=2, frameon=False)


def _rows_picture(figure: Figure, lower: dict[str, Any]) -> None:
    axes = figure.subplots()
    for N, measured, style in zip(lower["rows"], lower["modified"], drawing.STYLES, strict=False):
        drawing.band(axes, measured["p"], [seed[0] for seed in measured["frr"]], style, f"{N} rows")
    for limit, linestyle, label in zip(measured["theorem"][0], (":", "--"), ("1/n", "upper limit"), strict=True):
        axes.axvline(limit, color="black", linewidth=1.2, linestyle=linestyle, label=f"Theorem 6.1, {label}")
    axes.set(xscale="log", xlabel="frequency p")
    drawing.share_axis(axes, f"FRR({measures.TAU}), mean and range of seeds")
    axes.legend(fontsize=9)
