"""Targets that are measured from the data (all ours), in place of those of the groups in section 3.

The paper fixes in advance how often each group's neurons fire, so how many neurons are active per row follows from M
and the groups, not from the data.  Here Algorithm 2 stays as it is, but each neuron has a target p_m of its own, which
is measured again and again:

    rank       of the L M products a_m z_m that L rows have with M neurons, z_m = w_m · (x - b_pre), the L l0 largest
    share      are those that are worth a neuron's while; p_m is the share of the L rows on which neuron m is in them
    rarest     no p_m is below MIN_TARGET_SHARE l0 / M, so that a neuron that is never among them stays alive, and can
               turn
    active     l0 is `GBAConfig.l0`, or with 0 what nonnegative matching pursuit counts: how many features a row shows,
               and some more for what pursuit leaves and cannot tell from noise
    relative   before they are ranked, products may be divided by a power of their neuron's peak, `GBAConfig.relative`

At the end all neurons have about the same threshold, in terms of a_m z_m.  That is BatchTopK's rule; but there the rows
of a batch compete, and a neuron that loses gets no gradient, while here biases move slowly, and no target is zero.

One threshold for all suits the reconstruction: it is worth most where a_m z_m is largest.  But a neuron that is strong
on its feature is then also active on rows where it hardly answers, at a tenth of its peak, and these show anything.
With `relative` = 1 thresholds are the same share of each neuron's peak.  Neurons mean one thing more often, and
reconstruct worse; what lies between 0 and 1 lies between in both.

`Shares` is a part of the state of a run, and `own_targets` what happens to it just before line 6 of Algorithm 1.  What
these targets do to recovery and reconstruction is in benchmarks/recipe.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np
from scipy.special import ndtri

from refgba.config import GBAConfig
from refgba.errors import InputError
from refgba.sae import Params
from refgba.types import Array, Float64

Rank: TypeAlias = Callable[[float], Float64]  # of an l0, the shares (M,) that `ranked` finds
Count: TypeAlias = Callable[[], float]  # what `counted` finds

ROWS = 512  # rows of a minibatch that are looked at: a rate of 1% is then known to 11% over MEMORY looks
PURSUED = 64  # rows of these that pursuit counts features in; it takes one product with all neurons per feature
MEMORY = 16  # looks that a running mean goes back
MIN_TARGET_SHARE = 1 / 16  # the lowest target, as a share of the mean one, l0 / M
UNSEEN_PER_DIMENSION = 1 / 12  # features counted per dimension where pursuit finds none, as at first; l0 begins there
MAX_PURSUIT_SHARE = 0.5  # from one row pursuit takes at most this share of d features
NOISE_RATE = 0.01  # the share of rows of mere noise from which pursuit would take a feature
PEAK_DECAY = 0.95  # factor on a peak per look: the peaks of rare neurons last for some tens of looks
MIN_PEAK = 1e-3  # products are divided by no lower peak
MIN_TAKEN = 1e-3  # pursuit takes no smaller part of a unit row: the rest of an exact sum is rounding


@dataclass
class Shares:
    """What was seen so far.

    p: (M,) running means of the shares.  active: of pursuit's counts.  looks: how many.  peaks: (M,) the highest
    a_m z_m, which fade from look to look; zeros unless thresholds are relative.
    """

    M: int
    active: float = 0.0
    looks: int = 0
    p: Float64 = field(init=False)
    peaks: Float64 = field(init=False)

    def __post_init__(self) -> None:
        self.p, self.peaks = np.zeros(self.M), np.zeros(self.M)


def first(config: GBAConfig, M: int) -> Shares | None:
    """The shares of M neurons before the first look; None where targets are the groups'."""
    return Shares(M) if config.targets_from == "data" else None


def targets(shares: Shares, config: GBAConfig, rank: Rank, count: Count) -> Float64:
    """Look once more, and give the targets of the neurons, (M,).

    Neurons settle between `floor` times a target of Algorithm 2 and that target, so it is above the share: the share is
    in the middle of the two.
    """
    shares.looks += 1
    rate = 1 / min(shares.looks, MEMORY)
    if not config.l0:
        shares.active += rate * (count() - shares.active)
    l0 = config.l0 or min(config.width, max(shares.active, 1e-3))
    shares.p += rate * (rank(l0) - shares.p)
    return np.maximum(shares.p, MIN_TARGET_SHARE * l0 / config.width) * 2 / (1 + config.floor)


class Run(Protocol):
    """What is needed of `gba.State`."""

    config: GBAConfig
    params: Params
    shares: Shares | None


def own_targets(run: Run, x: Array | None, gather: Callable[[Array], Array] | None = None) -> Float64 | None:
    """The targets after a step on the minibatch x (L, d) of unit norm, (M,); None where they are the groups'.

    gather: makes of the highest values of some neurons those of all (`refgba.backends.shards`).  Raises InputError for
    no x where targets are measured.
    """
    if run.shares is None:
        return None
    if x is None:
        raise no_rows()
    params, xc = run.params, x[:ROWS] - run.params.b_pre  # (L, d)
    z = params.a * (xc @ params.W.T)  # (L, M)   a_m z_m
    if run.config.relative:
        z = z / divisors(run.shares, run.config, z.max(axis=0)).astype(z.dtype)
    look = partial(ranked, z, gather=gather), partial(counted, x[:PURSUED], params.V)
    return targets(run.shares, run.config, *look)


def no_rows() -> InputError:
    """The error of an `adapt` that has to measure targets, on nothing."""
    return InputError("targets are measured on the rows of a step, and `adapt` was given none")


def divisors(shares: Shares, config: GBAConfig, highest: Array) -> Float64:
    """What products are divided by where thresholds are relative, (M,), after a look whose highest are highest (M,)."""
    shares.peaks = np.maximum(PEAK_DECAY * shares.peaks, highest)
    divided: Float64 = np.maximum(shares.peaks, MIN_PEAK) ** config.relative
    return divided


def ranked(z: Array, l0: float, gather: Callable[[Array], Array] | None = None) -> Float64:
    """Share of the rows on which each neuron is among the L l0 largest of all entries of z (L, M): (M,).

    Of three neurons and two rows the three largest are 0.9, 0.8 and 0.5:

    >>> import numpy as np
    >>> from refgba.measured import ranked
    >>> ranked(np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.3]]), l0=1.5)
    array([1. , 0. , 0.5])
    """
    most = max(1, round(len(z) * l0))
    highest = largest(z, most)
    if gather is not None:
        highest = largest(gather(highest), most)
    share: Float64 = (z >= highest.min()).mean(axis=0)
    return share


def largest(values: Array, n: int) -> Array:
    """The n largest of values of any shape, or all if there are not so many, in any order."""
    first = max(0, values.size - n)
    return np.partition(values, first, axis=None)[first:]


def counted(x: Array, V: Array, d: int = 0) -> float:
    """How many features rows x (L, d) show in the mean, by nonnegative matching pursuit; those and V (M, d) are unit.

    d: of the data, where arrays are filled up with zeros beyond it.

    Pursuit takes the feature with the largest v_m · r from the residual r, again and again, until that is no more than
    noise would give: than the largest of M random directions has with r in 99 of 100 cases.  A feature taken twice,
    since the first time it was not taken whole, counts once.

    What is left of the rows, a share u of their squares, is noise, or features that the v_m do not show yet, or more of
    them than pursuit can tell.  It counts as u² d UNSEEN_PER_DIMENSION features.  If all of the rest were features, it
    would be u d UNSEEN_PER_DIMENSION; the second factor u is there because a small rest is mostly noise.

    Rows are taken as they are, b_pre not subtracted: while features are missing it stands for them, and what it leaves
    in a row would be counted as features.

    Two features, and a row that is made of the first alone; then one that is made of neither:

    >>> import numpy as np
    >>> from refgba.measured import counted
    >>> counted(np.eye(48)[:1], np.eye(48)[:2])
    1.0
    >>> counted(np.eye(48)[2:3], np.eye(48)[:2])
    4.0

    Two features at the cosine -0.6, and their sum.  Each is taken many times, since what is left of one after the
    other was taken is a part of it again:

    >>> V = np.eye(48)[:2]
    >>> V[1, :2] = -0.6, 0.8
    >>> x = V.sum(axis=0, keepdims=True)
    >>> round(counted(x / np.linalg.norm(x), V), 6)
    2.0
    """
    L, M, d = len(x), len(V), d or x.shape[1]
    level = float(ndtri(1 - NOISE_RATE / M)) / math.sqrt(d)
    r, taken = x, []  # taken: which feature each row gave up, -1 for none
    for _ in range(max(1, int(MAX_PURSUIT_SHARE * d))):
        cosine = r @ V.T  # (L, M)
        best, size = cosine.argmax(axis=1), cosine.max(axis=1)  # (L,)
        on = (size > level * np.sqrt((r * r).sum(axis=1))) & (size > MIN_TAKEN)
        if not on.any():
            break
        r = r - (size * on)[:, None] * V[best]
        taken.append(np.where(on, best, -1))
    left = (float((r * r).sum()) / L) ** 2 * d * UNSEEN_PER_DIMENSION
    if not taken:
        return left
    order = np.sort(np.stack(taken), axis=0)
    features = np.count_nonzero(order[0] >= 0) + np.count_nonzero((np.diff(order, axis=0) > 0) & (order[1:] >= 0))
    return int(features) / L + left
