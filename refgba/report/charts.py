"""The figures of a report: each takes the numbers of named runs and returns markup with its alternative text.

Frequencies are shares of rows, on logarithmic axes.  Neurons that never fired have no place on such an axis: they are
drawn beside the others or counted in the note.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refgba.baselines.method import Groups
from refgba.report.page import Html
from refgba.report.plot import WIDTH, Axis, Plot
from refgba.report.words import percent, rounded
from refgba.types import Array, Float64

POINTS = 1500  # Up to this many neurons are drawn one by one; more are counted in the cells of a grid.
CELLS = (56, 36)  # The cells of that grid, across and up.
LEVELS = 6  # The shades of its cells.
SAME = 1.2  # Frequencies whose ratio is at most this are too near each other to be an axis.
HIGHEST = 1e30  # No curve goes higher.
NEVER = "never"
ABOUT_TARGETS = "Marks: median of the group; bars: its quartiles. Dotted: at target; below it the target is kept."

Named = Sequence[tuple[str, Any]]


def whole(x: float) -> str:
    """A whole number, with its thousands apart."""
    return f"{x:,.0f}"


# ---- curves ----------------------------------------------------------------------------------------------------------


def curve(runs: Named, title: str, shares: bool = False, mark: tuple[float, str] | None = None) -> Html:
    """Lines of (step, value) pairs of arrays by run.  mark: a step to point out, and why."""
    shown = percent if shares else rounded
    drawn = [np.minimum(value, HIGHEST) for _, (_, value) in runs]
    low, high = (float(edge(np.concatenate(drawn))) for edge in (np.min, np.max))
    if low > 1 / HIGHEST and high > 20 * low:
        y = Axis("", low / 1.1, high * 1.1, True, shown)
    elif shares:
        y = Axis("", 0, max(1.05 * high, 1e-3), shown=shown)
    else:
        pad = 0.05 * (high - low) or max(abs(high), 1) * 0.05
        y = Axis("", low - pad, high + pad, shown=shown)
    steps = np.concatenate([step for _, (step, _) in runs])
    plot = Plot(Axis("step", 0, float(max(steps.max(), 1)), shown=whole), y)
    for i, ((_, (step, _)), value) in enumerate(zip(runs, drawn, strict=True)):
        if len(step) == 1:
            plot.points(step, value, i)
        plot.line(step, value, i)
    if mark is not None:
        plot.at_x(mark[0])
        plot.text(float(plot.across(mark[0])), plot.top - 5, mark[1])
    summary = "; ".join(
        f"{n} from {shown(v[0])} at step {s[0]} to {shown(v[-1])} at step {s[-1]}" for n, (s, v) in runs
    )
    return plot.figure(f"Line chart of {title} against step: {summary}.", title)


# ---- frequencies -----------------------------------------------------------------------------------------------------


def frequencies(runs: Named, target: Float64 | None) -> Html:
    """Histograms of activation frequencies (M,) by run, on a logarithmic axis, with the targets of the groups."""
    title = "Activation frequency of the neurons"
    alive = np.concatenate([p[p > 0] for _, p in runs])
    low, high = (float(alive.min()), float(alive.max())) if alive.size else (1e-3, 1.0)
    low, high = min(low, *(target if target is not None else [low])), max(high, low * 10)
    edges = np.geomspace(low / 1.1, high * 1.1, 41)
    wide = edges[1] / edges[0]
    place = edges[0] / wide**4  # of those that never fired

    def shown(p: float) -> str:
        return percent(p) if p >= edges[0] else ""

    shares = [np.histogram(p[p > 0], edges)[0] / len(p) for _, p in runs]
    dead = [float(np.mean(p == 0)) for _, p in runs]
    most = max(*(share.max() for share in shares), *dead)
    x = Axis("activation frequency", float(place / wide**2), float(edges[-1]), True, shown)
    plot = Plot(x, Axis("share of the neurons", 0, 1.05 * max(most, 1e-3), shown=percent))
    for i, share in enumerate(shares):
        if len(runs) == 1:
            plot.stairs(edges, share, 0, fill=True)
            plot.stairs(np.array([place / wide, place * wide]), np.array(dead), 1, fill=True)
        else:
            plot.stairs(edges, share, i)
            plot.points(np.array([place]), np.array([dead[i]]), i, 4)
    plot.text(float(plot.across(place)), plot.bottom + 14, NEVER)
    note = f"“{NEVER}”: neurons that fired on no row."
    if target is not None:
        for p_k in target:
            plot.at_x(p_k)
        note += " Dotted lines: the targets of the groups."
    summary = "; ".join(
        f"{name}: median {percent(float(np.median(p)))}, {percent(none)} never"
        for (name, p), none in zip(runs, dead, strict=True)
    )
    return plot.figure(f"Histogram of activation frequencies. {summary}.", title, note)


def quartiles(frequency: Array, groups: Groups) -> tuple[Array, Array]:
    """The target (K,) of each group, and the quartiles (3, K) of the frequencies (M,) of its neurons."""
    group, target = groups
    found = [np.quantile(frequency[group == k], (0.25, 0.5, 0.75)) for k in range(len(target))]
    return target, np.stack(found, axis=1)


def targets(runs: Named) -> Html:
    """The frequencies of each group, median and quartiles, against its target; runs give `quartiles`."""
    plot, alt = targets_plot(runs)
    return plot.figure(alt, "Frequency of each group against its target", ABOUT_TARGETS)


def targets_plot(runs: Named, width: float = WIDTH) -> tuple[Plot, str]:
    """The figure of `targets` without title and note, and what it shows in words."""
    every = np.concatenate([np.concatenate([target, middle[middle > 0]]) for _, (target, middle) in runs])
    low, high = float(every.min()) / 1.5, min(float(every.max()) * 1.5, 1.0)
    plot = Plot(Axis("target", low, high, True, percent), Axis("activation frequency", low, high, True, percent), width)
    plot.guide((low, high), (low, high))
    for i, (_, (target, spread)) in enumerate(runs):
        x = target * 1.06 ** (i - (len(runs) - 1) / 2)
        first, median, third = np.maximum(spread, low)
        plot.ranges(x, first, third, i)
        plot.points(x, median, i, 3.6, 1)
    summary = "; ".join(
        f"{name}: median {percent(q[1][0])} at target {percent(t[0])}, {percent(q[1][-1])} at {percent(t[-1])}"
        for name, (t, q) in runs
    )
    return plot, f"Activation frequency of each group against its target. {summary}."


def rows(runs: Named) -> Html:
    """Histograms of L0 by run: the (M + 1,) numbers of rows with 0, 1, .., M active neurons."""
    title = "Active neurons per row (L0)"
    last = max(int(np.flatnonzero(h)[-1]) if h.any() else 0 for _, h in runs)
    step = max(1, -(-(last + 1) // 60))
    edges = np.arange(0, last + 1 + step, step)
    shares, means = [], []
    for name, h in runs:
        padded = np.pad(h, (0, max(0, edges[-1] - len(h))))[: edges[-1]]
        shares.append(np.add.reduceat(padded, edges[:-1]) / h.sum())
        means.append(f"{name}: mean {rounded(float(np.arange(len(h)) @ h / h.sum()))}")
    x = Axis("active neurons per row", -0.5 - step / 2, float(edges[-1]), shown=whole)
    plot = Plot(x, Axis("share of the rows", 0, 1.05 * max(float(s.max()) for s in shares), shown=percent))
    for i, share in enumerate(shares):
        plot.stairs(edges - 0.5, share, i, fill=len(runs) == 1)
    return plot.figure(f"Histogram of the number of active neurons per row. {'; '.join(means)}.", title)


# ---- truth -----------------------------------------------------------------------------------------------------------


def recovered(runs: Named, thresholds: Sequence[float]) -> Html:
    """Best cosine of each true feature against its frequency; runs give (cosine (n,), frequency (n,) or None)."""
    every = [frequency for _, (_, frequency) in runs if frequency is not None]
    low, high = float(min(map(np.min, every), default=0.0)), float(max(map(np.max, every), default=0.0))
    known = len(every) == len(runs) and high > SAME * low
    title = "Best cosine of each true feature" + (" against its frequency" if known else "")
    worst = min(float(cosine.min()) for _, (cosine, _) in runs)
    if not known:
        x = Axis("features, worst first", 1, max(len(cosine) for _, (cosine, _) in runs) + 0.5, shown=whole)
    elif 0 < low < high / 5:
        x = Axis("frequency of the feature", low / 1.1, high * 1.1, True, percent)
    else:
        x = Axis("frequency of the feature", low, high, shown=percent)
    plot = Plot(x, Axis("highest cosine of a neuron", min(0.6, np.floor(10 * worst) / 10), 1.02))
    for tau in thresholds:
        plot.at_y(tau)
    for i, (_, (cosine, frequency)) in enumerate(runs):
        if known:
            plot.points(frequency, cosine, i)
        else:
            plot.points(np.arange(1.0, len(cosine) + 1), np.sort(cosine), i)
    summary = "; ".join(
        f"{name}: " + ", ".join(f"{percent(float(np.mean(c >= tau)))} at {tau} or more" for tau in thresholds)
        for name, (c, _) in runs
    )
    note = f"Dotted: cosine {' and '.join(map(str, thresholds))}."
    if every and not known:
        note += f" The features occur in {percent(low)} to {percent(high)} of the rows."
    return plot.figure(f"{title}. {summary}.", title, note)


# ---- neurons ---------------------------------------------------------------------------------------------------------


def against_frequency(frequency: Array, value: Array, title: str, label: str, i: int = 0) -> Html:
    """A value (M,) of each neuron that fired against its frequency: points, or of many neurons how many are where."""
    alive = (frequency > 0) & np.isfinite(value)
    p, v = frequency[alive], value[alive]
    note = "" if alive.all() else f"{len(alive) - len(p):,} neurons that never fired are left out. "
    if not len(p):
        return Plot(Axis("activation frequency", 1e-3, 1, True, percent), Axis(label, 0, 1)).figure(
            f"{title}: none, of 0 neurons.", title, note
        )
    low, high = float(v.min()), float(v.max())
    pad = 0.03 * (high - low) or 0.05 * max(abs(high), 1e-3)
    x = Axis("activation frequency", float(p.min()) / 1.1, float(p.max()) * 1.1, True, percent)
    plot = Plot(x, Axis(label, low - pad, high + pad))
    if len(p) <= POINTS:
        plot.points(p, v, i, 2.2, 0.5)
    else:
        note += "The stronger the shade, the more neurons."
        _shade(plot, np.log(p), v, i)
    spread = f"median {rounded(float(np.median(v)))}, from {rounded(low)} to {rounded(high)}"
    return plot.figure(f"{title}: {spread}, of {len(p):,} neurons.", title, note)


def _shade(plot: Plot, x: Array, y: Array, i: int) -> None:
    """Cells of a grid, each as strong as the logarithm of how many points (e^x, y) are in it: one path for a level."""
    count, xs, ys = np.histogram2d(x, y, CELLS)
    xs = np.exp(xs)
    level = np.ceil(LEVELS * np.log1p(count) / np.log1p(count.max())).astype(int)
    for k in range(1, LEVELS + 1):
        across, up = np.nonzero(level == k)
        if len(across):
            plot.cells(
                np.stack([xs[across], xs[across + 1]]), np.stack([ys[up], ys[up + 1]]), i, (1 + k) / (1 + LEVELS)
            )
