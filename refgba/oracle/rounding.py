"""How far rounding may move each quantity of a step (ours): the tolerances of `oracle`.

An entry may be off by the tolerance times its size, the sum of the absolute values of all the terms it is a sum of,
the terms of its terms included.  So a sum whose terms cancel may be as wrong as they are, and a neuron that is never
active must have a gradient of exactly 0.  AdamW may divide by something near 0, where a tiny gradient decides the whole
step, so the bound on the gradient is followed through that division.  Shapes and names are those of `stepwise`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from refgba.oracle.stepwise import QUANTITIES, THETA, Step, in_groups
from refgba.types import Mask

TINY = 1e-37  # below about this float32 has no full precision


class Sizes:
    """The sizes of the quantities of a step, each computed when it is first asked for: sizes["dW"]."""

    def __init__(self, step: Step, tolerance: float) -> None:
        """Sizes of a step; they depend on the tolerance where AdamW divides."""
        self.step, self.tolerance = step, tolerance
        self.known: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """The size of a quantity, broadcasting against it; 0 where the quantity must be equal."""
        if name not in self.known:
            self.known[name] = SIZES[name](self.step, self)
        return self.known[name]

    def allowed(self, name: str) -> Any:
        """How far each entry of a quantity may be off."""
        return self.tolerance * self[name] + TINY

    @property
    def near(self) -> Mask:
        """The gates (L, M) that rounding alone may flip."""
        near: Mask = abs(self.step["y"]) <= self.allowed("y")
        return near


Size: TypeAlias = Callable[[Step, Sizes], Any]


def _of_theta(theta: str) -> dict[str, Size]:
    """The sizes on the way from the gradient of θ to θ after AdamW."""

    def m(e: Step, k: Sizes) -> Any:
        beta1 = e.config.beta1 if theta in e["trained"] else 1
        return beta1 * abs(e.was(f"m.{theta}")) + (beta1 < 1) * (1 - beta1) * k[f"d{theta}"]

    def v(e: Step, k: Sizes) -> Any:
        if theta not in e["trained"]:
            return e[f"v.{theta}"]
        g, off = abs(e[f"d{theta}"]), k[f"d{theta}"]
        return e[f"v.{theta}"] + (1 - e.config.beta2) * (2 * g * off + k.tolerance * off**2)

    def moved(e: Step, k: Sizes) -> Any:
        if theta not in e["trained"]:
            return abs(e.was(theta))
        c, count = e.config, int(e[f"updates.{theta}"])
        first, second = 1 - c.beta1**count, 1 - c.beta2**count
        m_hat, v_hat = abs(e[f"m.{theta}"]) / first, e[f"v.{theta}"] / second
        root = np.sqrt(v_hat) + c.adam_eps
        least = np.sqrt(np.maximum(v_hat - k.tolerance * k[f"v.{theta}"] / second, 0)) + c.adam_eps
        update = (k[f"m.{theta}"] / first + m_hat) / least + m_hat * (root - least) / (root * least * k.tolerance)
        return abs(e.was(theta)) + e["lr"] * update

    return {f"m.{theta}": m, f"v.{theta}": v, f"moved.{theta}": moved}


def _unit(theta: str) -> Size:
    """The size of rows at unit norm, where the norm is off as well."""

    def size(e: Step, k: Sizes) -> Any:
        moved, off = e[f"moved.{theta}"], k[f"moved.{theta}"]
        norm = np.linalg.norm(moved, axis=1, keepdims=True)  # (M, 1)
        unit = abs(moved) / norm
        return (off + unit * np.linalg.norm(off, axis=1, keepdims=True)) / norm + unit

    return size


def _a(e: Step) -> Any:
    return abs(e.was("a"))[:, None]  # (M, 1)


def _sizes() -> dict[str, Size]:
    sizes: dict[str, Size] = {
        "rows": lambda e, _: abs(e["rows"]),
        "x": lambda e, _: abs(e["x"]),
        "lr": lambda e, _: e["lr"],
        "x - b_pre": lambda e, k: k["x"] + abs(e.was("b_pre")),
        "y": lambda e, k: k["x - b_pre"] @ abs(e.was("W")).T + abs(e.was("b")),
        "s": lambda e, k: e["on"] * k["y"],
        "f": lambda e, k: k["s"] @ (_a(e) * abs(e.params.V)) + abs(e.was("b_pre")),
        "r": lambda _, k: k["f"] + k["x"],
        "v . r": lambda e, k: e["on"] * (k["r"] @ abs(e.params.V).T),
        "loss": lambda e, k: e["loss"] + np.mean(np.sum(abs(e["f"] - e["x"]) * k["r"], axis=1)),
        "dW.detector": lambda e, k: _a(e) * (k["v . r"].T @ k["x - b_pre"]) / len(e["x"]),
        "dW.reconstructor": lambda e, k: _a(e) * (k["s"].T @ k["r"]) / len(e["x"]),
        "dW": lambda e, k: k["dW.detector"] + (0 if "W_dec" in e.state else k["dW.reconstructor"]),
        "dW_dec": lambda _, k: k["dW.reconstructor"],
        "da": lambda _, k: np.mean(k["s"] * k["v . r"], axis=0),
        "db_pre": lambda e, k: k["r"].mean(axis=0) + (_a(e).T * k["v . r"].mean(axis=0) @ abs(e.was("W")))[0],
        "W": _unit("W"),
        "W_dec": _unit("W_dec"),
        "a": lambda _, k: k["moved.a"],
        "b_pre": lambda _, k: k["moved.b_pre"],
        "peaks": lambda e, k: np.maximum(e.was("left.peaks"), k["y"].max(axis=0)),
        "target": lambda e, _: e["target"],
        "p": lambda e, _: e["p"],
        "T": lambda e, k: in_groups(e, k["peaks"]) / np.maximum(in_groups(e, e["peaks"] > 0), 1),
        "b": lambda e, k: abs(e.was("b")) + e.adapts * _moves(e, k),
        "left.peaks": lambda e, k: (not e.adapts) * k["peaks"],
    }
    for theta in THETA:
        sizes |= _of_theta(theta)
    return {name: _nothing for name in QUANTITIES} | sizes


def _moves(e: Step, k: Sizes) -> Any:
    """By how much Algorithm 2 moves a bias at most, (M,)."""
    return e.config.gamma_minus * k["peaks"] + e.config.gamma_plus * k["T"][e["group"]]


def _nothing(e: Step, k: Sizes) -> Any:  # noqa: ARG001 - sizes are called alike
    return 0.0


SIZES = _sizes()
