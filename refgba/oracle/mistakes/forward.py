"""Mistakes in line 2: pre-activations, gates, codes and the reconstruction."""

from __future__ import annotations

from typing import Any

import numpy as np

from refgba import sae
from refgba.oracle.mistakes.formulas import Known, L, a, early_bias, norm, r, vr
from refgba.oracle.mistakes.recipe import begins
from refgba.oracle.stepwise import FORMULAS, Step, jump
from refgba.sae import unit_rows


def input_scaled(e: Step) -> Any:
    """The input of the detectors at unit norm, (L, d)."""
    return unit_rows(e["x"] - e.was("b_pre"))


def through_scaling(e: Step) -> Any:
    """The gradient (L, d) of the loss of each row in x - b_pre, through its scaling to unit norm."""
    u = input_scaled(e)
    g = (e["on"] * vr(e) * e.was("a")) @ e.was("W")
    return (g - np.sum(g * u, axis=1, keepdims=True) * u) / norm(e["x"] - e.was("b_pre"))


MISTAKES: Known = {
    "b_pre is not subtracted from the input": {
        "z": lambda e: e["x"] @ e.was("W").T,
        "dW.detector": lambda e: a(e) * ((vr(e) * e["on"]).T @ e["x"]) / L(e),
    },
    "b_pre is not subtracted from the input, and its gradient lacks that path": {
        "z": lambda e: e["x"] @ e.was("W").T,
        "dW.detector": lambda e: a(e) * ((vr(e) * e["on"]).T @ e["x"]) / L(e),
        "db_pre": lambda e: r(e).mean(axis=0),
    },
    "x - b_pre is scaled to unit norm": {
        "z": lambda e: input_scaled(e) @ e.was("W").T,
        "dW.detector": lambda e: a(e) * ((vr(e) * e["on"]).T @ input_scaled(e)) / L(e),
        "db_pre": lambda e: (r(e) - through_scaling(e)).mean(axis=0),
    },
    "b_pre is added to the input, not subtracted": {"z": lambda e: (e["x"] + e.was("b_pre")) @ e.was("W").T},
    "b is not added to the pre-activations": {"y": lambda e: e["z"]},
    "b is subtracted from the pre-activations, not added": {"y": lambda e: e["z"] - e.was("b")},
    "the pre-activations are multiplied by a": {"y": lambda e: e["z"] * e.was("a") + e.was("b")},
    "b is stale: that of before the last adaptation": {
        "y": lambda e: e["z"] + (e.last["b before"] if e.last else e.was("b"))
    },
    "biases are adapted before the step, not after the optimiser": {
        "y": lambda e: e["z"] + (early_bias(e) if e.adapts else e.was("b")),
        "b": lambda e: early_bias(e) if e.adapts else e.was("b"),
    },
    "biases are adapted before the backward pass, not after the optimiser": {
        "on": lambda e: e["z"] + FORMULAS["b"](e) > 0,
        "counts": lambda e: e.was("left.counts") + (e["y"] > 0).sum(axis=0),
    },
    "gates are 1{y >= 0}, not 1{y > 0}": {"on": lambda e: e["y"] >= 0},
    "gates are 1{z > 0}, without the bias": {"on": lambda e: e["z"] > 0},
    "gates are 1{z > b}, the bias with the wrong sign": {"on": lambda e: e["z"] > e.was("b")},
    "gates are 1{|y| > 0}": {"on": lambda e: abs(e["y"]) > 0},
    "the other magnitude passes open gates: JumpReLU passes z and ReLU y": {
        "s": lambda e: e["on"] * e["y" if jump(e) else "z"]
    },
    "codes are not gated": {"s": lambda e: e["z" if jump(e) else "y"]},
    "codes are relu(y) - b, which is -b where a gate is closed": {
        "s": lambda e: np.maximum(e["y"], 0) - (e.was("b") if jump(e) else 0)
    },
    "codes are multiplied by a": {"s": lambda e: FORMULAS["s"](e) * e.was("a")},
    "a is missing from the reconstruction": {"f": lambda e: e["s"] @ e.params.V + e.was("b_pre")},
    "b_pre is not added to the reconstruction": {"f": lambda e: FORMULAS["f"](e) - e.was("b_pre")},
    "b_pre is not added to the reconstruction, and its gradient lacks that path": {
        "f": lambda e: FORMULAS["f"](e) - e.was("b_pre"),
        "db_pre": lambda e: FORMULAS["db_pre"](e) - r(e).mean(axis=0),
    },
    "f is scaled to unit norm": {"f": lambda e: FORMULAS["f"](e) / np.maximum(norm(FORMULAS["f"](e)), 1e-37)},
    "exp(a) scales the codes, not a": {
        "f": lambda e: e["s"] @ (np.exp(a(e)) * e.params.V) + e.was("b_pre"),
    },
    "softplus(a) scales the codes, not a": {
        "f": lambda e: e["s"] @ (np.logaddexp(a(e), 0) * e.params.V) + e.was("b_pre"),
    },
    "the new decoder begins as a_m w_m, not as w_m": {
        "f": lambda e: sae.decode(e.params, e["s"] * (e.was("a") if begins(e) and e.config.untied else 1)),
    },
    "a acts twice on the reconstruction": {"f": lambda e: sae.decode(e.params, e["s"] * e.was("a"))},
    "W reconstructs, not the decoder W_dec": {"f": lambda e: e["s"] @ (a(e) * e.was("W")) + e.was("b_pre")},
}
