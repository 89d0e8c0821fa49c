"""How far rounding may move each quantity of a step (ours): the tolerances of `oracle`.

An entry may be off by the tolerance times its size, the sum of the absolute values of all the terms it is a sum of,
the terms of its terms included.  So a sum whose terms cancel may be as wrong as they are, and a neuron that is never
active must have a gradient of exactly 0.  AdamW may divide by something near 0, where a tiny gradient decides the whole
step, so the bound on the gradient is followed through that division.  Where the state before a step is not known
exactly, its own bound is followed in the same way.  Shapes and names are those of `stepwise`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from refgba import recipe
from refgba.adam import Factors
from refgba.oracle.stepwise import QUANTITIES, THETA, Step, factors, in_groups, jump, least
from refgba.types import Mask

TINY = 1e-37  # below about this float32 has no full precision


class Sizes:
    """The sizes of the quantities of a step, each computed when it is first asked for: sizes["dW"]."""

    def __init__(
        self, step: Step, tolerance: float, off: Mapping[str, Any] | None = None, gates_known: bool = True
    ) -> None:
        """Sizes of a step; they depend on the tolerance where AdamW divides.

        off: by how much quantities of the state before the step may be off themselves.  gates_known: False where gates
        that rounding may have flipped are not known; then all that follows may be off by what such a flip does.
        """
        self.step, self.tolerance, self.off, self.gates_known = step, tolerance, off or {}, gates_known
        self.known: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """The size of a quantity, broadcasting against it; 0 where the quantity must be equal."""
        if name not in self.known:
            self.known[name] = SIZES[name](self.step, self)
        return self.known[name]

    def allowed(self, name: str) -> Any:
        """How far each entry of a quantity may be off."""
        allowed = self.tolerance * self[name] + TINY
        return np.where(np.isnan(allowed), np.inf, allowed)  # past the largest number nothing is known

    def was(self, name: str) -> Any:
        """The size of a quantity of the state before the step."""
        return abs(self.step.was(name)) + self.unsure(name)

    def unsure(self, name: str) -> Any:
        """By how much a quantity of the state may be off, over the tolerance."""
        return self.off.get(name, 0) / self.tolerance

    @property
    def near(self) -> Mask:
        """The gates (L, M) that rounding alone may flip."""
        near: Mask = abs(self.step["y"]) <= self.allowed("y")
        return near


Size: TypeAlias = Callable[[Step, Sizes], Any]


def _whole(n: Any, k: Sizes) -> Any:
    """The size of what may be off by a whole number n or by a decision, despite the rounding of n / tolerance."""
    return n * (1 + 1e-9) / k.tolerance


def _flips(e: Step, k: Sizes) -> Any:
    """Where gates may have flipped unseen, (L, M)."""
    return np.zeros_like(e["on"]) if k.gates_known else k.near


def _of_theta(theta: str) -> dict[str, Size]:
    """The sizes on the way from the gradient of θ to θ after AdamW."""

    def m(e: Step, k: Sizes) -> Any:
        beta1 = e.config.beta1 if theta in e["trained"] else 1
        return beta1 * k.was(f"m.{theta}") + (beta1 < 1) * (1 - beta1) * k[f"d{theta}"]

    def v(e: Step, k: Sizes) -> Any:
        if theta not in e["trained"]:
            return k.was(f"v.{theta}")
        g, off = abs(e[f"d{theta}"]), k[f"d{theta}"]
        before = e.config.beta2 * k.unsure(f"v.{theta}")
        return e[f"v.{theta}"] + before + (1 - e.config.beta2) * (2 * g * off + k.tolerance * off**2)

    def moved(e: Step, k: Sizes) -> Any:
        if theta not in e["trained"]:
            return k.was(theta)
        by = factors(e, theta)
        m_hat, v_hat = abs(e[f"m.{theta}"]) / by.m_hat, e[f"v.{theta}"] / by.v_hat
        root = np.sqrt(v_hat) + by.eps
        least = np.sqrt(np.maximum(v_hat - k.tolerance * k[f"v.{theta}"] / by.v_hat, 0)) + by.eps
        update = (k[f"m.{theta}"] / by.m_hat + m_hat) / least + m_hat * (root - least) / (root * least * k.tolerance)
        return k.was(theta) + by.lr * np.minimum(update, 2 * _longest(by) / k.tolerance)

    return {f"m.{theta}": m, f"v.{theta}": v, f"moved.{theta}": moved}


def _longest(by: Factors) -> float:
    """The largest |m̂| / √v̂ that any gradients give, by the Cauchy-Schwarz inequality on their sums m and v."""
    ratio = (1 - by.m) ** 2 / (1 - by.v) if by.v < 1 else 1.0
    return by.m / np.sqrt(by.v * (1 - ratio)) * np.sqrt(by.v_hat) / by.m_hat if ratio < 1 else np.inf


def _unit(theta: str) -> Size:
    """The size of rows at unit norm, where the norm is off as well, or of rows that are held."""

    def size(e: Step, k: Sizes) -> Any:
        moved, off = e[f"moved.{theta}"], k[f"moved.{theta}"]
        norm = np.linalg.norm(moved, axis=1, keepdims=True)  # (M, 1)
        unit = abs(moved) / norm
        turned = (off + unit * np.linalg.norm(off, axis=1, keepdims=True)) / norm + unit
        turned = np.minimum(turned, 2 / k.tolerance)  # no entry of two unit rows differs by more
        held = k["held"][:, None] * (abs(moved / norm - e.was(theta)) + TINY)  # by as much if it is not known who is
        return np.maximum(turned, k.was(theta)) + held

    return size


def _held(e: Step, k: Sizes) -> Any:
    """Who is held is unsure where W is, and the nearest other neuron is about at `hold`, (M,)."""
    if not (recipe.fit_begins(e.config, e.t) and "W" in k.off) or e.config.hold == 1:
        return np.zeros(e.config.width)
    W, off = e.was("W"), k.off["W"]
    cosine = W @ W.T - 2 * np.eye(len(W))
    unsure = off @ abs(W).T + abs(W) @ off.T + off @ off.T
    return _whole((abs(cosine - e.config.hold) <= unsure).any(axis=1), k)


def _V(k: Sizes) -> Any:
    return k.was("W_dec" if "W_dec" in k.step.state else "W")  # (M, d)


def _a(k: Sizes) -> Any:
    return k.was("a")[:, None]  # (M, 1)


def _s(e: Step, k: Sizes) -> Any:
    flips = _flips(e, k)
    passed = abs(e["z" if jump(e) else "y"])
    return (e["on"] | flips) * k["y"] + flips * passed / k.tolerance


def _product(k: Sizes, u: Any, size_u: Any, v: Any, size_v: Any, times: Any = np.matmul) -> Any:
    """The size of a product: of the sizes, and of what the errors of both amount to, where these may be large."""
    size = times(size_u, size_v)
    if k.gates_known and not k.off:
        return size
    return np.minimum(size, times(abs(u), size_v) + times(size_u, abs(v)) + k.tolerance * size)


def _through(e: Step) -> Any:
    """v_m . r where the gate is open, (L, M)."""
    return e["on"] * ((e["f"] - e["x"]) @ e.params.V.T)


def _detector(e: Step, k: Sizes) -> Any:
    inner = _product(k, _through(e).T, k["v . r"].T, e["x"] - e.was("b_pre"), k["x - b_pre"])
    return _product(k, e.was("a")[:, None], _a(k), _through(e).T @ (e["x"] - e.was("b_pre")), inner, np.multiply) / len(
        e["x"]
    )


def _reconstructor(e: Step, k: Sizes) -> Any:
    r = e["f"] - e["x"]
    inner = _product(k, e["s"].T, k["s"].T, r, k["r"])
    return _product(k, e.was("a")[:, None], _a(k), e["s"].T @ r, inner, np.multiply) / len(e["x"])


def _db_pre(e: Step, k: Sizes) -> Any:
    mean = _product(k, e.was("a"), k.was("a"), _through(e).mean(axis=0), k["v . r"].mean(axis=0), np.multiply)
    through = e.was("a") * _through(e).mean(axis=0)  # (M,)
    return k["r"].mean(axis=0) + _product(k, through, mean, e.was("W"), k.was("W"))


def _vr(e: Step, k: Sizes) -> Any:
    flips = _flips(e, k)
    size = _product(k, e["f"] - e["x"], k["r"], e.params.V.T, _V(k).T)
    return (e["on"] | flips) * size + flips * abs((e["f"] - e["x"]) @ e.params.V.T) / k.tolerance


def _decided(of: Callable[[Step], Any]) -> Size:
    """A decision about p is unsure where the counts are, and p is about at the frequency `of` which it is taken."""

    def size(e: Step, k: Sizes) -> Any:
        unsure = (k["counts"] > 0) & (abs(e["p"] - of(e)) <= k.allowed("p"))
        return _whole(unsure, k)

    return size


def _T(e: Step, k: Sizes) -> Any:
    """Whether a peak is positive, and so counts, is unsure where it is within rounding of 0."""
    positive, was = in_groups(e, e["peaks"] > 0), e.was("left.peaks")
    largest = np.maximum(np.where(was > 0, was, -np.inf), e["y"].max(axis=0))  # (M,)  as peaks, but below 0 too
    unsure = in_groups(e, abs(largest) <= k.allowed("peaks"))
    fewer = np.maximum(positive - unsure, 1)
    return in_groups(e, k["peaks"]) / fewer + _whole(e["T"] * unsure / fewer, k)


def _b(e: Step, k: Sizes) -> Any:
    if not e.adapts:
        return k.was("b")
    most = e.config.gamma_minus * k["peaks"] + e.config.gamma_plus * k["T"][e["group"]]  # (M,)  that b moves
    unsure = np.maximum(k["lowered"], k["raised"])
    return k.was("b") + most * (1 + unsure)


def _sizes() -> dict[str, Size]:
    sizes: dict[str, Size] = {
        "rows": lambda e, _: abs(e["rows"]),
        "x": lambda e, _: abs(e["x"]),
        "held": _held,
        "lr": lambda e, _: e["lr"],
        "x - b_pre": lambda _, k: k["x"] + k.was("b_pre"),
        "y": lambda e, k: _product(k, e["x"] - e.was("b_pre"), k["x - b_pre"], e.was("W").T, k.was("W").T) + k.was("b"),
        "s": _s,
        "a V": lambda e, k: _product(k, e.was("a")[:, None], _a(k), e.params.V, _V(k), np.multiply),
        "f": lambda e, k: _product(k, e["s"], k["s"], e.was("a")[:, None] * e.params.V, k["a V"]) + k.was("b_pre"),
        "r": lambda _, k: k["f"] + k["x"],
        "v . r": _vr,
        "loss": lambda e, k: e["loss"] + np.mean(np.sum(abs(e["f"] - e["x"]) * k["r"], axis=1)),
        "dW.detector": _detector,
        "dW.reconstructor": _reconstructor,
        "dW": lambda e, k: k["dW.detector"] + (0 if "W_dec" in e.state else k["dW.reconstructor"]),
        "dW_dec": lambda _, k: k["dW.reconstructor"],
        "da": lambda e, k: np.mean(_product(k, e["s"], k["s"], _through(e), k["v . r"], np.multiply), axis=0),
        "db_pre": _db_pre,
        "W": _unit("W"),
        "W_dec": _unit("W_dec"),
        "a": lambda _, k: k["moved.a"],
        "b_pre": lambda _, k: k["moved.b_pre"],
        "counts": lambda e, k: _whole(_flips(e, k).sum(axis=0) + k.off.get("left.counts", 0), k),
        "peaks": lambda _, k: np.maximum(k.was("left.peaks"), k["y"].max(axis=0)),
        "target": lambda e, _: e["target"],
        "p": lambda e, k: e["p"] + k["counts"] / e["seen"],
        "T": _T,
        "lowered": _decided(lambda e: e["p_k"]),
        "raised": lambda e, k: np.maximum(k["lowered"], _decided(least)(e, k)),
        "b": _b,
        "left.counts": lambda e, k: (not e.adapts) * k["counts"],
        "left.peaks": lambda e, k: (not e.adapts) * k["peaks"],
    }
    for theta in THETA:
        sizes |= _of_theta(theta)
    return {name: _nothing for name in QUANTITIES} | sizes


def _nothing(e: Step, k: Sizes) -> Any:  # noqa: ARG001 - sizes are called alike
    return 0.0


SIZES = _sizes()
