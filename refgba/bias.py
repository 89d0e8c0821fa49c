"""Section 3, Algorithm 2: the bias adaptation A(b, B), on running counts and peaks.

The paper keeps buffers B_m of pre-activations.  It only uses how many of them were positive and how large the largest
was, so O(M) memory is enough (`Buffer`).  Each line of the algorithm is a pure function of arrays; `adapt` puts them
together:

    p_m <- |B_m|^-1 Σ_{y in B_m} 1{y > 0}                             for every neuron m
    r_m <- max{max_{y in B_m} y, 0}                                   for every neuron m
    T_k <- Σ_{m in G_k} r_m / |{m in G_k : r_m > 0}|                  for every group k
    b_m <- max{b_m - γ_- r_m, -1}  where p_m > p_k                    the neuron fires too often
    b_m <- min{b_m + γ_+ T_k, 0}   where p_m < ε                      the neuron never fires

The groups' targets p_k are left to `groups`, and when to adapt to `gba`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from refgba.errors import InputError
from refgba.types import Array, Float64, Int64, Mask


@dataclass
class Buffer:
    """All that Algorithm 2 needs to know of the buffers B_1..B_M.

    rows: |B_m|, the same for every neuron.  counts: (M,) int64, Σ 1{y > 0}.  peaks: (M,) float64, r_m = max(max y, 0)
    (float64 so that a backend of any dtype compares with any other).

    >>> import numpy as np
    >>> from refgba.bias import Buffer
    >>> buffer = Buffer(2)
    >>> buffer.add(np.array([[0.5, -1.0], [0.3, -2.0]]))
    >>> buffer.add(np.array([[-0.2, -0.1], [0.1, -0.3]]))
    >>> buffer.rows, buffer.counts, buffer.peaks
    (4, array([3, 0]), array([0.5, 0. ]))
    """

    M: int
    rows: int = 0
    counts: Int64 = field(init=False)
    peaks: Float64 = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.M, np.int64)
        self.peaks = np.zeros(self.M)

    def add(self, y: Array) -> None:
        """Add a batch of pre-activations y (L, M)."""
        self.rows += len(y)
        self.counts += np.count_nonzero(y > 0, axis=0)  # (M,)
        np.maximum(self.peaks, y.max(axis=0), out=self.peaks)  # (M,)  r_m = max(max_{y in B_m} y, 0): peaks begin at 0


def mean_positive_peaks(r: Array, group: Int64, K: int) -> Float64:
    """T_k = Σ_{m in G_k} r_m / |{m in G_k : r_m > 0}|, (K,): the mean of each group's positive peaks r (M,).

    A group without a single positive peak has T_k = 0, so nothing moves in it (ours; the paper's quotient is 0 / 0).
    """
    positive = np.bincount(group, r > 0, K)  # (K,)  |{m in G_k : r_m > 0}|
    return np.bincount(group, r, K) / np.maximum(positive, 1)


def too_often(p: Float64, target: Float64) -> Mask:
    """p_m > p_k: which neurons fire more often than the target (M,) of their group."""
    return p > target


def never(p: Float64, target: Float64, eps: float, floor: float) -> Mask:
    """p_m < ε: which neurons never fire, (M,); with a floor (ours) also those below that share of their target (M,)."""
    return p < np.maximum(eps, floor * target)


def moved(
    b: Array, r: Float64, T: Float64, over: Mask, under: Mask, gamma_minus: float, gamma_plus: float
) -> Array:  # fmt: skip
    """The new biases: b_m lowered by γ_- r_m where `over`, raised by γ_+ T_k where `under`, always in [-1, 0].

    All arrays are (M,), T that of each neuron's group.  A neuron that is both is lowered.
    """
    lowered = np.maximum(b - gamma_minus * r, -1)
    raised = np.minimum(b + gamma_plus * T, 0)
    after: Array = np.where(over, lowered, np.where(under, raised, b))
    return after


def adapt(
    b: Array,
    buffer: Buffer,
    group: Int64,
    target: Float64,
    gamma_minus: float,
    gamma_plus: float,
    eps: float,
    floor: float = 0.0,
    own: Float64 | None = None,
) -> Array:
    """Algorithm 2: the new biases (M,), in the dtype of b (M,).

    group: (M,) each neuron's group, 0..K-1.  target: (K,) the TAFs p_k.  Raises InputError on an empty buffer.

    floor (ours): a neuron that fires less often than this share of its target is raised, too.  At the paper's 0 nothing
    brings back a neuron that still fires now and then; with 0.5 every neuron settles between half its target and the
    target.

    own (ours): (M,) a target for each neuron in place of its group's, as `measured` finds them.

    Two neurons of one group, with the target 1/4 and peaks 0.5 and 0.  The first fires on all four rows and is lowered
    by 0.1 * 0.5; the second never does and is raised by 0.1 T = 0.1 * 0.5, as the first has the only positive peak:

    >>> import numpy as np
    >>> from refgba.bias import Buffer, adapt
    >>> buffer = Buffer(2)
    >>> buffer.add(np.array([[0.5, -1.0], [0.3, -2.0], [0.2, -0.1], [0.1, -0.3]]))
    >>> b, group, target = np.array([0.0, -0.2]), np.array([0, 0]), np.array([0.25])
    >>> adapt(b, buffer, group, target, gamma_minus=0.1, gamma_plus=0.1, eps=1e-6)
    array([-0.05, -0.15])
    """
    if buffer.rows == 0:
        raise InputError("the buffers are empty: add at least one batch of pre-activations before adapting")
    p, r = buffer.counts / buffer.rows, buffer.peaks  # (M,)  p_m = |B_m|^-1 Σ_{y in B_m} 1{y > 0}
    T = mean_positive_peaks(r, group, len(target))  # (K,)
    p_k = target[group] if own is None else own  # (M,)
    over = too_often(p, p_k)  # (M,)
    under = never(p, p_k, eps, floor)  # (M,)
    return moved(b, r, T[group], over, under, gamma_minus, gamma_plus).astype(b.dtype)
