"""What GBA is compared with: L1, TopK, BatchTopK, JumpReLU, Matryoshka and Gated, one file each.

    f(x) = Σ_m s_m v_m + b_pre ,      y_m = w_m · (x - b_pre) + b_m ,      r = f(x) - x

    method      codes s                                   loss besides 1/2 ||r||², mean over the batch
    l1          max(y, 0)                                 λ Σ_m s_m
    topk        y, the k largest positive of a row        AuxK
    batchtopk   y, the k L largest positive of L rows     AuxK
    jumprelu    y 1{y > θ}                                λ Σ_m 1{y_m > θ_m}
    matryoshka  as batchtopk                              1/2 ||r_p||² of nested prefixes, and AuxK
    gated       e^ρ (π - b) + c, where it and π are > 0   λ Σ_m max(π_m, 0) + 1/2 ||r||² of max(π, 0) as codes

y is a pre-activation with its bias, as in the paper; Gated's gate has that formula and is called π, and its y is what
passes an open gate.

Each file holds what is the method's own, with its source.  What they share is in `network`, `training`, `auxk` and
`facts`.  A neuron here is a "latent" or "feature" in their papers.

Where this departs from the sources, for all of them: the reconstruction loss has a factor 1/2, as everywhere here.  So
λ is half of what it is beside ||r||².  b_pre starts at 0, not at a median of the data, and neither the learning rate
nor λ is warmed up.

`METHODS` is the table of all methods, GBA included, by name: the program looks there for whatever depends on the
method (`method.Method`), and asks nowhere else which one it has.  The functions of this package look a baseline up by
its settings:

    state = baselines.init(baselines.random_params(config, d), config)
    gba.train(state, batches, baselines.step, baselines.adapt)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

from refgba.baselines import batchtopk, gated, gba, jumprelu, l1, matryoshka, topk
from refgba.baselines.batchtopk import averaged
from refgba.baselines.method import Method
from refgba.baselines.network import Forward, Params, decode, largest, signed
from refgba.baselines.training import State, adapt, learning_rate
from refgba.config import BaselineConfig
from refgba.errors import InputError
from refgba.gba import Metrics
from refgba.types import Array

__all__ = [
    "CHOICES", "METHODS", "Forward", "Method", "Params", "State", "adapt", "averaged", "chosen", "decode",
    "evaluation_codes", "forward", "gradients", "init", "largest", "learning_rate", "random_params", "signed", "step",
]  # fmt: skip


METHODS: dict[str, Method] = {
    "gba": gba, "l1": l1, "topk": topk, "batchtopk": batchtopk, "jumprelu": jumprelu, "matryoshka": matryoshka,
    "gated": gated,
}  # fmt: skip


class Variant(NamedTuple):
    """A value of `--method` that is a method with some of its settings fixed.

    complaint: what to say of another value of one of them.
    """

    method: str
    fixed: dict[str, Any]
    complaint: str


VARIANTS = {"ba": Variant("gba", {"groups": 1}, "has one group")}
CHOICES = ("gba", "ba", *(name for name in METHODS if name != "gba"))  # the values of `--method`


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def chosen(choice: str, settings: dict[str, Any], flag: Callable[[str], str] = flag) -> tuple[Method, dict[str, Any]]:
    """The method that a value of `--method` means, and the settings given for it with those that the value fixes.

    flag: how a setting is called in messages.  InputError for a setting that the method does not have, or that the
    value fixes otherwise.
    """
    variant = VARIANTS.get(choice, Variant(choice, {}, ""))
    method = METHODS[variant.method]
    known = {f.name for f in fields(method.Config)} - {"method"}
    for name in settings:
        if name not in known:
            raise InputError(f"{flag(name)} is no setting of method {choice}")
    for name, value in variant.fixed.items():
        if settings.get(name, value) != value:
            raise InputError(f"method {choice} {variant.complaint}, not {settings[name]}")
    return method, settings | variant.fixed


# ---- a baseline, looked up by its settings ---------------------------------------------------------------------------


def random_params(config: BaselineConfig, d: int) -> Params:
    """The parameters of a baseline before the first step, for rows of d dimensions."""
    params: Params = METHODS[config.method].random_params(config, d)
    return params


def evaluation_codes(params: Params, x: Array, config: BaselineConfig) -> tuple[Array, Array]:
    """By how much pre-activations exceed what they have to, and the codes s of inference on rows x (L, d), each (L, M).

    The first is positive exactly where a neuron is active.
    """
    return METHODS[config.method].evaluation_codes(params, x, config)


def forward(params: Params, x: Array, config: BaselineConfig, training: bool = True) -> Forward:
    """The network on the rows x (L, d), in training or in inference."""
    fwd: Forward = METHODS[config.method].forward(params, x, config, training)
    return fwd


def gradients(params: Params, x: Array, fwd: Forward, config: BaselineConfig) -> Params:
    """The gradients of its loss at the rows x (L, d), without AuxK, as a `Params`."""
    grads: Params = METHODS[config.method].gradients(params, x, fwd, config)
    return grads


def init(params: Params, config: BaselineConfig) -> State:
    """The state before the first step; the arrays of `params` are not shared with it."""
    state: State = METHODS[config.method].init(params, config)
    return state


def step(state: State, x: Array) -> Metrics:
    """One step on a minibatch x (L, d) of unit rows, in the dtype of the run."""
    return METHODS[state.config.method].step(state, x)
