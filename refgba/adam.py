"""AdamW (Loshchilov and Hutter, 2019), the optimiser of Algorithm 1 line 3.  Nothing here knows of the network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refgba.config import Settings
from refgba.types import Array


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
        """θ after one step along its gradient g.  The decay is decoupled: θ shrinks, g is untouched."""
        beta1, beta2 = config.beta1, config.beta2
        self.t += 1
        self.m += (1 - beta1) * (g - self.m)  # m <- beta1 m + (1 - beta1) g
        self.v += (1 - beta2) * (g * g - self.v)
        m_hat = self.m / (1 - beta1**self.t)
        v_hat = self.v / (1 - beta2**self.t)
        moved: Array = (1 - lr * config.weight_decay) * theta - lr * m_hat / (np.sqrt(v_hat) + config.adam_eps)
        return moved
