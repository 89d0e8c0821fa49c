"""Mistakes in what is ours: the two phases, the neurons held between them, the decoder that begins there."""

from __future__ import annotations

from typing import Any

import numpy as np

from refgba import recipe
from refgba.oracle.mistakes.formulas import Known, M
from refgba.oracle.stepwise import FORMULAS, Step


def begins(e: Step) -> bool:
    """Whether fitting begins with this step."""
    return recipe.fit_begins(e.config, e.t)


def phase(e: Step) -> tuple[int, int]:
    """First and last step of the phase."""
    formed = recipe.forming_steps(e.config)
    return (1, formed) if e.t <= formed else (formed + 1, e.config.steps)


def decayed(e: Step, first: int, last: int, late: int = 0, share: float | None = None) -> float:
    """A learning rate that falls over the last `share` of the steps first..last."""
    share = e.config.lr_decay if share is None else share
    left = (last - e.t + 1 - late) / (last - first + 1)
    return e.config.lr * min(1.0, left / share) if share else e.config.lr


def late_decay(e: Step) -> float:
    """The learning rate where the first step of fitting is still one of forming."""
    return decayed(e, 1, max(1, recipe.forming_steps(e.config)), late=1) if begins(e) else FORMULAS["lr"](e)


def agreeing_either_way(e: Step) -> Any:
    """Neurons with another within `hold` of their axis, (M,)."""
    cosine = abs(e.was("W") @ e.was("W").T) - 2 * np.eye(M(e))
    return cosine.max(axis=1) >= e.config.hold if begins(e) else e.was("held")


def agreeing_after(e: Step) -> Any:
    """Neurons that agree after a step in which none is held, (M,)."""
    free = Step(e.config, e.t, e["rows"], e.state, {"held": np.zeros(M(e), bool)}, last=e.last)
    return recipe.agreeing(free["W"], e.config.hold) if begins(e) else e.was("held")


def first(e: Step, moment: str) -> Any:
    """A moment of W_dec after its first update from 0."""
    g, c = e["dW_dec"], e.config
    return (1 - c.beta1) * g if moment == "m" else (1 - c.beta2) * g * g


MISTAKES: Known = {
    "no neuron is held when forming ends": {"held": lambda e: np.zeros(M(e), bool)},
    "every neuron agrees with itself, so all are held": {"held": lambda e: np.ones(M(e), bool)},
    "agreement is looked for at this step, not once when forming ends": {
        "held": lambda e: recipe.agreeing(e.was("W"), e.config.hold)
    },
    "agreement takes the absolute cosine": {"held": agreeing_either_way},
    "agreement is looked for after the step, not before it": {"held": agreeing_after},
    "the learning rate does not decay": {"lr": lambda e: e.config.lr},
    "the learning rate decays over the run, not over each phase": {"lr": lambda e: decayed(e, 1, e.config.steps)},
    "the decay of the learning rate counts steps from 0": {"lr": lambda e: decayed(e, *phase(e), late=-1)},
    "the learning rate reaches 0 at the last step of a phase": {"lr": lambda e: decayed(e, *phase(e), late=1)},
    "the learning rate decays from the first step of a phase": {"lr": lambda e: decayed(e, *phase(e), share=1.0)},
    "a and b_pre are trained while features form": {
        "trained": lambda e: ("W", "W_dec", "a", "b_pre") if "W_dec" in e.state else ("W", "a", "b_pre")
    },
    "a and b_pre stay fixed after forming": {"trained": lambda _: ("W",)},
    "fitting begins a step late": {
        "trained": lambda e: recipe.trained(e.config, e.t - 1),
        "held": lambda e: e.was("held"),
        "lr": late_decay,
    },
    "the moments of the new decoder begin at 0, not at W's": {
        "m.W_dec": lambda e: first(e, "m") if begins(e) else FORMULAS["m.W_dec"](e),
        "v.W_dec": lambda e: first(e, "v") if begins(e) else FORMULAS["v.W_dec"](e),
    },
    "the new decoder counts its updates from 0, not from W's": {
        "updates.W_dec": lambda e: 1 if begins(e) else FORMULAS["updates.W_dec"](e)
    },
}
