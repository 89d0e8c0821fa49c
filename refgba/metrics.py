"""How good a dictionary is: against the truth, against another run, and on data.

- against the true features V:  `frr`, and stricter, one neuron to one feature, `match` and `matched_recovery`
- against another seed's run:   `mcs` and `mcs_share`
- on data:                      `fvu`, `explained_variance`, `l0`, `frequency`, `dead`, `z_score`
- against the targets of GBA:   `per_group`

Dictionaries are arrays of rows, (M, d) neurons or (n, d) features; only the direction of a row matters.  Running the
network is left to `sae` and the backends, the same numbers as running sums over data of any length to
`refgba.runs.accumulate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from refgba.errors import InputError
from refgba.sae import unit_rows
from refgba.types import Array, Float64, Int64

TOP_SHARES = (0.0005, 0.005, 0.05, 1.0)  # the shares of neurons over which the paper reports MCS

_BLOCK = 2**22  # entries of one temporary block: 32 MB in float64


# --- against the truth, against another run ---------------------------------------------------------------------------


def cosine(W: Array, V: Array) -> Array:
    """The (M, n) cosines  w_m . v_i / (||w_m|| ||v_i||)  of the rows of W (M, d) with the rows of V (n, d).

    A zero row points nowhere: its cosines are 0.  In the dtype of the inputs, float32 at least.
    Raises InputError unless both have rows, as many columns as each other, and finite values.
    """
    return _unit(W, V) @ _unit(V, W).T


def mcs(W_a: Array, W_b: Array) -> Array:
    """Maximum cosine similarity of each neuron of run A with the neurons of run B:  max_k cos(w_a, w_b[k]).

    W_a: (M_a, d), W_b: (M_b, d).  Returns (M_a,).  Blockwise: never holds M_a x M_b.  Raises InputError as `cosine`.

    >>> import numpy as np
    >>> from refgba.metrics import mcs
    >>> mcs(np.eye(2), np.array([[3.0, 4.0], [0.0, -1.0]]))
    array([0.6, 0.8])
    """
    a, b = _unit(W_a, W_b), _unit(W_b, W_a)
    size = max(1, _BLOCK // len(b))
    return np.concatenate([(a[i : i + size] @ b.T).max(axis=1) for i in range(0, len(a), size)])


def mcs_share(mcs: Array, score: npt.NDArray[Any], share: float, tau: float = 0.9) -> float:
    """The share of neurons with MCS above tau, among the `share` of neurons with the highest score.

    mcs, score: (M,).  The score is the peak pre-activation, or the activation frequency, in run A; the paper's shares
    are TOP_SHARES.  The number of neurons is rounded, and at least one.  Of equal scores the first neuron goes first.
    Raises InputError for unequal lengths, non-finite scores, or a share outside (0, 1].
    """
    if mcs.ndim != 1 or mcs.shape != score.shape or not len(mcs) or not np.isfinite(score).all():
        raise InputError(f"mcs and score must be (M,) and finite, got shapes {mcs.shape} and {score.shape}")
    if not 0 < share <= 1:
        raise InputError(f"share must lie in (0, 1], got {share}")
    top = np.argsort(-score.astype(np.float64), kind="stable")[: max(1, round(share * len(mcs)))]
    return float(np.mean(mcs[top] > _checked(tau)))


def frr(W: Array, V: Array, tau: float) -> float:
    """Feature recovery rate, the share of features with a neuron near:  mean_i 1{ max_m cos(w_m, v_i) >= tau }.

    W: (M, d) neurons, V: (n, d) true features.  The paper reports tau = 0.8 and 0.9.  One neuron may count for several
    features; `matched_recovery` forbids it.  Raises InputError as `cosine`, or for tau outside (0, 1].

    The second feature has a neuron at 45 degrees and none nearer:

    >>> import numpy as np
    >>> from refgba.metrics import frr
    >>> W, V = np.array([[2.0, 0.0], [1.0, 1.0]]), np.eye(2)
    >>> frr(W, V, tau=0.8), frr(W, V, tau=0.7)
    (0.5, 1.0)
    """
    return float(np.mean(mcs(V, W) >= _checked(tau)))


def match(W: Array, V: Array) -> tuple[Int64, Array]:
    """Match neurons to features one to one so that the sum of cosines is largest (Hungarian algorithm; ours).

    W: (M, d), V: (n, d).  Returns the neuron of each feature, (n,) int64, and its cosine, (n,).  With fewer neurons
    than features the features left over have neuron -1 and cosine 0.  Raises InputError as `cosine`.
    """
    similarity = cosine(W, V)  # (M, n)
    m, i = linear_sum_assignment(similarity, maximize=True)
    neuron = np.full(len(V), -1)
    matched = np.zeros(len(V), similarity.dtype)
    neuron[i], matched[i] = m, similarity[m, i]
    return neuron, matched


def matched_recovery(W: Array, V: Array, tau: float) -> float:
    """The share of features whose neuron in `match` has cosine >= tau: at most `frr`, as no neuron counts twice (ours).

    W: (M, d), V: (n, d).  Raises InputError as `frr`.
    """
    return float(np.mean(match(W, V)[1] >= _checked(tau)))


def _unit(W: Array, other: Array) -> Array:
    if W.ndim != 2 or not W.size or W.shape[1:] != other.shape[1:]:
        raise InputError(f"dictionaries must be (rows, d) with the same d, got {W.shape} and {other.shape}")
    if not np.isfinite(W).all():
        raise InputError(f"a dictionary of shape {W.shape} holds values that are not finite")
    W = W.astype(np.result_type(W, np.float32), copy=False)
    return unit_rows(W, otherwise=W)


def _checked(tau: float) -> float:
    if not 0 < tau <= 1:
        raise InputError(f"tau is a cosine in (0, 1], got {tau}")
    return tau


# --- on data ----------------------------------------------------------------------------------------------------------


def fvu(x: Array, f: Array) -> float:
    """Fraction of variance unexplained  Σ_l ||x_l - f_l||² / Σ_l ||x_l - mean(x)||²  of reconstructions f of x (N, d).

    Raises InputError unless both are (N, d), have rows and finite values, and where all rows of x are equal, which have
    no variance to explain.

    >>> import numpy as np
    >>> from refgba.metrics import fvu
    >>> fvu(x=np.array([[1.0, 0.0], [0.0, 1.0]]), f=np.array([[1.0, 0.0], [0.0, 0.5]]))  # 0.5² / (1/2 + 1/2)
    0.25
    """
    if x.ndim != 2 or not x.size or x.shape != f.shape:
        raise InputError(f"x and f must both be (N, d) and not empty, got shapes {x.shape} and {f.shape}")
    if not (np.isfinite(x).all() and np.isfinite(f).all()):
        raise InputError("FVU is undefined: the rows or their reconstructions hold values that are not finite")
    spread = float(np.sum((x - x.mean(axis=0)) ** 2))
    if spread == 0:
        raise InputError("FVU is undefined: all rows of the data are equal; give rows that differ")
    return float(np.sum((x - f) ** 2)) / spread


def explained_variance(x: Array, f: Array) -> float:
    """1 - `fvu`: 1 is perfect, 0 no better than the mean of the rows, negative worse.  Raises InputError as `fvu`."""
    return 1 - fvu(x, f)


def frequency(y: Array) -> Float64:
    """Activation frequencies  p_m = mean_l 1{y_m > 0}  from pre-activations y (N, M): (M,).

    Raises InputError unless y is a matrix with entries, all of them finite.
    """
    p: Float64 = np.count_nonzero(_pre_activations(y) > 0, axis=0) / len(y)
    return p


def l0(y: Array) -> float:
    """The mean number of active neurons per row,  L0 = Σ_m p_m,  from pre-activations y (N, M).

    Raises InputError as `frequency`.
    """
    return float(np.count_nonzero(_pre_activations(y) > 0) / len(y))


def dead(y: Array) -> float:
    """The share of neurons that fire on no row of the pre-activations y (N, M).  Raises InputError as `frequency`."""
    return float(np.mean(~(_pre_activations(y) > 0).any(axis=0)))


def z_score(y: Array) -> Float64:
    """(peak_m - mean_m) / std_m  of the pre-activations y (N, M), (M,) (ours); 0 where std_m is 0.

    Raises InputError as `frequency`.
    """
    std = _pre_activations(y).std(axis=0)
    z: Float64 = np.where(std > 0, (y.max(axis=0) - y.mean(axis=0)) / np.where(std > 0, std, 1), 0.0)
    return z


def _pre_activations(y: Array) -> Array:
    if y.ndim != 2 or not y.size:
        raise InputError(f"pre-activations must be (N, M) and not empty, got shape {y.shape}")
    if not np.isfinite(y).all():
        raise InputError(f"pre-activations of shape {y.shape} hold values that are not finite")
    return y


# --- against the targets ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupFrequency:
    """How often the neurons of one group fire, beside the target activation frequency p_k they were given."""

    target: float
    median: float
    mean: float
    within: float  # the share of the group's neurons with p_m <= p_k
    neurons: int


def per_group(frequency: Float64, group: npt.NDArray[np.integer[Any]], target: Float64) -> list[GroupFrequency]:
    """Compare activation frequencies with their group's target, down to which section 3 pushes them (ours).

    frequency: (M,) p_m.  group: (M,) the group of each neuron, 0 .. K-1.  target: (K,) p_k.  Returns K summaries.
    Raises InputError for unequal lengths, or groups other than 0 .. K-1, each with at least one neuron.
    """
    if frequency.ndim != 1 or frequency.shape != group.shape or target.ndim != 1:
        raise InputError(
            f"frequency and group must be (M,) and target (K,), got {frequency.shape}, {group.shape} and {target.shape}"
        )
    if not np.array_equal(np.unique(group), np.arange(len(target))):
        raise InputError(f"groups must be 0 .. {len(target) - 1}, one for each target, none of them empty")
    return [_group_frequency(frequency[group == k], float(p_k)) for k, p_k in enumerate(target)]


def _group_frequency(p: Float64, p_k: float) -> GroupFrequency:
    return GroupFrequency(p_k, float(np.median(p)), float(p.mean()), float(np.mean(p <= p_k)), len(p))
