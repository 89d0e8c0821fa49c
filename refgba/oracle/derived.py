"""The settings of a run as they follow from the data and the run, for those who write them again (ours).

A trace checks what a step does with its settings; this is how to check the settings themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from refgba import recipe
from refgba.config import GBAConfig
from refgba.errors import InputError, brief

CLOSE = 1e-9  # relative; a port may round otherwise than NumPy


def derived(config: GBAConfig) -> dict[str, Any]:
    """All settings of a run by name, and what follows from them: F, the sizes of the groups and their targets."""
    sizes = np.bincount(config.group(), minlength=config.groups)
    return asdict(config) | {
        "forming_steps": recipe.forming_steps(config),
        "group_sizes": sizes.tolist(),
        "targets": config.target().tolist(),
    }


def differences(right: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One line for each of the given settings that is not as it should be; InputError for a name that is no setting."""
    if unknown := given.keys() - right.keys():
        raise InputError(f"unknown setting {brief(min(unknown))!r}; known are {', '.join(right)}")
    return [
        f"{name} should be {right[name]}, is {brief(value)}"
        for name, value in given.items()
        if not _equal(right[name], value)
    ]


def _equal(right: Any, given: Any) -> bool:
    numbers = [*right] if isinstance(right, list) else [right]
    others = [*given] if isinstance(given, list) else [given]
    if len(numbers) != len(others):
        return False
    return all(
        bool(np.isclose(other, number, rtol=CLOSE, atol=0)) if _number(number) and _number(other) else other == number
        for number, other in zip(numbers, others, strict=True)
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
