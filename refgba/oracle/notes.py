"""What the numbers say where no known mistake gives them: a common factor, where they are wrong, what else is off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refgba.oracle.place import Place, Starts, Steps, places
from refgba.oracle.recording import Trace
from refgba.oracle.stepwise import ORDER, QUANTITIES, Value

PRODUCTS = ("y", "s", "f", "loss", "dW.detector", "dW.reconstructor", "dW", "dW_dec", "da", "db_pre")
PRECISIONS = {
    1e-3: "TF32",
    1e-2: "bfloat16",
}  # by the tolerance at which products in such a precision agree
FULL = 'jax.default_matmul_precision("highest"), torch.set_float32_matmul_precision("highest")'


def notes(place: Place, name: str, trace: Trace, candidate: Steps, starts: Starts) -> list[str]:
    """Remarks on quantity `name`, which deviates at this step, each one that holds exactly."""
    remarks = [*_precision(place, name, trace, candidate, starts), *_factor(place, name), *_where(place, name)]
    later = _also_off(place, place.ordered[place.ordered.index(name) + 1 :])
    if later:
        remarks.append(f"also off at this step: {', '.join(later)}")
    elif name != place.ordered[-1]:
        remarks.append("nothing else in the dump of this step is off")
    firsts = [
        f"{step.t}/{off[0]}"
        for step in places(trace, candidate, starts, place.tolerance, place)
        if (off := _also_off(step, step.ordered))
    ]
    if firsts:
        remarks.append(f"first off at later steps: {', '.join(firsts)}")
    return remarks


def _also_off(place: Place, names: list[str]) -> list[str]:
    return [name for name in names if place.share(name) > 1]


def _precision(place: Place, name: str, trace: Trace, candidate: Steps, starts: Starts) -> Iterator[str]:
    """Whether matrix products in a low precision would do this: most entries are off, and all agree to less."""
    if name not in PRODUCTS or place.tolerance != 1e-5:
        return
    off, zero = place.off(name), place.step[name] == 0
    if np.count_nonzero(off) < 0.3 * np.count_nonzero(~zero):
        return
    for tolerance, precision in PRECISIONS.items():
        steps = places(trace, candidate, starts, tolerance)
        if all(step.share(part) <= 1 for step in steps for part in step.ordered):
            yield (
                f"everything agrees to {tolerance:g}: are matrix products computed in {precision}?  Then compute them"
                f" in full float32 ({FULL}), or check with --tolerance {tolerance:g}"
            )
            return


def _factor(place: Place, name: str) -> Iterator[str]:
    """A factor c with given = c x expected in every entry."""
    if QUANTITIES[name].kind != "f":
        return
    got, right = place.values[name].astype(np.float64), np.asarray(place.step[name], np.float64)
    weight = np.sum(right * right)
    c = float(np.sum(got * right) / weight) if weight else 0.0
    if c and np.size(got) > 1 and np.all(abs(got - c * right) <= (1 + abs(c)) * place.allowed(name)):
        yield f"all entries are {c:.6g} times what they should be"


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
        "neurons that fired in the batch": fired,
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
