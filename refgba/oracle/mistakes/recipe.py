"""Mistakes in what is ours: the two phases, the neurons held between them, the decoder that begins there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from refgba import recipe
from refgba.adam import moment
from refgba.config import GBAConfig
from refgba.oracle.mistakes.formulas import Known, M
from refgba.oracle.stepwise import FORMULAS, THETA, Formula, Step


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


def formed_early(e: Step) -> GBAConfig:
    """The settings with int(form T) forming steps, not round(form T)."""
    return replace(e.config, form=int(e.config.form * e.config.steps) / e.config.steps)


def held_early(e: Step) -> Any:
    """The neurons held where forming ends with the step int(form T), (M,)."""
    return recipe.agreeing(e.was("W"), e.config.hold) if recipe.fit_begins(formed_early(e), e.t) else e.was("held")


def held_late(e: Step) -> Any:
    """The neurons held where agreement is looked for a step late, (M,)."""
    late = recipe.fit_begins(e.config, e.t - 1)
    return recipe.agreeing(e.was("W"), e.config.hold) if late else e.was("held")


def held_in_groups(e: Step) -> Any:
    """The neurons that agree with another of their own group, (M,)."""
    group = e.config.group()
    same = (group[:, None] == group) & ~np.eye(M(e), dtype=bool)
    cosine = np.where(same, e.was("W") @ e.was("W").T, -1)
    return cosine.max(axis=1) >= e.config.hold if begins(e) else e.was("held")


def held_above(e: Step) -> Any:
    """The neurons with another at a cosine above `hold`, (M,)."""
    return recipe.agreeing(e.was("W"), float(np.nextafter(e.config.hold, 2))) if begins(e) else e.was("held")


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


def held_beside(e: Step, lower: bool) -> Any:
    """The neurons that agree with an earlier one (`lower`), or with a later one, (M,)."""
    others = np.tril(np.ones((M(e), M(e)), bool), -1)
    cosine = np.where(others if lower else others.T, e.was("W") @ e.was("W").T, -1)
    return cosine.max(axis=1) >= e.config.hold if begins(e) else e.was("held")


def trained_if(change: Callable[[set[str], bool], set[str]]) -> dict[str, Formula]:
    """Other parameters trained: a function of those that should be, and of whether features form."""

    def names(e: Step) -> tuple[str, ...]:
        right = set(recipe.trained(e.config, e.t))
        there = ("W_dec",) if "W_dec" in e.state else ()
        return tuple(change(right, e.t <= recipe.forming_steps(e.config)) & {"W", "a", "b_pre", *there})

    return {"trained": names}


def rounded_up(e: Step) -> GBAConfig:
    """The settings where a half in form T is rounded up, not to the even number."""
    return replace(e.config, form=np.floor(e.config.form * e.config.steps + 0.5) / e.config.steps)


def anew(*thetas: str, count: bool = True) -> dict[str, Formula]:
    """Moments, and with `count` their counts, that begin at 0 when fitting begins."""
    formulas: dict[str, Formula] = {}
    for theta in thetas:
        formulas |= {f"m.{theta}": fresh("m", theta), f"v.{theta}": fresh("v", theta)}
        if count:
            formulas[f"updates.{theta}"] = fresh("updates", theta)
    return formulas


def fresh(part: str, theta: str) -> Formula:
    """A part of the optimiser's state after its first update from 0, at the step with which fitting begins."""

    def formula(e: Step) -> Any:
        if not begins(e) or theta not in e["trained"]:
            return FORMULAS[f"{part}.{theta}"](e)
        g, c = e[f"d{theta}"], e.config
        return {"m": (1 - c.beta1) * g, "v": (1 - c.beta2) * g * g, "updates": 1}[part]

    return formula


def collected(theta: str) -> dict[str, Formula]:
    """Moments and counts of a parameter that go on while it is not trained."""
    return {
        f"updates.{theta}": lambda e: e.was(f"updates.{theta}") + 1,
        f"m.{theta}": lambda e: moment(e.was(f"m.{theta}"), e[f"d{theta}"], e.config.beta1),
        f"v.{theta}": lambda e: moment(e.was(f"v.{theta}"), e[f"d{theta}"] ** 2, e.config.beta2),
    }


TRUNCATED = "forming takes int(form T) steps, not round(form T)"

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
    "the learning rate is that of the step before": {"lr": lambda e: recipe.learning_rate(e.config, max(e.t - 1, 1))},
    "the learning rate decays from the first step of a phase": {"lr": lambda e: decayed(e, *phase(e), share=1.0)},
    "a and b_pre are trained while features form": {
        "trained": lambda e: ("W", "W_dec", "a", "b_pre") if "W_dec" in e.state else ("W", "a", "b_pre")
    },
    "a and b_pre stay fixed after forming": {"trained": lambda _: ("W",)},
    "a is trained while features form": trained_if(lambda right, forming: right | {"a"} if forming else right),
    "b_pre is trained while features form": trained_if(lambda right, forming: right | {"b_pre"} if forming else right),
    "a is not trained": trained_if(lambda right, _: right - {"a"}),
    "b_pre is not trained": trained_if(lambda right, _: right - {"b_pre"}),
    "W stays fixed after forming": trained_if(lambda right, forming: right if forming else right - {"W"}),
    "fitting begins a step late": {
        "trained": lambda e: recipe.trained(e.config, e.t - 1),
        "held": lambda e: e.was("held"),
        "lr": late_decay,
    },
    "the moments of the new decoder begin at 0, not at W's": anew("W_dec", count=False),
    "the new decoder counts its updates from 0, not from W's": {"updates.W_dec": fresh("updates", "W_dec")},
    "the new decoder's moments and count begin at 0, not at W's": anew("W_dec"),
    "the optimiser begins anew when fitting begins, moments and counts": anew("W", "W_dec"),
    "the optimiser's moments begin at 0 when fitting begins": anew("W", "W_dec", count=False),
    "the moments of W begin at 0 when fitting begins": anew("W", count=False),
    "the moments and the count of W begin at 0 when fitting begins": anew("W"),
    "one count of updates is shared by all parameters, trained or not": {
        f"updates.{theta}": lambda e: e.was("updates.W") + 1 for theta in THETA
    },
    "a and b_pre collect moments while features form, and only their moves are masked": {
        **collected("a"),
        **collected("b_pre"),
    },
    TRUNCATED: {
        "held": held_early,
        "lr": lambda e: recipe.learning_rate(formed_early(e), e.t),
        "trained": lambda e: recipe.trained(formed_early(e), e.t),
    },
    "forming takes form T steps with a half rounded up, not to the even number": {
        "held": lambda e: (
            recipe.agreeing(e.was("W"), e.config.hold) if recipe.fit_begins(rounded_up(e), e.t) else e.was("held")
        ),
        "lr": lambda e: recipe.learning_rate(rounded_up(e), e.t),
        "trained": lambda e: recipe.trained(rounded_up(e), e.t),
    },
    "of neurons that agree the first is not held": {"held": lambda e: held_beside(e, lower=True)},
    "of neurons that agree the last is not held": {"held": lambda e: held_beside(e, lower=False)},
    "agreement is looked for a step late": {"held": held_late},
    "agreement is looked for within each group only": {"held": held_in_groups},
    "neurons are held above the cosine `hold`, not from it on": {"held": held_above},
    "the decoder of its own begins a step late": {
        "dW": lambda e: (
            e["dW.detector"] + (e["dW.reconstructor"] if begins(e) and e.config.untied else 0)
            if "W_dec" in e.state
            else FORMULAS["dW"](e)
        )
    },
}
