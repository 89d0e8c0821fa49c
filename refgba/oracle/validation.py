"""What may be a trace, and what may be compared with one: arrays that anyone may have written are checked here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from difflib import get_close_matches

import numpy as np

from refgba.config import GBAConfig
from refgba.errors import InputError, brief
from refgba.oracle.recording import Trace
from refgba.oracle.stepwise import QUANTITIES, Value, names, state_names

FLOATS = ("float32", "float64")  # of a candidate
KINDS = {"f": "bfloat16, float32 or float64", "i": "whole numbers", "b": "bool"}  # of a candidate
DTYPES = {"f": "float64", "i": "int64", "b": "bool"}  # of a trace


def checked_trace(config: GBAConfig, arrays: Mapping[str, Value], first: int = 1) -> Trace:
    """A trace, from step `first` on, of arrays that may be anything; InputError names the array that is not sound."""
    steps = sum(name.endswith("/rows") for name in arrays)
    before = max(first - 1, 0)
    wanted = [f"{before}/{name}" for name in state_names(config, before)]
    wanted += [f"{t}/{name}" for t in range(first, first + steps) for name in names(config, t)]
    for name in wanted if steps else [f"{first}/rows"]:
        if name not in arrays:
            raise InputError(f"no trace: {name} is missing")
    for name in sorted(arrays.keys() - set(wanted)):
        raise InputError(f"no trace: {brief(name)} does not belong to one of {steps} steps")
    if (b_pre := arrays[f"{before}/b_pre"]).ndim != 1:
        raise InputError(f"{before}/b_pre has shape {b_pre.shape}, it should have one dimension")
    steps_of = by_step(arrays)
    trace = Trace(config, [steps_of[t] for t in range(before, first + steps)], first)
    for name, value in checked_candidate(trace, arrays).items():
        kind = DTYPES[QUANTITIES[name.split("/")[1]].kind]
        if value.dtype != kind:
            raise InputError(f"{name} holds {value.dtype}, in a trace it should hold {kind}")
    return trace


def checked_candidate(trace: Trace, candidate: Mapping[str, Value]) -> dict[str, Value]:
    """The arrays of a candidate, all of them known by name and sound; InputError names the first that is not."""
    if not candidate:
        raise InputError("nothing to compare: the dump holds no arrays")
    arrays = {name: _wide(np.asarray(value)) for name, value in candidate.items()}
    sizes = {"L": trace.config.batch, "d": trace.d, "M": trace.config.width, "K": trace.config.groups}
    for name, value in arrays.items():
        quantity = _quantity(name, trace)
        shape = tuple(sizes[letter] for letter in QUANTITIES[quantity].shape)
        arrays[name] = value.reshape(shape) if value.shape == (1,) and not shape else value
        _check(name, arrays[name], shape, QUANTITIES[quantity].kind)
    if all(name.endswith("/rows") or name.startswith(f"{trace.first - 1}/") for name in arrays):
        raise InputError("nothing to compare: the dump holds only what the trace gives a port, not what it computes")
    return arrays


def by_step(arrays: Mapping[str, Value]) -> dict[int, dict[str, Value]]:
    """Arrays named "3/dW" by their steps and names."""
    steps: dict[int, dict[str, Value]] = defaultdict(dict)
    for name, value in arrays.items():
        t, _, quantity = name.partition("/")
        steps[int(t)][quantity] = value
    return dict(steps)


def missing(trace: Trace, steps: Mapping[int, Mapping[str, Value]]) -> list[str]:
    """The quantities that a candidate lacks at its steps, "dW at step 6" where it has them at others.

    Rows do not count: the trace gives them to the port.
    """
    lacks: dict[str, list[int]] = defaultdict(list)
    has: set[str] = set()
    for t in sorted(steps.keys() - {trace.first - 1}):
        has |= steps[t].keys()
        for name in names(trace.config, t):
            if name not in steps[t] and name != "rows":
                lacks[name].append(t)
    ordered = sorted(lacks, key=list(QUANTITIES).index)
    return [name + (_at_steps(lacks[name]) if name in has else "") for name in ordered]


def _wide(value: Value) -> Value:
    """An array, as float32 if it is in the bfloat16 that ml_dtypes adds to NumPy."""
    return value.astype(np.float32) if str(value.dtype) == "bfloat16" else value


def _at_steps(steps: list[int]) -> str:
    return f" at step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"


def _quantity(name: str, trace: Trace) -> str:
    """The quantity in an array's name "3/dW"; InputError unless the trace knows such a step and quantity."""
    t, _, quantity = name.partition("/")
    before, last = trace.first - 1, trace.numbers[-1]
    if not (t.isascii() and t.isdecimal() and len(t) < 10 and str(int(t)) == t and before <= int(t) <= last):
        raise InputError(
            f"{brief(name)}: names are STEP/QUANTITY, like {trace.first}/dW, with steps {before} to {last}"
        )
    known = state_names(trace.config, before) if int(t) == before else list(QUANTITIES)
    if quantity not in known:
        near = get_close_matches(quantity, known, 1)
        hint = f"; is it {near[0]}?" if near else f"; known are {', '.join(known)}"
        raise InputError(f"{brief(name)}: step {t} has no quantity {brief(quantity)!r}{hint}")
    return quantity


def _check(name: str, value: Value, shape: tuple[int, ...], kind: str) -> None:
    """InputError unless an array has this shape, a dtype of this kind, and only finite entries."""
    if value.shape != shape:
        turned = "; it looks transposed" if value.shape == shape[::-1] else ""
        raise InputError(f"{name} has shape {value.shape}, it should be {shape}{turned}")
    right = str(value.dtype) in FLOATS if kind == "f" else value.dtype.kind in ("iu" if kind == "i" else "b")
    if not right:
        raise InputError(f"{name} holds {value.dtype}, it should hold {KINDS[kind]}")
    broken = np.argwhere(~np.isfinite(value))
    if len(broken):
        at = tuple(int(i) for i in broken[0])
        raise InputError(
            f"{name} holds {float(value[at])} at {list(at)}; {len(broken)} of its {value.size} entries are not finite"
        )
