"""What the theory promises (section 6): Modified BA, the resonance band of p, and the width M it needs.

Modified BA is GBA without whatever the proof cannot treat: all neurons have one frequency p, hit exactly at every step,
and an output scale a -> 0, so that no neuron sees what another one reconstructs.  Each then climbs the sphere
alone, and either locks onto one feature within a few steps or never does: p decides which.

The bounds are asymptotic.  The paper writes them with <~ and >~, constants hidden, and the functions here set every
hidden constant to 1: read their numbers as orders of magnitude.  Data comes from `model`, recovery is scored by
`metrics`, and the algorithm that needs no p chosen by hand is in `gba`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from refgba.errors import InputError
from refgba.metrics import frr
from refgba.model import SyntheticModel, Uniform
from refgba.sae import unit_rows
from refgba.streams import stream
from refgba.types import Activation, Array

_BLOCK = 2**22  # entries of one (neurons, N) block: 32 MB in float64


def modified_ba(
    X: Array, W: Array, p: float, steps: int, *, eta: float = np.inf, activation: Activation = "jumprelu"
) -> Iterator[Array]:
    """Run Modified BA (section 6), yielding the neurons after each step.

    X: (N, d) data, float.  W: (M, d) initial neurons, uniform on the sphere in the theory; rows are scaled to unit
    norm, and W itself is left alone.  p: the share of rows each neuron fires on.  eta, activation: see
    `modified_ba_step`.  Yields a new (M, d) array of unit rows, `steps` times, in the dtype of X and W.

    Raises InputError, at the first step, for shapes that do not fit, zero neurons, non-finite or out-of-range values.

    Three orthogonal features, each on a third of the rows.  At that p a neuron fires on the rows of the feature that it
    starts nearest to, and on no others; at twice that p on those of two:

    >>> import numpy as np
    >>> from refgba.theory import modified_ba
    >>> X, W = np.repeat(np.eye(3), 4, axis=0), np.array([[3.0, 2.0, 1.0]])
    >>> [W_1] = modified_ba(X, W, p=1 / 3, steps=1)
    >>> W_1
    array([[1., 0., 0.]])
    >>> [W_1] = modified_ba(X, W, p=2 / 3, steps=1)
    >>> W_1 * 13**0.5
    array([[3., 2., 0.]])
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    W = _directions(W)
    for _ in range(steps):
        W = modified_ba_step(X, W, p, eta=eta, activation=activation)
        yield W


def modified_ba_step(
    X: Array, W: Array, p: float, *, eta: float = np.inf, activation: Activation = "jumprelu"
) -> Array:
    """One step of spherical ascent for every neuron (section 6).

        b_m  such that  y_m = w_m . x_l + b_m > 0  on exactly a share p of the rows
        g_m = mean_l phi(y_m) x_l
        w_m <- (w_m + eta g_m) / ||w_m + eta g_m||

    with phi(y) = (y - b) 1{y > 0} for 'jumprelu' and max(y, 0) for 'relu'.

    X: (N, d).  W: (M, d) unit rows.  Returns a new (M, d) array.  Needs memory for N x a few neurons, never N x M.

    eta (ours: the paper's T = 1/c steps, a constant, ask for a large one): the default is the limit eta -> inf, the
    power iteration w <- g / ||g||.  It has no scale to get wrong (g scales with p and with ||x||^2), and nothing finite
    beat it: at p = 0.01 FRR(0.9) after 3 steps is 100% with it, 98% at eta = 1000, 0% at eta = 100.  A neuron whose g
    is zero stays where it is.

    activation: ReLU tolerates a larger p, as it weighs a row by its height above the gate.  FRR(0.9) after 5 steps at
    p = 0.05 is 94% with it and 8% with JumpReLU; at p = 0.1, 9% and 0%.

    (One seed: refgba theory --n 128 --d 42 --s 3 --simulate --p 0.05 --activation relu, and so on.)

    Raises InputError for shapes that do not fit, non-finite X or values out of range.
    """
    _check(X, W, p)
    if not eta > 0:
        raise InputError(f"eta must be positive, got {eta}")
    if activation not in ("jumprelu", "relu"):
        raise InputError(f"activation must be 'jumprelu' or 'relu', got {activation!r}")
    stepped = np.empty(W.shape, np.result_type(X, W))
    for m in _blocks(X, W):
        w = W[m]
        z = w @ X.T  # (block, N)
        b = _bias(z, p)  # (block, 1)
        on = z > -b
        s = z * on if activation == "jumprelu" else (z + b) * on  # phi(y)
        g = s @ X / len(X)  # (block, d)
        stepped[m] = unit_rows(g if np.isinf(eta) else w + eta * g, otherwise=w)
    return stepped


def simulate(
    n: int,
    d: int,
    s: int,
    p: float,
    width: int,
    rows: int,
    steps: int,
    *,
    eta: float = np.inf,
    activation: Activation = "jumprelu",
    seed: int = 0,
) -> list[float]:
    """FRR(0.9) of Modified BA after each of its steps, on data that the theory speaks of (ours).

    The data are `rows` rows of n Gaussian features in d dimensions, s of them in each; `width` random neurons begin.
    Raises InputError as `modified_ba` and for a model that cannot be.
    """
    truth = SyntheticModel(Uniform(n, (s,)), d, seed=seed)
    W = stream(seed, "weights").standard_normal((width, d))
    X = unit_rows(truth.draw(0, rows).X)
    return [frr(W, truth.V, 0.9) for W in modified_ba(X, W, p, steps, eta=eta, activation=activation)]


def _bias(z: Array, p: float) -> Array:
    """Minus the (1 - p)-quantile of each row of z (block, N), halfway between rows so that rounding flips none."""
    k = round(p * z.shape[1])
    ranked = np.partition(z, -k, axis=1)  # the k largest at the end, the smallest of them at -k
    below: Array = ranked[:, :-k].max(axis=1, keepdims=True)
    return -(ranked[:, -k, None] + below) / 2  # (block, 1)


def _blocks(X: Array, W: Array) -> Iterator[slice]:
    size = max(1, _BLOCK // len(X))
    for start in range(0, len(W), size):
        yield slice(start, start + size)


def _directions(W: Array) -> Array:
    norm = np.linalg.norm(W, axis=1) if W.ndim == 2 else np.zeros(1)
    if not np.all((norm > 0) & np.isfinite(norm)):
        raise InputError(f"W must be (M, d) with nonzero, finite rows, got shape {W.shape}")
    return unit_rows(W)


def _check(X: Array, W: Array, p: float) -> None:
    if X.ndim != 2 or W.ndim != 2 or X.shape[1] != W.shape[1] or not len(W):
        raise InputError(f"X must be (N, d) and W (M, d) with the same d, got {X.shape} and {W.shape}")
    if not np.isfinite(X).all():
        raise InputError("X holds values that are not finite")
    _check_frequency(p)
    if not 1 <= round(p * len(X)) < len(X):
        raise InputError(f"p = {p} of {len(X)} rows is none of them or all: give more rows or another p")


def _check_frequency(p: float) -> None:
    if not 0 < p < 1:
        raise InputError(f"p must lie strictly between 0 and 1, got {p}")


@dataclass(frozen=True)
class Band:
    """A band low <~ p <~ high of activation frequencies, and the name of the upper limit that sets `high`."""

    low: float
    high: float
    binding: str  # the smallest upper term as the paper writes it; the first of them on a tie

    @property
    def empty(self) -> bool:
        """Whether no p is left: low >= high."""
        return self.low >= self.high

    def holds(self, p: float) -> bool:
        """Whether a frequency lies in the band, its ends included; an empty band holds none."""
        return not self.empty and self.low <= p <= self.high


def resonance_band(n: int, d: int, s: int, e: float = 0.0, c: float = 0.0) -> Band:
    """The frequencies p at which Modified BA recovers every feature (Theorem 6.1, conference form).

        1/n  <~  p  <~  min( n^{-(1 + 1/s)/2},  n^{-2 (1+e)^2 / s},  d^{1-c} / n )

    n features in d dimensions, s of them in each row; e: slack, recovery fails with probability n^{-4e}; c: T = 1/c
    steps are enough.  Hidden constants are set to 1.  n 128, d 42, s 3 gives 0.0078 .. 0.039.

    Raises InputError unless n, d, s >= 1, s <= n, 0 <= e < 1 and 0 <= c < 1.

    >>> from refgba.theory import resonance_band
    >>> band = resonance_band(n=64, d=32, s=3)
    >>> band.low, round(band.high, 12), band.binding  # 1 / 64, 64^(-2/3)
    (0.015625, 0.0625, 'n^(-(1 + 1/s)/2)')
    >>> resonance_band(n=64, d=32, s=1).empty
    True
    """
    _check_sizes(n, d, s)
    _check_slack(e=e, c=c)
    return _band(
        1 / n,
        {
            "n^(-(1 + 1/s)/2)": n ** (-(1 + 1 / s) / 2),
            "n^(-2 (1+e)^2/s)": n ** (-2 * (1 + e) ** 2 / s),
            "d^(1-c)/n": d ** (1 - c) / n,
        },
    )


def frequency_band(n: int, d: int, s: int) -> Band:
    """The resonance band in terms of how often a feature occurs, f = s/n (section 6):  f <~ p <~ min( sqrt(f), f d ).

    The theory's f is Theta(1/n).  f d binds in heavy superposition, sqrt(f) in light, see `superposition`.  Hidden
    constants are set to 1.  Raises InputError unless n, d, s >= 1 and s <= n.
    """
    _check_sizes(n, d, s)
    f = s / n
    return _band(f, {"sqrt(f)": f**0.5, "f d": f * d})


def superposition(n: int, d: int) -> Literal["heavy", "light"]:
    """The side of the phase change at d ~ sqrt(n) (section 6): 'heavy', a narrow band, if d < sqrt(n), else 'light'.

    n features in d dimensions.  Raises InputError unless n, d >= 1.
    """
    _check_sizes(n, d, s=1)
    return "heavy" if d < n**0.5 else "light"


def width_bound(n: int, p: float, s: int, e: float = 0.0) -> float:
    """The number of neurons M that recovery needs (Theorem 6.1):  M >~ n p^{-s / (1-e)^2}.

    Enough of them that every feature finds some neuron that starts near it.  The hidden constant is set to 1, and the
    result is far above what experiments need: n 128, s 3, p 0.01 asks for 1.3e8, where M = 2048 recovers all.

    inf past the largest float.  Raises InputError unless n, s >= 1, s <= n, 0 < p < 1 and 0 <= e < 1.

    >>> from refgba.theory import width_bound
    >>> width_bound(n=64, p=1 / 4, s=2)  # 64 * 4²
    1024.0
    """
    _check_sizes(n, d=1, s=s)
    _check_slack(e=e)
    _check_frequency(p)
    with np.errstate(over="ignore"):
        return float(n * np.float64(p) ** (-s / (1 - e) ** 2))


def _band(low: float, upper: dict[str, float]) -> Band:
    binding = min(upper, key=upper.__getitem__)
    return Band(low, upper[binding], binding)


def _check_sizes(n: int, d: int, s: int) -> None:
    for name, value in (("n", n), ("d", d), ("s", s)):
        if not value >= 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if s > n:
        raise InputError(f"s must be at most n, got s = {s} and n = {n}")


def _check_slack(**slack: float) -> None:
    for name, value in slack.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} must lie in [0, 1), got {value}")
