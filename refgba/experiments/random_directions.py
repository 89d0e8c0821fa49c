"""The row that every table of methods should have: a dictionary whose directions nobody learned.

Its directions are rows of the data drawn at random, less the mean, or random units.  They stay as they are; what is
fitted are the threshold of each neuron, its output scale, and b_pre.  That is GBA's own tied network, all of whose
neurons are held from the first step on: Algorithm 2 brings each neuron to the frequency p, AdamW fits a and b_pre.
Published sanity checks found such dictionaries close to trained ones by some measures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from refgba import backends, gba, recipe
from refgba.config import GBAConfig
from refgba.data import feed
from refgba.errors import InputError
from refgba.experiments.training import Real, run_through
from refgba.sae import unit_rows
from refgba.streams import stream
from refgba.types import Array, Float64

NAMES = ("random rows", "random units")  # whose directions are rows of the data, and of no data at all


def configure(d: int, p: float, **given: Any) -> GBAConfig:
    """Settings for rows of d dimensions: one group, every neuron on the share p of the rows, and no phases."""
    settings: dict[str, Any] = {"groups": 1, "htf": p, "form": 0.0, "hold": 1.0, "untied": False}
    return recipe.default(d, **settings | given)


def mean_and_rows(real: Real, config: GBAConfig) -> tuple[Float64, Array]:
    """The mean of the unit rows (d,), and as many rows as there are neurons, drawn at random, less it, at unit norm.

    InputError where there are fewer rows than neurons.
    """
    rows, M = len(real.train), config.width
    if rows < M:
        raise InputError(f"{real.train.store.path}: {rows:,} rows cannot be the directions of {M:,} neurons")
    chosen = np.sort(stream(config.seed, "sample").choice(rows, M, replace=False))
    total, found, start = np.zeros(real.train.d), [], 0
    for chunk in real.seen(config):
        x = unit_rows(chunk.astype(config.master))
        total += x.sum(axis=0, dtype=np.float64)
        here = chosen[(chosen >= start) & (chosen < start + len(x))]
        found.append(x[here - start])
        start += len(x)
    mean = total / start
    return mean, unit_rows(np.concatenate(found) - mean.astype(config.master))


def trained(real: Real, config: GBAConfig, backend: str, name: str) -> tuple[backends.Backend, Any]:
    """A backend and its state of a network with the directions of one of NAMES, whose other parameters are fitted."""
    mean, rows = mean_and_rows(real, config)
    params = gba.random_params(config, real.train.d)  # whose directions are random units
    params = replace(params, b_pre=mean.astype(config.master), W=rows if name == NAMES[0] else params.W)
    host = gba.init(params, config)
    host.held[:] = True
    engine = backends.load_for(backend, config)
    return engine, run_through(engine, engine.restore(host), feed.minibatches(real.train, config))
