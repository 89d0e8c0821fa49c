"""The settings of a run: a frozen, validated record that reads and writes JSON, one for GBA and one for the baselines.

Each setting has its help here.  The paper's are used in `gba`, `groups` and `bias`, ours in `recipe`, those of the
baselines in `baselines`.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import Field, asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args, get_origin, get_type_hints

from refgba.errors import InputError
from refgba.groups import assign_groups, target_frequencies
from refgba.types import Activation, Dtype, Float64, Int64

Baseline: TypeAlias = Literal["l1", "topk", "batchtopk", "jumprelu", "matryoshka", "gated"]  # names of baselines

Source: TypeAlias = Literal["groups", "data"]  # where the frequencies come from that Algorithm 2 aims at
LARGEST = 2**31 - 1  # no count may exceed it: a larger one is mistyped, and asks for memory that no machine has
# The default recipe adapts biases about this many times per run, and a baseline empties its counters.  A run with fewer
# steps does so at every step.
ADAPTATIONS = 150


def _setting(default: Any, help: str, *methods: str, ours: bool = False) -> Any:
    """A setting, with its help; methods: the only ones that use it, if not all that have it do.

    ours: whether it is this project's, and not the paper's.
    """
    text = f"{', '.join(methods) or 'ours'}: {help}" if methods or ours else help
    return field(default=default, metadata={"help": text, "methods": methods, "ours": ours})


class Settings(ABC):
    """What the settings of every method have in common, and how they are checked, written and read.

    A subclass is a frozen dataclass with a `_setting` for each of these names, in the order in which people are to read
    them: a dataclass here would put the shared ones first in every JSON object, help and complaint.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    by_recipe = False  # whether `refgba.recipe.RECIPES` choose what is not given

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
    def method(self) -> str:
        """The name of the method whose settings these are, as in `refgba.baselines.METHODS`."""

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
        """Every rule: whether it holds, and the complaint if it does not.  A subclass adds its own."""
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

    def uses(self, name: str) -> bool:
        """Whether the method uses the setting of this name."""
        methods = self.__dataclass_fields__[name].metadata["methods"]
        return not methods or self.method in methods

    def without_effect(self, name: str) -> str:
        """Why the setting of this name does nothing beside the others, in words; nothing where it has an effect."""
        methods = ", ".join(self.__dataclass_fields__[name].metadata["methods"])
        return "" if self.uses(name) else f"it is for {methods}, not for method {self.method}"

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

    method: ClassVar[str] = "gba"
    by_recipe = True

    width: int = _setting(1024, "M, the number of neurons")
    groups: int = _setting(10, "K, the number of groups; 1 is BA")
    htf: float = _setting(0.5, "highest target frequency, of the first group")
    ltf: float = _setting(1e-3, "lowest target frequency, of the last group")
    gamma_minus: float = _setting(0.01, "share of its peak by which a neuron over target is lowered")
    gamma_plus: float = _setting(0.01, "share of its group's mean peak by which a dead neuron is raised")
    adapt_every: int = _setting(50, "steps between two adaptations of the biases")
    eps: float = _setting(1e-6, "frequency under which a neuron counts as dead")
    steps: int = _setting(3000, "T, the number of steps")
    batch: int = _setting(512, "L, rows per minibatch")
    lr: float = _setting(1e-3, "AdamW's learning rate")
    beta1: float = _setting(0.9, "AdamW's first decay rate")
    beta2: float = _setting(0.999, "AdamW's second decay rate")
    adam_eps: float = _setting(1e-8, "AdamW's epsilon, outside the root")
    weight_decay: float = _setting(0.0, "AdamW's decoupled weight decay")
    activation: Activation = _setting("jumprelu", "what passes an open gate: w.(x - b_pre), or with relu y itself")
    a_init: float = _setting(1.0, "initial output scale of every neuron (the paper's is not known)")
    b_init: float = _setting(0.0, "initial bias of every neuron (the paper's is 0)")
    seed: int = _setting(0, "seed of the initial weights and the batch order")
    dtype: Dtype = _setting(
        "float64", "arithmetic of the run; tf32 and bfloat16 round the factors of matrix products, the rest is float32"
    )
    untied: bool = _setting(
        False, "a decoder of its own, from when features have formed, not the paper's tied one", ours=True
    )
    floor: float = _setting(0.0, "share of its target below which a neuron is raised like a dead one", ours=True)
    form: float = _setting(
        0.0, "share of the steps, from the first, that form features: a and b_pre stay fixed", ours=True
    )
    hold: float = _setting(
        1.0, "cosine from which neurons that agree when forming ends are held; 1 holds none", ours=True
    )
    lr_decay: float = _setting(0.0, "share of each phase, to its end, over which lr falls linearly to zero", ours=True)
    targets_from: Source = _setting(
        "groups", "each neuron's target: that of its group, or one measured from the data", ours=True
    )
    l0: float = _setting(
        0.0, "with targets from data: active neurons per row; 0 counts how many features a row shows", ours=True
    )
    relative: float = _setting(
        0.0, "with targets from data: 1 makes each threshold the same share of its neuron's peak, 0 none", ours=True
    )

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield from super()._rules()
        yield from self._at_least_one("groups", "adapt_every")
        yield self.width >= self.groups, f"width ({self.width}) must be at least groups ({self.groups})"
        for name in ("htf", "ltf"):
            yield 0 < getattr(self, name) < 1, f"{name} must lie strictly between 0 and 1, not {getattr(self, name)}"
        yield self.groups == 1 or self.htf > self.ltf, f"htf ({self.htf}) must be above ltf ({self.ltf})"
        yield from self._not_negative("gamma_minus", "gamma_plus", "eps")
        yield from self._shares("floor", "form", "hold", "relative")
        yield 0 <= self.l0 <= self.width, f"l0 must lie between 0 and width ({self.width}), not {self.l0}"
        for name in ("l0", "relative"):
            given = f"{name} ({getattr(self, name):g})"
            yield (
                self.targets_from == "data" or not getattr(self, name),
                f"{given} is for measured targets, and here they are the groups': choose the recipe measured",
            )

    def without_effect(self, name: str) -> str:
        """Why the setting of this name does nothing beside the others, in words; nothing where it has an effect."""
        measured = self.targets_from == "data"
        if name in ("groups", "htf", "ltf") and measured:
            return "targets are measured from the data, and are not those of groups"
        if name in ("l0", "relative") and not measured:
            return "it is for targets that are measured from the data (--recipe measured)"
        return ""

    def target(self) -> Float64:
        """The target activation frequency of each group, (K,)."""
        return target_frequencies(self.groups, self.htf, self.ltf)

    def group(self) -> Int64:
        """The group of each neuron, (M,), counted from 0."""
        return assign_groups(self.width, self.groups)


CHOOSING = ("topk", "batchtopk", "matryoshka")  # the baselines that choose k neurons per row
PENALISED = ("l1", "jumprelu", "gated")  # the baselines whose loss has a penalty


def _as_in_gba(name: str) -> Any:
    """A setting with the default and the help that it has in GBAConfig."""
    f = GBAConfig.__dataclass_fields__[name]
    return field(default=f.default, metadata=f.metadata)


@dataclass(frozen=True)
class BaselineConfig(Settings):
    """Every setting of a baseline, frozen and validated; InputError names the first that cannot be.

    The defaults are for rows of unit norm, on which Gao et al. (2024, arXiv 2406.04093) train TopK as well.  Their
    learning rate falls with the width: dictionary_learning reads their figure 3 as 2e-4 √(2^14 / M), which is 8e-4 at
    M = 1024.  For L1 it takes 1e-3.  A comparison should try several rates: the best depends on the method.

    No default of `sparsity` suits all methods: on the activations of benchmarks/recipe.md (M 1024, 500 steps) L0 ended
    near 30 with 0.08 for l1, and with 0.002 for jumprelu.  `bandwidth` is ten times the JumpReLU paper's, so that
    batches of 512 have rows in it: 0.01 and 0.001 ended within 2% of each other in FVU, at about the same L0.

    The literature counts a neuron as dead after 10 million rows, some 76 of its batches.  That never happens in runs of
    a million rows.  Here it is 20,000 rows, 39 batches of 512: a neuron that fires once per 2000 rows is silent for so
    long with probability e^-10.
    """

    method: Baseline = _setting("topk", "the baseline")
    width: int = _as_in_gba("width")
    k: int = _setting(32, "active neurons per row; batchtopk, matryoshka: in the mean of a batch", *CHOOSING)
    sparsity: float = _setting(
        0.01, "λ, what a code of 1 costs in l1, a gate of 1 in gated, an active neuron in jumprelu", *PENALISED
    )
    bandwidth: float = _setting(0.01, "width around a threshold of the pre-activations that move it", "jumprelu")
    theta_init: float = _setting(1e-3, "initial threshold of every neuron", "jumprelu")
    aux: float = _setting(1 / 32, "weight of AuxK, dead neurons' reconstruction of the residual", *CHOOSING)
    aux_k: int = _setting(0, "dead neurons per row that AuxK uses; 0 is d/2", *CHOOSING)
    dead_after: int = _setting(20_000, "rows without firing after which a neuron is dead to AuxK", *CHOOSING)
    prefixes: int = _setting(5, "nested prefixes that reconstruct alone, each half of the next", "matryoshka")
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
        """Steps between two calls of `baselines.adapt`, which only empties the counters: ADAPTATIONS or so per run."""
        return max(1, round(self.steps / ADAPTATIONS))

    def ends(self) -> tuple[int, ...]:
        """How many neurons each prefix of the dictionary has that is to reconstruct alone, the last all of them, (P,).

        >>> from refgba.config import BaselineConfig
        >>> BaselineConfig(method="matryoshka", width=1000).ends()
        (63, 125, 250, 500, 1000)
        """
        return tuple(-(-self.width // 2**halved) for halved in reversed(range(self.prefixes)))

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield from super()._rules()
        yield from self._at_least_one("k", "dead_after", "prefixes")
        enough = self.width >= self.k or not self.uses("k")
        yield enough, f"width ({self.width}) must be at least k ({self.k})"
        smallest = 2 ** min(self.prefixes - 1, 31)
        enough = self.width >= smallest or not self.uses("prefixes")
        yield enough, f"width ({self.width}) must be at least {smallest:,} to have {self.prefixes} prefixes"
        yield from self._not_negative("sparsity", "theta_init", "aux", "aux_k")
        yield self.bandwidth > 0, f"bandwidth must be positive, not {self.bandwidth}: thresholds would never move"


def config_from_json(text: str) -> GBAConfig | BaselineConfig:
    """The settings of any method in a JSON object: those of a baseline where it names a "method", else of GBA."""
    settings = settings_from_json(text)
    return BaselineConfig(**settings) if "method" in settings else GBAConfig(**settings)


def settings_from_json(text: str) -> dict[str, Any]:
    """The settings a JSON object names, unvalidated; InputError when it is no object or names an unknown setting.

    Which are known depends on whether "method" is among them, as in `config_from_json`.
    """
    settings = _object(text)
    return _known(settings, BaselineConfig if "method" in settings else GBAConfig)


def _object(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise InputError('a configuration is a JSON object of settings, like {"width": 1024}')
    return settings


def _known(settings: dict[str, Any], kind: type[Settings]) -> dict[str, Any]:
    """The same settings, if all of their names are settings of `kind`; InputError otherwise."""
    known = [f.name for f in fields(kind)]
    for name in settings:
        if name not in known:
            raise InputError(f"unknown setting {name!r}; the settings are {', '.join(known)}")
    return settings


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
