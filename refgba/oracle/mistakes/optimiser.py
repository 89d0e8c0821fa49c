"""Mistakes in line 3: AdamW.  Most of them are `adam.moved` with another factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refgba import adam
from refgba.adam import Factors, moment
from refgba.oracle.mistakes.formulas import Known
from refgba.oracle.stepwise import FORMULAS, THETA, Formula, Step, factors


def each(part: str, formula: Callable[[Step, str], Any]) -> dict[str, Formula]:
    """One formula for a part of the optimiser's state of every parameter that is trained."""

    def of(theta: str) -> Formula:
        name = f"{part}.{theta}"
        return lambda e: formula(e, theta) if theta in e["trained"] else e.was(name)

    return {f"{part}.{theta}": of(theta) for theta in THETA}


def after(formula: Callable[[Step, str], Any]) -> dict[str, Formula]:
    """One formula for AdamW's step of every parameter that is trained."""

    def of(theta: str) -> Formula:
        return lambda e: formula(e, theta) if theta in e["trained"] else e.was(theta)

    return {("moved." if theta.startswith("W") else "") + theta: of(theta) for theta in THETA}


def m(e: Step, theta: str, g: Any, beta: float | None = None) -> Any:
    """The first moment with one more value g, or with another memory."""
    return moment(e.was(f"m.{theta}"), g, e.config.beta1 if beta is None else beta)


def v(e: Step, theta: str, g_squared: Any, beta: float | None = None) -> Any:
    """The second moment with one more value, or with another memory."""
    return moment(e.was(f"v.{theta}"), g_squared, e.config.beta2 if beta is None else beta)


def coupled(e: Step, theta: str) -> Any:
    """The gradient with the weight decay in it."""
    return e[f"d{theta}"] + e.config.weight_decay * e.was(theta)


def by(change: Callable[[Step, Factors], Factors]) -> dict[str, Formula]:
    """θ after AdamW with other factors."""
    return after(
        lambda e, theta: adam.moved(e.was(theta), e[f"m.{theta}"], e[f"v.{theta}"], change(e, factors(e, theta)))
    )


def corrected_late(late: int) -> dict[str, Formula]:
    """θ after AdamW where the bias correction counts so many updates more."""

    def formula(e: Step, theta: str) -> Any:
        of_count = adam.factors(int(e[f"updates.{theta}"]) + late, e["lr"], e.config)
        return adam.moved(e.was(theta), e[f"m.{theta}"], e[f"v.{theta}"], of_count)

    return after(formula)


def divided_by(divisor: Callable[[Any, float], Any]) -> dict[str, Formula]:
    """θ after AdamW with another divisor, made of v̂ and ε."""

    def formula(e: Step, theta: str) -> Any:
        f = factors(e, theta)
        v_hat = e[f"v.{theta}"] / f.v_hat
        return f.decay * e.was(theta) - f.lr * (e[f"m.{theta}"] / f.m_hat) / divisor(v_hat, f.eps)

    return after(formula)


def without_momentum(e: Step, theta: str) -> Any:
    """θ after AdamW with the gradient in the place of its mean."""
    return adam.moved(e.was(theta), e[f"d{theta}"], e[f"v.{theta}"], factors(e, theta)._replace(m_hat=1))


def nadam(e: Step, theta: str) -> Any:
    """θ after AdamW with Nesterov's momentum: m̂ looks one update ahead."""
    c, f = e.config, factors(e, theta)
    ahead = 1 - c.beta1 ** (int(e[f"updates.{theta}"]) + 1)
    m_hat = c.beta1 * e[f"m.{theta}"] / ahead + (1 - c.beta1) * e[f"d{theta}"] / f.m_hat
    return adam.moved(e.was(theta), m_hat, e[f"v.{theta}"], f._replace(m_hat=1))


def counted_by_run(e: Step, theta: str) -> Any:
    """θ after AdamW where the bias correction counts the steps of the run."""
    return adam.moved(e.was(theta), e[f"m.{theta}"], e[f"v.{theta}"], adam.factors(e.t, e["lr"], e.config))


def decayed_after(e: Step, theta: str) -> Any:
    """θ after AdamW where it is decayed with the step in it, not before."""
    f = factors(e, theta)
    return f.decay * adam.moved(e.was(theta), e[f"m.{theta}"], e[f"v.{theta}"], f._replace(decay=1))


def never_falling(e: Step, theta: str) -> Any:
    """θ after AMSGrad, as far as one step shows: by the larger of v before and after."""
    v_max = np.maximum(e.was(f"v.{theta}"), e[f"v.{theta}"])
    return adam.moved(e.was(theta), e[f"m.{theta}"], v_max, factors(e, theta))


def along(direction: Callable[[Any], Any]) -> dict[str, Formula]:
    """θ after a decayed step along a function of the first moment."""

    def formula(e: Step, theta: str) -> Any:
        f = factors(e, theta)
        return f.decay * e.was(theta) - f.lr * direction(e[f"m.{theta}"])

    return after(formula)


def free_only(e: Step, theta: str, value: Any) -> Any:
    """A value (M, d) of W or W_dec, but 0 in the rows of held neurons; other parameters' as it is."""
    return np.where(e["held"][:, None], 0, value) if theta.startswith("W") else value


def stopped(part: str) -> dict[str, Formula]:
    """Moments that stand still in held rows of W and W_dec."""
    return {
        f"{part}.{theta}": lambda e, theta=theta: np.where(  # type: ignore[misc]
            e["held"][:, None], e.was(f"{part}.{theta}"), FORMULAS[f"{part}.{theta}"](e)
        )
        for theta in ("W", "W_dec")
    }


WITHOUT_DECAY = by(lambda _, f: f._replace(decay=1))


def undecayed_beside_decoder(name: str) -> Formula:
    """A parameter after AdamW, without decay where the network is untied."""
    return lambda e: (WITHOUT_DECAY if "W_dec" in e.state else FORMULAS)[name](e)


MISTAKES: Known = {
    "updates are not counted": each("updates", lambda e, theta: e.was(f"updates.{theta}")),
    "the updates of every parameter are counted by the steps of the run": each("updates", lambda e, _: e.t),
    "beta1 and beta2 are swapped": {
        **each("m", lambda e, theta: m(e, theta, e[f"d{theta}"], e.config.beta2)),
        **each("v", lambda e, theta: v(e, theta, e[f"d{theta}"] ** 2, e.config.beta1)),
    },
    "m adds the gradient without 1 - beta1": each(
        "m", lambda e, theta: e.config.beta1 * e.was(f"m.{theta}") + e[f"d{theta}"]
    ),
    "m forgets what it was": each("m", lambda e, theta: (1 - e.config.beta1) * e[f"d{theta}"]),
    "v adds the squared gradient without 1 - beta2": each(
        "v", lambda e, theta: e.config.beta2 * e.was(f"v.{theta}") + e[f"d{theta}"] ** 2
    ),
    "v averages the gradient's absolute value, not its square": each("v", lambda e, t: v(e, t, abs(e[f"d{t}"]))),
    "v averages the square of m, not of the gradient": each("v", lambda e, t: v(e, t, e[f"m.{t}"] ** 2)),
    "v averages the deviation from m (AdaBelief)": each(
        "v", lambda e, theta: v(e, theta, (e[f"d{theta}"] - e[f"m.{theta}"]) ** 2)
    ),
    "weight decay is coupled: it goes into the gradient and its moments": {
        **each("m", lambda e, theta: m(e, theta, coupled(e, theta))),
        **each("v", lambda e, theta: v(e, theta, coupled(e, theta) ** 2)),
        **WITHOUT_DECAY,
    },
    "weight decay is missing": WITHOUT_DECAY,
    "weight decay is not multiplied by the learning rate": by(lambda e, f: f._replace(decay=1 - e.config.weight_decay)),
    "weight decay does not follow the decayed learning rate": by(
        lambda e, f: f._replace(decay=1 - e.config.lr * e.config.weight_decay)
    ),
    "weight decay acts on matrices only, not on a and b_pre": {theta: WITHOUT_DECAY[theta] for theta in ("a", "b_pre")},
    "weight decay acts on W alone": {theta: undecayed_beside_decoder(theta) for theta in ("moved.W_dec", "a", "b_pre")},
    "weight decay acts after the step, on what the step has moved": after(decayed_after),
    "weight decay has the wrong sign": by(lambda e, f: f._replace(decay=1 + f.lr * e.config.weight_decay)),
    "epsilon is inside the root": divided_by(lambda v_hat, eps: np.sqrt(v_hat + eps)),
    "epsilon is missing": by(lambda _, f: f._replace(eps=0)),
    "epsilon is added before v is corrected for its bias": by(lambda _, f: f._replace(eps=f.eps / np.sqrt(f.v_hat))),
    "the bias correction of both moments is missing": by(lambda _, f: f._replace(m_hat=1, v_hat=1)),
    "the bias correction of m is missing": by(lambda _, f: f._replace(m_hat=1)),
    "the bias correction of v is missing": by(lambda _, f: f._replace(v_hat=1)),
    "the bias correction counts the update one late": corrected_late(1),
    "the bias correction counts the update one early": corrected_late(-1),
    "the bias correction counts the steps of the run, not the updates of each parameter": after(counted_by_run),
    "the root of the second moment is missing": divided_by(lambda v_hat, eps: v_hat + eps),
    "the step goes up the gradient, not down": by(lambda _, f: f._replace(lr=-f.lr)),
    "the step follows the gradient, not its mean m": after(without_momentum),
    "the step is NAdam's": after(nadam),
    "the step divides by the largest v so far (AMSGrad)": after(never_falling),
    "the step is the sign of m (Lion)": along(np.sign),
    "the step is m, not divided by the root of v (gradient descent with momentum)": along(lambda m: m),
    "the gradients of held neurons are masked before AdamW, which is harmless where their rows are restored": {
        **each("m", lambda e, theta: m(e, theta, free_only(e, theta, e[f"d{theta}"]))),
        **each("v", lambda e, theta: v(e, theta, free_only(e, theta, e[f"d{theta}"] ** 2))),
    },
    "the moments of held neurons stand still, which is harmless where their rows are restored": {
        **stopped("m"),
        **stopped("v"),
    },
    "a of held neurons is not trained": {"a": lambda e: np.where(e["held"], e.was("a"), FORMULAS["a"](e))},
    "v averages the mean square of each row": each(
        "v", lambda e, theta: v(e, theta, np.mean(e[f"d{theta}"] ** 2, axis=-1, keepdims=True))
    ),
    "the step is plain gradient descent": after(lambda e, theta: e.was(theta) - e["lr"] * e[f"d{theta}"]),
    "the optimiser's step is missing": after(lambda e, theta: e.was(theta)),
}
