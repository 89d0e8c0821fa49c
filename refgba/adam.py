"""AdamW (Loshchilov and Hutter, 2019), the optimiser of Algorithm 1 line 3.  Nothing here knows of the network.

The update is written once, as pure functions of one parameter array θ, its gradient g and its moments m and v:

    m <- β1 m + (1 - β1) g                first moment
    v <- β2 v + (1 - β2) g²               second moment
    θ <- (1 - lr λ) θ - lr m̂ / (√v̂ + ε)   with m̂ = m / (1 - β1^t) and v̂ = v / (1 - β2^t) after t updates

The weight decay λ is decoupled: θ shrinks, g is untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refgba.config import Settings
from refgba.types import Array


def moment(m: Array, g: Array, beta: float) -> Array:
    """m <- β m + (1 - β) g: the running mean of g with memory β, shaped and typed like m."""
    moved: Array = m + (1 - beta) * (g - m)
    return moved


class Factors(NamedTuple):
    """The numbers of update t = 1, 2, .. that are the same for every entry of θ; float64 in every run.

    m: 1 - β1.  v: 1 - β2.  m_hat: 1 - β1^t.  v_hat: 1 - β2^t.  lr: the learning rate.  decay: 1 - lr λ.  eps: ε.
    """

    m: float
    v: float
    m_hat: float
    v_hat: float
    lr: float
    decay: float
    eps: float


def factors(t: int, lr: float, config: Settings) -> Factors:
    """The factors of update t = 1, 2, .. at learning rate lr."""
    return Factors(
        m=1 - config.beta1,
        v=1 - config.beta2,
        m_hat=1 - config.beta1**t,
        v_hat=1 - config.beta2**t,
        lr=lr,
        decay=1 - lr * config.weight_decay,
        eps=config.adam_eps,
    )


def moved(theta: Array, m: Array, v: Array, by: Factors) -> Array:
    """θ <- (1 - lr λ) θ - lr m̂ / (√v̂ + ε), with the moments m and v of this update; shaped and typed like θ."""
    m_hat, v_hat = m / by.m_hat, v / by.v_hat
    after: Array = by.decay * theta - by.lr * m_hat / (np.sqrt(v_hat) + by.eps)
    return after


@dataclass
class AdamW:
    """The moments of one parameter array θ, and the update that uses them.

    m, v: first and second moment, shaped and typed like θ.  t: updates so far.
    """

    m: Array
    v: Array
    t: int = 0

    @classmethod
    def like(cls, theta: Array) -> AdamW:
        """Fresh moments for the array θ."""
        return cls(np.zeros_like(theta), np.zeros_like(theta))

    def update(self, theta: Array, g: Array, lr: float, config: Settings) -> Array:
        """θ after one step along its gradient g."""
        self.t += 1
        self.m = moment(self.m, g, config.beta1)
        self.v = moment(self.v, g * g, config.beta2)
        return moved(theta, self.m, self.v, factors(self.t, lr, config))
