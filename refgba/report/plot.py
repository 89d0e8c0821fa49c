"""Figures as inline SVG in the page's colours, drawn without any library: a pair of axes, and marks on it.

    plot = Plot(Axis("step", 0, 400), Axis("loss", 0.01, 1, log=True))
    plot.line(step, loss, 0)
    plot.figure("Line chart of the loss, from 1 to 0.02.", "Loss")

Series i has the colour, the dashes and the mark i of the page (`legend`).  Every tick has its number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from refgba.report.page import SERIES, Html, dash, element, markup
from refgba.report.words import rounded
from refgba.types import Array

WIDTH, HEIGHT = 420.0, 270.0  # units, of which a letter is about LETTER wide
LETTER, TICK = 6.4, 4.0
TICKS = 6  # at most, on an axis
MARKS = "osD^v<"


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, linear or logarithmic; `shown` writes the number of a tick."""

    label: str
    low: float
    high: float
    log: bool = False
    shown: Callable[[float], str] = rounded

    def place(self, value: Array | float) -> Array:
        """Where values lie between the ends, 0 to 1; values beyond an end lie on it."""
        value = np.clip(value, self.low, self.high)
        if self.log:
            return np.asarray(np.log(value / self.low) / math.log(self.high / self.low))
        return np.asarray((value - self.low) / (self.high - self.low))

    def ticks(self) -> list[float]:
        """Round numbers between the ends, at least two where there are such."""
        if not self.log:
            return _linear(self.low, self.high)
        decades = math.log10(self.high / self.low)
        subs = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = [sub * 10.0**k for k in range(first, last + 1) for sub in subs]
        found = [value for value in every if self.low <= value <= self.high]
        return found[:: -(-len(found) // TICKS)] if len(found) > 1 else _linear(self.low, self.high)


def _linear(low: float, high: float) -> list[float]:
    rough = (high - low) / (TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


class Plot:
    """A pair of axes with marks; y grows upwards.  Shades and lines come in the order in which they are drawn."""

    def __init__(self, x: Axis, y: Axis, width: float = WIDTH, height: float = HEIGHT) -> None:
        """The size is in units: a page shows a plot as wide as there is room."""
        self.x, self.y, self.width, self.height = x, y, width, height
        widest = max((len(y.shown(tick)) for tick in y.ticks()), default=0)
        self.left, self.right = 10 + LETTER * widest + TICK + (17 if y.label else 0), width - 14
        self.top, self.bottom = 18.0, height - (40 if x.label else 24)
        self.marks: list[str] = []

    # ---- places ------------------------------------------------------------------------------------------------------

    def across(self, value: Array | float) -> Array:
        """The x of values in units."""
        return self.left + self.x.place(value) * (self.right - self.left)

    def up(self, value: Array | float) -> Array:
        """The y of values in units."""
        return self.bottom - self.y.place(value) * (self.bottom - self.top)

    # ---- marks -------------------------------------------------------------------------------------------------------

    def path(self, d: str, style: str) -> None:
        """A path in units."""
        self.marks.append(f'<path d="{d}" style="{style}"/>')

    def line(self, x: Array, y: Array, i: int, width: float = 1.7, opacity: float = 1.0) -> None:
        """A line through points (x, y)."""
        points = zip(self.across(x), self.up(y), strict=True)
        self.path(_polyline(points), f"{stroke(i)}; stroke-width: {width}; opacity: {opacity:g}")

    def stairs(self, edges: Array, height: Array, i: int, fill: bool = False, opacity: float = 0.75) -> None:
        """A histogram: `height` between each two edges."""
        x, y, base = self.across(edges), self.up(height), float(self.up(self.y.low))
        d = f"M{x[0]:.1f} {base:.1f}" + "".join(f"V{h:.1f}H{b:.1f}" for h, b in zip(y, x[1:], strict=True))
        look = f"fill: var(--s{i % len(SERIES) + 1}); opacity: {opacity}" if fill else f"{stroke(i)}; stroke-width: 1.6"
        self.path(f"{d}V{base:.1f}" + ("z" if fill else ""), look)

    def points(self, x: Array, y: Array, i: int, size: float = 2.6, opacity: float = 0.8) -> None:
        """A mark at each point, that of series i: one path, however many they are."""
        place = zip(self.across(x).tolist(), self.up(y).tolist(), strict=True)
        d = "".join(_mark(MARKS[i % len(MARKS)], a, b, size) for a, b in place)
        self.path(d, f"fill: var(--s{i % len(SERIES) + 1}); opacity: {opacity:g}")

    def ranges(self, x: Array, low: Array, high: Array, i: int) -> None:
        """A vertical bar at each x, from low to high."""
        places = zip(self.across(x).tolist(), self.up(low).tolist(), self.up(high).tolist(), strict=True)
        d = "".join(f"M{a:.1f} {b:.1f}V{c:.1f}M{a - 2:.1f} {b:.1f}h4M{a - 2:.1f} {c:.1f}h4" for a, b, c in places)
        self.path(d, f"fill: none; stroke: var(--s{i % len(SERIES) + 1}); stroke-width: 1.4")

    def cells(self, x: Array, y: Array, i: int, opacity: float) -> None:
        """Rectangles whose corners are x (2, cells) and y (2, cells)."""
        places = zip(*self.across(x).tolist(), *self.up(y).tolist(), strict=True)
        d = "".join(f"M{a:.1f} {c:.1f}H{b:.1f}V{e:.1f}H{a:.1f}z" for a, b, c, e in places)
        self.path(d, f"fill: var(--s{i % len(SERIES) + 1}); opacity: {opacity:.2f}")

    def guide(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        """A dotted line from (x[0], y[0]) to (x[1], y[1])."""
        (a, b), (c, d) = self.across(np.array(x)), self.up(np.array(y))
        self.path(f"M{a:.1f} {c:.1f}L{b:.1f} {d:.1f}", "stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 3")

    def at_x(self, value: float) -> None:
        """A dotted line all the way up."""
        self.guide((value, value), (self.y.low, self.y.high))

    def at_y(self, value: float) -> None:
        """A dotted line all the way across."""
        self.guide((self.x.low, self.x.high), (value, value))

    def text(self, x: float, y: float, words: str, anchor: str = "middle", style: str = "") -> None:
        """Words, at a place in units."""
        self.marks.append(_text(x, y, words, anchor, style))

    # ---- the whole ---------------------------------------------------------------------------------------------------

    def svg(self, alt: str) -> Html:
        """The figure alone.  alt says in words what it shows."""
        return Html(
            f'<svg class="plot" viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{markup(alt)}">'
            f"{self.inside()}</svg>"
        )

    def inside(self) -> Html:
        """Axes and marks, to stand in an <svg>."""
        return Html("".join([*self._axes(), *self.marks]))

    def figure(self, alt: str, title: str = "", note: str = "") -> Html:
        """The figure with a title above and a note below."""
        head, foot = element("figcaption", title) if title else "", element("p", note, class_="note") if note else ""
        return element("figure", head, self.svg(alt), foot, class_="chart")

    def _axes(self) -> Iterable[str]:
        ticks = [(float(self.across(value)), self.x.shown(value)) for value in self.x.ticks()]
        levels = [(float(self.up(value)), self.y.shown(value)) for value in self.y.ticks()]
        grid = "".join(f"M{x:.1f} {self.bottom:.1f}V{self.top:.1f}" for x, _ in ticks)
        grid += "".join(f"M{self.left:.1f} {y:.1f}H{self.right:.1f}" for y, _ in levels)
        yield f'<path d="{grid}" style="stroke: var(--line); stroke-width: .6"/>'
        frame = f"M{self.left:.1f} {self.top:.1f}V{self.bottom:.1f}H{self.right:.1f}"
        yield f'<path d="{frame}" style="fill: none; stroke: currentColor; stroke-width: .8"/>'
        for x, words in _apart(ticks):
            yield _text(min(x, self.width - LETTER * len(words) / 2), self.bottom + 14, words)
        for y, words in levels:
            yield _text(self.left - TICK, y + 4, words, "end")
        if self.x.label:
            yield _text((self.left + self.right) / 2, self.height - 8, self.x.label)
        if self.y.label:
            x, y = 12, (self.top + self.bottom) / 2
            yield _text(x, y, self.y.label, "middle", "", f' transform="rotate(-90 {x} {y:.1f})"')


def stroke(i: int) -> str:
    """The style of the line of series i."""
    dashes = dash(i)
    return f"fill: none; stroke: var(--s{i % len(SERIES) + 1})" + (f"; stroke-dasharray: {dashes}" if dashes else "")


def _apart(ticks: Sequence[tuple[float, str]]) -> Iterable[tuple[float, str]]:
    """The ticks whose numbers do not run into the one before."""
    end = -math.inf
    for x, words in ticks:
        half = LETTER * len(words) / 2
        if x - half > end + 3:
            yield x, words
            end = x + half


def _polyline(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _mark(kind: str, x: float, y: float, r: float) -> str:
    if kind == "o":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners = {
        "s": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "D": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "^": ((0, -1.2), (1.2, 1), (-1.2, 1)),
        "v": ((0, 1.2), (1.2, -1), (-1.2, -1)),
        "<": ((-1.2, 0), (1, -1.2), (1, 1.2)),
    }[kind]
    return _polyline((x + r * a, y + r * b) for a, b in corners) + "z"


def _text(x: float, y: float, words: str, anchor: str = "middle", style: str = "", more: str = "") -> str:
    look = f' style="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{look}{more}>{markup(words)}</text>'
