"""The figures of a network.  matplotlib takes a while to import: `Autoencoder.plot` imports this file when it draws."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from refgba.errors import InputError
from refgba.metrics import mcs
from refgba.runs.judging import THRESHOLDS
from refgba.types import Array

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"  # Okabe and Ito's, which the colour-blind tell apart


class ShownFigure(Figure):
    """A figure that a notebook shows, whether or not pyplot has been imported there."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def overview(
    history: Sequence[dict[str, float]],
    formed: int,
    frequency: Array | None,
    target: Array | None,
    V: Array,
    truth: Array | None,
) -> Figure:
    """What is known of a network, side by side.

    history: the log of its training.  formed: the step up to which features form, 0 where there is no such phase.
    frequency: how often each neuron fires, (M,), and target: how often it should.
    V: (M, d) its features.  truth: (n, d) the true ones.  InputError where there is nothing to draw.
    """
    panels: list[tuple[Any, tuple[Any, ...]]] = []
    if len(history) > 1:
        panels.append((_history, (history, formed)))
    if frequency is not None:
        panels.append((_frequencies, (frequency, target)))
    if truth is not None:
        panels.append((_recovery, (mcs(truth, V),)))
    if not panels:
        raise InputError("nothing is known to draw: give rows X, or the true features")
    figure = ShownFigure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (draw, known) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, *known)
        axes.grid(alpha=0.25)
    return figure


def _history(axes: Axes, history: Sequence[dict[str, float]], formed: int) -> None:
    """FVU against step."""
    lines = [line for line in history if "fvu" in line]
    axes.plot([line["step"] for line in lines], [line["fvu"] for line in lines], color=BLUE)
    axes.set(xlabel="training step", ylabel="FVU of the batch", title="training")
    axes.set_ylim(0)
    if formed:
        axes.axvline(formed, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate("features form ", (formed, 0), (0, 4), textcoords="offset points", ha="right", color=GREY)


def _frequencies(axes: Axes, frequency: Array, target: Array | None) -> None:
    """How often neurons fire, most often first, beside their targets."""
    alive = frequency > 0
    order = np.argsort(-frequency) if target is None else np.lexsort((-frequency, -target))
    shown = np.where(alive, frequency, np.nan)[order]
    axes.plot(np.arange(1, len(order) + 1), shown, ".", color=BLUE, markersize=3, label="neurons")
    if target is not None:
        axes.plot(np.arange(1, len(order) + 1), target[order], color=ORANGE, label="target")
        axes.legend(frameon=False)
    if alive.any():
        axes.set_yscale("log")
    dead = f", {np.mean(~alive):.1%} never" if not alive.all() else ""
    axes.set(xlabel="neurons, by target" if target is not None else "neurons", ylabel="share of the rows")
    axes.set_title(f"how often neurons fire{dead}")


def _recovery(axes: Axes, cosine: Array) -> None:
    """The best cosine of each true feature, worst first."""
    axes.plot(np.arange(1, len(cosine) + 1), np.sort(cosine), ".", color=BLUE, markersize=4)
    for tau in THRESHOLDS:
        axes.axhline(tau, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="true features, worst first", ylabel="cosine of the nearest neuron")
    axes.set_ylim(min(0.5, np.floor(10 * float(cosine.min())) / 10), 1.02)
    axes.set_title(", ".join(f"{np.mean(cosine >= tau):.0%} at {tau}" for tau in THRESHOLDS))
