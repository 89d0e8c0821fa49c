"""The figures of a report: each takes the numbers of named runs and returns markup with its alternative text.

Every function raises InputError where matplotlib is not installed.  Frequencies are shares of rows, on logarithmic
axes.  Neurons that never fired have no place on such an axis: they are drawn beside the others or counted in the note.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refgba.report.page import GUIDE, SERIES, Html, drawing, figure, series
from refgba.report.words import percent, rounded
from refgba.types import Array, Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 1500  # Up to this many neurons are drawn one by one; more are counted in the cells of a grid.
CELLS = (56, 36)  # The cells of that grid, across and up.
LEVELS = 6  # The shades of its cells.
SAME = 1.2  # Frequencies whose ratio is at most this are too near each other to be an axis.
HIGHEST = 1e30  # No curve goes higher: matplotlib fails near the largest float.
NEVER = "never"
MARKERS = "osD^v<"  # The marks of runs, which go with their colours.

Named = Sequence[tuple[str, Any]]


# ---- curves ----------------------------------------------------------------------------------------------------------


def curve(runs: Named, title: str, shares: bool = False, mark: tuple[float, str] | None = None) -> Html:
    """Lines of (step, value) pairs of arrays by run.  mark: a step to point out, and why."""
    with drawing():
        fig, ax = _axes("step", "")
        drawn = [np.minimum(value, HIGHEST) for _, (_, value) in runs]
        for i, ((name, (step, _)), value) in enumerate(zip(runs, drawn, strict=True)):
            ax.plot(step, value, label=name, **series(i))
        low, high = (float(edge(np.concatenate(drawn))) for edge in (np.min, np.max))
        if low > 1 / HIGHEST and high > 20 * low:
            ax.set_yscale("log")
            _plain(ax.yaxis, percent if shares else rounded)
        elif shares:
            ax.set_ylim(0, max(1.05 * high, 1e-3))
            ax.yaxis.set_major_formatter(lambda p, _: percent(p))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        ax.xaxis.set_major_locator(_few())
        if mark is not None:
            ax.axvline(mark[0], color=GUIDE, linewidth=0.8, linestyle=(0, (4, 3)))
            ax.annotate(mark[1], (mark[0], 1), (0, 2), ("data", "axes fraction"), "offset points", ha="center")
        shown = percent if shares else rounded
        summary = "; ".join(
            f"{n} from {shown(v[0])} at step {s[0]} to {shown(v[-1])} at step {s[-1]}" for n, (s, v) in runs
        )
        return figure(fig, f"Line chart of {title} against step: {summary}.", title)


# ---- frequencies -----------------------------------------------------------------------------------------------------


def frequencies(runs: Named, target: Float64 | None) -> Html:
    """Histograms of activation frequencies (M,) by run, on a logarithmic axis, with the targets of the groups."""
    title = "Activation frequency of the neurons"
    with drawing():
        fig, ax = _axes("activation frequency", "share of the neurons")
        alive = np.concatenate([p[p > 0] for _, p in runs])
        low, high = (alive.min(), alive.max()) if alive.size else (1e-3, 1.0)
        low, high = min(low, *(target if target is not None else [low])), max(high, low * 10)
        edges = np.geomspace(low / 1.1, high * 1.1, 41)
        wide = edges[1] / edges[0]
        place = edges[0] / wide**6  # of those that never fired
        for i, (_, p) in enumerate(runs):
            share = np.histogram(p[p > 0], edges)[0] / len(p)
            dead = float(np.mean(p == 0))
            if len(runs) == 1:
                ax.stairs(share, edges, fill=True, color=SERIES[0], alpha=0.75)
                ax.stairs([dead], [place / wide**1.5, place * wide**1.5], fill=True, color=SERIES[1], hatch="///")
            else:
                ax.stairs(share, edges, **series(i))
                ax.plot([place], [dead], marker=MARKERS[i % 6], color=SERIES[i % len(SERIES)], markersize=4)
        ax.set_xscale("log")
        ax.set_ylim(0)
        _name_never(ax, place)
        _plain(ax.xaxis, lambda p: percent(p) if p >= 2 * edges[0] else "")
        note = f"“{NEVER}”: neurons that fired on no row."
        if target is not None:
            for p_k in target:
                ax.axvline(p_k, ymin=0, color=GUIDE, linewidth=0.8, linestyle=(0, (2, 2)))
            note += " Dotted lines: the targets of the groups."
        ax.yaxis.set_major_formatter(lambda p, _: percent(p))
        summary = "; ".join(
            f"{name}: median {percent(float(np.median(p)))}, {percent(float(np.mean(p == 0)))} never"
            for name, p in runs
        )
        return figure(fig, f"Histogram of activation frequencies. {summary}.", title, note)


def _name_never(ax: Axes, place: float) -> None:
    ax.annotate(NEVER, (place, 0), (0, -5), ("data", "axes fraction"), "offset points", ha="center", va="top")
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, place / 2), high)


def targets(runs: Named) -> Html:
    """The frequencies of each group, median and quartiles, against its target; runs give (target, quartiles (3, K))."""
    title = "Frequency of each group against its target"
    with drawing():
        fig, ax = _axes("target", "activation frequency")
        every = np.concatenate([np.concatenate([target, middle[middle > 0]]) for _, (target, middle) in runs])
        low, high = every.min() / 1.5, every.max() * 1.5
        ax.plot([low, high], [low, high], color=GUIDE, linewidth=0.8, linestyle=(0, (2, 2)))
        for i, (_, (target, quartiles)) in enumerate(runs):
            x = target * 1.06 ** (i - (len(runs) - 1) / 2)
            first, median, third = np.maximum(quartiles, low)
            look: dict[str, Any] = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % 6]}
            ax.errorbar(
                x,
                median,
                (median - first, third - median),
                linestyle="",
                markersize=4,
                linewidth=1.4,
                capsize=2,
                **look,
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(low, high)
        ax.set_ylim(low, high)
        _frequency_ticks(ax)
        _plain(ax.yaxis, percent)
        summary = "; ".join(
            f"{name}: median {percent(q[1][0])} at target {percent(t[0])}, {percent(q[1][-1])} at {percent(t[-1])}"
            for name, (t, q) in runs
        )
        note = "Marks: median of the group; bars: its quartiles. Dotted: at target; below it the target is kept."
        return figure(fig, f"Activation frequency of each group against its target. {summary}.", title, note)


def rows(runs: Named) -> Html:
    """Histograms of L0 by run: the (M + 1,) numbers of rows with 0, 1, .., M active neurons."""
    title = "Active neurons per row (L0)"
    with drawing():
        fig, ax = _axes("active neurons per row", "share of the rows")
        last = max(int(np.flatnonzero(h)[-1]) if h.any() else 0 for _, h in runs)
        step = max(1, -(-(last + 1) // 60))
        edges = np.arange(0, last + 1 + step, step)
        means = []
        for i, (name, h) in enumerate(runs):
            share = np.add.reduceat(np.pad(h, (0, max(0, edges[-1] - len(h))))[: edges[-1]], edges[:-1]) / h.sum()
            means.append(f"{name}: mean {rounded(float(np.arange(len(h)) @ h / h.sum()))}")
            if len(runs) == 1:
                ax.stairs(share, edges - 0.5, fill=True, color=SERIES[0], alpha=0.75)
            else:
                ax.stairs(share, edges - 0.5, **series(i))
        ax.set_xlim(-0.5 - step / 2, edges[-1])
        ax.set_ylim(0)
        ax.yaxis.set_major_formatter(lambda p, _: percent(p))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        ax.xaxis.set_major_locator(_few())
        return figure(fig, f"Histogram of the number of active neurons per row. {'; '.join(means)}.", title)


# ---- truth -----------------------------------------------------------------------------------------------------------


def recovered(runs: Named, thresholds: Sequence[float]) -> Html:
    """Best cosine of each true feature against its frequency; runs give (cosine (n,), frequency (n,) or None)."""
    every = [frequency for _, (_, frequency) in runs if frequency is not None]
    low, high = min(map(np.min, every), default=0.0), max(map(np.max, every), default=0.0)
    known = len(every) == len(runs) and high > SAME * low
    title = "Best cosine of each true feature" + (" against its frequency" if known else "")
    with drawing():
        fig, ax = _axes("frequency of the feature" if known else "features, worst first", "highest cosine of a neuron")
        for i, (_, (cosine, frequency)) in enumerate(runs):
            look: dict[str, Any] = {"color": SERIES[i % 6], "marker": MARKERS[i % 6], "linestyle": "", "markersize": 3}
            if known:
                ax.plot(frequency, cosine, alpha=0.7, **look)
            else:
                ax.plot(np.arange(1, len(cosine) + 1), np.sort(cosine), **look)
        for tau in thresholds:
            ax.axhline(tau, color=GUIDE, linewidth=0.8, linestyle=(0, (2, 2)))
        if known:
            if 0 < low < high / 5:
                ax.set_xscale("log")
                _frequency_ticks(ax)
            else:
                ax.xaxis.set_major_formatter(lambda p, _: percent(p))
                ax.xaxis.set_major_locator(_few())
        worst = min(float(cosine.min()) for _, (cosine, _) in runs)
        ax.set_ylim(min(0.6, np.floor(10 * worst) / 10), 1.02)
        summary = "; ".join(
            f"{name}: " + ", ".join(f"{percent(float(np.mean(c >= tau)))} at {tau} or more" for tau in thresholds)
            for name, (c, _) in runs
        )
        note = f"Dotted: cosine {' and '.join(map(str, thresholds))}."
        if every and not known:
            note += f" The features occur in {percent(low)} to {percent(high)} of the rows."
        return figure(fig, f"{title}. {summary}.", title, note)


# ---- neurons ---------------------------------------------------------------------------------------------------------


def against_frequency(frequency: Array, value: Array, title: str, label: str, i: int = 0) -> Html:
    """A value (M,) of each neuron that fired against its frequency: points, or of many neurons how many are where."""
    alive = (frequency > 0) & np.isfinite(value)
    p, v = frequency[alive], value[alive]
    note = "" if alive.all() else f"{len(alive) - len(p):,} neurons that never fired are left out. "
    with drawing():
        fig, ax = _axes("activation frequency", label)
        ax.set_xscale("log")
        if len(p) <= POINTS:
            ax.plot(p, v, color=SERIES[i % len(SERIES)], marker="o", linestyle="", markersize=2.5, alpha=0.5)
        else:
            note += "The stronger the shade, the more neurons."
            _shade(ax, np.log(p), v, SERIES[i % len(SERIES)])
        _frequency_ticks(ax)
        spread = (
            f"median {rounded(float(np.median(v)))}, from {rounded(v.min())} to {rounded(v.max())}"
            if len(v)
            else "none"
        )
        return figure(fig, f"{title}: {spread}, of {len(p):,} neurons.", title, note)


def _shade(ax: Axes, x: npt.NDArray[Any], y: npt.NDArray[Any], colour: str) -> None:
    """Cells of a grid, each as strong as the logarithm of how many points (e^x, y) are in it: one path for a level."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    count, xs, ys = np.histogram2d(x, y, CELLS)
    xs = np.exp(xs)
    level = np.ceil(LEVELS * np.log1p(count) / np.log1p(count.max())).astype(int)
    for k in range(1, LEVELS + 1):
        i, j = np.nonzero(level == k)
        if not len(i):
            continue
        corners = np.stack(
            [(xs[i + a], ys[j + b]) for a, b in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))]
        )  # (5, 2, cells)
        codes = np.tile([Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY], len(i))
        path = Path(corners.transpose(2, 0, 1).reshape(-1, 2), codes)
        ax.add_patch(PathPatch(path, facecolor=colour, alpha=(1 + k) / (1 + LEVELS), linewidth=0))
    ax.set_xlim(xs[0] / 1.1, xs[-1] * 1.1)
    pad = 0.03 * (ys[-1] - ys[0])
    ax.set_ylim(ys[0] - pad, ys[-1] + pad)


# ---- axes ------------------------------------------------------------------------------------------------------------


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    fig = Figure()
    ax = fig.add_subplot()
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    return fig, ax


def _few() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, integer=False)


def _frequency_ticks(ax: Axes) -> None:
    _plain(ax.xaxis, percent)


def _plain(axis: Any, shown: Callable[[float], str]) -> None:
    """Few ticks of a logarithmic axis, as plain text: 0.1%, not a power of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low) if low > 0 else 1
    subs = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(10, subs, numticks=6))
    axis.set_major_formatter(lambda value, _: shown(value))
    axis.set_minor_locator(NullLocator())
