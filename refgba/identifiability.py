"""Section 5: is the data decomposable, so that V is what there is to find, and how far from V is a dictionary?

`count` reads H once, in chunks, and keeps what H1-H3 need: O(n^2) memory, whatever the number of rows.
`identifiability` sets these and the incoherence V1 beside their thresholds; `partners` measures e.  Theorem 5.3: under
H1-H3 and V1, V is e-identifiable, e = o(1), up to permutation, scaling and feature splitting.

The theorem is asymptotic: it says "much below" and "o(1)", not numbers.  The thresholds here are readings of it, each
marked (ours) where it is computed, and a failed condition means "no promise", not "no recovery".

Left to others: drawing H and V (`model`), and recovery by a threshold on the cosine (`metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from refgba import metrics
from refgba.errors import InputError
from refgba.sae import unit_rows
from refgba.types import Array, Int64

MARGIN = 0.5  # "much below n^-1/2" is read as: at most half of it (ours)


# ---- H, once through -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Counts:
    """What H1-H3 need of H (N, n).  With D_i = { l : H[l,i] > 0 }:

    N         rows read
    s         most features in one row
    together  |D_i n D_j|, int64 (n, n), with |D_i| on the diagonal
    total     sum_l H[l,i], float64 (n,)
    """

    N: int
    s: int
    together: Int64
    total: Array

    @property
    def D(self) -> Int64:
        """|D_i|, int64 (n,)."""
        return np.diagonal(self.together)

    @property
    def f(self) -> Array:
        """Occurrence frequencies f_i = |D_i| / N, float64 (n,)."""
        return self.D / self.N

    @property
    def weight(self) -> Array:
        """Mean of H[l,i] over D_i, float64 (n,); 0 where the feature never occurs."""
        return self.total / np.maximum(self.D, 1)

    @property
    def missing(self) -> Int64:
        """The features that never occur, int64 (however many)."""
        return np.flatnonzero(self.D == 0)

    @property
    def cooccurrence(self) -> Array:
        """|D_i n D_j| / |D_i|, float64 (n, n), zero in the rows of features that never occur."""
        return self.together / np.maximum(self.D, 1)[:, None]


def count(H: Array | Iterable[Array]) -> Counts:
    """Read H, one array (N, n) or an iterable of chunks (rows, n), into Counts: the same for any chunking.

    (The sums of weights are the same up to rounding.)  Raises InputError for no rows, chunks that disagree on n, and
    entries that are negative or not finite.
    """
    N, s, together, total = 0, 0, np.zeros((0, 0)), np.zeros(0)
    for chunk in [H] if isinstance(H, np.ndarray) else H:
        if N == 0:
            together, total = np.zeros((chunk.shape[-1],) * 2), np.zeros(chunk.shape[-1])
        _check_chunk(chunk, n=len(total), start=N)
        on = (chunk > 0).astype(np.float64)  # (rows, n); sums of ones are exact in float64 up to 2^53
        N += len(on)
        s = max(s, int(on.sum(axis=1).max(initial=0)))
        together += on.T @ on  # (n, n)
        total += chunk.sum(axis=0, dtype=np.float64)  # (n,)
    if N == 0:
        raise InputError("H has no rows: give at least one")
    return Counts(N, s, together.astype(np.int64), total)


def _check_chunk(chunk: Array, n: int, start: int) -> None:
    if chunk.ndim != 2 or chunk.shape[1] != n:
        raise InputError(f"H at row {start} has shape {chunk.shape}: every chunk must be (rows, {n})")
    bad = ~((chunk >= 0) & (chunk < np.inf))  # also true for nan
    if bad.any():
        l, i = np.argwhere(bad)[0]
        raise InputError(f"H[{start + l}, {i}] is {chunk[l, i]}: entries must be finite and nonnegative")


# ---- e -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Partners:
    """One-to-one matching of V (n, d) into W (M, d): w_m with m = neuron[i] stands for v_i.

    neuron   int64 (n,), all different
    cosine   cos(w_m, v_i), float64 (n,)
    """

    neuron: Int64
    cosine: Array

    @property
    def e(self) -> float:
        """max_i 1 - cosine[i]: every feature is matched within e."""
        return float(1 - self.cosine.min())

    @property
    def mean(self) -> float:
        """mean_i 1 - cosine[i]."""
        return float(1 - self.cosine.mean())


def partners(W: Array, V: Array) -> Partners:
    """Match every true feature v_i to a row w_m of its own, so that the sum of their cosines is greatest.

    "V is e-identifiable" we read as: every feature has a partner within e = max_i 1 - cos(w_m(i), v_i).  Permutation
    is what the (Hungarian) matching undoes and scaling what the cosine does; the sign counts, since H >= 0.  The
    surplus rows of W may be anything: a split feature keeps its best copy.  The sum, not the worst cosine, decides
    the matching, so e can exceed the smallest possible maximum when one row of W is the best for two features.  (ours)

    W (M, d), V (n, d) of any scale.  Raises InputError for M < n, different d, and values that are not finite.
    """
    if len(W) < len(V):
        raise InputError(f"W has {len(W)} rows for {len(V)} features: matching one to one needs M >= n")
    neuron, matched = metrics.match(W, V)
    return Partners(neuron, np.minimum(matched, 1.0))  # a rounded cosine can exceed 1


def _directions(A: Array, name: str) -> Array:
    if A.ndim != 2 or 0 in A.shape:
        raise InputError(f"{name} has shape {A.shape}: give a matrix of features as rows")
    A = A.astype(np.float64)
    norm = np.linalg.norm(A, axis=1)
    bad = np.flatnonzero(~((norm > 0) & (norm < np.inf)))
    if len(bad):
        raise InputError(f"row {bad[0]} of {name} is zero or not finite: every feature needs a direction")
    return unit_rows(A)


# ---- the report ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """One hypothesis of Theorem 5.3 as measured: its value, the bound it is held against, and a remark."""

    name: str
    claim: str
    value: float
    threshold: float
    satisfied: bool
    detail: str


@dataclass(frozen=True, eq=False)
class Identifiability:
    """The four conditions on data (N, d) with n features, and e for a candidate dictionary if one was given."""

    H1: Condition
    H2: Condition
    H3: Condition
    V1: Condition
    counts: Counts
    partners: Partners | None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """H1, H2, H3, V1."""
        return self.H1, self.H2, self.H3, self.V1

    @property
    def decomposable(self) -> bool:
        """Whether all four conditions hold."""
        return all(condition.satisfied for condition in self.conditions)

    def lines(self) -> list[str]:
        """Readable table: one line for each condition, and one for e."""
        table = [f"{'condition':<36}{'measured':>10}{'threshold':>11}  holds"]
        for c in self.conditions:
            holds = "yes" if c.satisfied else "NO"
            table.append(f"{c.name}  {c.claim:<32}{c.value:>10.4g}{c.threshold:>11.4g}  {holds:<5}  {c.detail}")
        if self.partners is not None:
            table.append(f"{'e   max 1 - cos(w, v)':<36}{self.partners.e:>10.4g}{'':>20}mean {self.partners.mean:.4g}")
        return table

    def __str__(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines())


def identifiability(H: Array | Iterable[Array], V: Array, W: Array | None = None) -> Identifiability:
    """Measure H1-H3 on H, V1 on V, and e of W against V (section 5).

    H (N, n) as `count` takes it: one array, or chunks such as (draw.H for draw in model.chunks(N, size)); V (n, d);
    W (M, d).  A maximum over n^2 noisy ratios is biased upwards: read rho_2 only where min |D_i| is in the hundreds.
    Raises InputError as `count` and `partners` do, and if H and V disagree on n.

    Feature 1 never occurs without feature 2, so |D_1 n D_2| / |D_1| = 1 and nothing tells the two apart:

    >>> import numpy as np
    >>> from refgba.identifiability import identifiability
    >>> V = np.eye(3, 8)
    >>> found = identifiability(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]), V, W=2 * V)
    >>> [c.name for c in found.conditions if not c.satisfied], found.H3.value
    (['H3'], 1.0)
    >>> found.partners.e
    0.0
    """
    counts = count(H)
    v1 = _v1(_directions(V, "V"))
    if len(V) != len(counts.D):
        raise InputError(f"H has {len(counts.D)} columns and V {len(V)} rows: both must be n")
    found = None if W is None else partners(W, V)
    return Identifiability(_h1(counts, V.shape[1]), _h2(counts), _h3(counts), v1, counts, found)


def _h1(counts: Counts, d: int) -> Condition:
    """H1.  The theory bounds s without a number; we hold it against uniqueness (ours).

    With n > d features in general position, an s-sparse row is sure to have no second s-sparse explanation while
    2 s <= d.  With n <= d they are independent, and every row has one explanation only.
    """
    n = len(counts.D)
    threshold = d / 2 if n > d else n
    detail = f"mean s {counts.D.sum() / counts.N:.4g}"
    return Condition("H1", "sparse rows: max s", counts.s, threshold, counts.s <= threshold, detail)


def _h2(counts: Counts) -> Condition:
    """H2.  Weights are positive on D_i by its definition, so a feature is degenerate only by never occurring."""
    least, missing = int(counts.D.min()), counts.missing
    detail = f"smallest mean weight {counts.weight.min():.4g}"
    if len(missing):
        named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        detail = f"{len(missing)} never occur: {named}"
    return Condition("H2", "every feature occurs: min |D_i|", least, 1, least >= 1, detail)


def _h3(counts: Counts) -> Condition:
    """H3.  rho_2 = max_{i != j} |D_i n D_j| / |D_i|, MARGIN below n^-1/2."""
    rho_2, i, j = _largest_off_diagonal(counts.cooccurrence)
    threshold = MARGIN / math.sqrt(len(counts.D))
    return Condition("H3", "rho_2, at most n^-1/2 / 2", rho_2, threshold, rho_2 <= threshold, f"i {i}, j {j}")


def _v1(V: Array) -> Condition:
    """V1.  max_{i != j} |cos(v_i, v_j)|, against what Gaussian features of this shape reach (ours).

    P(|cos| >= t) <= 2 exp(-d t^2 / 2) for random directions, and there are n (n - 1) / 2 pairs: the expected number
    above t falls to 1 at t = sqrt(4 log n / d).  A t of 1 or more bounds nothing: d is too small, and V1 fails.
    """
    n, d = V.shape
    incoherence, i, j = _largest_off_diagonal(np.abs(V @ V.T))
    threshold = math.sqrt(4 * math.log(n) / d)
    satisfied = incoherence <= threshold < 1
    detail = f"i {i}, j {j}" if threshold < 1 else f"d {d} is too small for n {n}: it takes d > 4 log n"
    return Condition("V1", "incoherence: max |cos(v_i, v_j)|", incoherence, threshold, satisfied, detail)


def _largest_off_diagonal(A: Array) -> tuple[float, int, int]:
    """The largest A[i,j], i != j, of a nonnegative matrix, and where it stands; 0 for a single feature."""
    A = A - np.diag(np.diagonal(A))
    i, j = np.unravel_index(np.argmax(A), A.shape)
    return float(A[i, j]), int(i), int(j)
