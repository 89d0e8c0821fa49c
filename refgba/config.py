"""The settings of a run: one frozen, validated record that reads and writes JSON.

What each setting does stands where it is used: `gba` for the paper's, `recipe` for those that are ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from refgba.errors import InputError
from refgba.groups import assign_groups, target_frequencies
from refgba.types import Activation, Dtype, Float64, Int64

LARGEST = 2**31 - 1  # of any count: past it a mistyped number would only ask for memory that no machine has


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class GBAConfig:
    """Every setting of a run, frozen and validated; InputError names the first that cannot be.

    The defaults are the paper's where it states them (section 3).  Settings that say "ours" are additions of this
    project; each one's default here switches it off.
    """

    width: int = _setting(1024, "M, the number of neurons")
    groups: int = _setting(10, "K, the number of groups; 1 is BA")
    htf: float = _setting(0.5, "highest target frequency, of the first group")
    ltf: float = _setting(1e-3, "lowest target frequency, of the last group")
    gamma_minus: float = _setting(0.01, "share of its peak by which a neuron over target is lowered")
    gamma_plus: float = _setting(0.01, "share of its group's mean peak by which a dead neuron is raised")
    adapt_every: int = _setting(50, "steps between two adaptations of the biases")
    eps: float = _setting(1e-6, "frequency under which a neuron counts as dead")
    steps: int = _setting(3000, "T, the number of steps")
    batch: int = _setting(512, "L, rows in a minibatch")
    lr: float = _setting(1e-3, "AdamW's learning rate")
    beta1: float = _setting(0.9, "AdamW's first decay rate")
    beta2: float = _setting(0.999, "AdamW's second decay rate")
    adam_eps: float = _setting(1e-8, "AdamW's epsilon, outside the root")
    weight_decay: float = _setting(0.0, "AdamW's decoupled weight decay")
    activation: Activation = _setting("jumprelu", "what passes an open gate: w.(x - b_pre), or with relu y itself")
    a_init: float = _setting(1.0, "initial output scale of every neuron (the paper's is not known)")
    seed: int = _setting(0, "seed of the initial weights and the batch order")
    dtype: Dtype = _setting(
        "float64", "arithmetic of the run; tf32 and bfloat16 round the factors of matrix products, the rest is float32"
    )
    untied: bool = _setting(False, "ours: a decoder W_dec of its own instead of the paper's tied weights")
    floor: float = _setting(0.0, "ours: share of its target below which a neuron is raised like a dead one")
    form: float = _setting(0.0, "ours: share of the steps, from the first, that form features: a and b_pre stay fixed")
    hold: float = _setting(1.0, "ours: cosine from which neurons that agree when forming ends are held; 1 holds none")
    lr_decay: float = _setting(0.0, "ours: share of each phase, to its end, over which lr falls linearly to zero")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), kind))
        for rule, complaint in self._rules():
            if not rule:
                raise InputError(complaint)

    def _rules(self) -> Iterator[tuple[bool, str]]:
        for name in ("width", "groups", "adapt_every", "steps", "batch"):
            yield getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}"
            yield getattr(self, name) <= LARGEST, f"{name} must be at most {LARGEST:,}, not {getattr(self, name)}"
        yield self.width >= self.groups, f"width ({self.width}) must be at least groups ({self.groups})"
        for name in ("htf", "ltf"):
            yield 0 < getattr(self, name) < 1, f"{name} must lie strictly between 0 and 1, not {getattr(self, name)}"
        yield self.groups == 1 or self.htf > self.ltf, f"htf ({self.htf}) must be above ltf ({self.ltf})"
        yield (
            self.adam_eps > 0,
            f"adam_eps must be positive, not {self.adam_eps}: a dead neuron's update is 0 / adam_eps",
        )
        for name in ("gamma_minus", "gamma_plus", "eps", "lr", "weight_decay", "seed"):
            yield getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}"
        for name in ("beta1", "beta2"):
            yield 0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), not {getattr(self, name)}"
        for name in ("floor", "form", "hold", "lr_decay"):
            yield 0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], not {getattr(self, name)}"

    @property
    def master(self) -> str:
        """The dtype of parameters and rows: float64 or, for every other `dtype`, float32."""
        return "float64" if self.dtype == "float64" else "float32"

    def target(self) -> Float64:
        """The target activation frequency of each group, (K,)."""
        return target_frequencies(self.groups, self.htf, self.ltf)

    def group(self) -> Int64:
        """The group of each neuron, (M,), counted from 0."""
        return assign_groups(self.width, self.groups)

    def to_json(self) -> str:
        """All settings as one JSON object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> GBAConfig:
        """The settings in a JSON object; those it leaves out keep their defaults, unknown ones are refused."""
        return cls(**settings_from_json(text))


def settings_from_json(text: str) -> dict[str, Any]:
    """The settings a JSON object names, unvalidated; InputError when it is no object or names an unknown setting."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise InputError('a configuration is a JSON object of settings, like {"width": 1024}')
    known = [f.name for f in fields(GBAConfig)]
    for name in given:
        if name not in known:
            raise InputError(f"unknown setting {name!r}; the settings are {', '.join(known)}")
    return given


def _finite(value: Real) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer past the largest float
        return False


def _checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as the type `kind` of a setting, or InputError.  JSON's 1 is a fine float, but True is never a number."""
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise InputError(f"{name} must be one of {', '.join(get_args(kind))}, not {value!r}")
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, Real) and not isinstance(value, bool) and _finite(value):
        return float(value)
    wanted = {int: "a whole number", float: "a finite number", bool: "true or false"}[kind]
    raise InputError(f"{name} must be {wanted}, not {value!r}")
