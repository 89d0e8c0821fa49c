"""What a report knows of a run: its settings, log and parameters, and how it was judged.

`load_run` reads the first three; whoever asks for a report adds the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from refgba.baselines import METHODS
from refgba.baselines.method import Description, Groups
from refgba.config import Settings
from refgba.errors import InputError
from refgba.metrics import mcs
from refgba.runs import folder, log
from refgba.runs.copies import Copies
from refgba.runs.judging import check_arrays
from refgba.types import Array, Int64

VECTORS = {"b": "bias b", "a": "scale a", "theta": "threshold θ"}


class Seen(Enum):
    """Whether a run was trained on the rows that it is judged on."""

    NO = "no"
    SOME = "some"
    ALL = "all"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Truth:
    """How near the neurons come to the true features.

    cosine: (n,) the highest cosine of any neuron with each feature.  frequency: (n,) shares of rows, or None.
    """

    cosine: Array
    frequency: Array | None = None

    @classmethod
    def of(cls, W: Array, V: Array, frequency: Array | None = None) -> Truth:
        """The neurons W (M, d) held against the true features V (n, d), of these frequencies (n,)."""
        return cls(mcs(V, W), frequency)

    def frr(self, tau: float) -> float:
        """The share of the features with a neuron at cosine tau or more."""
        return float(np.mean(self.cosine >= tau))


class Parameters(Protocol):
    """The parameters of a network of any method: those of `refgba.sae` or `refgba.baselines`."""

    def arrays(self) -> dict[str, Array]:
        """The arrays that exist, by name."""


@dataclass(frozen=True)
class Likeness:
    """Which neurons point nearly the same way, by the cosine of the directions that they stand for.

    run: the name of the run whose neurons are compared, empty for the neuron's own.  nearest: (M, k) their numbers,
    nearest first, -1 where there are fewer.  cosine: (M, k).
    """

    run: str
    nearest: Int64
    cosine: Array


@dataclass
class RunData:
    """What a report knows of a run.  Everything but the name may be missing; the report then leaves it out.

    config: that of GBA, or of a baseline, which has no groups; None for a network of another library.  about, metrics:
    about.json and the lines of metrics.jsonl.  evaluation: the arrays of `refgba.runs.judging.arrays`, by name.
    summary: the object of `refgba.runs.judging.result`.  data: the name of the rows judged.  seen: whether the run was
    trained on them.  labels: names of neurons.  likeness: neurons of this run and of others near each of its own.
    copies: neurons of this run that share a feature.
    """

    name: str
    config: Settings | None = None
    about: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    params: Parameters | None = None
    evaluation: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    truth: Truth | None = None
    labels: dict[int, str] = field(default_factory=dict)
    data: str = ""
    seen: Seen = Seen.UNKNOWN
    likeness: tuple[Likeness, ...] = ()
    copies: Copies | None = None

    @property
    def groups(self) -> Groups | None:
        """The groups of neurons and their targets; None where there are none, or they are not known."""
        return None if self.config is None else METHODS[self.config.method].groups(self.config)

    @property
    def description(self) -> Description:
        """What the run's method says of it; nothing where the config is not known."""
        if self.config is None:
            return Description("")
        return METHODS[self.config.method].description(self.config, self.about.get("recipe"))

    def vectors(self) -> dict[str, Array]:
        """The parameters that are one number per neuron, (M,), by the names of VECTORS."""
        arrays = {} if self.params is None else self.params.arrays()
        return {name: arrays[name] for name in VECTORS if name in arrays}

    @property
    def rows(self) -> int:
        """The number of rows evaluated, 0 if none."""
        h = self.evaluation.get("l0_histogram")
        return 0 if h is None else int(h.sum())

    @property
    def neurons(self) -> int | None:
        """M, the number of neurons, None where nothing says it."""
        if "frequency" in self.evaluation:
            return len(self.evaluation["frequency"])
        return self.config.width if self.config is not None else None

    def check(self) -> None:
        """InputError, naming the run, unless its evaluation and its parameters fit each other and the config."""
        if self.evaluation:
            check_arrays(self.name, self.evaluation, self.config)
        for name, vector in self.vectors().items():
            if vector.shape != (self.neurons,):
                raise InputError(f"{self.name}: has {self.neurons} neurons, but {name} of shape {vector.shape}")


def load_run(path: Path) -> RunData:
    """Read the folder of a run, finished or not, or of a network without its run: everything but the evaluation.

    Raises InputError, naming the file, for a path that is neither or is damaged.
    """
    if not (path / folder.CONFIG).is_file():
        network = folder.open_network(path)
        return RunData(_name(path), network.config, params=network.params)
    config = folder.read_config(path)
    about = folder.read_about(path) if (path / folder.ABOUT).exists() else {}
    params = folder.open_network(path).params if (path / folder.FINAL).is_dir() else None
    return RunData(_name(path), config, about, log.read(path), params)


def _name(path: Path) -> str:
    return path.name or path.resolve().name or str(path)
