"""The CPU backend: one dense product per step, the encoder's; everything else touches active entries only.

At the densities where GBA settles (1 to 3%) four of the five matrix products of a step need not be dense.  A step takes
45.7 ms where the reference takes 233.5 (d 768, M 8192, L 512, 2% active: benchmarks/results/cpu-2026-11-22.md).  The
kernels are in numba_kernels.py.  How this departs from the reference, `refgba.gba.step`, and which test guards it:

- Neurons are taken in blocks of BLOCK.  A block's pre-activations are one BLAS product, still in the cache when its
  gates, counts, peaks and codes are made: no (L, M) array is read a second time.  BLAS runs on one thread in each
  block, and the blocks run side by side.
- Codes are lists of (row, value), neuron by neuron.  Decoding goes over tiles of f that fit in the cache.
- Backward is one pass over the neurons: v_m · r at active entries, the gradient of w_m, AdamW and renormalisation while
  the row is at hand.  No (M, d) gradient exists.
- A block with more than DENSE of its entries active, as all are when training begins, takes dense products instead.

  tests/test_conformance.py holds all four against the reference, with every block dense, every block sparse and both.

- Nothing here adds floats in an order that depends on which thread is first, and no block's shape depends on how many
  there are: results are the same to the bit for any number of threads (`NUMBA_NUM_THREADS`).  tests/test_backends.py.
- Ranks add up reconstructions before the residual, and parts of the gradient of b_pre.  tests/test_parallel.py.
- Where the reference raises an error at a row of zeros, the loss becomes NaN.  tests/test_backends.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refgba import gba, recipe
from refgba.adam import AdamW
from refgba.backends import numba_kernels as kernels
from refgba.backends import numpy as host
from refgba.backends.base import adamw_factors
from refgba.backends.comm import ALONE, Ranks
from refgba.backends.numba_compiler import unusable
from refgba.backends.numba_kernels import BLOCK, ROWS
from refgba.backends.numpy import (
    DTYPES,
    adapt,
    begin_phase,
    counters,
    encode,
    export,
    get,
    join,
    params,
    put,
)
from refgba.config import GBAConfig
from refgba.gba import Metrics
from refgba.sae import Params
from refgba.types import Array, Float64, Int64, Mask

__all__ = [
    "DTYPES", "adapt", "counters", "decode", "encode", "export", "get", "gradients", "init", "join", "params", "put",
    "restore", "step", "unusable",
]  # fmt: skip

DENSE = 0.2  # density of a block above which dense products are faster: benchmarks/step.py --only numba --density


@dataclass
class Codes:
    """The codes of a batch of L rows, block by block: block k has values[k] (BLOCK L,) and rows[k].

    In a dense block values[k] are its codes (block, L).  In a sparse one, neuron m has the entries first[m, 0] up to
    first[m, -1] of values[k] and rows[k], those of rows j ROWS and after from first[m, j] on.
    counts: (M,) active entries.  broken: (blocks,) whether a row of W or W_dec is no longer finite, or zero.
    xr: (2 L, d), x - b_pre above Σ_m a_m v_m s_m, which becomes r = f - x.
    """

    rows: Array
    values: Array
    first: Int64
    dense: Mask
    counts: Int64
    broken: Mask
    xr: Array

    @classmethod
    def empty(cls, M: int, L: int, d: int, dtype: np.dtype[Any]) -> Codes:
        """Memory for a batch of L rows, with nothing in it yet."""
        blocks = -(-M // BLOCK)
        room = np.empty(2 * L * d + 2**22 // dtype.itemsize, dtype)  # NumPy asks for huge pages for so large an array
        aligned = -room.ctypes.data % 2**21 // dtype.itemsize  # rows of xr are read in any order
        return cls(
            # A sparse block has at most so many entries; one more may be written by a closed gate.
            rows=np.empty((blocks, int(min(DENSE, 1) * BLOCK * L) + 1), np.uint16 if L <= 2**16 else np.uint32),
            values=np.empty((blocks, min(M, BLOCK) * L), dtype),
            first=np.empty((M, -(-L // ROWS) + 1), np.int64),
            dense=np.empty(blocks, np.bool_),
            counts=np.empty(M, np.int64),
            broken=np.zeros(blocks, np.bool_),
            xr=room[aligned : aligned + 2 * L * d].reshape(2 * L, d),
        )


@dataclass
class State(host.State):
    """The state of backends/numpy.py, whose arrays are updated in place, and memory for the codes of a batch."""

    codes: Codes | None = None


def init(params: Params, config: GBAConfig) -> State:
    """The state before the first step; the arrays of `params` are not shared with it."""
    return restore(host.init(params, config))


def restore(state: gba.State) -> State:
    """The state of a run that goes on; its arrays are taken over."""
    return State(**vars(state))


def step(state: State, x: Array) -> Metrics:
    """Lines 2 to 5 of Algorithm 1, as `refgba.gba.step`."""
    config, params = state.config, state.params
    state.t += 1
    begin_phase(state)
    lr = recipe.learning_rate(config, state.t)
    with kernels.parallel_blocks():
        codes, r = forward(state, x, state.buffer.peaks)  # 2. forward, and the peaks of 5.
        moments = [state.optimiser[name] for name in ("W", "W_dec") if name in state.optimiser]
        loss = 0.5 * float(np.vdot(r, r)) / len(x)
        da, part = backward(state, codes, moments, lr)  # 3. and 4. for W and W_dec
    total, active, broken = state.ranks.totals(part, codes.counts.sum(), codes.broken.any())
    db_pre = r.mean(axis=0) - total.astype(part.dtype)
    if broken:
        loss = math.nan  # a neuron without a direction is never active again, and would go unnoticed
    trained = recipe.trained(config, state.t)
    for name, g in (("a", da), ("b_pre", db_pre)):  # 3. for the others
        if name in trained:
            setattr(params, name, state.optimiser[name].update(getattr(params, name), g, lr, config))
    state.buffer.rows += len(x)  # 5. the buffers
    state.buffer.counts += codes.counts
    return Metrics(loss, active / len(x))


def gradients(state: State, x: Array) -> Params:
    """The gradients at rows x (L, d), by the kernels of `step`; nothing moves."""
    params = state.params
    dW = [np.empty_like(V) for V in (params.W, params.W_dec) if V is not None]
    with kernels.parallel_blocks():
        codes, r = forward(state, x, np.zeros(len(params.W)))
        da, part = backward(state, codes, [AdamW(g, g) for g in dW], None)
    (total,) = state.ranks.totals(part)
    db_pre = r.mean(axis=0) - total.astype(part.dtype)
    return Params(dW[0], da, np.zeros_like(params.b), db_pre, dW[1] if len(dW) == 2 else None)


def decode(state: State, s: Array) -> Array:
    """Reconstructions f (L, d) of codes s (L, M)."""
    params = state.params
    return decoded(s, params.a, params.V, params.b_pre, state.ranks)


def decoded(s: Array, a: Array, V: Array, b_pre: Array, ranks: Ranks = ALONE) -> Array:
    """f = Σ_m a_m v_m s_m + b_pre, a dense product only where more than DENSE of the codes s (L, M) are not 0.

    The sum goes over the neurons of all ranks.
    """
    if np.count_nonzero(s) > DENSE * s.size:
        f = s @ (a[:, None] * V)
    else:
        f = np.zeros((len(s), b_pre.size), s.dtype)
        kernels.decode_codes(V, a, s, f)
    total: Array = ranks.sum(f)
    return np.add(total, b_pre, out=total)


def forward(state: State, x: Array, peaks: Float64) -> tuple[Codes, Array]:
    """Line 2, and the peaks of line 5: the codes, and r = f - x (L, d), in memory that the next call uses again."""
    params, (M, d), L = state.params, state.params.W.shape, len(x)
    codes = state.codes
    if codes is None or len(codes.xr) != 2 * L:
        codes = state.codes = Codes.empty(M, L, d, params.W.dtype)
    xc, f = codes.xr[:L], codes.xr[L:]
    np.subtract(x, params.b_pre, out=xc)
    relu = state.config.activation == "relu"
    kernels.encode(
        params.W, params.b, xc, relu, DENSE, codes.rows, codes.values, codes.first, codes.dense, codes.counts, peaks,
    )  # fmt: skip
    f.fill(0)
    if codes.dense.any():
        kernels.decode_dense(params.V, params.a, codes.values, codes.dense, f)
    if not codes.dense.all():
        kernels.decode_sparse(params.V, params.a, codes.rows, codes.values, codes.first, codes.dense, f)
    state.ranks.sum(f)  # in place
    return codes, np.subtract(f, xc, out=f)  # both lack b_pre


def backward(state: State, codes: Codes, moments: list[AdamW], lr: float | None) -> tuple[Array, Array]:
    """Lines 3 and 4 for the weights, after `forward`: updates W and W_dec.

    moments: of W, and of W_dec where there is one.  With lr None nothing moves, and the gradients of W and W_dec are
    written where their first moments are.  Returns the gradient of a (M,), and the mean over the batch of
    Σ_m a_m (v_m · r) on_m w_m (d,), by which the gradient of b_pre is less than the mean of r.
    """
    params, config = state.params, state.config
    W, V = params.W, params.V
    sums = np.zeros((codes.dense.size, W.shape[1]), W.dtype)  # (blocks, d)   Σ_m a_m (v_m · r) on_m w_m, by block
    da = np.empty_like(params.a)
    adam = np.empty(0, W.dtype)
    if lr is not None:
        for moment in moments:
            moment.t += 1
        t = moments[0].t  # W_dec takes W's over, and is trained whenever W is
        adam = np.array(adamw_factors(t, lr, config), W.dtype)
    kernels.sweep(
        W, V, moments[0].m, moments[0].v, moments[-1].m, moments[-1].v, params.W_dec is None, params.a, codes.xr,
        codes.rows, codes.values, codes.first, codes.dense, state.held, adam, da, sums, codes.broken,
    )  # fmt: skip
    L = len(codes.xr) // 2
    return da, sums.sum(axis=0) / L
