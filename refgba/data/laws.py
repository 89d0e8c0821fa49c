"""Laws of which features a row holds, beyond those of the paper (all ours): Zipf's frequencies, pairs, hierarchies.

Each is a `refgba.model.Rows` and goes into a `refgba.model.SyntheticModel`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refgba.errors import InputError
from refgba.types import Array, Mask

F_MAX = 0.99  # cap of Zipf frequencies: a feature of every row would be a constant, which b_pre takes up


def zipf_frequencies(n: int, mean: float, exponent: float = 1.0) -> Array:
    """Frequencies proportional to 1 / i^exponent (i = 1..n), capped at F_MAX, with the given mean (ours).

    What the cap cuts from the commonest features goes to the others in proportion, so these still follow the law.
    Returns float64 (n,), descending.  Raises InputError unless 0 < mean <= F_MAX (no other mean can be kept), n >= 1
    and exponent >= 0.
    """
    if not 0 < mean <= F_MAX:
        raise InputError(f"mean frequency {mean}: choose it above 0 and at most {F_MAX}")
    if n < 1 or exponent < 0:
        raise InputError(f"n = {n}, exponent {exponent}: choose n >= 1 and an exponent >= 0")
    law = np.arange(1, n + 1) ** -float(exponent)  # (n,)
    # With the first k features at the cap, scale[k] lets the others make up the mean.  The right k is the first where
    # feature k then stays below the cap; all later ones do too, so counting the failures finds it.
    scale = (n * mean - F_MAX * np.arange(n)) / np.cumsum(law[::-1])[::-1]  # (n,)
    k = min(int(np.sum(scale * law > F_MAX)), n - 1)  # n only by rounding, at mean = F_MAX
    f: Array = np.minimum(scale[k] * law, F_MAX)
    return f


@dataclass(frozen=True)
class Pairs:
    """Features 2j and 2j+1 tend to fire together: a dial for the co-occurrence rho_2 of H3 (ours).

    P(both) = rho_2 f, while each keeps frequency f; different pairs are independent.  So |D_i n D_j| / |D_i| tends to
    rho_2 within a pair and to f across pairs, and the maximum over i != j is rho_2 itself whenever rho_2 >= f.
    rho_2 = f is independence, rho_2 = 1 makes the two features of a pair inseparable.  Rows can be empty, and are kept.
    Raises InputError for an odd n or unless 0 < f <= rho_2 <= 1.
    """

    n: int
    frequency: float
    rho_2: float

    def __post_init__(self) -> None:
        """Refuse settings out of bounds."""
        if self.n < 2 or self.n % 2:
            raise InputError(f"n = {self.n} features do not form pairs: give an even n >= 2")
        if not 0 < self.frequency <= self.rho_2 <= 1:
            raise InputError(f"frequency {self.frequency}, rho_2 {self.rho_2}: choose 0 < frequency <= rho_2 <= 1")

    @property
    def f(self) -> Array:
        """The one frequency, n times, float64 (n,)."""
        return np.full(self.n, self.frequency)

    def __call__(self, rng: np.random.Generator, N: int) -> Mask:
        """Draw the supports of N rows, bool (N, n), possibly empty."""
        u = rng.random((N, self.n // 2))  # one for each pair
        shift = self.frequency * (1 - self.rho_2)
        # Two intervals of length f, shifted so that they overlap on f rho_2; they end at f (2 - rho_2) <= 1.
        first, second = u < self.frequency, (shift <= u) & (u < shift + self.frequency)
        return np.stack([first, second], axis=2).reshape(N, self.n)


@dataclass(frozen=True)
class Hierarchy:
    """Parents with children that occur only where their parent does (ours): the case of feature absorption.

    Features 0 .. parents - 1 are the parents, independent with frequency f_parent.  The `children` of parent j follow
    as parents + j * children + (0 .. children - 1); given their parent each occurs on its own with probability
    p_child.  Since |D_child n D_parent| / |D_child| = 1, H3 fails by construction.  Rows can be empty, and are kept.
    Raises InputError unless both counts are >= 1 and both probabilities within (0, 1].
    """

    parents: int
    children: int
    f_parent: float
    p_child: float

    def __post_init__(self) -> None:
        """Refuse settings out of bounds."""
        if self.parents < 1 or self.children < 1:
            raise InputError(f"parents = {self.parents}, children = {self.children}: both must be at least 1")
        if not (0 < self.f_parent <= 1 and 0 < self.p_child <= 1):
            raise InputError(f"f_parent {self.f_parent}, p_child {self.p_child}: both must be above 0, at most 1")

    @property
    def n(self) -> int:
        """Number of features, parents and children together."""
        return self.parents * (1 + self.children)

    @property
    def f(self) -> Array:
        """f_parent for a parent, f_parent p_child for a child, float64 (n,)."""
        return self.f_parent * np.where(np.arange(self.n) < self.parents, 1.0, self.p_child)

    def __call__(self, rng: np.random.Generator, N: int) -> Mask:
        """Draw the supports of N rows, bool (N, n), possibly empty."""
        parent = rng.random((N, self.parents)) < self.f_parent
        child = rng.random((N, self.parents, self.children)) < self.p_child
        return np.hstack([parent, (parent[:, :, None] & child).reshape(N, -1)])  # (N, n)
