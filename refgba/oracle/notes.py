"""What the numbers say where no known mistake gives them: a common factor, where they are wrong, what else is off."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refgba.oracle.place import Place, Starts, Steps, places
from refgba.oracle.recording import Trace
from refgba.oracle.stepwise import ORDER, QUANTITIES, Step, Value

PRODUCTS = ("y", "s", "f", "loss", "dW.detector", "dW.reconstructor", "dW", "dW_dec", "da", "db_pre")
PRECISIONS = {
    1e-3: "TF32",
    1e-2: "bfloat16",
}  # by the tolerance at which products in such a precision agree
FULL = 'jax.default_matmul_precision("highest"), torch.set_float32_matmul_precision("highest")'
UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # the largest relative error of rounding
MOVES = ("moved.W", "moved.W_dec", "a", "b_pre", "b")  # what a step adds to, rather than computes anew
SHOWN = 12  # steps whose ratios are listed


def notes(place: Place, name: str, trace: Trace, candidate: Steps, starts: Starts) -> list[str]:
    """Remarks on quantity `name`, which deviates at this step, each one that holds exactly."""
    remarks = [
        *_precision(place, name, trace, candidate, starts),
        *_rounded(place, name),
        *_factor(place, name),
        *_change(place, name),
        *_offset(place, name),
        *_cut(place, name),
        *_penalty(name, [place, *places(trace, candidate, starts, place.tolerance, place)]),
        *_same(place, name),
        *_where(place, name),
    ]
    if np.size(place.values[name]) == 1 and QUANTITIES[name].kind == "f":
        remarks += _over_steps(name, places(trace, candidate, starts, place.tolerance))
    later = _also_off(place, place.ordered[place.ordered.index(name) + 1 :])
    if later:
        remarks.append(f"also off at this step: {', '.join(later)}")
    elif name != place.ordered[-1]:
        remarks.append("nothing else in the dump of this step is off")
    firsts: dict[str, list[str]] = defaultdict(list)
    for step in places(trace, candidate, starts, place.tolerance, place):
        if off := _also_off(step, step.ordered):
            firsts[off[0]].append(str(step.t))
    if firsts:
        at = "; ".join(f"{first} at {', '.join(steps)}" for first, steps in firsts.items())
        remarks.append(f"first off at later steps: {at}")
    return remarks


def _also_off(place: Place, names: list[str]) -> list[str]:
    return [name for name in names if place.share(name) > 1]


def _numbers(place: Place, name: str) -> tuple[Value, Value]:
    """What was given and what was expected, in float64."""
    return place.values[name].astype(np.float64), np.asarray(place.step[name], np.float64)


# ---- precision -------------------------------------------------------------------------------------------------------


def _precision(place: Place, name: str, trace: Trace, candidate: Steps, starts: Starts) -> Iterator[str]:
    """Whether arithmetic in a low precision would do this: all agrees to less."""

    def all_agrees(tolerance: float) -> bool:
        steps = places(trace, candidate, starts, tolerance)
        return all(step.share(part) <= 1 for step in steps for part in step.ordered)

    if place.tolerance < 1e-9 and all_agrees(1e-5):
        yield "everything agrees to 1e-05: is something computed in float32?  (In JAX, jax_enable_x64 gives float64)"
    if name not in PRODUCTS or place.tolerance != 1e-5:
        return
    off, zero = place.off(name), place.step[name] == 0
    if np.count_nonzero(off) < 0.3 * np.count_nonzero(~zero):
        return
    for tolerance, precision in PRECISIONS.items():
        if all_agrees(tolerance):
            yield (
                f"everything agrees to {tolerance:g}: are matrix products computed in {precision}?  Then compute them"
                f" in full float32 ({FULL}), or check with --tolerance {tolerance:g}"
            )
            return


def _rounded(place: Place, name: str) -> Iterator[str]:
    """Whether rounding each entry to a narrower dtype would do this."""
    if QUANTITIES[name].kind != "f":
        return
    got, right = _numbers(place, name)
    for dtype, unit in UNITS.items():
        near = np.all(abs(got - right) <= unit * abs(right) + place.allowed(name))
        if place.tolerance < unit and near and np.array_equal(_narrowed(got, dtype), got):
            yield f"every entry is within {unit:.2g} of its value, as after rounding to {dtype}"
            return


def _narrowed(values: Value, dtype: str) -> Value:
    """Values rounded to another dtype; for bfloat16, which NumPy lacks, cut to its bits."""
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


# ---- factors ---------------------------------------------------------------------------------------------------------


def _ratio(got: Value, right: Value, allowed: Any) -> float | None:
    """The factor c with got = c x right in every entry, if there is one."""
    weight = np.sum(right * right)
    c = float(np.sum(got * right) / weight) if weight else 0.0
    return c if c and np.all(abs(got - c * right) <= (1 + abs(c)) * allowed) else None


def _factor(place: Place, name: str) -> Iterator[str]:
    """A factor c with given = c x expected in every entry, and other quantities that are off by the same."""
    if QUANTITIES[name].kind != "f" or (c := _ratio(*_numbers(place, name), place.allowed(name))) is None:
        return
    if f"{c:.6g}" == "1":
        return
    same = [
        other
        for other in _also_off(place, place.ordered[place.ordered.index(name) + 1 :])
        if QUANTITIES[other].kind == "f" and np.size(place.values[other]) > 1
        if (of := _ratio(*_numbers(place, other), place.allowed(other))) and abs(of - c) <= 1e-4 * abs(c)
    ]
    if np.size(place.values[name]) > 1 or same:
        yield f"all entries are {c:.6g} times what they should be"
    if same:
        yield f"so are all entries of {', '.join(same)}"


def _change(place: Place, name: str) -> Iterator[str]:
    """A factor in what the step adds to what was there, in all entries, or in all biases of one direction."""
    if name not in MOVES:
        return
    got, right = _numbers(place, name)
    before = place.step.was(name.removeprefix("moved."))
    everywhere = np.ones(got.shape, bool)
    parts: dict[str, Value] = {"": everywhere}
    if name == "b":
        if not place.step.adapts:
            return
        inside = (abs(got + 0.5) < 0.5) & (abs(right + 0.5) < 0.5)  # neither -1 nor 0, where biases are cut
        parts = {
            " of lowered neurons": place.step["lowered"] & inside,
            " of raised neurons": place.step["raised"] & inside,
        }
    allowed = np.broadcast_to(place.allowed(name), got.shape)
    for whose, part in parts.items():
        if part.any() and place.off(name)[part].any():
            c = _ratio((got - before)[part], (right - before)[part], 2 * allowed[part])
            if c is not None:
                yield f"the change{whose} from before this step is {c:.6g} times what it should be"


def _over_steps(name: str, steps: Iterator[Place]) -> Iterator[str]:
    """The ratio of a single number to what was expected, step by step."""
    ratios = {
        step.t: float(step.values[name]) / float(step.step[name])
        for step in steps
        if name in step.values and name in step.there and step.step[name]
    }
    if len(ratios) > 1 and any(f"{ratio:.4g}" != "1" for ratio in ratios.values()):
        first = list(ratios)[:SHOWN]
        yield f"given over expected at steps {', '.join(map(str, first))}: " + ", ".join(
            f"{ratios[t]:.4g}" for t in first
        )


# ---- what the wrong entries have in common ---------------------------------------------------------------------------


def _offset(place: Place, name: str) -> Iterator[str]:
    """One number that is added to every entry."""
    got, right = _numbers(place, name)
    if QUANTITIES[name].kind == "b" or got.size == 1:
        return
    c = float(np.mean(got - right))
    if np.all(abs(got - right - c) <= place.allowed(name) + place.tolerance * abs(c)) and np.ptp(right):
        yield f"all entries are {abs(c):.6g} {'more' if c > 0 else 'less'} than they should be"


def _cut(place: Place, name: str) -> Iterator[str]:
    """Entries cut at a largest absolute value."""
    got, right = _numbers(place, name)
    most = float(np.max(abs(got)))
    if QUANTITIES[name].kind != "f" or np.count_nonzero(abs(got) == most) < 2:
        return
    below = np.any((right != 0) & (abs(right) < 0.99 * most))
    if below and np.all(abs(got - np.clip(right, -most, most)) <= place.allowed(name) + place.tolerance * most):
        yield f"all entries are cut at {most:.6g} and -{most:.6g}"


def _codes(e: Step) -> Any:
    return np.mean(e["s"].sum(axis=1))


def _gates(e: Step) -> Any:
    return e["on"].sum() / len(e["x"])


def _of_codes(e: Step) -> Any:
    return e["on"].T @ (e["x"] - e.was("b_pre")) / len(e["x"])


PENALTIES: dict[str, dict[str, Callable[[Step], Any]]] = {
    "loss": {"the mean sum of the codes of a row": _codes, "the mean number of open gates of a row": _gates},
    "dW.detector": {"the gradient of the mean sum of the codes of a row": _of_codes},
    "dW": {"the gradient of the mean sum of the codes of a row": _of_codes},
}


def _penalty(name: str, steps: list[Place]) -> Iterator[str]:
    """What is added is the same multiple of a usual penalty on codes at all steps, of at least two."""
    steps = [step for step in steps if name in step.values]
    for penalty, of in PENALTIES.get(name, {}).items():
        pairs = [(np.subtract(*_numbers(step, name)), np.asarray(of(step.step), np.float64)) for step in steps]
        weight = sum(float(np.sum(term * term)) for _, term in pairs)
        c = sum(float(np.sum(added * term)) for added, term in pairs) / weight if weight else 0.0
        allowed = [
            step.allowed(name) + step.tolerance * abs(c * term) for step, (_, term) in zip(steps, pairs, strict=True)
        ]
        fits = all(np.all(abs(a - c * term) <= most) for (a, term), most in zip(pairs, allowed, strict=True))
        if c and fits and len(steps) > 1:
            yield f"what is added is {c:.6g} times {penalty}: is there a penalty?"


def _same(place: Place, name: str) -> Iterator[str]:
    """One value that all wrong entries have, of several."""
    got, off = place.values[name], np.broadcast_to(place.off(name), place.values[name].shape)
    values = np.unique(got[off])
    if len(values) == 1 and np.count_nonzero(off) > 1 and (got.dtype == bool or np.ptp(place.step[name][off])):
        yield f"all wrong entries are {values[0]}"


def _where(place: Place, name: str) -> Iterator[str]:
    """What all wrong entries have in common, where others are right: being held, silent, or of one group."""
    off = np.broadcast_to(place.off(name), place.values[name].shape)
    shape = QUANTITIES[name].shape
    if "M" not in shape or not off.any():
        return
    wrong = off.any(axis=tuple(axis for axis, letter in enumerate(shape) if letter != "M"))  # (M,)
    if wrong.all():
        return
    fired = place.step["on"].any(axis=0)
    kinds: dict[str, Value] = {
        "neurons that are held": place.step["held"],
        "neurons that are not held": ~place.step["held"],
        "neurons that never fired in the batch": ~fired,
    }
    group = place.step["group"]
    kinds |= {f"neurons of group {k}, counted from 0": group == k for k in range(place.trace.config.groups)}
    if ORDER[name] >= ORDER["lowered"] and place.step.adapts:
        kinds |= {"neurons that are lowered": place.step["lowered"], "neurons that are raised": place.step["raised"]}
    for kind, members in kinds.items():
        if _is_all(wrong, members):
            yield f"the wrong entries are those of all {kind}"
            return
    for kind, members in kinds.items():
        if members.any() and not members.all() and not (wrong & ~members).any():
            yield f"the wrong entries are all of {kind}"
            return


def _is_all(wrong: Any, members: Any) -> bool:
    return bool(members.any() and not members.all() and (wrong == members).all())
