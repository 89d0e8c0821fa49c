"""Numbers that people give, from the command line or from Python: whole, finite, distinct, or refused in one line.

And numbers for JSON, which has neither infinities nor NaN.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from refgba.errors import InputError, brief


def whole(name: str, value: Any, least: int = 0) -> int:
    """A whole number of any library, at least `least`; InputError, which names it, for anything else."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} should be a whole number, not {brief(value)}") from None
    if number < least:
        raise InputError(f"{name} should be at least {least}, not {number}")
    return number


def finite(name: str, value: Any, least: float = -math.inf) -> float:
    """A finite number of any library, at least `least`; InputError, which names it, for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} should be a number, not {brief(value)}") from None
    if not math.isfinite(number):
        raise InputError(f"{name} should be finite, not {number}")
    if number < least:
        raise InputError(f"{name} should be at least {least:g}, not {number:g}")
    return number


def listed(value: Any) -> list[Any]:
    """One thing, or several, as a list."""
    return [value] if np.ndim(value) == 0 else list(value)


def each(name: str, value: Any, count: int) -> list[float]:
    """A finite number for each of `count` neurons, of one for all or one for each; InputError for other lengths."""
    numbers = [finite(name, number) for number in listed(value)]
    if len(numbers) not in (1, count):
        raise InputError(f"give one {name}, or one for each of the {count} neurons, not {len(numbers)}")
    return numbers * count if len(numbers) == 1 else numbers


def neurons(value: Any) -> list[int]:
    """Numbers of one neuron or several; InputError for none, and for one that is named twice."""
    numbers = [whole("--neuron", number) for number in listed(value)]
    if not numbers:
        raise InputError("give at least one --neuron")
    twice = next((m for k, m in enumerate(numbers) if m in numbers[:k]), None)
    if twice is not None:
        raise InputError(f"--neuron {twice} is given twice; name each once, and give it a larger strength for more")
    return numbers


def for_json(value: Any) -> Any:
    """The same with None for every float that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: for_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
