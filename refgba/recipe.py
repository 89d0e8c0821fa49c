"""What this project adds to Algorithm 1 (all ours), and the settings that follow from the data and the run's length.

The paper does not say how the output scales a start, and that decides everything.  Neurons that begin at a = 1 compete
for the reconstruction and recover nothing.  At a small fixed scale they stay nearly independent, as in the theory's
limit a -> 0: they recover features, but hardly reconstruct.  If all of them are trained for reconstruction afterwards,
the recovery is lost.  The default recipe therefore has two phases, with two acts between them:

    form    the first `form` T steps: a small and fixed, b_pre = 0, so that each neuron finds a feature nearly alone
    hold    at their end, neurons that agree with another one, cos >= `hold`, keep their direction from here on.  All
            started at random and hardly interacted, so two that ended up alike have found what is in the data (two
            neurons at cosine 0.92 from one feature are at about 0.85 from each other)
    untie   from here on each neuron also has a v_m of its own that begins at its w_m; held neurons keep both.  The
            paper's network stays tied, which is `untied` = False: w_m then has to detect and to reconstruct, and
            reconstructs worse
    fit     the other steps: a, b_pre and all neurons not held are trained for reconstruction

The features found are the v_m, the rows of `Params.V`.  The w_m of a neuron that is not held leaves the feature: its
task is to tell rows with the feature from rows without it, and another direction does that better.

Each phase ends with a linear decay of the learning rate over its last `lr_decay` share.  Algorithm 2 raises not only
dead neurons but all that fire less often than the share `floor` of their target (`bias.adapt`): frequencies sink while
neurons sharpen, and nothing else brings them back.  With `form`, `lr_decay` and `floor` = 0, `hold` = 1 and tied
weights, none of this has any effect: that is `--recipe paper`.

The recipe measured has none of these phases and no groups: its targets come from the data (`measured`).

The experiments behind each choice are in benchmarks/recipe.md.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from scipy.special import betaincinv, ndtri

from refgba.adam import AdamW
from refgba.config import ADAPTATIONS, GBAConfig
from refgba.errors import InputError
from refgba.measured import UNSEEN_PER_DIMENSION
from refgba.sae import Params, unit_rows
from refgba.types import Array, Mask

FIXED: dict[str, Any] = {
    "steps": 4000,
    "htf": 0.08,
    "lr": 7.5e-3,
    "floor": 0.5,
    "form": 0.4,
    "lr_decay": 0.5,
    "untied": True,
}
RELATIVE_ADAPTATIONS = 400  # A run with relative thresholds has this many, each as far as one of ADAPTATIONS.
TRAVEL = 3.75  # how far a bias can move over a run, in peaks of its neuron: γ times the number of adaptations
MEASURED_LR = 7.5e-3  # learning rate of measured targets, in runs of at most MEASURED_LR_STEPS
MEASURED_LR_STEPS = 2000  # Longer runs have a lower learning rate.
BLOCK = 2**24  # cosines in memory at a time: 128 MB in float64


def forming_steps(config: GBAConfig) -> int:
    """How many steps, from the first, form features."""
    return round(config.form * config.steps)


def fit_begins(config: GBAConfig, t: int) -> bool:
    """Whether step t = 1..T is the first after forming steps."""
    return t == forming_steps(config) + 1 and t > 1


class Run(Protocol):
    """What the hooks below see of `gba.State`, between two steps or within one."""

    config: GBAConfig
    params: Params
    optimiser: dict[str, AdamW]
    held: Mask
    t: int


def first_decoder(W: Array, config: GBAConfig) -> Array | None:
    """W_dec before the first step: a copy of W (M, d) where untied, None where tied or while features form."""
    return W.copy() if config.untied and not forming_steps(config) else None


def begin_phase(run: Run) -> None:
    """At the start of a step t: where it is the first of the second phase, `begin_fit`."""
    if fit_begins(run.config, run.t):
        begin_fit(run)


def begin_fit(run: Run) -> None:
    """Between the phases: find the neurons to hold, and where untied, give W a decoder of its own."""
    run.held = agreeing(run.params.W, run.config.hold)
    if run.config.untied:  # the decoder goes on as W would have, with W's moments
        run.params.W_dec, run.optimiser["W_dec"] = run.params.W.copy(), deepcopy(run.optimiser["W"])


def keep_held_rows(run: Run, before: Params) -> None:
    """After line 4: renormalise an untied decoder, and put the rows of held neurons back as they were `before`."""
    params, held = run.params, run.held[:, None]  # (M, 1)
    params.W = np.where(held, before.W, params.W)
    if params.W_dec is not None:
        params.W_dec = np.where(held, before.V, unit_rows(params.W_dec))


def trained(config: GBAConfig, t: int) -> tuple[str, ...]:
    """The parameters that step t = 1..T trains: all but b, and while features form neither W_dec nor a nor b_pre."""
    if t <= forming_steps(config):
        return ("W",)
    return ("W", "W_dec", "a", "b_pre") if config.untied else ("W", "a", "b_pre")


def learning_rate(config: GBAConfig, t: int) -> float:
    """The learning rate of step t = 1..T: `lr`, and over the last `lr_decay` share of each phase linearly to zero."""
    formed = forming_steps(config)
    first, last = (1, formed) if t <= formed else (formed + 1, config.steps)
    left = (last - t + 1) / (last - first + 1)  # share of the phase still to go, from 1 down
    return config.lr * min(1.0, left / config.lr_decay) if config.lr_decay else config.lr


def extended(config: GBAConfig, steps: int) -> GBAConfig:
    """The settings of a run that goes on to more steps than it began with: the first phase ends where it did.

    The second phase is longer, and so is the decay of its learning rate: if that had begun, the rate goes up again.
    The biases adapt as often as before, and as far each time.
    """
    return replace(config, steps=steps, form=forming_steps(config) / steps)


def agreeing(W: Array, tau: float) -> Mask:
    """Which rows of W (M, d), at unit norm, have another row within cosine tau: (M,) bool.  tau = 1: none.

    Blockwise, O(M^2 d) time.
    """
    M = len(W)
    if tau == 1:
        return np.zeros(M, bool)
    agrees = np.zeros(M, bool)
    size = max(1, BLOCK // M)
    for start in range(0, M, size):
        stop = min(start + size, M)
        cosine = W[start:stop] @ W.T  # (block, M)
        cosine[np.arange(stop - start), np.arange(start, stop)] = -1  # a row does not vouch for itself
        agrees[start:stop] = cosine.max(axis=1) >= tau
    return agrees


def agreement_by_chance(M: int, d: int) -> float:
    """The cosine that one of M random directions in d dimensions has to another with probability 1%.

    P(w . w' >= c) = I_{1 - c^2}((d - 1) / 2, 1 / 2) / 2 for a regularised incomplete beta function I, and a neuron has
    M - 1 others.  1 where M or d is 1: there nothing can be told from chance.
    """
    if M == 1 or d == 1:
        return 1.0
    return float(np.sqrt(1 - betaincinv((d - 1) / 2, 0.5, min(1.0, 2 * 0.01 / (M - 1)))))


def paper(d: int, **given: Any) -> GBAConfig:  # noqa: ARG001 - both recipes are called alike
    """Algorithms 1 and 2 with the paper's settings, as far as they are known, but for those that are `given`.

    M, T, lr, AdamW's constants and a are not known; common choices stand for them.  Raises InputError for settings that
    cannot be, and TypeError for a name that is no setting.
    """
    return GBAConfig(**given)


def derive(d: int, **given: Any) -> dict[str, Any]:
    """The settings that follow from the dimensions d of the data and, where it is `given`, from M, T and adapt_every.

    - width = 8 d, at least 1024.
    - hold = 0.85, or more in so few dimensions that random neurons agree as well: `agreement_by_chance`.
    - b_init = -1 / sqrt(d), one standard deviation of w . x for a random w: a neuron begins on 16% of the rows, not on
      half of them, of which most are soon given up.  Runs of some thousand steps lose nothing, shorter ones some
      recovery, and a backend that only touches active entries is through its slow beginning sooner.
    - a_init = 1.2 d / M: random tied neurons then reconstruct half of their input, 1.2 times the 0.40 that
      E[z^2; z > 1] is for a normal z, whatever M and d are.
    - ADAPTATIONS are spread over the run, and each moves a bias by TRAVEL / ADAPTATIONS of its neuron's peak.  So
      biases get equally far in any run: through the resonance while features form, to their targets afterwards.

    Raises InputError for settings that cannot be, or d < 1.
    """
    if d < 1:
        raise InputError(f"data have at least 1 dimension, not d = {d}")
    width = given.get("width", max(1024, 8 * d))
    GBAConfig(**FIXED | given | {"width": width})  # refuses what cannot be, before anything is derived from it
    steps = given.get("steps", FIXED["steps"])
    adapt_every = given.get("adapt_every", max(1, round(steps / ADAPTATIONS)))
    gamma = TRAVEL * adapt_every / steps
    return {
        "width": width,
        "a_init": 1.2 * d / width,
        "b_init": -1 / math.sqrt(d),
        "adapt_every": adapt_every,
        "gamma_minus": gamma,
        "gamma_plus": gamma,
        "hold": max(0.85, agreement_by_chance(width, d)),
    }


def default(d: int, **given: Any) -> GBAConfig:
    """Settings for data of d dimensions that need no tuning: FIXED, and `derive`.  What is `given` stays.

    Raises InputError for settings that cannot be, or d < 1, and TypeError for a name that is no setting.
    """
    return GBAConfig(**FIXED | derive(d, **given) | given)


MEASURED: dict[str, Any] = {
    "steps": 4000,
    "groups": 1,
    "floor": 0.8,
    "lr_decay": 0.5,
    "untied": True,
    "targets_from": "data",
    "a_init": 0.5,
}


def measured(d: int, **given: Any) -> GBAConfig:
    """Targets from the data (`refgba.measured`), for data of d dimensions; `l0` is all there is to choose.

    There is no forming: neurons begin as BatchTopK's do, untied at a_init = 0.5, and all are trained to reconstruct
    from the first step.  M, `adapt_every` and γ are as by default.  b_init lets a random neuron fire on as large a
    share of the rows as the mean target, l0 / M, if w . x is normal.  An l0 that is not given begins at
    d UNSEEN_PER_DIMENSION.

    The learning rate is MEASURED_LR, and falls as 1 / T in runs whose T is above MEASURED_LR_STEPS.  These have more
    steps between two adaptations, and at MEASURED_LR weights and b_pre moved farther in between than biases could
    follow: some neurons became dense, and L0 ended at 84 where 5 was asked for (benchmarks/recipe.md).

    With relative thresholds there are RELATIVE_ADAPTATIONS, with the same γ.  What many rows share is worth much to the
    reconstruction on all of them, but no row is near the peak of it; training would make some neurons dense faster than
    ADAPTATIONS can forbid it.

    Raises InputError for settings that cannot be, or d < 1, and TypeError for a name that is no setting.
    """
    settings = MEASURED | given
    steps = GBAConfig(**settings).steps
    settings.setdefault("lr", MEASURED_LR * min(1.0, MEASURED_LR_STEPS / steps))
    if settings.get("relative") and "adapt_every" not in given:
        gamma, every = TRAVEL / ADAPTATIONS, max(1, round(steps / RELATIVE_ADAPTATIONS))
        settings = {"gamma_minus": gamma, "gamma_plus": gamma, "adapt_every": every} | settings
    sized = {name: settings[name] for name in ("width", "steps", "adapt_every") if name in settings}
    names = ("width", "adapt_every", "gamma_minus", "gamma_plus")
    settings = {name: value for name, value in derive(d, **sized).items() if name in names} | settings
    l0 = GBAConfig(**settings).l0 or d * UNSEEN_PER_DIMENSION
    b_init = float(ndtri(min(0.5, l0 / settings["width"]))) / math.sqrt(d)
    return GBAConfig(**{"b_init": b_init} | settings)


RECIPES = {"default": default, "measured": measured, "paper": paper}
