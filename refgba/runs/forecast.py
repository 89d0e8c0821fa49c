"""How long a run will take and how much memory, told before its first step: a few steps on random rows are timed.

The timed steps have the run's settings, backend and sizes, but networks and rows of their own, so that they change none
of its numbers.  Most backends take longer the more neurons are active.  A run begins with many active neurons and ends
near its targets, and both are timed; for GBA the first phase and the second are, too.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from scipy.special import ndtri

from refgba import recipe
from refgba.backends.base import AnyConfig, Backend
from refgba.baselines import METHODS
from refgba.config import LARGEST
from refgba.data.activations import Activations
from refgba.sae import unit_rows
from refgba.types import Array, Float64

BUSY = 0.2  # Without targets, a run takes about this share of its steps to come near where its neurons end up active.
WAY = BUSY * recipe.TRAVEL  # With targets, biases are lowered by about this many peaks before neurons come near them.
SPARSE = 0.03  # share of the rows on which a neuron is taken to end up active where its method sets no target
ENOUGH = 0.2  # seconds of steps to time, of each kind; at least FEWEST, at most MOST steps
FEWEST, MOST = 2, 40
STEADY = 1e-4  # a learning rate with which no network diverges
SAMPLE = 256  # rows that say where a bias has to be for a target


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take from here on: seconds, and bytes, the most that the process will hold."""

    seconds: float
    bytes: int


def forecast(config: AnyConfig, backend: Backend, data: Activations, done: int = 0) -> Forecast:
    """What steps done + 1..T will take on an idle machine.  InputError as `Backend.init`, where memory is too small."""
    left, d = config.steps - done, data.d
    description = METHODS[config.method].description(config, None)
    formed = max(0, (description.formed or 0) - done)  # steps of the first phase to come
    x = unit_rows(np.random.default_rng(0).standard_normal((config.batch, d))).astype(config.master)
    timed: Any = replace(config, lr=STEADY, steps=min(config.steps + MOST + 1, LARGEST))
    seconds, busy = 0.0, 0.0 if done else busy_share(config)
    if formed:
        seconds += formed * _mixed(replace(timed, form=1.0), backend, x, min(1.0, busy * config.steps / formed))
        seconds += _hold_seconds(config, d)
    if left > formed:
        fitting = replace(timed, form=0.0) if description.formed else timed
        seconds += (left - formed) * _mixed(fitting, backend, x, 0.0 if formed else busy)
    return Forecast(seconds, _memory(config, data))


def busy_share(config: Any) -> float:
    """The share of the steps of a run that comes before its neurons are about as seldom active as at its end."""
    if METHODS[config.method].groups(config) is None:
        return BUSY
    travel = config.gamma_minus * config.steps / config.adapt_every
    return min(1.0, WAY / travel) if travel else 1.0


def _mixed(config: AnyConfig, backend: Backend, x: Array, busy: float) -> float:
    """Seconds per step, if the share `busy` of the steps is as the first, and the others as the last."""
    params: Any = METHODS[config.method].random_params(config, x.shape[1])
    seconds = busy * step_seconds(params, config, backend, x) if busy else 0.0
    settle(params, config, x)
    return seconds + (1 - busy) * step_seconds(params, config, backend, x)


def settle(params: Any, config: AnyConfig, x: Array) -> None:
    """Give a network the biases with which its neurons are about as seldom active as at the end of a run."""
    target = _targets(config)
    if target is not None:
        y = x[:SAMPLE] @ params.W.T  # (rows, M)
        params.b = (-y.mean(axis=0) + ndtri(target) * y.std(axis=0)).astype(config.master)


def _targets(config: AnyConfig) -> Float64 | None:
    """(M,) the share of rows on which each neuron will be active; None where a number per row is set instead."""
    groups = METHODS[config.method].groups(config)
    if groups is not None:
        return groups.target[groups.group]
    if "k" in vars(config) and config.uses("k"):
        return None
    return np.full(config.width, getattr(config, "l0", 0) / config.width or SPARSE)  # l0: the sum of measured targets


def step_seconds(
    params: Any,
    config: AnyConfig,
    backend: Backend,
    x: Array,
    of: Callable[[list[float]], float] = median,
    clock: Callable[[], float] | None = None,
) -> float:
    """Seconds per step of a network of its own, which is gone afterwards.

    of: which one stands for those measured.  clock: by which they are; None takes the time that passes.
    """
    clock = clock or perf_counter
    state = backend.init(params, config)
    float(backend.step(state, backend.put(state, x)).loss)
    taken: list[float] = []
    while len(taken) < FEWEST or (len(taken) < MOST and sum(taken) < ENOUGH):
        began = clock()
        float(backend.step(state, backend.put(state, x)).loss)  # float() waits for the device
        taken.append(clock() - began)
    return of(taken)


def _hold_seconds(config: AnyConfig, d: int) -> float:
    """What it takes to compare all neurons with each other between the phases; with BLAS, on this machine."""
    block = np.ones((min(config.width, SAMPLE), d), config.master)
    began = perf_counter()
    (block @ block.T).max(axis=1)
    return (perf_counter() - began) * (config.width / len(block)) ** 2


def _memory(config: AnyConfig, data: Activations) -> int:
    """The most that this process has held so far, and what is to come: windows of rows, and cosines of neurons."""
    most = peak_bytes()
    row = data.d * np.dtype(config.master).itemsize
    windows = min(data.windows, 2) * -(-len(data) // data.windows) * row
    cosines = min(config.width**2, recipe.BLOCK) * np.dtype(config.master).itemsize
    return int(most + windows + cosines)


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    if sys.platform == "linux":  # where getrusage also counts what the process held that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        held = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
        if held:
            return 1024 * int(held[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def sized(count: float) -> str:
    """A number of bytes in words, to three digits: 98.3 MB, 1.29 TB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB" if count < 999.5 else f"{count:,.0f} PB"


def about(seconds: float) -> str:
    """A duration that is not exact, in words: under 1 s, about 7 s."""
    return told(seconds) if seconds < 1 else f"about {told(seconds)}"


def told(seconds: float) -> str:
    """A duration in words: under 1 s, 7 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 1:
        return "under 1 s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
