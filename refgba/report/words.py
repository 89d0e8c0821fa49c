"""How a report writes numbers and settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def percent(p: float) -> str:
    """A share, to three digits at most: 12%, 0.061%, and 100% only for all."""
    if 0.9995 <= p < 1:
        return "over 99.9%"
    return f"{100 * p:.3g}%" if p >= 1e-6 or p <= 0 else f"{100 * p:.1e}%"


def rounded(x: float) -> str:
    """A number to three digits."""
    return f"{x:,.0f}" if 1000 <= abs(x) < 1e7 else f"{x:.3g}"


def setting(value: Any) -> str:
    """The value of a setting; a dash where there is none."""
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def count(value: Any) -> str:
    """A whole number with its thousands apart, anything else as it is: records come from files."""
    return f"{value:,}" if type(value) is int else str(value)


def duration(seconds: float) -> str:
    """Seconds, or minutes or hours where there are many."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def shown(value: Any, show: Callable[[Any], str]) -> str | None:
    """What `show` makes of a value, None where there is none."""
    return None if value is None else show(value)


def dash(value: str | None) -> str:
    """The text of a cell of a table; a dash where there is none."""
    return "–" if value is None else value
