"""A network whose neurons lie on several ranks (`refgba.backends.comm`): its beginning, and what the recipe does to it.

With one rank each function is the reference's own, to the bit.
"""

from __future__ import annotations

import numpy as np

from refgba import bias, recipe
from refgba.backends.comm import Ranks
from refgba.config import GBAConfig
from refgba.errors import InputError
from refgba.sae import Params, unit_rows
from refgba.streams import stream
from refgba.types import Array, Float64, Mask

DRAWN = 2**20  # random numbers drawn at a time, 8 MB


def refuse_too_many(config: GBAConfig, ranks: Ranks) -> None:
    """InputError where some rank would have no neuron of some group, or several would have to pursue features."""
    if ranks.size > 1 and config.targets_from == "data" and not config.l0:
        raise InputError(
            f"{ranks.size} ranks cannot count the features of a row: say how many neurons are to be active, as --l0 32"
        )
    fewest = config.width // config.groups
    if ranks.size > fewest:
        raise InputError(
            f"{ranks.size} ranks are more than the {fewest} neurons of a group (width {config.width} in "
            f"{config.groups} groups), so some would have none; start at most {fewest}"
        )


def random_params(config: GBAConfig, d: int, ranks: Ranks) -> Params:
    """This rank's part of `refgba.gba.random_params`: the same numbers for a neuron, whatever the number of ranks.

    Every rank draws all of the stream, a block at a time, and keeps its own rows: O(M d / P) memory, O(M d) time.
    """
    M, mine = config.width, range(config.width)[ranks.own(config.width)]
    W, source = np.empty((len(mine), d), config.master), stream(config.seed, "weights")
    rows = max(1, DRAWN // d) * ranks.size  # so that each block begins with a neuron of rank 0
    for start in range(0, M, rows):
        block = unit_rows(source.standard_normal((min(rows, M - start), d)))[ranks.own(rows)]
        W[start // ranks.size : start // ranks.size + len(block)] = block
    params = Params(
        W=W,
        a=np.full(len(mine), config.a_init),
        b=np.full(len(mine), config.b_init),
        b_pre=np.zeros(d),
        W_dec=recipe.first_decoder(W, config),
    )
    return params.astype(config.master)


def agreeing_elsewhere(W: Array, tau: float, ranks: Ranks) -> Mask:
    """Which rows of W (M / P, d), at unit norm, have a row of another rank within cosine tau: (M / P,) bool."""
    agrees = np.zeros(len(W), bool)
    if tau == 1:
        return agrees
    for rows in ranks.others(W):
        size = max(1, recipe.BLOCK // max(1, len(rows)))
        for start in range(0, len(W), size) if len(rows) else ():
            agrees[start : start + size] |= (W[start : start + size] @ rows.T).max(axis=1) >= tau
    return agrees


def adapted(
    b: Array, buffer: bias.Buffer, config: GBAConfig, ranks: Ranks, own: Float64 | None = None
) -> Array:  # fmt: skip
    """`refgba.bias.adapt` of this rank's biases (M / P,), with the mean peaks T_k of all ranks' neurons."""
    if buffer.rows == 0:
        raise InputError("the buffers are empty: add at least one batch of pre-activations before adapting")
    group, K = config.group()[ranks.own(config.width)], config.groups
    p, r = buffer.counts / buffer.rows, buffer.peaks  # (M / P,)
    sums, positive = ranks.totals(np.bincount(group, r, K), np.bincount(group, r > 0, K))  # (K,) each
    T = sums / np.maximum(positive, 1)
    target = config.target()[group] if own is None else own
    over, under = bias.too_often(p, target), bias.never(p, target, config.eps, config.floor)
    return bias.moved(b, r, T[group], over, under, config.gamma_minus, config.gamma_plus).astype(b.dtype)


def gathered(values: Array, ranks: Ranks) -> Array:
    """The values (n,) of all ranks, this one's first."""
    return np.concatenate([values, *(others[:, 0] for others in ranks.others(values[:, None]))])
