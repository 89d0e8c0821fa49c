"""GBA under the names of the table: the functions of `refgba.gba`, `refgba.sae` and `refgba.recipe`, and no others.

Its codes are JumpReLU's or ReLU's of biases that Algorithm 2 moves, and its loss has no penalty at all.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from refgba import recipe as recipes
from refgba import sae
from refgba.baselines.method import Description, Exported, Groups, Own
from refgba.config import GBAConfig as Config
from refgba.errors import InputError
from refgba.gba import State, adapt, init, random_params, step
from refgba.recipe import extended
from refgba.sae import Forward, Params, decode
from refgba.types import Array, Mask

__all__ = [
    "OWN", "TWINS", "Config", "Params", "State", "adapt", "configure", "decode", "description", "encode",
    "evaluation_codes", "exported", "extended", "extension", "forward", "gradients", "groups", "init", "optimised",
    "parameters", "penalty", "random_params", "step",
]  # fmt: skip

OWN = Own("held", np.bool_)
TWINS = "refgba.backends"


def encode(params: Params, x: Array, config: Config, training: bool = True) -> tuple[Array, Mask, Array]:
    """Pre-activations y, who is active, and codes s of rows x (L, d), each (L, M)."""
    return sae.encode(params, x, config.activation)


def evaluation_codes(params: Params, x: Array, config: Config) -> tuple[Array, Array]:
    """y, which is positive exactly where a neuron is active, and codes s of rows x (L, d), each (L, M)."""
    y, _, s = encode(params, x, config)
    return y, s


def forward(params: Params, x: Array, config: Config, training: bool = True) -> Forward:
    """The network on rows x (L, d)."""
    return sae.forward(params, x, config.activation)


def penalty(params: Params, fwd: Forward, config: Config) -> float:
    """0: the loss is the reconstruction's alone."""
    return 0.0


def gradients(params: Params, x: Array, fwd: Forward, config: Config) -> Params:
    """The gradients of the loss at rows x (L, d), as a `Params`."""
    return sae.gradients(params, x, fwd)


def configure(d: int, recipe: str, **settings: Any) -> Config:
    """The settings of a run on rows of d dimensions: those given, and by one of `refgba.recipe.RECIPES` the others."""
    return recipes.RECIPES[recipe](d, **settings)


def extension(config: Config, done: int) -> str:
    """What an extension means for a run that goes on from step `done`, one line."""
    now = done + 1
    formed, rate = recipes.forming_steps(config), recipes.learning_rate(config, now)
    return (
        f"extended to {config.steps} steps: forming ends at step {formed} as before; the learning rate of step {now} "
        f"is {rate:.3g}, and reaches zero at the new end; biases go on adapting every {config.adapt_every} steps, so "
        "they end further from where they began than those of a run begun at this length"
    )


def parameters(config: Config, t: int) -> tuple[str, ...]:
    """The arrays that a network has after step t: an untied decoder only once no forming step is left."""
    formed = recipes.forming_steps(config)
    untied = config.untied and (t > formed or formed == 0)
    return tuple(f.name for f in fields(Params) if f.name != "W_dec" or untied)


def optimised(config: Config, t: int) -> tuple[str, ...]:
    """The parameters that have moments of AdamW after step t: all but b, trained yet or not."""
    return tuple(name for name in parameters(config, t) if name != "b")


def groups(config: Config) -> Groups | None:
    """The groups of neurons and their target frequencies (section 3); None where targets are measured."""
    if config.targets_from == "data":
        return None
    return Groups(config.group(), config.target())


def description(config: Config, recipe: str | None) -> Description:
    """What a report says of a run."""
    name = "GBA" if config.groups > 1 else "BA (one group)"
    if config.targets_from == "data":
        name = f"GBA, measured targets for L0 {config.l0:g}" if config.l0 else "GBA, measured targets"
    formed = recipes.forming_steps(config)
    by = f", recipe {recipe}" if recipe is not None else ""
    phases = f"; features form until step {formed:,}" if config.form else ""
    network = f"{config.activation}, {'untied decoder' if config.untied else 'tied weights'}"
    return Description(f"{name}{by}{phases}", network, formed)


def exported(params: Params, config: Config) -> Exported:
    """The same codes and reconstructions, to the last bit, in the terms of other libraries.

    JumpReLU's gate z + b > 0 is z > -b, so a bias is a threshold; with ReLU it is part of the pre-activation.
    InputError, naming the first neuron, where a JumpReLU has a bias above 0: other libraries make it a ReLU without a
    word.  Algorithm 2 leaves no such bias.
    """
    zero = np.zeros_like(params.b)
    if config.activation == "relu":
        b_enc, threshold = params.b, zero
    else:
        positive = np.flatnonzero(params.b > 0)
        if positive.size:
            raise InputError(
                f"neuron {positive[0]} has the bias {params.b[positive[0]]:.6g} ({positive.size} such neurons); "
                "as a threshold it would be negative, which other libraries take for ReLU"
            )
        b_enc, threshold = zero, 0 - params.b  # not -b: of b = 0 that is -0.0
    W_dec = params.a[:, None] * params.V  # (M, d)
    return Exported(params.W, b_enc, threshold, W_dec, params.b_pre)
