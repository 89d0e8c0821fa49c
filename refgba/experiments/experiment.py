"""What an experiment is: a module that keeps to the protocol `Experiment`; and how one is conducted.

To add one, write `refgba/experiments/NAME.py` with these members, and its name in `refgba.experiments.NAMES`.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

from refgba import __version__, backends
from refgba.experiments.drawing import Picture
from refgba.experiments.measures import TAU
from refgba.experiments.outcome import Outcome, Verdict

Scale = Literal["quick", "full"]  # A quick run takes from half a minute to some minutes on one core, a full one longer.
Tick: TypeAlias = Callable[[str], object]  # It is told what is being computed, one line at a time.


class Sizes(Protocol):
    """The settings of an experiment at a scale: a frozen dataclass, of numbers, words and tuples of these."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def seeds(self) -> int:
        """How many seeds are run, 0, 1, ...: each draws features, rows and first neurons from streams of its own."""


class Experiment(Protocol):
    """What every module of an experiment provides.

    Verdict and pictures are made from the numbers alone, as a reader of NAME.json finds them: `refgba reproduce` shows
    a stored result again without computing anything.
    """

    QUESTION: str  # what the paper claims, in one sentence
    SIZES: Mapping[str, Any]  # the `Sizes` of each `Scale`
    TAKES_DATA: bool  # whether it runs on real activations, and then on any that are given

    measure: Callable[..., dict[str, Any]]
    """`measure(sizes, backend, tick)`, and `data` where TAKES_DATA: all numbers, as JSON can hold them.

    data: the files of activations to train on and to judge on, or None for the sample that comes along.
    """

    def verdict(self, data: dict[str, Any]) -> Verdict:
        """How the numbers compare with the paper's claims."""

    def pictures(self, data: dict[str, Any]) -> Sequence[Picture]:
        """Figures of the numbers."""


def conduct(
    name: str, experiment: Experiment, scale: Scale, backend: str, tick: Tick, data: tuple[Path, Path] | None
) -> Outcome:
    """Measure, time, judge.  InputError, before anything is computed, for a backend that cannot run here."""
    backends.load(backend, "float32")
    sizes: Sizes = experiment.SIZES[scale]
    options = {"data": data} if experiment.TAKES_DATA else {}
    began, busy = time.perf_counter(), _cpu_seconds()
    measured = experiment.measure(sizes, backend, tick, **options)
    about = {
        "scale": scale,
        "backend": backend,
        "settings": asdict(sizes),
        "seeds": list(range(sizes.seeds)),
        "tau": TAU,
        "versions": {"refgba": __version__, "python": platform.python_version()}
        | {package: version(package) for package in ("numpy", "scipy", "matplotlib")},
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(_cpu_seconds() - busy, 1),
    }
    numbers: dict[str, Any] = json.loads(json.dumps(about | measured, allow_nan=False))  # as a reader of the file
    return judged(name, experiment, numbers)


def judged(name: str, experiment: Experiment, numbers: dict[str, Any]) -> Outcome:
    """The outcome that follows from an experiment's numbers."""
    return Outcome(name, experiment.QUESTION, experiment.verdict(numbers), numbers, tuple(experiment.pictures(numbers)))


def _cpu_seconds() -> float:
    """The CPU seconds of this process and of those it has waited for."""
    return sum(os.times()[:4])
