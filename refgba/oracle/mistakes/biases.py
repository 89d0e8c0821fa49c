"""Mistakes in line 6: Algorithm 2, when it runs, and the buffers emptied after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refgba import bias
from refgba.oracle.mistakes.formulas import BUFFER, K, Known, L, M, algorithm, same, scaled, to_bias
from refgba.oracle.stepwise import FORMULAS, Step, in_groups, least, mean_peaks


def by_group(e: Step, of: Callable[[Any], Any], among: Any = True) -> Any:
    """A statistic of the positive peaks of each group, or of some of its neurons (M,), (K,)."""
    groups = [e["peaks"][(e["group"] == k) & (e["peaks"] > 0) & among] for k in range(K(e))]
    return np.array([of(peaks) if peaks.size else 0.0 for peaks in groups])


def moved(
    e: Step, *, minus: float | None = None, plus: float | None = None, peaks: Any = None, T: Any = None, b: Any = None
) -> Any:  # fmt: skip
    """The biases (M,) after Algorithm 2, where it runs, with other gammas, peaks, means T (M,) or biases before it."""
    c = e.config
    return (
        bias.moved(
            e.was("b") if b is None else b,
            e["peaks"] if peaks is None else peaks,
            e["T"][e["group"]] if T is None else T,
            e["lowered"],
            e["raised"],
            c.gamma_minus if minus is None else minus,
            c.gamma_plus if plus is None else plus,
        )
        if e.adapts
        else e.was("b")
    )


def clipped(e: Step, lowest: float, highest: float) -> Any:
    """The biases (M,) after Algorithm 2, where it runs, with other bounds."""
    b, c = e.was("b"), e.config
    down = np.maximum(b - c.gamma_minus * e["peaks"], lowest)
    up = np.minimum(b + c.gamma_plus * e["T"][e["group"]], highest)
    return np.where(e["lowered"], down, np.where(e["raised"], up, b)) if e.adapts else b


MISTAKES: Known = {
    "frequencies divide by the rows of a batch, not of the buffer": {"p": lambda e: e["counts"] / L(e)},
    "frequencies divide by the rows of the buffer less 1": {"p": lambda e: e["counts"] / max(e["seen"] - 1, 1)},
    "frequencies are those of the last batch": {"p": lambda e: e["on"].mean(axis=0)},
    "frequencies are counts": {"p": lambda e: e["counts"]},
    "biases are adapted before this batch is added to the buffers": {
        "p": lambda e: e.was("left.counts") / max(e.was("left.seen"), 1),
        "T": lambda e: mean_peaks(e, e.was("left.peaks")),
        "b": lambda e: moved(e, peaks=e.was("left.peaks")),
    },
    "T_k divides by the size of the group, not by its positive peaks": {
        "T": lambda e: in_groups(e, e["peaks"]) / np.bincount(e["group"], minlength=K(e))
    },
    "T_k leaves out the neurons over their target": {"T": lambda e: by_group(e, np.mean, e["p"] <= e["p_k"])},
    "T_k is the mean over all neurons, not over the group": {
        "T": lambda e: np.full(K(e), e["peaks"].sum() / max(1, np.count_nonzero(e["peaks"] > 0)))
    },
    "T_k is the sum, not the mean": {"T": lambda e: in_groups(e, e["peaks"])},
    "T_k is the largest peak, not the mean": {"T": lambda e: by_group(e, np.max)},
    "T_k is the median, not the mean": {"T": lambda e: by_group(e, np.median)},
    "a neuron is lowered at p_m >= p_k, not above": {"lowered": lambda e: e["p"] >= e["p_k"]},
    "a neuron is lowered below its target, not above": {"lowered": lambda e: e["p"] < e["p_k"]},
    "all groups use the first target": {"lowered": lambda e: e["p"] > e["target"][0]},
    "a neuron is raised only below eps, not below floor of its target": {
        "raised": lambda e: ~e["lowered"] & (e["p"] < e.config.eps)
    },
    "floor is a share of HTF, not of the group's target": {
        "raised": lambda e: ~e["lowered"] & (e["p"] < max(e.config.eps, e.config.floor * e.config.htf))
    },
    "floor is a frequency, not a share of the target": {
        "raised": lambda e: ~e["lowered"] & (e["p"] < max(e.config.eps, e.config.floor))
    },
    "a neuron is raised whenever it is below its target": {"raised": lambda e: ~e["lowered"] & (e["p"] < e["p_k"])},
    "a neuron is raised whenever it is not lowered": {"raised": lambda e: ~e["lowered"]},
    "a neuron is raised at p_m <= the least frequency, not below": {
        "raised": lambda e: ~e["lowered"] & (e["p"] <= least(e))
    },
    "no neuron is raised": {"raised": lambda e: np.zeros(M(e), bool)},
    "the bias is not clipped at -1": {"b": lambda e: clipped(e, -np.inf, 0)},
    "the bias is not clipped at 0": {"b": lambda e: clipped(e, -1, np.inf)},
    "the bias is not clipped": {"b": lambda e: clipped(e, -np.inf, np.inf)},
    "gamma_minus and gamma_plus are swapped": {
        "b": lambda e: moved(e, minus=e.config.gamma_plus, plus=e.config.gamma_minus)
    },
    "both directions use gamma_minus": {"b": lambda e: moved(e, plus=e.config.gamma_minus)},
    "both directions use gamma_plus": {"b": lambda e: moved(e, minus=e.config.gamma_plus)},
    "the bias is lowered by T_k, not by the neuron's peak": {"b": lambda e: moved(e, peaks=e["T"][e["group"]])},
    "the bias is raised by the neuron's peak, not by T_k": {"b": lambda e: moved(e, T=e["peaks"])},
    "the bias moves by gamma itself, not by a share of a peak": {"b": lambda e: moved(e, peaks=1, T=1)},
    "the biases of held neurons stay": {"b": lambda e: np.where(e["held"], e.was("b"), FORMULAS["b"](e))},
    "neurons that are held are not raised": {"raised": lambda e: FORMULAS["raised"](e) & ~e["held"]},
    "the bias moves the wrong way": {"b": lambda e: moved(e, minus=-e.config.gamma_minus, plus=-e.config.gamma_plus)},
    "the bias starts from 0 at every adaptation": {"b": lambda e: moved(e, b=np.zeros(M(e)))},
    "biases are adapted at this step, which adapt_every does not divide": {
        "b": lambda e: algorithm(e, e["seen"], e["counts"], e["peaks"])
    },
    "biases are not adapted at this step, which adapt_every divides": {
        "b": lambda e: e.was("b"),
        **{f"left.{name}": same(name) for name in BUFFER},
    },
    "biases are not adapted at this step, which adapt_every divides, but the buffers are emptied": {
        "b": lambda e: e.was("b")
    },
    "the optimiser moves b (its first step)": {"b": lambda e: e.was("b") - e["lr"] * np.sign(to_bias(e, e["on"]))},
    "the buffers are not emptied after adapting": {f"left.{name}": same(name) for name in BUFFER},
    **{f"{name} is not emptied after adapting": {f"left.{name}": same(name)} for name in BUFFER},
    "the buffers are emptied after every step": {f"left.{name}": scaled(name, lambda _: 0) for name in BUFFER},
}
