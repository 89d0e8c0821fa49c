"""What is known to go wrong when GBA is written again (ours): each mistake as formulas in the place of the right ones.

`oracle` works a step through with each of them and names those whose numbers are the ones it was given.  A mistake
replaces formulas of `stepwise`, by name; what follows from them follows by itself, so that a port which shows only W is
told of a wrong gradient too.  Texts say what the other implementation does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from refgba import recipe, sae
from refgba.bias import Buffer
from refgba.bias import adapt as algorithm_2
from refgba.oracle.stepwise import FORMULAS, THETA, Formula, Step, in_groups, jump, kept
from refgba.sae import Params, unit_rows

KERNELS = (1e-3, 1e-2, 0.1, 1.0)  # usual widths of a rectangle in the place of the jump's derivative
OFFSETS = (1e-12, 1e-8, 1e-6, 1e-5)  # usual numbers beside a norm against division by zero
BUFFER = ("seen", "counts", "peaks")
GRADIENTS = ("dW.detector", "dW.reconstructor", "da", "db_pre")


Known: TypeAlias = dict[str, dict[str, Formula]]  # what another implementation does, by which formulas


# ---- lines 1 and 2 ---------------------------------------------------------------------------------------------------


def _rows(known: Known) -> None:
    known["rows are not scaled to unit norm"] = {"x": lambda e: e["rows"]}
    known["rows are scaled to norm sqrt(d), not 1"] = {"x": lambda e: unit_rows(e["rows"]) * np.sqrt(d(e))}
    known["columns are scaled to unit norm, not rows"] = {"x": lambda e: unit_rows(e["rows"].T).T}
    known["rows are divided by the norm of the whole batch"] = {"x": lambda e: e["rows"] / np.linalg.norm(e["rows"])}
    known["rows are divided by the sum of absolute values, not the norm"] = {"x": lambda e: divided(e["rows"], 1)}
    known["rows are divided by their largest entry, not the norm"] = {"x": lambda e: divided(e["rows"], np.inf)}
    known["rows are centred on the batch before they are scaled"] = {"x": lambda e: unit_rows(centred(e["rows"]))}
    for ddof, kind in ((0, "population"), (1, "sample")):
        text = f"rows are standardised by the batch's mean and {kind} deviation, not scaled to unit norm"
        known[text] = {"x": standardised(ddof)}
    for tiny in OFFSETS:
        known[f"{tiny:g} is added to the norm of the rows"] = {"x": over_norm(tiny)}


def _recipe(known: Known) -> None:
    known["no neuron is held when forming ends"] = {"held": lambda e: np.zeros(M(e), bool)}
    known["every neuron agrees with itself, so all are held"] = {"held": lambda e: np.ones(M(e), bool)}
    known["agreement is looked for at this step, not once when forming ends"] = {
        "held": lambda e: recipe.agreeing(e.was("W"), e.config.hold)
    }
    known["agreement takes the absolute cosine"] = {"held": lambda e: agreeing_either_way(e)}
    known["agreement is looked for after the step, not before it"] = {"held": _held_after}
    known["the learning rate does not decay"] = {"lr": lambda e: e.config.lr}
    known["the learning rate decays over the run, not over each phase"] = {
        "lr": lambda e: decayed(e, 1, e.config.steps)
    }
    known["the decay of the learning rate counts steps from 0"] = {"lr": lambda e: decayed(e, *phase(e), late=-1)}
    known["the learning rate reaches 0 at the last step of a phase"] = {"lr": lambda e: decayed(e, *phase(e), late=1)}
    known["the learning rate decays from the first step of a phase"] = {
        "lr": lambda e: decayed(e, *phase(e), share=1.0)
    }
    known["a and b_pre are trained while features form"] = {
        "trained": lambda e: ("W", "W_dec", "a", "b_pre") if "W_dec" in e.state else ("W", "a", "b_pre")
    }
    known["a and b_pre stay fixed after forming"] = {"trained": lambda _: ("W",)}
    known["fitting begins a step late"] = {
        "trained": lambda e: recipe.trained(e.config, e.t - 1),
        "held": lambda e: e.was("held"),
        "lr": lambda e: (
            decayed(e, 1, max(1, recipe.forming_steps(e.config)), late=1) if begins(e) else FORMULAS["lr"](e)
        ),
    }
    known["the moments of the new decoder begin at 0, not at W's"] = {
        "m.W_dec": lambda e: first(e, "m") if begins(e) else FORMULAS["m.W_dec"](e),
        "v.W_dec": lambda e: first(e, "v") if begins(e) else FORMULAS["v.W_dec"](e),
    }
    known["the new decoder counts its updates from 0, not from W's"] = {
        "updates.W_dec": lambda e: 1 if begins(e) else FORMULAS["updates.W_dec"](e)
    }


def _forward(known: Known) -> None:
    known["b_pre is not subtracted from the input"] = {"z": lambda e: e["x"] @ e.was("W").T}
    known["b_pre is added to the input, not subtracted"] = {"z": lambda e: (e["x"] + e.was("b_pre")) @ e.was("W").T}
    known["b is not added to the pre-activations"] = {"y": lambda e: e["z"]}
    known["b is subtracted from the pre-activations, not added"] = {"y": lambda e: e["z"] - e.was("b")}
    known["the pre-activations are multiplied by a"] = {"y": lambda e: e["z"] * e.was("a") + e.was("b")}
    known["b is stale: that of before the last adaptation"] = {
        "y": lambda e: e["z"] + (e.last["b before"] if e.last else e.was("b"))
    }
    known["biases are adapted before the step, not after the optimiser"] = {
        "y": lambda e: e["z"] + (early_bias(e) if e.adapts else e.was("b")),
        "b": lambda e: early_bias(e) if e.adapts else e.was("b"),
    }
    known["biases are adapted before the backward pass, not after the optimiser"] = {
        "on": lambda e: e["z"] + FORMULAS["b"](e) > 0,
        "counts": lambda e: e.was("left.counts") + (e["y"] > 0).sum(axis=0),
    }
    known["gates are 1{y >= 0}, not 1{y > 0}"] = {"on": lambda e: e["y"] >= 0}
    known["gates are 1{z > 0}, without the bias"] = {"on": lambda e: e["z"] > 0}
    known["gates are 1{z > b}, the bias with the wrong sign"] = {"on": lambda e: e["z"] > e.was("b")}
    known["gates are 1{|y| > 0}"] = {"on": lambda e: abs(e["y"]) > 0}
    known["the other magnitude passes open gates: JumpReLU passes z and ReLU y"] = {
        "s": lambda e: e["on"] * e["y" if jump(e) else "z"]
    }
    known["codes are not gated"] = {"s": lambda e: e["z" if jump(e) else "y"]}
    known["codes are multiplied by a"] = {"s": lambda e: FORMULAS["s"](e) * e.was("a")}
    known["a is missing from the reconstruction"] = {"f": lambda e: e["s"] @ e.params.V + e.was("b_pre")}
    known["b_pre is not added to the reconstruction"] = {"f": lambda e: FORMULAS["f"](e) - e.was("b_pre")}
    known["a acts twice on the reconstruction"] = {"f": lambda e: sae.decode(e.params, e["s"] * e.was("a"))}
    known["W reconstructs, not the decoder W_dec"] = {"f": lambda e: e["s"] @ (a(e) * e.was("W")) + e.was("b_pre")}


# ---- line 3 ----------------------------------------------------------------------------------------------------------


def _loss(known: Known) -> None:
    factors: tuple[tuple[str, Callable[[Step], Any]], ...] = (
        ("lacks its 1/2", lambda _: 2),
        ("is summed over the batch, not its mean", lambda e: L(e)),
        ("is summed over the batch and lacks its 1/2", lambda e: 2 * L(e)),
        ("divides by L - 1, not L", lambda e: L(e) / max(L(e) - 1, 1)),
        ("is the mean over the d entries too", lambda e: 1 / d(e)),
        ("is the mean over the d entries too and lacks its 1/2", lambda e: 2 / d(e)),
    )
    for text, factor in factors:
        alone = {"loss": scaled("loss", factor)}
        all_of_them = {name: scaled(name, factor) for name in GRADIENTS}
        known[f"the loss {text}"] = alone
        known[f"the loss {text}, and so do the gradients"] = alone | all_of_them
        known[f"the loss behind the gradients {text}"] = all_of_them
        for name in GRADIENTS:
            known[f"the loss behind {name} {text}"] = {name: scaled(name, factor)}
        known[f"the loss behind dW {text}"] = {name: scaled(name, factor) for name in GRADIENTS[:2]}
    known["the loss is the norm, not its square"] = {"loss": lambda e: 0.5 * np.mean(np.linalg.norm(r(e), axis=1))}
    known["the residual of the gradients is x - f, not f - x"] = {
        name: scaled(name, lambda _: -1) for name in GRADIENTS
    }


def _backward(known: Known) -> None:
    known["a is missing from the gradient of the detector"] = {"dW.detector": lambda e: detector(e, out=1)}
    known["a is missing from the gradient of the reconstructor"] = {
        "dW.reconstructor": lambda e: e["s"].T @ r(e) / L(e)
    }
    known["a is missing from both gradients of W"] = {
        "dW.detector": lambda e: detector(e, out=1),
        "dW.reconstructor": lambda e: e["s"].T @ r(e) / L(e),
    }
    known["b_pre is not subtracted from x in the gradient of W"] = {"dW.detector": lambda e: detector(e, x=e["x"])}
    known["the gradient passes closed gates"] = {
        "dW.detector": lambda e: detector(e, gate=1),
        "db_pre": lambda e: input_bias(e, gate=1),
    }
    known["the gradient of the detector lacks the gate"] = {"dW.detector": lambda e: detector(e, gate=1)}
    known["the gradient of b_pre lacks the gate"] = {"db_pre": lambda e: input_bias(e, gate=1)}
    known["a gate that passes y, not z, is in the gradient of the reconstructor"] = {
        "dW.reconstructor": lambda e: a(e) * ((e["on"] * e["y" if jump(e) else "z"]).T @ r(e)) / L(e)
    }
    for width in KERNELS:
        known[f"a gradient goes through the jump (a rectangle of width {width:g} as its derivative)"] = through_jump(
            width
        )
    known["the detector's path is missing from the gradient of the tied W"] = {
        "dW": lambda e: e["dW.reconstructor"] if tied(e) else FORMULAS["dW"](e)
    }
    known["the reconstructor's path is missing from the gradient of the tied W"] = {"dW": lambda e: e["dW.detector"]}
    known["the paths of detector and reconstructor are averaged, not added"] = {
        "dW": lambda e: FORMULAS["dW"](e) / (2 if tied(e) else 1)
    }
    known["both paths go to the detector although the decoder is its own"] = {
        "dW": lambda e: e["dW.detector"] + e["dW.reconstructor"]
    }
    known["the gradient of W is projected on the tangent of the sphere"] = {"dW": lambda e: tangent(e, "dW", "W")}
    known["the gradient of W_dec is projected on the tangent of the sphere"] = {
        "dW_dec": lambda e: tangent(e, "dW_dec", "W_dec")
    }
    known["the gradient of a multiplies by a"] = {"da": scaled("da", lambda e: e.was("a"))}
    known["the gradient of a lacks the codes"] = {"da": lambda e: vr(e).mean(axis=0)}
    known["the gradient of a uses x in the place of the residual"] = {
        "da": lambda e: np.mean(e["s"] * (e["x"] @ e.params.V.T), axis=0)
    }
    known["the gradient of a uses y in the place of the code"] = {
        "da": lambda e: np.mean(e["on"] * e["y"] * vr(e), axis=0)
    }
    known["the gradient of a uses the detectors of an untied network"] = {
        "da": lambda e: np.mean(e["s"] * (r(e) @ e.was("W").T), axis=0)
    }
    known["b gets a gradient, as a bias of ReLU would"] = {"db": lambda e: to_bias(e, e["on"])}
    known["the gradient of b_pre has only the decoder's path"] = {"db_pre": lambda e: r(e).mean(axis=0)}
    known["the gradient of b_pre has only the encoder's path"] = {
        "db_pre": lambda e: FORMULAS["db_pre"](e) - r(e).mean(axis=0)
    }
    known["the encoder's path to b_pre has the wrong sign"] = {
        "db_pre": lambda e: 2 * r(e).mean(axis=0) - FORMULAS["db_pre"](e)
    }
    known["a is missing from the gradient of b_pre"] = {"db_pre": lambda e: input_bias(e, out=1)}
    known["the encoder's path to b_pre goes through the decoder's rows"] = {
        "db_pre": lambda e: r(e).mean(axis=0) - (e.was("a") * (vr(e) * e["on"]).mean(axis=0)) @ e.params.V
    }


def _optimiser(known: Known) -> None:
    known["updates are not counted"] = each("updates", lambda e, theta: e.was(f"updates.{theta}"))
    known["the updates of every parameter are counted by the steps of the run"] = each("updates", lambda e, _: e.t)
    known["beta1 and beta2 are swapped"] = {
        **each("m", lambda e, theta: averaged(e, "m", theta, e[f"d{theta}"], e.config.beta2)),
        **each("v", lambda e, theta: averaged(e, "v", theta, e[f"d{theta}"] ** 2, e.config.beta1)),
    }
    known["m adds the gradient without 1 - beta1"] = each(
        "m", lambda e, theta: e.config.beta1 * e.was(f"m.{theta}") + e[f"d{theta}"]
    )
    known["m forgets what it was"] = each("m", lambda e, theta: (1 - e.config.beta1) * e[f"d{theta}"])
    known["v adds the squared gradient without 1 - beta2"] = each(
        "v", lambda e, theta: e.config.beta2 * e.was(f"v.{theta}") + e[f"d{theta}"] ** 2
    )
    known["v averages the gradient's absolute value, not its square"] = each(
        "v", lambda e, theta: averaged(e, "v", theta, abs(e[f"d{theta}"]), e.config.beta2)
    )
    known["v averages the square of m, not of the gradient"] = each(
        "v", lambda e, theta: averaged(e, "v", theta, e[f"m.{theta}"] ** 2, e.config.beta2)
    )
    known["v averages the deviation from m (AdaBelief)"] = each(
        "v", lambda e, theta: averaged(e, "v", theta, (e[f"d{theta}"] - e[f"m.{theta}"]) ** 2, e.config.beta2)
    )
    known["weight decay is coupled: it goes into the gradient and its moments"] = {
        **each("m", lambda e, theta: averaged(e, "m", theta, coupled(e, theta), e.config.beta1)),
        **each("v", lambda e, theta: averaged(e, "v", theta, coupled(e, theta) ** 2, e.config.beta2)),
        **after(lambda e, theta: adamw(e, theta, decay=0)),
    }
    known["weight decay is missing"] = after(lambda e, theta: adamw(e, theta, decay=0))
    known["weight decay is not multiplied by the learning rate"] = after(lambda e, theta: adamw(e, theta, decay=1))
    known["weight decay does not follow the decayed learning rate"] = after(
        lambda e, theta: adamw(e, theta, decay=e.config.lr)
    )
    known["weight decay has the wrong sign"] = after(lambda e, theta: adamw(e, theta, decay=-e["lr"]))
    known["epsilon is inside the root"] = after(lambda e, theta: adamw(e, theta, epsilon="inside"))
    known["epsilon is missing"] = after(lambda e, theta: adamw(e, theta, epsilon="none"))
    known["epsilon is added before v is corrected for its bias"] = after(
        lambda e, theta: adamw(e, theta, epsilon="uncorrected")
    )
    known["the bias correction of both moments is missing"] = after(lambda e, theta: adamw(e, theta, correct=""))
    known["the bias correction of m is missing"] = after(lambda e, theta: adamw(e, theta, correct="v"))
    known["the bias correction of v is missing"] = after(lambda e, theta: adamw(e, theta, correct="m"))
    known["the bias correction counts the update one late"] = after(lambda e, theta: adamw(e, theta, late=1))
    known["the bias correction counts the update one early"] = after(lambda e, theta: adamw(e, theta, late=-1))
    known["the root of the second moment is missing"] = after(lambda e, theta: adamw(e, theta, root=False))
    known["the step goes up the gradient, not down"] = after(lambda e, theta: adamw(e, theta, sign=-1))
    known["the step follows the gradient, not its mean m"] = after(lambda e, theta: adamw(e, theta, momentum=False))
    known["the step is plain gradient descent"] = after(lambda e, theta: e.was(theta) - e["lr"] * e[f"d{theta}"])
    known["the optimiser's step is missing"] = after(lambda e, theta: e.was(theta))


# ---- lines 4 and 5 ---------------------------------------------------------------------------------------------------


def _renormalise(known: Known) -> None:
    known["held neurons turn"] = {
        "W": lambda e: unit_rows(e["moved.W"]),
        "W_dec": lambda e: unit_rows(e["moved.W_dec"]),
    }
    known["the detectors of held neurons turn"] = {"W": lambda e: unit_rows(e["moved.W"])}
    known["the decoders of held neurons turn"] = {"W_dec": lambda e: unit_rows(e["moved.W_dec"])}
    known["the neurons that are not held are held"] = {
        "W": lambda e: turned("W", e),
        "W_dec": lambda e: turned("W_dec", e),
    }
    norms: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("{} is not renormalised after the step", lambda A: A),
        ("the columns of {} are renormalised, not its rows", lambda A: unit_rows(A.T).T),
        ("{} is divided by the norm of the whole matrix", lambda A: A / np.linalg.norm(A)),
        ("only rows of {} longer than 1 are renormalised", lambda A: A / np.maximum(norm(A), 1)),
        ("rows of {} are divided by the square of their norm", lambda A: A / norm(A) ** 2),
        ("rows of {} are divided by the sum of absolute values, not the norm", lambda A: divided(A, 1)),
    )
    for text, unit in (*norms, *((f"{tiny:g} is added to the norm of rows of {{}}", plus(tiny)) for tiny in OFFSETS)):
        known[text.format("W")] = {"W": renormalised("W", unit)}
        known[text.format("W_dec")] = {"W_dec": renormalised("W_dec", unit)}
    known["W_dec is scaled by the norms of W"] = {"W_dec": lambda e: kept(e, "W_dec", lambda V: V / norm(e["moved.W"]))}
    known["W_dec is tied to W"] = {"W_dec": lambda e: e["W"]}


def _buffers(known: Known) -> None:
    known["the buffers were not emptied after the last adaptation"] = {
        "seen": lambda e: FORMULAS["seen"](e) + (e.last["seen"] if e.last else 0),
        "counts": lambda e: FORMULAS["counts"](e) + (e.last["counts"] if e.last else 0),
        "peaks": lambda e: np.maximum(FORMULAS["peaks"](e), e.last["peaks"] if e.last else 0),
    }
    known["the peaks were not emptied after the last adaptation"] = {
        "peaks": lambda e: np.maximum(FORMULAS["peaks"](e), e.last["peaks"] if e.last else 0)
    }
    known["the counts were not emptied after the last adaptation"] = {
        "counts": lambda e: FORMULAS["counts"](e) + (e.last["counts"] if e.last else 0)
    }
    known["the buffers hold only the last batch"] = {
        "seen": lambda e: L(e),
        "counts": lambda e: e["on"].sum(axis=0),
        "peaks": lambda e: np.maximum(e["y"].max(axis=0), 0),
    }
    known["the batch is not added to the buffers"] = {name: before(f"left.{name}") for name in BUFFER}
    known["the buffers count batches, not rows"] = {"seen": lambda e: e.was("left.seen") + 1}
    known["the buffers take y of the parameters after the step"] = {
        "counts": lambda e: e.was("left.counts") + (y_after(e) > 0).sum(axis=0),
        "peaks": lambda e: np.maximum(e.was("left.peaks"), y_after(e).max(axis=0)),
    }
    known["the counts are of z > 0, not y > 0"] = {
        "counts": lambda e: e.was("left.counts") + (e["z"] > 0).sum(axis=0),
    }
    known["the counts are of y >= 0, not y > 0"] = {
        "counts": lambda e: e.was("left.counts") + (e["y"] >= 0).sum(axis=0)
    }
    known["the peaks are not clipped at 0"] = {
        "peaks": lambda e: np.maximum(e.was("left.peaks") if fed(e) else -np.inf, e["y"].max(axis=0))
    }
    known["the peaks are of z, not y"] = {"peaks": lambda e: np.maximum(e.was("left.peaks"), e["z"].max(axis=0))}
    known["the peaks are of |y|, not y"] = {"peaks": lambda e: np.maximum(e.was("left.peaks"), abs(e["y"]).max(axis=0))}
    known["the peaks are of the codes, not y"] = {
        "peaks": lambda e: np.maximum(e.was("left.peaks"), e["s"].max(axis=0))
    }
    known["the peaks are means of the batch, not its largest"] = {
        "peaks": lambda e: np.maximum(e.was("left.peaks"), e["y"].mean(axis=0))
    }
    known["the peaks add up over batches"] = {
        "peaks": lambda e: e.was("left.peaks") + np.maximum(e["y"].max(axis=0), 0)
    }


# ---- Algorithm 2 -----------------------------------------------------------------------------------------------------


def _targets(known: Known) -> None:
    targets: tuple[tuple[str, Callable[[Step], Any]], ...] = (
        ("targets fall with (k - 1) / K, not (k - 1) / (K - 1)", lambda e: geometric(e, np.arange(K(e)) / K(e))),
        ("targets fall with k / K, not (k - 1) / (K - 1)", lambda e: geometric(e, np.arange(1, K(e) + 1) / K(e))),
        (
            "targets fall with k / (K - 1), not (k - 1) / (K - 1)",
            lambda e: geometric(e, np.arange(1, K(e) + 1) / last(e)),
        ),
        ("targets are linear in k, not geometric", lambda e: np.linspace(e.config.htf, e.config.ltf, K(e))),
        ("HTF and LTF are swapped", lambda e: FORMULAS["target"](e)[::-1]),
        ("all groups have the highest target", lambda e: np.full(K(e), e.config.htf)),
        ("all groups have the lowest target", lambda e: np.full(K(e), e.config.ltf)),
        (
            "the ratio of the targets is HTF / LTF, not LTF / HTF",
            lambda e: e.config.htf * (e.config.htf / e.config.ltf) ** (np.arange(K(e)) / last(e)),
        ),
    )
    for text, target in targets:
        known[text] = {"target": target}
    known["groups are interleaved, m mod K, not consecutive"] = {"group": lambda e: np.arange(M(e)) % K(e)}
    known["groups are in reverse"] = {"group": lambda e: K(e) - 1 - FORMULAS["group"](e)}


def _biases(known: Known) -> None:
    known["frequencies divide by the rows of a batch, not of the buffer"] = {"p": lambda e: e["counts"] / L(e)}
    known["frequencies divide by the rows of the buffer less 1"] = {"p": lambda e: e["counts"] / max(e["seen"] - 1, 1)}
    known["frequencies are those of the last batch"] = {"p": lambda e: e["on"].mean(axis=0)}
    known["frequencies are counts"] = {"p": lambda e: e["counts"]}
    known["biases are adapted before this batch is added to the buffers"] = {
        "p": lambda e: e.was("left.counts") / max(e.was("left.seen"), 1),
        "T": lambda e: mean_positive(e, e.was("left.peaks")),
        "b": lambda e: moved_bias(e, peaks=e.was("left.peaks")),
    }
    known["T_k divides by the size of the group, not by its positive peaks"] = {
        "T": lambda e: in_groups(e, e["peaks"]) / np.bincount(e["group"], minlength=K(e))
    }
    known["T_k is the mean over all neurons, not over the group"] = {
        "T": lambda e: np.full(K(e), e["peaks"].sum() / max(1, np.count_nonzero(e["peaks"] > 0)))
    }
    known["T_k is the sum, not the mean"] = {"T": lambda e: in_groups(e, e["peaks"])}
    known["T_k is the largest peak, not the mean"] = {"T": lambda e: by_group(e, np.max)}
    known["T_k is the median, not the mean"] = {"T": lambda e: by_group(e, np.median)}
    known["a neuron is lowered at p_m >= p_k, not above"] = {"lowered": lambda e: e["p"] >= e["target"][e["group"]]}
    known["a neuron is lowered below its target, not above"] = {"lowered": lambda e: e["p"] < e["target"][e["group"]]}
    known["all groups use the first target"] = {"lowered": lambda e: e["p"] > e["target"][0]}
    known["a neuron is raised only below eps, not below floor of its target"] = {
        "raised": lambda e: ~e["lowered"] & (e["p"] < e.config.eps)
    }
    known["a neuron is raised whenever it is below its target"] = {
        "raised": lambda e: ~e["lowered"] & (e["p"] < e["target"][e["group"]])
    }
    known["a neuron is raised whenever it is not lowered"] = {"raised": lambda e: ~e["lowered"]}
    known["a neuron is raised at p_m <= the least frequency, not below"] = {
        "raised": lambda e: ~e["lowered"] & (e["p"] <= e["least"])
    }
    known["no neuron is raised"] = {"raised": lambda e: np.zeros(M(e), bool)}
    c = moved_bias
    known["the bias is not clipped at -1"] = {"b": lambda e: c(e, lowest=-np.inf)}
    known["the bias is not clipped at 0"] = {"b": lambda e: c(e, highest=np.inf)}
    known["the bias is not clipped"] = {"b": lambda e: c(e, lowest=-np.inf, highest=np.inf)}
    known["gamma_minus and gamma_plus are swapped"] = {
        "b": lambda e: c(e, minus=e.config.gamma_plus, plus=e.config.gamma_minus)
    }
    known["both directions use gamma_minus"] = {"b": lambda e: c(e, plus=e.config.gamma_minus)}
    known["both directions use gamma_plus"] = {"b": lambda e: c(e, minus=e.config.gamma_plus)}
    known["the bias is lowered by T_k, not by the neuron's peak"] = {"b": lambda e: c(e, peaks=e["T"][e["group"]])}
    known["the bias is raised by the neuron's peak, not by T_k"] = {"b": lambda e: c(e, T=e["peaks"])}
    known["the bias moves by gamma itself, not by a share of a peak"] = {"b": lambda e: c(e, peaks=1, T=1)}
    known["the bias moves the wrong way"] = {
        "b": lambda e: c(e, minus=-e.config.gamma_minus, plus=-e.config.gamma_plus)
    }
    known["the bias starts from 0 at every adaptation"] = {"b": lambda e: c(e, b=np.zeros(M(e)))}
    known["biases are adapted at this step, which adapt_every does not divide"] = {"b": lambda e: algorithm(e)}
    known["biases are not adapted at this step, which adapt_every divides"] = {"b": lambda e: e.was("b")}
    known["the optimiser moves b (its first step)"] = {
        "b": lambda e: e.was("b") - e["lr"] * np.sign(to_bias(e, e["on"]))
    }
    kept = {f"left.{name}": same(name) for name in BUFFER}
    known["the buffers are not emptied after adapting"] = kept
    for name, formula in kept.items():
        known[f"{name.removeprefix('left.')} is not emptied after adapting"] = {name: formula}
    known["the buffers are emptied after every step"] = {f"left.{name}": scaled(name, lambda _: 0) for name in BUFFER}


# ---- pieces ----------------------------------------------------------------------------------------------------------


def L(e: Step) -> int:
    """Rows of the batch."""
    return len(e["rows"])


def d(e: Step) -> int:
    """Dimensions."""
    return int(e["rows"].shape[1])


def M(e: Step) -> int:
    """Neurons."""
    return e.config.width


def K(e: Step) -> int:
    """Groups."""
    return e.config.groups


def last(e: Step) -> int:
    """K - 1, the last group counted from 0."""
    return max(K(e) - 1, 1)


def a(e: Step) -> Any:
    """Output scales, (M, 1)."""
    return e.was("a")[:, None]


def r(e: Step) -> Any:
    """The residual f - x, (L, d)."""
    return e["f"] - e["x"]


def vr(e: Step) -> Any:
    """v_m . r, not gated, (L, M)."""
    return r(e) @ e.params.V.T


def tied(e: Step) -> bool:
    """Whether detectors reconstruct."""
    return "W_dec" not in e.state


def norm(A: Any) -> Any:
    """Norms of rows, (any, 1)."""
    return np.linalg.norm(A, axis=1, keepdims=True)


def divided(A: Any, order: float) -> Any:
    """Rows over another norm of theirs."""
    return A / np.linalg.norm(A, ord=order, axis=1, keepdims=True)


def plus(tiny: float) -> Callable[[Any], Any]:
    """Division of rows by their norm plus a small number."""
    return lambda A: A / (norm(A) + tiny)


def over_norm(tiny: float) -> Formula:
    """The rows over their norm plus a small number."""
    return lambda e: plus(tiny)(e["rows"])


def standardised(ddof: int) -> Formula:
    """The rows by the batch's mean and deviation."""
    return lambda e: centred(e["rows"]) / np.sqrt(np.sum(centred(e["rows"]) ** 2, axis=0) / (L(e) - ddof))


def renormalised(theta: str, unit: Callable[[Any], Any]) -> Formula:
    """W or W_dec with another renormalisation."""
    return lambda e: kept(e, theta, unit)


def turned(theta: str, e: Step) -> Any:
    """W or W_dec where held neurons turn and the others do not."""
    return np.where(e["held"][:, None], unit_rows(e[f"moved.{theta}"]), e.was(theta))


def before(name: str) -> Formula:
    """A quantity as the step found it."""
    return lambda e: e.was(name)


def same(name: str) -> Formula:
    """Another quantity as it is."""
    return lambda e: e[name]


def centred(A: Any) -> Any:
    """Columns less their means."""
    return A - A.mean(axis=0)


def begins(e: Step) -> bool:
    """Whether fitting begins with this step."""
    return recipe.fit_begins(e.config, e.t)


def phase(e: Step) -> tuple[int, int]:
    """First and last step of the phase."""
    formed = recipe.forming_steps(e.config)
    return (1, formed) if e.t <= formed else (formed + 1, e.config.steps)


def decayed(e: Step, first: int, last: int, late: int = 0, share: float | None = None) -> float:
    """A learning rate that falls over the last `share` of the steps first..last."""
    share = e.config.lr_decay if share is None else share
    left = (last - e.t + 1 - late) / (last - first + 1)
    return e.config.lr * min(1.0, left / share) if share else e.config.lr


def agreeing_either_way(e: Step) -> Any:
    """Neurons with another within `hold` of their axis."""
    cosine = abs(e.was("W") @ e.was("W").T) - 2 * np.eye(M(e))
    return cosine.max(axis=1) >= e.config.hold if begins(e) else e.was("held")


def _held_after(e: Step) -> Any:
    free = Step(e.config, e.t, e["rows"], e.state, {"held": np.zeros(M(e), bool)}, last=e.last)
    return recipe.agreeing(free["W"], e.config.hold) if begins(e) else e.was("held")


def first(e: Step, moment: str) -> Any:
    """A moment of W_dec after its first update from 0."""
    g, c = e["dW_dec"], e.config
    return (1 - c.beta1) * g if moment == "m" else (1 - c.beta2) * g * g


def scaled(name: str, factor: Callable[[Step], Any]) -> Formula:
    """A quantity times a factor."""
    return lambda e: FORMULAS[name](e) * factor(e)


def detector(e: Step, gate: Any = None, x: Any = None, out: Any = None) -> Any:
    """The detector's gradient with another gate, input or output scale."""
    x = e["x"] - e.was("b_pre") if x is None else x
    through = vr(e) * (e["on"] if gate is None else gate)
    return (a(e) if out is None else out) * (through.T @ x) / L(e)


def input_bias(e: Step, gate: Any = None, out: Any = None) -> Any:
    """The gradient of b_pre with another gate or output scale."""
    through = vr(e) * (e["on"] if gate is None else gate)
    return r(e).mean(axis=0) - ((e.was("a") if out is None else out) * through.mean(axis=0)) @ e.was("W")


def to_bias(e: Step, gate: Any) -> Any:
    """A gradient of b, which has none, through a gate."""
    return np.mean(e.was("a") * vr(e) * gate, axis=0)


def through_jump(width: float) -> dict[str, Formula]:
    """Gradients with a rectangle of that width in the place of the jump's derivative."""

    def gate(e: Step) -> Any:  # dφ/dz
        return e["on"] + e["z" if jump(e) else "y"] * (abs(e["y"]) < width / 2) / width

    return {
        "dW.detector": lambda e: detector(e, gate=gate(e)),
        "db": lambda e: to_bias(e, gate(e) - e["on"]),
        "db_pre": lambda e: input_bias(e, gate=gate(e)),
    }


def tangent(e: Step, gradient: str, theta: str) -> Any:
    """A gradient less its part along the rows."""
    g, rows = FORMULAS[gradient](e), e.was(theta)
    return g - np.sum(g * rows, axis=1, keepdims=True) * rows


def each(part: str, formula: Callable[[Step, str], Any]) -> dict[str, Formula]:
    """One formula for a part of the optimiser's state of every parameter that is trained."""

    def of(theta: str) -> Formula:
        name = f"{part}.{theta}"
        return lambda e: formula(e, theta) if theta in e["trained"] else e.was(name)

    return {f"{part}.{theta}": of(theta) for theta in THETA}


def after(formula: Callable[[Step, str], Any]) -> dict[str, Formula]:
    """One formula for AdamW's step of every parameter that is trained."""

    def of(theta: str) -> Formula:
        return lambda e: formula(e, theta) if theta in e["trained"] else e.was(theta)

    return {("moved." if theta.startswith("W") else "") + theta: of(theta) for theta in THETA}


def averaged(e: Step, part: str, theta: str, value: Any, beta: float) -> Any:
    """A moving average with one more value."""
    return beta * e.was(f"{part}.{theta}") + (1 - beta) * value


def coupled(e: Step, theta: str) -> Any:
    """The gradient with the weight decay in it."""
    return e[f"d{theta}"] + e.config.weight_decay * e.was(theta)


def adamw(
    e: Step, theta: str, *, decay: float | None = None, epsilon: str = "outside", correct: str = "mv", late: int = 0,
    root: bool = True, sign: int = 1, momentum: bool = True,
) -> Any:  # fmt: skip
    """θ after AdamW, with something changed."""
    c, count = e.config, int(e[f"updates.{theta}"]) + late
    m = e[f"m.{theta}"] if momentum else e[f"d{theta}"]
    m = m / (1 - c.beta1**count) if "m" in correct and momentum else m
    by = 1 - c.beta2**count if "v" in correct else 1.0
    v = e[f"v.{theta}"] / by
    below = {
        "outside": (np.sqrt(v) if root else v) + c.adam_eps,
        "inside": np.sqrt(v + c.adam_eps),
        "none": np.sqrt(v),
        "uncorrected": (np.sqrt(e[f"v.{theta}"]) + c.adam_eps) / np.sqrt(by),
    }[epsilon]
    shrink = (e["lr"] if decay is None else decay) * c.weight_decay
    return (1 - shrink) * e.was(theta) - sign * e["lr"] * m / below


def y_after(e: Step) -> Any:
    """Pre-activations of the batch with the parameters after the step."""
    after_step = Params(e["W"], e["a"], e.was("b"), e["b_pre"])
    return sae.encode(after_step, e["x"], e.config.activation)[0]


def fed(e: Step) -> bool:
    """Whether the buffers held something before the step."""
    return bool(e.was("left.seen") > 0)


def geometric(e: Step, share: Any) -> Any:
    """Targets from HTF, by powers of LTF / HTF."""
    return e.config.htf * (e.config.ltf / e.config.htf) ** share


def mean_positive(e: Step, peaks: Any) -> Any:
    """T_k of other peaks."""
    return in_groups(e, peaks) / np.maximum(in_groups(e, peaks > 0), 1)


def by_group(e: Step, of: Callable[[Any], Any]) -> Any:
    """A statistic of the positive peaks of each group, (K,)."""
    groups = [e["peaks"][(e["group"] == k) & (e["peaks"] > 0)] for k in range(K(e))]
    return np.array([of(peaks) if peaks.size else 0.0 for peaks in groups])


def moved_bias(
    e: Step, *, lowest: float = -1, highest: float = 0, minus: float | None = None, plus: float | None = None,
    peaks: Any = None, T: Any = None, b: Any = None,
) -> Any:  # fmt: skip
    """b after Algorithm 2, with something changed."""
    if not e.adapts:
        return e.was("b")
    b = e.was("b") if b is None else b
    peaks = e["peaks"] if peaks is None else peaks
    T = e["T"][e["group"]] if T is None else T
    down = np.maximum(b - (e.config.gamma_minus if minus is None else minus) * peaks, lowest)
    up = np.minimum(b + (e.config.gamma_plus if plus is None else plus) * T, highest)
    return np.where(e["lowered"], down, np.where(e["raised"], up, b))


def algorithm(e: Step, seen: Any = None, counts: Any = None, peaks: Any = None) -> Any:
    """Algorithm 2 whatever the step, on the buffers as they are or on others."""
    buffer, c = Buffer(M(e), int(e["seen"] if seen is None else seen)), e.config
    buffer.counts = e["counts"] if counts is None else counts
    buffer.peaks = e["peaks"] if peaks is None else peaks
    return algorithm_2(e.was("b"), buffer, c.group(), c.target(), c.gamma_minus, c.gamma_plus, c.eps, c.floor)


def early_bias(e: Step) -> Any:
    """Algorithm 2 on the buffers as the step found them."""
    return algorithm(e, e.was("left.seen"), e.was("left.counts"), e.was("left.peaks")) if fed(e) else e.was("b")


def _mistakes() -> Known:
    known: Known = {}
    for tell in (_rows, _recipe, _forward, _loss, _backward, _optimiser, _renormalise, _buffers, _targets, _biases):
        tell(known)
    return known


MISTAKES = _mistakes()
