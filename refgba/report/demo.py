"""The page that `refgba demo` ends on, and the picture of it at the top of README: features being found.

Three figures: how many of the known features are found against the step; neurons that turn to features in a plane; and
how often the neurons of each group fire against its target.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

import refgba.report.charts as charts
from refgba.config import Settings
from refgba.data.files import quoted
from refgba.report.page import Html, Section, element, grid, join, legend, page, resource
from refgba.report.pages import DEMO
from refgba.report.plot import WIDTH, Axis, Plot
from refgba.report.run import RunData, Truth
from refgba.report.words import percent
from refgba.runs import folder
from refgba.runs.accumulate import Evaluation
from refgba.runs.demo import Demo, Look
from refgba.runs.judging import THRESHOLDS
from refgba.runs.plane import FEATURES, NEURONS, Plane
from refgba.types import Array

SECONDS = 9  # of one round of the animation
MOVING = 0.75  # share of it in which neurons move; then they stand still
SIZE, RADIUS = 270.0, 96.0  # of the plane, in the units of a plot
GAP, NARROW = 14.0, 330.0  # between the figures of the picture; the width of the outer ones


def demo_page(demo: Demo, evaluation: Evaluation, result: dict[str, Any], plane: Plane) -> str:
    """The page of a demonstration that has been trained and judged; `plane` as `refgba.runs.plane.turn` makes it."""
    config, truth = demo.launch.config, demo.truth
    found = [result["frr"][str(tau)] for tau in THRESHOLDS]
    lead = join(
        element(
            "p",
            element(
                "strong",
                f"{percent(found[0])} of {truth.n} hidden features were found (cosine {THRESHOLDS[0]} or more), "
                f"{percent(found[1])} nearly exactly ({THRESHOLDS[1]} or more).",
            ),
            f" The data have {truth.d} dimensions, so the features overlap. They were found from the rows alone.",
        ),
        element(
            "p",
            f"Judged on {result['rows']:,} rows that the network was not trained on: FVU {result['fvu']:.3f}, "
            f"L0 {result['l0']:.1f}, dead neurons {percent(result['dead'])}.",
        ),
    )
    nearest = Truth.of(folder.open_network(demo.launch.path).params.V, truth.V).cosine
    recovery, kept = found_figure(demo.looks, config), targets_figure(evaluation.frequency, config)
    sections = [
        Section(
            "Features are found",
            join(
                legend([f"cosine {tau} or more" for tau in THRESHOLDS]),
                grid(
                    recovery.figure(_found_alt(demo.looks), "Features found, while training"),
                    charts.recovered([("the run", (nearest, None))], THRESHOLDS),
                ),
            ),
            "The share of the features with a neuron that near. Nothing that the training sees says what the features "
            "are: they are compared afterwards.",
        ),
        Section(
            "Neurons lock on to features",
            grid(
                element("figure", element("figcaption", "In the plane"), plane_svg(plane), class_="chart"),
                angles_figure(plane).figure(_plane_alt(plane), "The same, step by step", "Dotted: the features."),
            ),
            f"The same algorithm where it can be watched: {NEURONS} neurons in 2 dimensions, on rows that hold one or "
            f"two of {FEATURES} features. Each neuron starts anywhere, and turns until it lies on a feature.",
        ),
    ]  # fmt: skip
    if kept is not None:
        plot, alt = kept
        why = (
            "Neurons are divided into groups, each with a target frequency; biases adapt until neurons fire as often "
            "as their group's target. No penalty and no number of active neurons per row is chosen."
        )
        title, groups = "Frequency of each group against its target", RunData("", config).groups
        every = charts.frequencies([("the run", evaluation.frequency)], groups.target if groups else None)
        body = grid(plot.figure(alt, title, charts.ABOUT_TARGETS), every)
        sections.append(Section("Neurons fire as often as they should", body, why))
    commands = [f"refgba report {quoted(demo.launch.path)}", "refgba train activations.npy -o runs/mine"]
    after = element("ul", *(element("li", element("code", line)) for line in commands))
    sections.append(Section("Go on", after, "All neurons of this run one by one; and a run on activations of yours."))
    return page(DEMO, lead, sections)


def picture(looks: Sequence[Look], config: Settings, frequency: Array, plane: Plane) -> str:
    """The three figures side by side, as an SVG file that needs nothing else; light or dark, as its reader has it."""
    kept = targets_figure(frequency, config, NARROW)
    assert kept is not None
    plots = [found_figure(looks, config, NARROW), kept[0]]
    width, top = sum(plot.width for plot in plots) + SIZE + 2 * GAP, 26.0
    titles = ["128 hidden features are found", "neurons turn to features", "each group fires near its target"]
    widths = [plots[0].width, SIZE, plots[1].width]
    parts, x = [], 0.0
    for title, inside, w in zip(
        titles, [plots[0].inside(), _plane_inside(plane), plots[1].inside()], widths, strict=True
    ):
        parts.append(f'<text x="{x + w / 2:.1f}" y="17" text-anchor="middle" class="title">{escape(title)}</text>')
        parts.append(f'<g transform="translate({x:g} {top:g})">{inside}</g>')
        x += w + GAP
    keys = "".join(
        f'<path d="M{plots[0].right - 142:g} {top + plots[0].bottom - 40 + 18 * i:g}h22" '
        f'style="stroke: var(--s{i + 1}); stroke-width: 2; {"" if i == 0 else "stroke-dasharray: 6 3"}"/>'
        f'<text x="{plots[0].right - 114:g}" y="{top + plots[0].bottom - 36 + 18 * i:g}">cosine {tau} or more</text>'
        for i, tau in enumerate(THRESHOLDS)
    )
    alt = f"{_found_alt(looks)} {_plane_alt(plane)} {kept[1]}"
    colours = resource("page.css").split("* { box-sizing")[0].replace("@media screen and", "@media")
    style = (
        f"{colours} svg {{ color: var(--text); font-family: system-ui, -apple-system, Segoe UI, Roboto, sans-serif; }}"
        " text { font-size: 12px; fill: currentColor; } .title { font-weight: 600; font-size: 13px; }"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {top + SIZE:g}" role="img">'
        f"<title>{escape(alt)}</title><style>{style}</style>"
        f'<rect width="100%" height="100%" style="fill: var(--ground)"/>{"".join(parts)}{keys}</svg>\n'
    )


# ---- recovery --------------------------------------------------------------------------------------------------------


def found_figure(looks: Sequence[Look], config: Settings, width: float = WIDTH) -> Plot:
    """FRR at each threshold against the step."""
    steps = np.array([look.step for look in looks], np.float64)
    x = Axis("step", 0, max(config.steps, 1), shown=charts.whole)
    plot = Plot(x, Axis("features found", 0, 1.02, shown=percent), width)
    formed = RunData("", config).description.formed
    if 0 < formed < config.steps:
        plot.at_x(formed)
        plot.text(float(plot.across(formed)), plot.top - 5, "features formed")
    for i, _ in enumerate(THRESHOLDS):
        plot.line(steps, np.array([look.frr[i] for look in looks]), i, 2)
    return plot


def _found_alt(looks: Sequence[Look]) -> str:
    last = looks[-1]
    ends = ", ".join(f"{percent(share)} at cosine {tau}" for share, tau in zip(last.frr, THRESHOLDS, strict=True))
    return f"Share of the features found against step, from 0 to {last.step:,}: it ends at {ends}."


# ---- the plane -------------------------------------------------------------------------------------------------------


def plane_svg(plane: Plane) -> Html:
    """Neurons that turn to features, over and over; standing at their ends where motion is not wanted, and in print."""
    return Html(
        f'<svg class="plot" viewBox="0 0 {SIZE:g} {SIZE:g}" role="img" aria-label="{escape(_plane_alt(plane))}">'
        f"{_plane_inside(plane)}</svg>"
    )


def _plane_alt(plane: Plane) -> str:
    near = float(np.mean(plane.cosine >= 0.99))
    return (
        f"{len(plane.cosine)} neurons in a plane turn to {len(plane.features)} features within {plane.steps[-1]} "
        f"steps: {percent(near)} of them end at cosine 0.99 or more."
    )


def _plane_inside(plane: Plane) -> Html:
    centre = SIZE / 2
    x, y = _on_circle(plane.rows, RADIUS + 9)
    dots = "".join(f"M{a:.1f} {b:.1f}h.01" for a, b in zip(x, y, strict=True))
    ends = zip(*_on_circle(plane.features, RADIUS + 26), strict=True)
    arrows = "".join(f"M0 0L{a:.1f} {b:.1f}" for a, b in zip(*_on_circle(plane.features, RADIUS), strict=True))
    names = "".join(
        f'<text x="{a:.1f}" y="{b + 4:.1f}" text-anchor="middle">v{i}</text>' for i, (a, b) in enumerate(ends, 1)
    )
    neurons = "".join(
        f'<g class="turn t{m}"><path d="M0 0H{RADIUS}"/><circle cx="{RADIUS}" r="3.2"/></g>'
        for m in range(plane.neurons.shape[1])
    )
    return Html(
        f"<style>{_turning(plane)}</style>"
        f'<g transform="translate({centre:g} {centre:g})">'
        f'<circle r="{RADIUS}" style="fill: none; stroke: var(--line)"/>'
        f'<path d="{dots}" style="stroke: var(--muted); stroke-width: 2.4; stroke-linecap: round; opacity: .45"/>'
        f'<path d="{arrows}" style="stroke: var(--s2); stroke-width: 7; opacity: .35"/>'
        f"{names}{neurons}</g>"
    )


def _turning(plane: Plane) -> str:
    """Styles that turn neuron m, the element of class `t<m>`, through its angles; y grows downwards in SVG."""
    times = 100 * MOVING * plane.steps / plane.steps[-1]
    rules = [".turn path { stroke: var(--s1); stroke-width: 1.3; opacity: .8 } .turn circle { fill: var(--s1) }"]
    for m, angles in enumerate(-np.degrees(plane.neurons.T)):
        frames = "".join(f"{t:.4g}%{{transform:rotate({a:.1f}deg)}}" for t, a in zip(times, angles, strict=True))
        last = f"transform:rotate({angles[-1]:.1f}deg)"
        rules.append(
            f".t{m}{{{last};animation:t{m} {SECONDS}s linear infinite}}@keyframes t{m}{{{frames}100%{{{last}}}}}"
        )
    rules.append("@media (prefers-reduced-motion: reduce) { .turn { animation: none } }")
    rules.append("@media print { .turn { animation: none } }")
    return "".join(rules)


def _on_circle(angle: Array, radius: float) -> tuple[list[float], list[float]]:
    return (radius * np.cos(angle)).tolist(), (-radius * np.sin(angle)).tolist()


def angles_figure(plane: Plane) -> Plot:
    """The angle of each neuron against the step, turned by whole turns so that it ends within one turn."""
    degrees = np.degrees(plane.neurons)
    degrees -= 360 * np.floor(degrees[-1] / 360)
    features = np.degrees(plane.features) % 360
    low, high = min(0.0, float(degrees.min())), max(360.0, float(degrees.max()))
    x = Axis("step", 0, float(plane.steps[-1]), shown=charts.whole)
    plot = Plot(x, Axis("angle", low, high, shown=lambda a: f"{a:.0f}°"))
    for angle in features:
        plot.at_y(float(angle))
    for line in degrees.T:
        plot.line(plane.steps.astype(np.float64), line, 0, 1.1, 0.8)
    return plot


# ---- targets ---------------------------------------------------------------------------------------------------------


def targets_figure(frequency: Array, config: Settings, width: float = WIDTH) -> tuple[Plot, str] | None:
    """The frequencies (M,) of each group against its target, and what that shows in words; None without groups."""
    groups = RunData("", config).groups
    return None if groups is None else charts.targets_plot([("the run", charts.quartiles(frequency, groups))], width)
