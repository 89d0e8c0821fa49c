"""Recovery in numbers, and statistics over seeds and of curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refgba.metrics import mcs
from refgba.types import Array

TAU = 0.9  # A feature counts as recovered from this cosine on.
RECOVERED = 0.9  # Recovery works where the FRR is at least this.


def nearest(V: Array, W: Array) -> list[float]:
    """For each feature, V (n, d), the largest cosine of a neuron, W (M, d), rounded to four digits."""
    return [round(float(c), 4) for c in mcs(V, W)]


def recovery(cosines: Sequence[float]) -> float:
    """The share of features whose `nearest` neuron is within TAU."""
    return float(np.mean(np.asarray(cosines) >= TAU))


def spread(values: Sequence[float]) -> str:
    """Shares of several seeds as `97.1% (96.0-98.4%)`: mean, lowest and highest."""
    return f"{np.mean(values):.1%} ({min(values):.1%}-{max(values):.1%})".replace("%-", "-")


def edges(x: Sequence[float], y: Sequence[float], level: float) -> tuple[float, float] | None:
    """Where the curve y, linear in log x between its points, rises to `level` and falls below it around its maximum.

    None where it never reaches the level.  Where it is still above at the first or the last x, that x.
    """
    peak = int(np.argmax(y))
    if y[peak] < level:
        return None
    low = high = peak
    while low > 0 and y[low - 1] >= level:
        low -= 1
    while high < len(y) - 1 and y[high + 1] >= level:
        high += 1
    first = x[low] if low == 0 else _crossing(x, y, low - 1, low, level)
    last = x[high] if high == len(y) - 1 else _crossing(x, y, high + 1, high, level)
    return float(first), float(last)


def _crossing(x: Sequence[float], y: Sequence[float], out: int, within: int, level: float) -> float:
    share = (level - y[out]) / (y[within] - y[out])
    return float(np.exp(np.log(x[out]) + share * (np.log(x[within]) - np.log(x[out]))))


def decades(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """The length in decades of x of the interval that `edges` gives; 0 where there is none."""
    interval = edges(x, y, level)
    return float(np.log10(interval[1] / interval[0])) if interval else 0.0


def power(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The exponent of the power law y ~ x^k that fits best (least squares of the logarithms); None below two points."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else None
