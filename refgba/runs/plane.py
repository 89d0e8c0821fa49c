"""GBA in two dimensions, where it can be watched: a few neurons turn until each lies on a feature.

FEATURES features are more than the two dimensions, so none is orthogonal to all others.  A row holds one of them or
two, with noise.  The neurons are trained by the reference (`refgba.gba`), as in the first phase of the default recipe.

One setting is for two dimensions only: `adam_eps` is so large that AdamW becomes gradient descent.  AdamW itself scales
each coordinate on its own, which with two of them turns every neuron to a diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refgba import gba, recipe
from refgba.backends import begin, load
from refgba.sae import unit_rows
from refgba.types import Float64, Int64

FEATURES = 5
TWO = 0.2  # share of the rows that hold two features
ROWS, NOISE = 4000, 0.05
NEURONS, STEPS, LOOKS = 18, 300, 30
SETTINGS = {
    "width": NEURONS, "steps": STEPS, "batch": 128, "groups": 2, "htf": 0.15, "ltf": 0.08, "adapt_every": 5,
    "gamma_plus": 0.04, "gamma_minus": 0.04, "lr": 1.0, "adam_eps": 1.0, "form": 1.0, "lr_decay": 0.0, "untied": False,
}  # fmt: skip


@dataclass(frozen=True)
class Plane:
    """How neurons turned.  Angles in radians.

    features: (n,).  rows: (some,) of the data.  steps: (looks,) at which the neurons were looked at, from 0.  neurons:
    (looks, M), without jumps by a whole turn.
    """

    features: Float64
    rows: Float64
    steps: Int64
    neurons: Float64

    @property
    def cosine(self) -> Float64:
        """(M,) the cosine of each neuron with its nearest feature, in the end."""
        turned: Float64 = np.cos(self.neurons[-1][:, None] - self.features).max(axis=1)
        return turned


def turn(seed: int = 0) -> Plane:
    """Train in two dimensions, in a fraction of a second."""
    rng = np.random.default_rng(seed)
    features = 2 * np.pi * (np.arange(FEATURES) + rng.uniform(-0.2, 0.2, FEATURES)) / FEATURES
    H = np.zeros((ROWS, FEATURES))
    both = rng.random(ROWS) < TWO
    for l in range(ROWS):
        H[l, rng.choice(FEATURES, 1 + both[l], replace=False)] = 1
    V = np.stack([np.cos(features), np.sin(features)], axis=1)
    X = unit_rows(H @ V + NOISE * rng.standard_normal((ROWS, 2)))
    config = recipe.default(2, seed=seed, **SETTINGS)
    engine = load("numpy")
    state = begin(engine, config, 2)
    looks, steps = [state.params.W.copy()], [0]
    for t, _ in enumerate(gba.train(state, gba.minibatches(X, config), engine.step, engine.adapt), start=1):
        if t % (STEPS // LOOKS) == 0:
            looks.append(state.params.W.copy())
            steps.append(t)
    W = np.array(looks)  # (looks, M, 2)
    neurons = np.unwrap(np.arctan2(W[..., 1], W[..., 0]), axis=0)
    return Plane(features, np.arctan2(X[:400, 1], X[:400, 0]), np.array(steps), neurons)
