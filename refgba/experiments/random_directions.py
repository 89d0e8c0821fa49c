"""The row that every table of methods should have: a dictionary whose directions nobody learned.

Its directions u_m are rows of the data drawn at random, less the mean, or random units.  They stay as they are:

    z_m = α_m u_m · (x - b_pre) + b_m ,      s = z of the k largest positive ,      f = Σ_m s_m u_m + b_pre

This is a TopK with w_m = α_m u_m and v_m = u_m, of which AdamW fits the scales α, the biases b, which move thresholds,
and b_pre.  Published sanity checks found such dictionaries close to trained ones by some measures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from refgba import backends, baselines
from refgba.adam import AdamW
from refgba.baselines import Params
from refgba.config import BaselineConfig
from refgba.data import feed
from refgba.errors import InputError
from refgba.experiments.training import Real
from refgba.sae import unit_rows
from refgba.streams import stream
from refgba.types import Array, Float64

ROWS, UNITS = "random rows", "random units"  # whose directions are rows of the data, and no data's at all
NAMES = (ROWS, UNITS)


def trained(real: Real, config: BaselineConfig, backend: str, name: str) -> tuple[backends.Backend, Params]:
    """A backend, and the TopK that these settings make of the directions of one of NAMES."""
    mean, rows = mean_and_rows(real, config)
    params = baselines.random_params(config, real.train.d)
    U = rows if name == ROWS else params.W  # (M, d)
    params = replace(params, W=U, W_dec=U, b_pre=mean.astype(config.master))
    engine = backends.load_for(backend, config)
    fitted, scale = None, np.ones(config.width, config.master)
    for t, x in enumerate(feed.minibatches(real.train, config), start=1):
        if fitted is None:
            scale *= common_scale(params, x, config)
            fitted = {name: AdamW.like(array) for name, array in (("scale", scale), ("b", params.b), ("b_pre", mean))}
        params.W = scale[:, None] * U
        state = engine.init(params, config)
        g: Any = engine.gradients(state, engine.put(state, x))
        lr = baselines.learning_rate(config, t)
        scale = fitted["scale"].update(scale, np.einsum("md,md->m", g.W, U), lr, config)
        params.b = fitted["b"].update(params.b, g.b, lr, config)
        params.b_pre = fitted["b_pre"].update(params.b_pre, g.b_pre, lr, config)
    return engine, replace(params, W=scale[:, None] * U)


def common_scale(params: Params, x: Array, config: BaselineConfig) -> float:
    """The scale with which all of the codes of rows x (L, d) reconstruct them best, by least squares.

    Directions are alike, and more so rows of data: at scale 1 the codes of a row would add up to several times the row.
    """
    f = baselines.forward(params, x, config).f - params.b_pre  # (L, d)
    return float(np.vdot(f, x - params.b_pre) / np.vdot(f, f))


def mean_and_rows(real: Real, config: BaselineConfig) -> tuple[Float64, Array]:
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
