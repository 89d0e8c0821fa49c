"""One step of Algorithms 1 and 2, quantity by quantity, in the order in which they are computed (section 3).

`gba.step` and `gba.adapt` are the algorithm; here each of their lines is a formula of its own, with a name.  The other
files of `oracle` record these quantities and compare others' with them, and `mistakes` replaces single formulas to see
what a known mistake makes of a step.  The tests hold that the formulas give what `gba` does, to the bit.

L rows in a batch, d dimensions, M neurons, K groups.  Names: "dW" is the gradient of W, "m.W", "v.W" and "updates.W"
are its moments and their count, "moved.W" is W after AdamW and before it is renormalised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from refgba import adam, bias, recipe, sae
from refgba.config import GBAConfig
from refgba.sae import Forward, Params, unit_rows
from refgba.types import Float64

Value: TypeAlias = npt.NDArray[Any]
Formula: TypeAlias = Callable[["Step"], Any]

THETA = ("W", "W_dec", "a", "b_pre")  # what the optimiser moves


class Step:
    """The quantities of step t, each computed when it is first asked for: step["dW"]."""

    def __init__(
        self,
        config: GBAConfig,
        t: int,
        rows: Float64,
        state: Mapping[str, Value],
        values: Mapping[str, Value] | None = None,
        instead: Mapping[str, Formula] | None = None,
        last: Mapping[str, Value] | None = None,
    ) -> None:
        """Step t = 1..T on rows (L, d) as they come, not yet scaled, from the quantities in STATE before it.

        values: quantities that are not computed but taken from here.  instead: formulas in the place of others.  last:
        the quantities of the last step before this one that line 6 followed, None where there was none.
        """
        self.config, self.t, self.last, self.instead = config, t, last, instead or {}
        self.state = dict(state)
        if recipe.fit_begins(config, t) and config.untied:  # `recipe.begin_fit`
            self.state |= {name.replace("W", "W_dec"): state[name] for name in ("W", "m.W", "v.W", "updates.W")}
        self.values: dict[str, Any] = {"rows": rows, **(values or {})}

    def __getitem__(self, name: str) -> Any:
        """A quantity, or one of HELPERS."""
        if name not in self.values:
            self.values[name] = self.instead.get(name, FORMULAS[name])(self)
        return self.values[name]

    def was(self, name: str) -> Any:
        """A quantity of STATE before the step."""
        return self.state[name]

    @property
    def params(self) -> Params:
        """The parameters before the step."""
        return Params(**{name: self.was(name) for name in ("W", "a", "b", "b_pre", "W_dec") if name in self.state})

    @property
    def adapts(self) -> bool:
        """Whether line 6 follows this step."""
        return self.t % self.config.adapt_every == 0


class Quantity(NamedTuple):
    """One quantity of a step.

    shape: its dimensions, one letter of L, d, M, K for each.  line: the line of the algorithm that computes it.
    formula: how.  kind: of its dtype.
    """

    shape: str
    line: str
    formula: Formula
    kind: str = "f"  # float64; "b" bool, "i" int64


def _quantities() -> dict[str, Quantity]:
    """All quantities of a step, in the order of the algorithm."""
    q = {
        "rows": Quantity("Ld", "line 1, draw a minibatch", lambda e: e.values["rows"]),
        "x": Quantity("Ld", "line 1, rows at unit norm", lambda e: unit_rows(e["rows"])),
        "held": Quantity("M", "recipe.agreeing", _held, "b"),
        "lr": Quantity("", "recipe.learning_rate", lambda e: recipe.learning_rate(e.config, e.t)),
        "y": Quantity("LM", "line 2, forward", lambda e: e["z"] + e.was("b")),
        "on": Quantity("LM", "line 2, forward, the gate", lambda e: e["y"] > 0, "b"),
        "s": Quantity("LM", "line 2, forward, the code", lambda e: e["on"] * e["z" if jump(e) else "y"]),
        "f": Quantity("Ld", "line 2, forward", lambda e: sae.decode(e.params, e["s"])),
        "loss": Quantity("", "line 3, the loss", lambda e: sae.loss(e["x"], e["f"])),
        "dW.detector": Quantity("Md", "line 3, backward", lambda e: e["gradients"].W),
        "dW.reconstructor": Quantity("Md", "line 3, backward", lambda e: e["gradients"].W_dec),
        "dW": Quantity("Md", "line 3, backward", _dW),
        "dW_dec": Quantity("Md", "line 3, backward", lambda e: e["dW.reconstructor"]),
        "da": Quantity("M", "line 3, backward", lambda e: e["gradients"].a),
        "db": Quantity("M", "line 3, backward", lambda e: e["gradients"].b),
        "db_pre": Quantity("d", "line 3, backward", lambda e: e["gradients"].b_pre),
    }
    for theta in THETA:
        shape, trained = SHAPES[theta], _when_trained(theta)
        q |= {
            f"updates.{theta}": Quantity("", "line 3, AdamW", trained("updates", _updates), "i"),
            f"m.{theta}": Quantity(shape, "line 3, AdamW", trained("m", _m)),
            f"v.{theta}": Quantity(shape, "line 3, AdamW", trained("v", _v)),
        }
    return q | {
        "moved.W": Quantity("Md", "line 3, AdamW", lambda e: moved(e, "W")),
        "moved.W_dec": Quantity("Md", "line 3, AdamW", lambda e: moved(e, "W_dec")),
        "W": Quantity("Md", "line 4, renormalise", lambda e: kept(e, "W")),
        "W_dec": Quantity("Md", "line 4, renormalise", lambda e: kept(e, "W_dec")),
        "a": Quantity("M", "line 3, AdamW", lambda e: moved(e, "a")),
        "b_pre": Quantity("d", "line 3, AdamW", lambda e: moved(e, "b_pre")),
        "seen": Quantity("", "line 5, the buffers, |B_m|", lambda e: e.was("left.seen") + len(e["x"]), "i"),
        "counts": Quantity("M", "line 5, the buffers", lambda e: e.was("left.counts") + e["on"].sum(axis=0), "i"),
        "peaks": Quantity(
            "M", "line 5, the buffers, r_m", lambda e: np.maximum(e.was("left.peaks"), e["y"].max(axis=0))
        ),
        "group": Quantity("M", "the groups", lambda e: e.config.group(), "i"),
        "target": Quantity("K", "the groups, p_k", lambda e: e.config.target()),
        "p": Quantity("M", "Algorithm 2", lambda e: e["counts"] / e["seen"]),
        "T": Quantity("K", "Algorithm 2", lambda e: mean_peaks(e, e["peaks"])),
        "lowered": Quantity("M", "Algorithm 2, p_m > p_k", lambda e: bias.too_often(e["p"], e["p_k"]), "b"),
        "raised": Quantity("M", "Algorithm 2, p_m < max(eps, floor p_k)", _raised, "b"),
        "b": Quantity("M", "Algorithm 2", lambda e: adapted(e) if e.adapts else e.was("b")),
        "left.seen": Quantity("", "line 6, empty the buffers", lambda e: e["seen"] * (not e.adapts), "i"),
        "left.counts": Quantity("M", "line 6, empty the buffers", lambda e: e["counts"] * (not e.adapts), "i"),
        "left.peaks": Quantity("M", "line 6, empty the buffers", lambda e: e["peaks"] * (not e.adapts)),
    }


# ---- formulas of more than a line, and what mistakes share with them -------------------------------------------------


def jump(e: Step) -> bool:
    """Whether z passes an open gate (JumpReLU), rather than y (ReLU)."""
    return e.config.activation == "jumprelu"


def _held(e: Step) -> Any:
    begins = recipe.fit_begins(e.config, e.t)
    return recipe.agreeing(e.was("W"), e.config.hold) if begins else e.was("held")


def _gradients(e: Step) -> Params:
    """With a decoder of its own even where tied: that keeps the two paths to W apart."""
    untied = Params(e.was("W"), e.was("a"), e.was("b"), e.was("b_pre"), W_dec=e.params.V)
    return sae.gradients(untied, e["x"], Forward(e["y"], e["on"], e["s"], e["f"]))


def _dW(e: Step) -> Any:
    return e["dW.detector"] + e["dW.reconstructor"] if "W_dec" not in e.state else e["dW.detector"]


def _when_trained(theta: str) -> Callable[[str, Callable[[Step, str], Any]], Formula]:
    """Formulas of an optimiser's state, which stays as it was while θ is not trained."""

    def when(part: str, formula: Callable[[Step, str], Any]) -> Formula:
        return lambda e: formula(e, theta) if theta in e["trained"] else e.was(f"{part}.{theta}")

    return when


def _updates(e: Step, theta: str) -> Any:
    return e.was(f"updates.{theta}") + 1


def _m(e: Step, theta: str) -> Any:
    return adam.moment(e.was(f"m.{theta}"), e[f"d{theta}"], e.config.beta1)


def _v(e: Step, theta: str) -> Any:
    return adam.moment(e.was(f"v.{theta}"), e[f"d{theta}"] ** 2, e.config.beta2)


def factors(e: Step, theta: str) -> adam.Factors:
    """AdamW's factors at this update of θ."""
    return adam.factors(int(e[f"updates.{theta}"]), e["lr"], e.config)


def moved(e: Step, theta: str) -> Any:
    """θ after AdamW."""
    if theta not in e["trained"]:
        return e.was(theta)
    return adam.moved(e.was(theta), e[f"m.{theta}"], e[f"v.{theta}"], factors(e, theta))


def kept(e: Step, theta: str, unit: Callable[[Any], Any] = unit_rows) -> Any:
    """W or W_dec renormalised, but for neurons that are held."""
    return np.where(e["held"][:, None], e.was(theta), unit(e[f"moved.{theta}"]))


def in_groups(e: Step, values: Any) -> Any:
    """The sum over each group of values (M,): (K,)."""
    return np.bincount(e["group"], values, len(e["target"]))


def mean_peaks(e: Step, peaks: Any) -> Any:
    """T_k of these peaks (M,): (K,)."""
    return bias.mean_positive_peaks(peaks, e["group"], len(e["target"]))


def least(e: Step) -> Any:
    """The frequency below which a neuron is raised, (M,)."""
    return np.maximum(e.config.eps, e.config.floor * e["p_k"])


def _raised(e: Step) -> Any:
    return ~e["lowered"] & bias.never(e["p"], e["p_k"], e.config.eps, e.config.floor)


def adapted(e: Step) -> Any:
    """The biases after Algorithm 2."""
    c = e.config
    return bias.moved(
        e.was("b"), e["peaks"], e["T"][e["group"]], e["lowered"], e["raised"], c.gamma_minus, c.gamma_plus
    )  # fmt: skip


SHAPES = {"W": "Md", "W_dec": "Md", "a": "M", "b_pre": "d"}
QUANTITIES = _quantities()
HELPERS: dict[str, Formula] = {  # for formulas, not recorded
    "z": lambda e: (e["x"] - e.was("b_pre")) @ e.was("W").T,  # (L, M)   y without b
    "gradients": _gradients,
    "trained": lambda e: recipe.trained(e.config, e.t),
    "p_k": lambda e: e["target"][e["group"]],  # (M,)   the target of each neuron's group
}
FIRST_USE = {"z": "y", "gradients": "dW.detector", "trained": "updates.W", "p_k": "lowered"}
ORDER = {name: place for place, name in enumerate(QUANTITIES)}
ORDER |= {helper: ORDER[name] for helper, name in FIRST_USE.items()}
FORMULAS = {name: quantity.formula for name, quantity in QUANTITIES.items()} | HELPERS
CONSTANT = ("group", "target")  # the same at every step
ADAPTATION = (*CONSTANT, "p", "T", "lowered", "raised")  # in a trace only at steps that line 6 follows
STATE = (
    *THETA, "b", "held", *(f"{part}.{theta}" for theta in THETA for part in ("updates", "m", "v")),
    "left.seen", "left.counts", "left.peaks",
)  # fmt: skip


def of_decoder(name: str) -> bool:
    """Whether a quantity belongs to a decoder of its own (`untied`)."""
    return name.endswith("W_dec")


def names(config: GBAConfig, t: int) -> list[str]:
    """The quantities of step t = 1..T in order."""
    there = [name for name in QUANTITIES if _has_decoder(config, t) or not of_decoder(name)]
    return [name for name in there if t % config.adapt_every == 0 or name not in ADAPTATION]


def state_names(config: GBAConfig, t: int) -> list[str]:
    """The quantities of the state after step t, or before the first where t = 0."""
    return [name for name in STATE if _has_decoder(config, t) or not of_decoder(name)]


def _has_decoder(config: GBAConfig, t: int) -> bool:
    forming = recipe.forming_steps(config)
    return config.untied and (t > forming or forming == 0)


def needs(name: str, step: Step) -> list[str]:
    """The quantities that a quantity is directly computed from; "W before" is W as the step found it."""
    asked: dict[str, None] = {}

    class Listening(Step):
        def __getitem__(self, key: str) -> Any:
            if key in QUANTITIES:
                asked[key] = None
                return step[key]
            return FORMULAS[key](self) if key in HELPERS else step[key]

        def was(self, key: str) -> Any:
            asked[f"{key} before"] = None
            return super().was(key)

    FORMULAS[name](Listening(step.config, step.t, step["rows"], step.state, last=step.last))
    return list(asked)
