"""Figures: a `Picture` says how one is drawn; colours, axes and bands over seeds that all of them share.

matplotlib is imported when something is drawn, never before.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from refgba.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150

# The colours are Okabe and Ito's, which the colour-blind tell apart; each has a marker and a line style for print.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
    {"color": "#000000", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#E69F00", "marker": "P", "linestyle": (0, (3, 1, 1, 1))},
)
HEAT = "cividis"  # This colour map reads the same with and without red-green vision, and in grey.


@dataclass(frozen=True)
class Picture:
    """A figure: its title, what it shows for those who cannot see it, how to draw it, and its size in inches."""

    title: str
    alt: str
    draw: Callable[[Figure], None]
    size: tuple[float, float] = (8.0, 4.5)


def require_matplotlib() -> None:
    """InputError where matplotlib is not installed."""
    try:
        import_module("matplotlib")
    except ImportError:
        raise InputError("experiments draw with matplotlib, which is not installed: pip install matplotlib") from None


def sketch(picture: Picture) -> Figure:
    """A picture drawn, without its title.  InputError without matplotlib."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=picture.size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    picture.draw(figure)
    return figure


def png(picture: Picture) -> bytes:
    """A picture drawn, as the bytes of a PNG file.  InputError without matplotlib."""
    figure = sketch(picture)
    figure.suptitle(picture.title, fontsize=12)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def band(
    axes: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], style: Mapping[str, Any], label: str
) -> None:
    """A line through the means over seeds, seeds (seeds, points), and a shade from the lowest to the highest."""
    y = np.asarray(seeds)
    axes.plot(x, y.mean(axis=0), label=label, markersize=4.5, linewidth=1.6, **style)
    axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=style["color"], alpha=0.18, linewidth=0)


def share_axis(axes: Axes, label: str) -> None:
    """A vertical axis of shares, from 0 to 100%, with a faint grid."""
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)


def plain_ticks(axis: Any, values: Sequence[float]) -> None:
    """Ticks of a logarithmic axis at these values, written as they are."""
    from matplotlib.ticker import NullLocator

    axis.set_ticks(list(values), [f"{v:g}" for v in values])
    axis.set_minor_locator(NullLocator())


def log_ticks(axis: Any, digits: tuple[float, ...]) -> None:
    """Ticks of a logarithmic axis at these digits of each decade, written as they are."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
