"""Section 3, Algorithm 2: the bias adaptation A(b, B), on running counts and peaks.

The paper keeps buffers B_m of pre-activations; only how many were positive and how large the largest was are ever used,
so O(M) memory is enough.  Leaves the groups' targets to `groups`, and when to adapt to `gba`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from refgba.errors import InputError
from refgba.types import Array, Float64, Int64


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
        np.maximum(
            self.peaks, y.max(axis=0), out=self.peaks
        )  # (M,)  r_m = max(max_{y in B_m} y, 0), the 0 from the start


def adapt(
    b: Array,
    buffer: Buffer,
    group: Int64,
    target: Float64,
    gamma_minus: float,
    gamma_plus: float,
    eps: float,
    floor: float = 0.0,
) -> Array:
    """Algorithm 2: the new biases (M,), in the dtype of b (M,).

    group: (M,) each neuron's group, 0..K-1.  target: (K,) the TAFs p_k.  Raises InputError on an empty buffer.
    A group without a single positive peak has T_k = 0, so nothing moves in it (ours; the paper's quotient is 0 / 0).

    floor (ours): a neuron also counts as never firing, and is raised, below this share of its target.  At the paper's 0
    nothing brings back a neuron that still fires now and then; with 0.5 each settles between half its target and it.

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
    K = len(target)
    p = buffer.counts / buffer.rows  # (M,)  p_m = |B_m|^-1 Σ_{y in B_m} 1{y > 0}
    r = buffer.peaks  # (M,)
    positive = np.bincount(group, r > 0, K)  # (K,)  |{m in G_k : r_m > 0}|
    T = np.bincount(group, r, K) / np.maximum(positive, 1)  # (K,)  T_k = Σ_{m in G_k} r_m / |{m in G_k : r_m > 0}|
    too_often = p > target[group]  # (M,)
    never = p < np.maximum(eps, floor * target[group])  # (M,)
    lowered = np.maximum(b - gamma_minus * r, -1)  # (M,)
    raised = np.minimum(b + gamma_plus * T[group], 0)  # (M,)
    return np.where(too_often, lowered, np.where(never, raised, b)).astype(b.dtype)
