"""Section 2: data X = H V whose true features V are known, so that what an autoencoder recovers can be judged.

Three choices make a model: which features each row of H holds (`Uniform`, `Independent`, `Pairs`, `Hierarchy`), how
strongly (`WEIGHTS`), and what the features look like (`FEATURES`).  `SyntheticModel` ties them together and draws
rows, any range of them, in memory proportional to that range.

Left to others: whether the data satisfies the theory (`identifiability`), scaling rows to unit norm (`gba`), and
judging what was recovered (`metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from refgba.errors import InputError
from refgba.streams import stream
from refgba.types import Array, Mask

BLOCK = 256  # rows drawn from one stream: changing it changes every data set


# ---- rows: the supports of H ---------------------------------------------------------------------------------------


class Rows(Protocol):
    """A law of the supports of H: independent rows, each the set of features that it holds."""

    @property
    def n(self) -> int:
        """Number of features."""

    @property
    def f(self) -> Array:
        """Population occurrence frequencies f_i = P(H[l,i] > 0), float64 (n,)."""

    def __call__(self, rng: np.random.Generator, N: int) -> Mask:
        """Draw the supports of N rows, bool (N, n)."""


@dataclass(frozen=True)
class Uniform:
    """Exactly s features per row, each set of s equally likely, with s picked at random from a tuple for every row.

    One entry gives the uniform s-sparse rows of the theory, f = s/n; (3, 20) the imbalanced set, where a
    feature comes with 2 others or with 19.  Raises InputError unless every 1 <= s <= n.
    """

    n: int
    s: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse settings out of bounds."""
        if not self.s or not all(1 <= s <= self.n for s in self.s):
            raise InputError(f"sparsities s = {self.s}: give at least one, each from 1 to n = {self.n}")

    @property
    def f(self) -> Array:
        """f_i = mean(s) / n, float64 (n,)."""
        return np.full(self.n, np.mean(self.s) / self.n)

    def __call__(self, rng: np.random.Generator, N: int) -> Mask:
        """Draw the supports of N rows, bool (N, n), none empty."""
        s = rng.choice(self.s, size=N)  # (N,)
        return rng.permuted(np.arange(self.n) < s[:, None], axis=1)  # (N, n)


@dataclass(frozen=True, eq=False)
class Independent:
    """Every feature occurs on its own, feature i with frequency f[i] (ours); f is a float array (n,) within [0, 1].

    Rows can come out empty; they are kept, because drawing them again would raise every f_i.  `zipf_frequencies`
    gives frequencies that decay as they do in language.  Raises InputError for any other f.
    """

    f: Array

    def __post_init__(self) -> None:
        """Refuse settings out of bounds."""
        if np.ndim(self.f) != 1 or not np.all((self.f >= 0) & (self.f <= 1)):
            raise InputError("frequencies f: give a one-dimensional array of values from 0 to 1")

    @property
    def n(self) -> int:
        """Number of features."""
        return len(self.f)

    def __call__(self, rng: np.random.Generator, N: int) -> Mask:
        """Draw the supports of N rows, bool (N, n), possibly empty."""
        return rng.random((N, self.n)) < self.f


# ---- weights of H on its support -----------------------------------------------------------------------------------

# Each has second moment E h^2 = 1 (ours), so that a row's energy depends on how many features it holds, not on the law.
WEIGHTS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "constant": lambda _, size: np.ones(size),
    "half-normal": lambda rng, size: np.abs(rng.standard_normal(size)),
    "log-normal": lambda rng, size: np.exp(rng.standard_normal(size) - 1.0),  # std of log h is 1; E e^{2(z-1)} = 1
}


# ---- features: the rows of V ---------------------------------------------------------------------------------------


def _orthonormal(rng: np.random.Generator, n: int, d: int) -> Array:
    if n > d:
        raise InputError(f"{n} features cannot be orthogonal in {d} dimensions: choose n <= d or other features")
    return np.ascontiguousarray(np.linalg.qr(rng.standard_normal((d, n))).Q.T)  # (n, d); file writers want C order


FEATURES: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "gaussian": lambda rng, n, d: rng.standard_normal((n, d)),
    "orthogonal": _orthonormal,
    "student-t": lambda rng, n, d: rng.standard_t(3, (n, d)),  # 3 degrees of freedom: finite variance, heavy tails
    "laplace": lambda rng, n, d: rng.laplace(size=(n, d)),
}


def features(n: int, d: int, kind: str, rng: np.random.Generator) -> Array:
    """V: n features as unit rows, float64 (n, d).

    `kind` is a key of FEATURES: i.i.d. entries of the law it names, then scaled to unit norm (the theory is about
    "gaussian"; unit norm and the heavier tails are ours), or "orthogonal", no superposition at all, n <= d (ours).
    Raises InputError for another kind, for n < 1 or d < 1, and for more orthogonal features than dimensions.
    """
    _known("features", kind, FEATURES)
    if n < 1 or d < 1:
        raise InputError(f"V of shape ({n}, {d}): both n and d must be at least 1")
    V = FEATURES[kind](rng, n, d)
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    return V


def _known(what: str, kind: str, kinds: dict[str, Any]) -> None:
    if kind not in kinds:
        raise InputError(f"{what} {kind!r}: choose one of {', '.join(kinds)}")


# ---- the model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Draw:
    """Some consecutive rows: activations X (rows, d) and the H (rows, n) behind them, X = H V + noise."""

    X: Array
    H: Array

    @property
    def support(self) -> Mask:
        """Which features each row holds, bool (rows, n); column i marks D_i = { l : H[l,i] > 0 }."""
        return self.H > 0


@dataclass(frozen=True)
class SyntheticModel:
    """x = h V + noise: an endless, reproducible sequence of rows with ground truth (section 2; the noise is ours).

    rows       law of the supports, which also fixes n
    d          dimension of the activations; superposition is n > d
    weights    key of WEIGHTS
    features   key of FEATURES
    noise      standard deviation of the Gaussian noise added to each coordinate of X
    seed       nonnegative; V and every row are functions of it alone
    dtype      float64, or float32: the same numbers, rounded (V stays float64)

    Row l is a pure function of the settings and of l, whatever range it is drawn in: drawing more rows, or in other
    chunks, never changes one, bit for bit on one machine.  V has a stream of its own.  A row with empty support is a
    zero row (plus noise).  Raises InputError for settings out of these bounds.

    >>> import numpy as np
    >>> from refgba.model import SyntheticModel, Uniform
    >>> data = SyntheticModel(Uniform(n=8, s=(2,)), d=4)
    >>> rows = data.draw(0, 1000)
    >>> rows.X.shape, rows.H.shape, data.V.shape
    ((1000, 4), (1000, 8), (8, 4))
    >>> np.allclose(rows.X, rows.H @ data.V)
    True
    >>> np.array_equal(data.draw(998, 1000).X, rows.X[998:])
    True
    """

    rows: Rows
    d: int
    weights: str = "constant"
    features: str = "gaussian"
    noise: float = 0.0
    seed: int = 0
    dtype: npt.DTypeLike = np.float64

    def __post_init__(self) -> None:
        """Refuse settings out of bounds."""
        _known("weights", self.weights, WEIGHTS)
        _known("features", self.features, FEATURES)
        if self.d < 1:
            raise InputError(f"d = {self.d}: activations need at least 1 dimension")
        if not 0 <= self.noise < np.inf:
            raise InputError(f"noise {self.noise}: give a finite standard deviation >= 0")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: give an integer >= 0")
        if np.dtype(self.dtype) not in (np.float32, np.float64):
            raise InputError(f"dtype {np.dtype(self.dtype)}: choose float32 or float64")

    @property
    def n(self) -> int:
        """Number of true features."""
        return self.rows.n

    @cached_property
    def V(self) -> Array:
        """The true features, unit rows, float64 (n, d).  Raises InputError as `features` does."""
        return features(self.n, self.d, self.features, stream(self.seed, "features"))

    def draw(self, start: int, stop: int) -> Draw:
        """Rows start .. stop - 1.  Raises InputError unless 0 <= start <= stop."""
        if not 0 <= start <= stop:
            raise InputError(f"rows {start} to {stop}: choose 0 <= start <= stop")
        X = np.empty((stop - start, self.d), self.dtype)
        H = np.empty((stop - start, self.n), self.dtype)
        for first in range(start - start % BLOCK, stop, BLOCK):
            lo, hi = max(start, first), min(stop, first + BLOCK)
            x, h = self._block(first // BLOCK)
            X[lo - start : hi - start] = x[lo - first : hi - first]
            H[lo - start : hi - start] = h[lo - first : hi - first]
        return Draw(X, H)

    def chunks(self, stop: int, size: int, start: int = 0) -> Iterator[Draw]:
        """Rows start .. stop - 1, `size` at a time, the last chunk perhaps shorter.  Memory is that of one chunk.

        Sizes that are multiples of BLOCK waste nothing; one below it draws its whole block again for every chunk.
        Raises InputError unless 0 <= start <= stop and size >= 1.
        """
        if not 0 <= start <= stop or size < 1:
            raise InputError(f"rows {start} to {stop} in chunks of {size}: choose 0 <= start <= stop and a size >= 1")
        return (self.draw(first, min(first + size, stop)) for first in range(start, stop, size))

    def _block(self, b: int) -> tuple[Array, Array]:
        """Rows b BLOCK .. (b + 1) BLOCK - 1, always all of them: a matrix product of another shape rounds otherwise."""
        rng = stream(self.seed, "rows", b)
        support = self.rows(rng, BLOCK)  # (BLOCK, n)
        H = np.zeros((BLOCK, self.n))
        H[support] = WEIGHTS[self.weights](rng, int(support.sum()))
        return H @ self.V + self.noise * rng.standard_normal((BLOCK, self.d)), H  # (BLOCK, d), (BLOCK, n)


def imbalanced(seed: int = 0) -> SyntheticModel:
    """The imbalanced set of the paper's experiments: half of the rows s = 3, half s = 20, so that every f_i = 0.09.

    n = 128, d = 42.  Weights (constant) and noise (none) are ours; `dataclasses.replace` gives variants.

    >>> from refgba.model import imbalanced
    >>> data = imbalanced()
    >>> sorted(set(data.draw(0, 1000).support.sum(axis=1).tolist()))
    [3, 20]
    >>> float(data.rows.f[0])  # (3 + 20) / 2 / 128
    0.08984375
    """
    return SyntheticModel(Uniform(128, (3, 20)), d=42, seed=seed)
