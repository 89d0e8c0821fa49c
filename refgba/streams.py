"""Where randomness comes from: independent streams of one seed, all listed here so that no two coincide.

Data and weights may well be drawn from the same seed, and weights drawn from the stream of the true features would
*be* the true features.
"""

from __future__ import annotations

import numpy as np

STREAMS = (
    "features",  # model: V
    "rows",  # model: H and the noise, one stream per block of rows
    "weights",  # gba: W before the first step
    "order",  # gba: the minibatches, one stream per epoch; data.feed: one per window
    "sample",  # data: rows of the training data to judge a run on
    "blocks",  # data.feed: the order of the blocks of the data, one stream per epoch
    "held out",  # data.held_out: which rows of the data a run is not trained on
)


def stream(seed: int, name: str, *index: int) -> np.random.Generator:
    """The Generator of a stream in STREAMS, and of its part `index` where it has parts.

    A spawn key, not a longer list of entropy: NumPy pads the latter with zeros, so [seed] and [seed, 0] coincide.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(name), *index)))
