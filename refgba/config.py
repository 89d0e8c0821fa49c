"""The settings of a run: a frozen, validated record that reads and writes JSON, one for GBA and one for the baselines.

What each setting does stands where it is used: `gba` for the paper's, `recipe` for those that are ours, `baselines`.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import Field, asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args, get_origin, get_type_hints

from refgba.errors import InputError
from refgba.groups import assign_groups, target_frequencies
from refgba.types import Activation, Dtype, Float64, Int64

Method: TypeAlias = Literal["l1", "topk", "batchtopk", "jumprelu"]  # the baselines

LARGEST = 2**31 - 1  # of any count: past it a mistyped number would only ask for memory that no machine has
ROLLED = 150  # times that a baseline's counters are emptied in a run, as often as the default recipe adapts biases


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


class Settings:
    """What the settings of every method have in common, and how they are checked, written and read.

    A subclass is a frozen dataclass with a `_setting` for each of these names, in the order in which people are to read
    them: a dataclass here would put the shared ones first in every JSON object, help and complaint.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    width: int
    steps: int
    batch: int
    lr: float
    beta1: float
    beta2: float
    adam_eps: float
    weight_decay: float
    seed: int
    dtype: Dtype
    lr_decay: float

    @property
    @abstractmethod
    def adapt_every(self) -> int:
        """Steps between two calls of `adapt`."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f.name, getattr(self, f.name), hints[f.name]))
        for rule, complaint in self._rules():
            if not rule:
                raise InputError(complaint)

    def _rules(self) -> Iterator[tuple[bool, str]]:
        """What must hold, each with what to say where it does not.  A subclass adds its own."""
        yield from self._at_least_one("width", "steps", "batch")
        yield from self._not_negative("lr", "weight_decay", "seed")
        yield from self._shares("lr_decay")
        for name in ("beta1", "beta2"):
            yield 0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), not {getattr(self, name)}"
        yield (
            self.adam_eps > 0,
            f"adam_eps must be positive, not {self.adam_eps}: a dead neuron's update is 0 / adam_eps",
        )

    def _at_least_one(self, *names: str) -> Iterator[tuple[bool, str]]:
        for name in names:
            yield getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}"
            yield getattr(self, name) <= LARGEST, f"{name} must be at most {LARGEST:,}, not {getattr(self, name)}"

    def _not_negative(self, *names: str) -> Iterator[tuple[bool, str]]:
        for name in names:
            yield getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}"

    def _shares(self, *names: str) -> Iterator[tuple[bool, str]]:
        for name in names:
            yield 0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], not {getattr(self, name)}"

    @property
    def master(self) -> str:
        """The dtype of parameters and rows: float64 or, for every other `dtype`, float32."""
        return "float64" if self.dtype == "float64" else "float32"

    def to_json(self) -> str:
        """All settings as one JSON object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The settings in a JSON object; those it leaves out keep their defaults, unknown ones are refused."""
        return cls(**_known(_object(text), cls))


@dataclass(frozen=True)
class GBAConfig(Settings):
    """Every setting of a run of GBA, frozen and validated; InputError names the first that cannot be.

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
    b_init: float = _setting(0.0, "initial bias of every neuron (the paper's is not known)")
    seed: int = _setting(0, "seed of the initial weights and the batch order")
    dtype: Dtype = _setting(
        "float64", "arithmetic of the run; tf32 and bfloat16 round the factors of matrix products, the rest is float32"
    )
    untied: bool = _setting(
        False, "ours: a decoder of its own, from when features have formed, not the paper's tied one"
    )
    floor: float = _setting(0.0, "ours: share of its target below which a neuron is raised like a dead one")
    form: float = _setting(0.0, "ours: share of the steps, from the first, that form features: a and b_pre stay fixed")
    hold: float = _setting(1.0, "ours: cosine from which neurons that agree when forming ends are held; 1 holds none")
    lr_decay: float = _setting(0.0, "ours: share of each phase, to its end, over which lr falls linearly to zero")

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield from super()._rules()
        yield from self._at_least_one("groups", "adapt_every")
        yield self.width >= self.groups, f"width ({self.width}) must be at least groups ({self.groups})"
        for name in ("htf", "ltf"):
            yield 0 < getattr(self, name) < 1, f"{name} must lie strictly between 0 and 1, not {getattr(self, name)}"
        yield self.groups == 1 or self.htf > self.ltf, f"htf ({self.htf}) must be above ltf ({self.ltf})"
        yield from self._not_negative("gamma_minus", "gamma_plus", "eps")
        yield from self._shares("floor", "form", "hold")

    def target(self) -> Float64:
        """The target activation frequency of each group, (K,)."""
        return target_frequencies(self.groups, self.htf, self.ltf)

    def group(self) -> Int64:
        """The group of each neuron, (M,), counted from 0."""
        return assign_groups(self.width, self.groups)


def _as_in_gba(name: str) -> Any:
    """A setting with the default and the help that it has in GBAConfig."""
    f = GBAConfig.__dataclass_fields__[name]
    return field(default=f.default, metadata=f.metadata)


@dataclass(frozen=True)
class BaselineConfig(Settings):
    """Every setting of a baseline, frozen and validated; InputError names the first that cannot be.

    The defaults are for rows of unit norm, on which Gao et al. (2024, arXiv 2406.04093) train TopK as well.  Their
    learning rate falls with the width; dictionary_learning reads their figure 3 as 2e-4 √(2^14 / M), which is 8e-4 at
    M = 1024, and takes 1e-3 for its L1.  A comparison should try several: the best depends on the method.

    `sparsity` has no default that suits both methods: on the activations of benchmarks/recipe.md (M 1024, 500 steps)
    L0 ended near 30 with 0.08 for l1, and with 0.002 for jumprelu.  `bandwidth` is ten times the JumpReLU paper's,
    so that batches of 512 have rows in it: 0.01 and 0.001 ended within 2% of each other in FVU, at about the same L0.

    A neuron counts as dead in the literature after 10 million rows, some 76 of its batches.  In runs of a million rows
    that is never; 20,000 are 39 batches of 512, in which a neuron that fires once in 2000 rows is silent by chance
    with probability e^-10.
    """

    method: Method = _setting("topk", "the baseline")
    width: int = _as_in_gba("width")
    k: int = _setting(32, "topk, batchtopk: active neurons a row; batchtopk in the mean of a batch")
    sparsity: float = _setting(0.01, "l1: its coefficient; jumprelu: that of the number of active neurons a row")
    bandwidth: float = _setting(0.01, "jumprelu: width around a threshold of the pre-activations that move it")
    theta_init: float = _setting(1e-3, "jumprelu: initial threshold of every neuron")
    aux: float = _setting(1 / 32, "topk, batchtopk: AuxK, what dead neurons' reconstruction of the residual weighs")
    aux_k: int = _setting(0, "topk, batchtopk: dead neurons a row that AuxK uses; 0 is d/2")
    dead_after: int = _setting(20_000, "topk, batchtopk: rows without firing after which a neuron is dead to AuxK")
    steps: int = _as_in_gba("steps")
    batch: int = _as_in_gba("batch")
    lr: float = _as_in_gba("lr")
    beta1: float = _as_in_gba("beta1")
    beta2: float = _as_in_gba("beta2")
    adam_eps: float = _as_in_gba("adam_eps")
    weight_decay: float = _as_in_gba("weight_decay")
    seed: int = _as_in_gba("seed")
    dtype: Dtype = _as_in_gba("dtype")
    lr_decay: float = _setting(0.2, "share of the run, to its end, over which lr falls linearly to zero")

    @property
    def adapt_every(self) -> int:
        """Steps between two calls of `baselines.adapt`, which only empties the counters: about ROLLED a run."""
        return max(1, round(self.steps / ROLLED))

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield from super()._rules()
        yield from self._at_least_one("k", "dead_after")
        chooses = self.method in ("topk", "batchtopk")
        yield not chooses or self.width >= self.k, f"width ({self.width}) must be at least k ({self.k})"
        yield from self._not_negative("sparsity", "theta_init", "aux", "aux_k")
        yield self.bandwidth > 0, f"bandwidth must be positive, not {self.bandwidth}: thresholds would never move"


def config_from_json(text: str) -> GBAConfig | BaselineConfig:
    """The settings of any method in a JSON object: those of a baseline where it names a "method", else of GBA."""
    given = settings_from_json(text)
    return BaselineConfig(**given) if "method" in given else GBAConfig(**given)


def settings_from_json(text: str) -> dict[str, Any]:
    """The settings a JSON object names, unvalidated; InputError when it is no object or names an unknown setting.

    Which are known depends on whether "method" is among them, as in `config_from_json`.
    """
    given = _object(text)
    return _known(given, BaselineConfig if "method" in given else GBAConfig)


def _object(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise InputError('a configuration is a JSON object of settings, like {"width": 1024}')
    return given


def _known(given: dict[str, Any], kind: type[Settings]) -> dict[str, Any]:
    """`given`, all of whose names are settings of `kind`."""
    known = [f.name for f in fields(kind)]
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
