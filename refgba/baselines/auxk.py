"""AuxK: dead neurons reconstruct what the others leave over, and so get a gradient that can revive them.

Of TopK, BatchTopK and Matryoshka, after Gao et al. 2024, arXiv 2406.04093.  The loss gets, besides 1/2 ||f - x||²,

    aux · 1/2 ||ê - e||² / mean ||e - ē||² ,        e = x - f ,        ê = Σ_dead s_m v_m

Its factor 1/2 is ours, as in the reconstruction loss, so that `aux` weighs what it does there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refgba.baselines.network import Forward, Params, largest
from refgba.config import BaselineConfig
from refgba.types import Array, Int64, Mask


@dataclass
class Aux:
    """What AuxK needs of a batch of L rows, with D dead neurons.

    dead: (D,) which neurons are dead.  s: (L, D) their codes, of each row the `aux_k` largest positive y.  e: (L, d)
    the residual x - f, a constant to the gradient.  weight: `aux` over the residual's variance, mean_l ||e_l - ē||²,
    a constant too.
    """

    dead: Int64
    s: Array
    e: Array
    weight: float


def auxiliary(x: Array, fwd: Forward, config: BaselineConfig, dead: Mask) -> Aux | None:
    """What AuxK needs on the rows x (L, d), with the neurons that are `dead` (M,); None where it has no part.

    The codes are the y of this forward pass, where they are positive; b_pre is no part of what they reconstruct.
    One row alone has no variance to divide by, and no AuxK.
    """
    if config.aux == 0 or not dead.any():
        return None
    which = np.flatnonzero(dead)  # (D,)
    y = fwd.y[:, which]  # (L, D)
    e = x - fwd.f  # (L, d)
    variance = float(np.mean(np.sum((e - e.mean(axis=0)) ** 2, axis=1)))
    if variance == 0:
        return None
    return Aux(which, largest(y, config.aux_k or max(1, x.shape[1] // 2)) * y, e, config.aux / variance)


def aux_loss(params: Params, aux: Aux) -> float:
    """AuxK's part of the loss, mean over the batch."""
    left = aux.s @ params.W_dec[aux.dead] - aux.e  # (L, d)   ê - e
    return aux.weight * float(0.5 * np.mean(np.sum(left**2, axis=1)))


def add_gradients(params: Params, aux: Aux, dy: Array, dV: Array) -> None:
    """Add AuxK's part to dy (L, M), the gradients dL/dy_m of each row, and to dV (M, d), dL/dv_m over the batch.

    With u = weight (ê - e): v_m · u for a dead neuron that has a code, and s_m u.
    """
    V = params.W_dec[aux.dead]  # (D, d)
    u = aux.weight * (aux.s @ V - aux.e)  # (L, d)
    dy[:, aux.dead] += (u @ V.T) * (aux.s > 0)
    dV[aux.dead] += aux.s.T @ u
