"""Mistakes in line 3: the gradients, path by path."""

from __future__ import annotations

from typing import Any

import numpy as np

from refgba.oracle.mistakes.formulas import Known, L, a, r, scaled, to_bias, vr
from refgba.oracle.stepwise import FORMULAS, Formula, Step, jump

KERNELS = (1e-3, 1e-2, 0.1, 1.0)  # usual widths of a rectangle in the place of the jump's derivative


def tied(e: Step) -> bool:
    """Whether detectors reconstruct."""
    return "W_dec" not in e.state


def detector(e: Step, gate: Any = None, x: Any = None, out: Any = None) -> Any:
    """The detector's gradient (M, d) with another gate (L, M), input (L, d) or output scale."""
    x = e["x"] - e.was("b_pre") if x is None else x
    through = vr(e) * (e["on"] if gate is None else gate)
    return (a(e) if out is None else out) * (through.T @ x) / L(e)


def input_bias(e: Step, gate: Any = None, out: Any = None) -> Any:
    """The gradient (d,) of b_pre with another gate (L, M) or output scale."""
    through = vr(e) * (e["on"] if gate is None else gate)
    return r(e).mean(axis=0) - ((e.was("a") if out is None else out) * through.mean(axis=0)) @ e.was("W")


def through_jump(width: float) -> dict[str, Formula]:
    """Gradients with a rectangle of that width in the place of the jump's derivative."""

    def gate(e: Step) -> Any:  # dφ/dz
        return e["on"] + e["z" if jump(e) else "y"] * (abs(e["y"]) < width / 2) / width

    return {
        "dW.detector": lambda e: detector(e, gate=gate(e)),
        "db": lambda e: to_bias(e, gate(e) - e["on"]),
        "db_pre": lambda e: input_bias(e, gate=gate(e)),
    }


def through_sigmoid(width: float) -> dict[str, Formula]:
    """Gradients with the derivative of sigmoid(y / width) in the place of the jump's."""

    def gate(e: Step) -> Any:  # dφ/dz
        soft = 1 / (1 + np.exp(-e["y"] / width))
        return e["on"] + e["z" if jump(e) else "y"] * soft * (1 - soft) / width

    return {
        "dW.detector": lambda e: detector(e, gate=gate(e)),
        "db_pre": lambda e: input_bias(e, gate=gate(e)),
    }


def tangent(e: Step, gradient: str, theta: str) -> Any:
    """A gradient less its part along the rows."""
    g, rows = FORMULAS[gradient](e), e.was(theta)
    return g - np.sum(g * rows, axis=1, keepdims=True) * rows


def masked(gradient: str) -> Formula:
    """A gradient that is 0 for neurons that are held."""
    return lambda e: np.where(e["held"][:, None], 0, FORMULAS[gradient](e))


MISTAKES: Known = {
    "a is missing from the gradient of the detector": {"dW.detector": lambda e: detector(e, out=1)},
    "a is missing from the gradient of the reconstructor": {"dW.reconstructor": lambda e: e["s"].T @ r(e) / L(e)},
    "a is missing from both gradients of W": {
        "dW.detector": lambda e: detector(e, out=1),
        "dW.reconstructor": lambda e: e["s"].T @ r(e) / L(e),
    },
    "b_pre is not subtracted from x in the gradient of W": {"dW.detector": lambda e: detector(e, x=e["x"])},
    "the gradient passes closed gates": {
        "dW.detector": lambda e: detector(e, gate=1),
        "db_pre": lambda e: input_bias(e, gate=1),
    },
    "the gradient of the detector lacks the gate": {"dW.detector": lambda e: detector(e, gate=1)},
    "the gradient of b_pre lacks the gate": {"db_pre": lambda e: input_bias(e, gate=1)},
    "a gate that passes y, not z, is in the gradient of the reconstructor": {
        "dW.reconstructor": lambda e: a(e) * ((e["on"] * e["y" if jump(e) else "z"]).T @ r(e)) / L(e)
    },
    **{
        f"a gradient goes through the jump (a rectangle of width {width:g} as its derivative)": through_jump(width)
        for width in KERNELS
    },
    **{
        f"a gradient goes through the jump (the derivative of a sigmoid of width {width:g})": through_sigmoid(width)
        for width in KERNELS
    },
    "the detector's path is missing from the gradient of the tied W": {
        "dW": lambda e: e["dW.reconstructor"] if tied(e) else FORMULAS["dW"](e)
    },
    "the reconstructor's path is missing from the gradient of the tied W": {"dW": lambda e: e["dW.detector"]},
    "the paths of detector and reconstructor are averaged, not added": {
        "dW": lambda e: FORMULAS["dW"](e) / (2 if tied(e) else 1)
    },
    "both paths go to the detector although the decoder is its own": {
        "dW": lambda e: e["dW.detector"] + e["dW.reconstructor"]
    },
    "the gradient of W is projected on the tangent of the sphere": {"dW": lambda e: tangent(e, "dW", "W")},
    "the gradient of W_dec is projected on the tangent of the sphere": {
        "dW_dec": lambda e: tangent(e, "dW_dec", "W_dec")
    },
    "the gradients of held neurons are masked, which is harmless where their rows are restored": {
        name: masked(name) for name in ("dW", "dW_dec")
    },
    "the gradient of a multiplies by a": {"da": scaled("da", lambda e: e.was("a"))},
    "the gradient of a lacks the codes": {"da": lambda e: vr(e).mean(axis=0)},
    "the gradient of a uses x in the place of the residual": {
        "da": lambda e: np.mean(e["s"] * (e["x"] @ e.params.V.T), axis=0)
    },
    "the gradient of a uses y in the place of the code": {"da": lambda e: np.mean(e["on"] * e["y"] * vr(e), axis=0)},
    "the gradient of a uses the detectors of an untied network": {
        "da": lambda e: np.mean(e["s"] * (r(e) @ e.was("W").T), axis=0)
    },
    "b gets a gradient, as a bias of ReLU would": {"db": lambda e: to_bias(e, e["on"])},
    "the gradient of b_pre has only the decoder's path": {"db_pre": lambda e: r(e).mean(axis=0)},
    "the gradient of b_pre has only the encoder's path": {
        "db_pre": lambda e: FORMULAS["db_pre"](e) - r(e).mean(axis=0)
    },
    "the encoder's path to b_pre has the wrong sign": {
        "db_pre": lambda e: 2 * r(e).mean(axis=0) - FORMULAS["db_pre"](e)
    },
    "a is missing from the gradient of b_pre": {"db_pre": lambda e: input_bias(e, out=1)},
    "the encoder's path to b_pre goes through the decoder's rows": {
        "db_pre": lambda e: r(e).mean(axis=0) - (e.was("a") * (vr(e) * e["on"]).mean(axis=0)) @ e.params.V
    },
}
