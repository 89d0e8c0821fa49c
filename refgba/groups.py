"""Section 3: neurons in K equal groups, each with a target activation frequency (TAF).

Leaves what is done about the targets to `bias`.
"""

from __future__ import annotations

import numpy as np

from refgba.errors import InputError
from refgba.types import Float64, Int64


def target_frequencies(K: int, htf: float, ltf: float) -> Float64:
    """The TAF of each group, (K,): p_k = HTF (LTF / HTF)^((k - 1) / (K - 1)), geometric from highest to lowest.

    K = 1 is BA: its only target is HTF, and LTF is not used.  Raises InputError for K < 1.

    >>> from refgba.groups import target_frequencies
    >>> target_frequencies(3, htf=0.1, ltf=0.001)
    array([0.1  , 0.01 , 0.001])
    """
    if K < 1:
        raise InputError(f"groups must be at least 1, not {K}")
    if K == 1:
        return np.array([htf])
    k = np.arange(1, K + 1)
    return htf * (ltf / htf) ** ((k - 1) / (K - 1))


def assign_groups(M: int, K: int) -> Int64:
    """The group of each neuron, (M,), counted from 0: consecutive blocks G_1..G_K.

    Where K does not divide M the sizes differ by one (ours; the paper's groups are equal).  Raises InputError unless
    1 <= K <= M.

    >>> from refgba.groups import assign_groups
    >>> assign_groups(7, 3)
    array([0, 0, 0, 1, 1, 2, 2])
    """
    if not 1 <= K <= M:
        raise InputError(f"{K} groups need at least as many neurons, and at least one: width is {M}")
    return np.arange(M) * K // M
