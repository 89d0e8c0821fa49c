"""How good a dictionary is: against the truth, against another run, and on data.

- against the true features V:  `frr`, and stricter, one neuron to one feature, `match` and `matched_recovery`
- against another seed's run:   `mcs` and `mcs_share`
- on data, in one pass:         `Evaluation`: loss, FVU, L0, dead neurons, frequencies, peaks, Z-scores
- against the targets of GBA:   `per_group`

Dictionaries are arrays of rows, (M, d) neurons or (n, d) features; only the direction of a row matters.  Running the
network is left to `sae` and the backends, printing and storing to those who call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from refgba.errors import InputError
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
    norm = np.linalg.norm(W, axis=1, keepdims=True)
    return W / np.where(norm > 0, norm, 1)


def _checked(tau: float) -> float:
    if not 0 < tau <= 1:
        raise InputError(f"tau is a cosine in (0, 1], got {tau}")
    return tau


# --- on data ----------------------------------------------------------------------------------------------------------


class _Moments:
    """Mean and squared deviations of each column of a stream of rows, combined as Chan, Golub and LeVeque do.

    Everything is kept relative to the first row.  A constant column then has a deviation of exactly 0, not of rounding
    error, and a large common offset costs no precision.
    """

    def __init__(self, columns: int) -> None:
        self.rows = 0
        self.first = np.zeros(columns)
        self.shift = np.zeros(columns)  # mean - first
        self.deviation = np.zeros(columns)  # sum over rows of (z - mean)^2

    def update(self, z: npt.NDArray[Any]) -> None:
        if self.rows == 0:
            self.first = z[0].astype(np.float64)
        z = np.subtract(z, self.first, dtype=np.float64)  # (L, columns)
        shift = z.mean(axis=0)
        z -= shift
        rows = self.rows + len(z)
        delta = shift - self.shift
        self.deviation += np.einsum("lm,lm->m", z, z) + delta**2 * (self.rows * len(z) / rows)
        self.shift += delta * (len(z) / rows)
        self.rows = rows


class Evaluation:
    """Reconstruction and sparsity of a network over data of any length, seen once, in chunks of any size.

        evaluation = Evaluation(M, d)
        for x in chunks:
            evaluation.update(x, x_hat, y)
        evaluation.summary()

    Accumulates in float64 whatever comes in, so that the split into chunks matters only by rounding.  What it reports
    is defined at each property, with f the reconstruction x_hat, y_m the pre-activations, and a neuron active where
    y_m > 0.  Every property raises InputError while no row has been seen.
    """

    def __init__(self, M: int, d: int) -> None:
        """Start an evaluation of a network with M neurons on d-dimensional data; InputError unless M, d >= 1."""
        if M < 1 or d < 1:
            raise InputError(f"M and d must be at least 1, got {M} and {d}")
        self._x = _Moments(d)
        self._y = _Moments(M)
        self._error = 0.0  # sum ||x - f||^2
        self._active = np.zeros(M, np.int64)
        self._peak = np.full(M, -np.inf)

    def update(self, x: Array, x_hat: Array, y: Array) -> None:
        """Take in L rows: data x (L, d), reconstructions x_hat (L, d), pre-activations y (L, M).  L may be 0.

        Raises InputError for shapes that do not fit or values that are not finite, which end the evaluation.
        """
        d, M = len(self._x.first), len(self._y.first)
        if x.shape != (len(y), d) or x_hat.shape != x.shape or y.shape != (len(x), M):
            raise InputError(f"x and x_hat must be (L, {d}) and y (L, {M}), got {x.shape}, {x_hat.shape} and {y.shape}")
        size = max(1, _BLOCK // max(d, M))  # y may be gigabytes of float32: never copy it whole to float64
        for l in range(0, len(x), size):
            self._update(x[l : l + size], x_hat[l : l + size], y[l : l + size])

    def _update(self, x: Array, x_hat: Array, y: Array) -> None:
        for name, values in (("x", x), ("x_hat", x_hat), ("y", y)):
            finite = np.isfinite(values)
            if not finite.all():
                row = self._x.rows + int(np.argmin(finite.all(axis=1)))
                raise InputError(f"{name} holds a value that is not finite at row {row} of the data, counted from 0")
        self._x.update(x)
        self._y.update(y)
        r = np.subtract(x_hat, x, dtype=np.float64)
        self._error += float(np.vdot(r, r))
        self._active += np.count_nonzero(y > 0, axis=0)
        np.maximum(self._peak, y.max(axis=0), out=self._peak)

    @property
    def rows(self) -> int:
        """The number of rows N seen."""
        self._require_rows()
        return self._x.rows

    @property
    def loss(self) -> float:
        """Reconstruction loss  L_rec = mean_l 1/2 ||f(x_l) - x_l||^2  (section 2)."""
        return self._error / 2 / self.rows

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained  sum_l ||x_l - f(x_l)||^2 / sum_l ||x_l - mean(x)||^2.

        Raises InputError where all rows are equal: they have no variance to explain, and no number would be right.
        """
        self._require_rows()
        if not self._x.deviation.any():
            raise InputError("FVU is undefined: all rows of the data are equal; give rows that differ")
        return float(self._error / self._x.deviation.sum())

    @property
    def explained_variance(self) -> float:
        """1 - FVU: 1 is perfect, 0 no better than the mean, negative worse.  Raises InputError as `fvu`."""
        return 1 - self.fvu

    @property
    def l0(self) -> float:
        """Mean number of active neurons a row,  sum_m p_m."""
        return float(self._active.sum() / self.rows)

    @property
    def activation_fraction(self) -> float:
        """L0 / M."""
        return self.l0 / len(self._active)

    @property
    def dead(self) -> float:
        """The share of neurons that fired on no row."""
        return float(np.mean(self.frequency == 0))

    @property
    def frequency(self) -> Float64:
        """(M,) activation frequencies  p_m = mean_l 1{y_m > 0}."""
        return self._active / self.rows

    @property
    def peak(self) -> Float64:
        """(M,) peak pre-activations  max_l y_m, negative if it never fired; Algorithm 2's r_m = max(peak, 0)."""
        self._require_rows()
        return self._peak.copy()

    @property
    def mean(self) -> Float64:
        """(M,) means of the pre-activations."""
        self._require_rows()
        return self._y.first + self._y.shift

    @property
    def std(self) -> Float64:
        """(M,) standard deviations of the pre-activations (over N, not N - 1)."""
        return np.sqrt(self._y.deviation / self.rows)

    @property
    def z_score(self) -> Float64:
        """(M,) Z-scores  (peak_m - mean_m) / std_m  of the pre-activations (ours); 0 where std_m is 0."""
        std = self.std
        return np.where(std > 0, (self.peak - self.mean) / np.where(std > 0, std, 1), 0.0)

    def summary(self) -> dict[str, float]:
        """The scalars under the names that `--json` promises.  Raises InputError as `fvu`."""
        names = ("fvu", "explained_variance", "l0", "activation_fraction", "dead", "loss", "rows")
        return {name: getattr(self, name) for name in names}

    def _require_rows(self) -> None:
        if self._x.rows == 0:
            raise InputError("nothing to evaluate: no row of data was given")


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
