"""Mistakes in line 2: pre-activations, gates, codes and the reconstruction."""

from __future__ import annotations

import numpy as np

from refgba import sae
from refgba.oracle.mistakes.formulas import Known, a, early_bias
from refgba.oracle.stepwise import FORMULAS, jump

MISTAKES: Known = {
    "b_pre is not subtracted from the input": {"z": lambda e: e["x"] @ e.was("W").T},
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
    "a acts twice on the reconstruction": {"f": lambda e: sae.decode(e.params, e["s"] * e.was("a"))},
    "W reconstructs, not the decoder W_dec": {"f": lambda e: e["s"] @ (a(e) * e.was("W")) + e.was("b_pre")},
}
