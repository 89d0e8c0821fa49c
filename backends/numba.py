"""The CPU backend: one dense product a step, the encoder's; everything else touches active entries only.

At the densities where GBA settles (1 to 3%) four of the five matrix products of a step need not be dense.  How this
departs from the reference, `refgba.gba.step`:

- Neurons are taken in blocks of BLOCK.  A block's pre-activations are one BLAS product, still in the cache when its
  gates, counts, peaks and codes are made: no (L, M) array is read a second time.  BLAS runs on one thread in each
  block, and the blocks run side by side.
- Codes are lists of (row, value), neuron by neuron.  Decoding goes over tiles of f that fit in the cache.
- Backward is one pass over the neurons: v_m . r at active entries, the gradient of w_m, AdamW and renormalisation while
  the row is at hand.  No (M, d) gradient exists.
- A block with more than DENSE of its entries active, as all are when training begins, takes dense products instead.

Nothing here adds floats in an order that depends on which thread is first, and no block's shape depends on how many
there are: results are the same to the bit for any number of threads (`NUMBA_NUM_THREADS`).

tests/test_conformance.py holds it against the reference; `benchmarks/step.py` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import scipy.linalg  # noqa: F401 - the BLAS that numba calls: loaded before _blas looks for it
from numba import njit, prange
from threadpoolctl import ThreadpoolController

from refgba import gba, recipe
from refgba.adam import AdamW
from refgba.backends.numpy import DTYPES, adapt, counters, decode, encode, export, get, params, put, unusable
from refgba.config import GBAConfig
from refgba.gba import Metrics
from refgba.sae import Params
from refgba.types import Array, Float64, Int64, Mask

__all__ = [
    "DTYPES", "adapt", "counters", "decode", "encode", "export", "get", "gradients", "init", "params", "put", "restore",
    "step", "unusable",
]  # fmt: skip

BLOCK = 256  # neurons whose pre-activations are held at a time
DENSE = 0.2  # density of a block above which dense products are faster: benchmarks/step.py --only numba --density
ROWS, COLUMNS = 256, 384  # tile of f that a thread decodes, 393 kB in float32
DENSE_ROWS, RUN = 256, 4  # rows, and dense blocks, decoded with one product

REORDER = {"reassoc", "contract", "arcp"}  # fastmath: sums may be vectorised, but NaN and infinity stay what they are

_blas = ThreadpoolController()


@dataclass
class Codes:
    """The codes of a batch of L rows, block by block: block k has values[k] (BLOCK L,) and rows[k].

    In a dense block values[k] are its codes (block, L).  In a sparse one, neuron m has the entries first[m, 0] up to
    first[m, -1] of values[k] and rows[k], those of rows j ROWS and after from first[m, j] on.
    counts: (M,) active entries.  broken: (blocks,) whether a row of W or W_dec is no longer finite, or zero.
    xr: (2 L, d), x - b_pre above what is decoded from the codes, which becomes r = f - x.
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
        """Room for a batch."""
        blocks = -(-M // BLOCK)
        room = np.empty(2 * L * d + 2**22 // dtype.itemsize, dtype)  # NumPy asks for huge pages for so large an array
        aligned = -room.ctypes.data % 2**21 // dtype.itemsize  # rows of xr are read in any order
        return cls(
            # as many as a sparse block can have, and one more, which a closed gate may write
            rows=np.empty((blocks, int(min(DENSE, 1) * BLOCK * L) + 1), np.uint16 if L <= 2**16 else np.uint32),
            values=np.empty((blocks, min(M, BLOCK) * L), dtype),
            first=np.empty((M, -(-L // ROWS) + 1), np.int64),
            dense=np.empty(blocks, np.bool_),
            counts=np.empty(M, np.int64),
            broken=np.zeros(blocks, np.bool_),
            xr=room[aligned : aligned + 2 * L * d].reshape(2 * L, d),
        )


@dataclass
class State(gba.State):
    """The reference's state, whose arrays are updated in place, and room for the codes of a batch."""

    codes: Codes | None = None


def init(params: Params, config: GBAConfig) -> State:
    """The state before the first step; the arrays of `params` are not shared with it."""
    return restore(gba.init(params, config))


def restore(state: gba.State) -> State:
    """The state of a run that goes on; its arrays are taken over."""
    return State(**vars(state))


def step(state: State, x: Array) -> Metrics:
    """Lines 2 to 5 of Algorithm 1, as `refgba.gba.step`."""
    config, params = state.config, state.params
    state.t += 1
    if recipe.fit_begins(config, state.t):
        recipe.begin_fit(state)
    lr = recipe.learning_rate(config, state.t)
    with _kernels():
        codes, r = _forward(state, x, state.buffer.peaks)
        moments = [state.optimiser[name] for name in ("W", "W_dec") if name in state.optimiser]
        loss = 0.5 * float(np.vdot(r, r)) / len(x)
        da, db_pre = _backward(state, codes, moments, lr)
        if codes.broken.any():
            loss = math.nan  # a neuron without a direction is never active again, and would go unnoticed
    trained = recipe.trained(config, state.t)
    for name, g in (("a", da), ("b_pre", db_pre)):
        if name in trained:
            setattr(params, name, state.optimiser[name].update(getattr(params, name), g, lr, config))
    state.buffer.rows += len(x)
    state.buffer.counts += codes.counts
    return Metrics(loss, codes.counts.sum() / len(x))


def gradients(state: State, x: Array) -> Params:
    """The gradients at rows x (L, d), by the kernels of `step`; nothing moves."""
    params = state.params
    dW = [np.empty_like(V) for V in (params.W, params.W_dec) if V is not None]
    with _kernels():
        codes, _ = _forward(state, x, np.zeros(len(params.W)))
        da, db_pre = _backward(state, codes, [AdamW(g, g) for g in dW], None)
    return Params(dW[0], da, np.zeros_like(params.b), db_pre, dW[1] if len(dW) == 2 else None)


@contextmanager
def _kernels() -> Iterator[None]:
    """Blocks go to whichever thread is free, and BLAS starts no threads of its own in them."""
    with _blas.limit(limits=1, user_api="blas"), numba.parallel_chunksize(1):
        yield


def _forward(state: State, x: Array, peaks: Float64) -> tuple[Codes, Array]:
    """Line 2, and the peaks: the codes, and r = f - x (L, d), both in room that the next call takes again."""
    params, (M, d), L = state.params, state.params.W.shape, len(x)
    codes = state.codes
    if codes is None or len(codes.xr) != 2 * L:
        codes = state.codes = Codes.empty(M, L, d, params.W.dtype)
    xc, f = codes.xr[:L], codes.xr[L:]
    np.subtract(x, params.b_pre, out=xc)
    relu = state.config.activation == "relu"
    _encode(
        params.W, params.b, xc, relu, DENSE, codes.rows, codes.values, codes.first, codes.dense, codes.counts, peaks,
    )  # fmt: skip
    f.fill(0)
    if codes.dense.any():
        _decode_dense(params.V, params.a, codes.values, codes.dense, f)
    if not codes.dense.all():
        _decode_sparse(params.V, params.a, codes.rows, codes.values, codes.first, codes.dense, f)
    return codes, np.subtract(f, xc, out=f)  # both lack b_pre


def _backward(state: State, codes: Codes, moments: list[AdamW], lr: float | None) -> tuple[Array, Array]:
    """Lines 3 and 4 for the weights, after `_forward`: updates W and W_dec, or with lr None puts their gradients
    where the first moments are.  Returns the gradients of a (M,) and b_pre (d,).
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
        beta1, beta2 = config.beta1, config.beta2
        rate, root = lr / (1 - beta1**t), 1 / (1 - beta2**t)
        adam = np.array([1 - beta1, 1 - beta2, rate, root, config.adam_eps, 1 - lr * config.weight_decay], W.dtype)
    _sweep(
        W, V, moments[0].m, moments[0].v, moments[-1].m, moments[-1].v, params.W_dec is None, params.a, codes.xr,
        codes.rows, codes.values, codes.first, codes.dense, state.held, adam, da, sums, codes.broken,
    )  # fmt: skip
    L = len(codes.xr) // 2
    return da, codes.xr[L:].mean(axis=0) - sums.sum(axis=0) / L


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _encode(W, b, xc, relu, threshold, rows, values, first, dense, counts, peaks):
    """Codes, counts and peaks of all neurons, in blocks."""
    L = len(xc)
    for k in prange(dense.size):
        start, stop = k * BLOCK, min((k + 1) * BLOCK, len(W))
        z = np.empty((stop - start, L), W.dtype)
        np.dot(W[start:stop], xc.T, z)  # z_m = w_m · (x - b_pre)
        on = np.zeros((stop - start, first.shape[1] * ROWS), np.uint8)  # gates, a byte each
        active = at = 0
        for m in range(start, stop):
            counts[m] = _gate(z[m - start], b[m], on[m - start])
            active += counts[m]
        dense[k] = active > threshold * z.size
        for m in range(start, stop):
            if dense[k]:
                _spread(z[m - start], b[m], relu, values[k, (m - start) * L : (m - start + 1) * L])
                peaks[m] = max(peaks[m], z[m - start].max() + b[m])
            elif counts[m]:
                begin, at = at, _compress(z[m - start], b[m], relu, on[m - start], rows[k], values[k], first[m], at)
                top = values[k, begin:at].max()
                peaks[m] = max(peaks[m], top if relu else top + b[m])
            else:
                first[m] = at


@njit(nogil=True, cache=True)
def _gate(z, b, on):
    """on <- 1{z + b > 0}; returns how many are."""
    for l in range(z.size):
        on[l] = z[l] + b > 0
    n = 0
    for l in range(on.size):
        n += on[l]
    return n


@njit(nogil=True, cache=True)
def _spread(z, b, relu, s):
    """All codes of a neuron, (L,).  An open gate that passes 0 is stored as -0.0, a closed one as 0.0."""
    zero = z.dtype.type(0)
    for l in range(z.size):
        y = z[l] + b
        passed = y if relu else z[l]
        s[l] = (passed if passed != 0 else -zero) if y > 0 else zero


@njit(nogil=True, cache=True)
def _compress(z, b, relu, on, rows, values, first, at):
    """The active codes of a neuron, from entry `at` of rows and values on; returns where they end."""
    eight = on.view(np.uint64)  # gates are looked at by eights, since most are closed
    for j in range(first.size - 1):
        first[j] = at
        for word in range(j * ROWS // 8, (j + 1) * ROWS // 8):
            if eight[word] != 0:
                for l in range(8 * word, min(8 * word + 8, z.size)):
                    rows[at] = l
                    values[at] = z[l] + b if relu else z[l]
                    at += on[l]
    first[-1] = at
    return at


@njit(parallel=True, nogil=True, cache=True)
def _decode_dense(V, a, values, dense, f):
    """f += Σ_m a_m v_m s_m over the neurons of dense blocks, in their order, RUN blocks at a time."""
    L, d = f.shape
    for k in prange((L + DENSE_ROWS - 1) // DENSE_ROWS):
        low, high = k * DENSE_ROWS, min((k + 1) * DENSE_ROWS, L)
        product = np.empty((high - low, d), V.dtype)
        block = 0
        while block < dense.size:
            end = block
            while end < min(block + RUN, dense.size) and dense[end]:
                end += 1
            if end > block:
                start, stop = block * BLOCK, min(end * BLOCK, len(V))
                scaled = np.empty((stop - start, high - low), V.dtype)
                for m in range(start, stop):
                    at = m % BLOCK * L
                    scaled[m - start] = a[m] * values[m // BLOCK, at + low : at + high]
                np.dot(scaled.T, V[start:stop], product)
                f[low:high] += product
            block = max(end, block + 1)


@njit(parallel=True, nogil=True, cache=True)
def _decode_sparse(V, a, rows, values, first, dense, f):
    """f += Σ_m a_m v_m s_m over the neurons of sparse blocks, in their order, a tile of f at a time."""
    L, d = f.shape
    wide = (d + COLUMNS - 1) // COLUMNS
    for tile in prange((L + ROWS - 1) // ROWS * wide):
        j, low = tile // wide, tile % wide * COLUMNS
        high = min(low + COLUMNS, d)
        for m in range(len(V)):
            k = m // BLOCK
            if not dense[k]:
                for i in range(first[m, j], first[m, j + 1]):
                    _add(f[rows[k, i], low:high], a[m] * values[k, i], V[m, low:high])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _sweep(W, V, mW, vW, mV, vV, tied, a, xr, rows, values, first, dense, held, adam, da, sums, broken):
    """The backward pass of every neuron, and its AdamW and renormalisation; see `_backward`."""
    xc, r = xr[: len(xr) // 2], xr[len(xr) // 2 :]
    for k in prange(dense.size):
        start, stop = k * BLOCK, min((k + 1) * BLOCK, len(W))
        if dense[k]:
            s, vr, gW, gV = _products(V[start:stop], xc, r, values[k, : (stop - start) * len(r)], tied)
        else:
            s = vr = np.empty((1, 1), W.dtype)
            gW, gV = np.empty((1, W.shape[1]), W.dtype), np.empty((0 if tied else 1, W.shape[1]), W.dtype)
        for m in range(start, stop):
            row = m - start if dense[k] else 0
            g, h = gW[row], gW[row] if tied else gV[row]
            if dense[k]:
                ds, c = _dot(s[row], vr[row]), vr[row].sum()
            else:
                active = slice(first[m, 0], first[m, -1])
                ds, c = _entries(V, m, xc, r, rows[k, active], values[k, active], tied, g, h)
            da[m] = ds / len(r)
            scale = a[m] / len(r)
            _add(sums[k], a[m] * c, W[m])
            if adam.size == 0:
                mW[m] = scale * g
                mV[m] = scale * h
            else:
                norm = _adamw(W[m], mW[m], vW[m], g, scale, adam)
                broken[k] |= not 0 < norm < np.inf
                if not held[m]:
                    _unit(W[m], g, norm)
                if not tied:
                    norm = _adamw(V[m], mV[m], vV[m], h, scale, adam)
                    broken[k] |= not 0 < norm < np.inf
                    if not held[m]:
                        _unit(V[m], h, norm)


@njit(nogil=True, cache=True)
def _products(V, xc, r, values, tied):
    """Codes, (v_m · r) on_m, both (block, L), and the unscaled gradients (block, d) of w_m and v_m in a dense block."""
    s = values.reshape((len(V), len(r)))
    vr = np.dot(V, r.T)
    for m in range(len(s)):
        for l in range(s.shape[1]):
            on = s[m, l] != 0 or math.copysign(1, s[m, l]) < 0  # see _spread
            vr[m, l] = vr[m, l] if on else vr.dtype.type(0)
    gW, gV = np.dot(vr, xc), np.dot(s, r)
    if tied:
        gW += gV
    return s, vr, gW, gV


@njit(nogil=True, cache=True, fastmath=REORDER)
def _entries(V, m, xc, r, rows, s, tied, g, h):
    """g <- Σ (v · r) (x - b_pre) and h <- Σ s r over the active rows of neuron m, their sum where tied.

    Returns Σ s (v · r) and Σ v · r.  Rows are taken by twos, the last one alone: g is read and written half as often.
    """
    zero = V.dtype.type(0)
    ds = c = zero
    g[:] = zero
    h[:] = zero
    for i in range(0, rows.size, 2):
        alone = i + 1 == rows.size
        l, k = rows[i], rows[i] if alone else rows[i + 1]
        sl, sk = s[i], zero if alone else s[i + 1]
        vl = vk = zero
        for j in range(V.shape[1]):
            vl += V[m, j] * r[l, j]
            vk += V[m, j] * r[k, j]
        vk = zero if alone else vk
        ds += sl * vl + sk * vk
        c += vl + vk
        if tied:
            for j in range(g.size):
                g[j] += vl * xc[l, j] + sl * r[l, j] + vk * xc[k, j] + sk * r[k, j]
        else:
            for j in range(g.size):
                g[j] += vl * xc[l, j] + vk * xc[k, j]
            for j in range(g.size):
                h[j] += sl * r[l, j] + sk * r[k, j]
    return ds, c


@njit(nogil=True, cache=True, fastmath=REORDER)
def _dot(u, v):
    total = u.dtype.type(0)
    for j in range(u.size):
        total += u[j] * v[j]
    return total


@njit(nogil=True, cache=True, fastmath=REORDER)
def _add(g, c, u):
    for j in range(g.size):
        g[j] += c * u[j]


@njit(nogil=True, cache=True, fastmath=REORDER, error_model="numpy")
def _adamw(theta, m, v, g, scale, adam):
    """`refgba.adam.AdamW.update` of a row along scale g: what it moves to is left in g, and its norm returned."""
    squares = theta.dtype.type(0)
    for j in range(theta.size):
        gj = scale * g[j]
        m[j] += adam[0] * (gj - m[j])
        v[j] += adam[1] * (gj * gj - v[j])
        g[j] = adam[5] * theta[j] - adam[2] * m[j] / (np.sqrt(adam[3] * v[j]) + adam[4])
        squares += g[j] * g[j]
    return np.sqrt(squares)


@njit(nogil=True, cache=True, fastmath=REORDER, error_model="numpy")
def _unit(theta, g, norm):
    """Theta <- g / norm."""
    for j in range(theta.size):
        theta[j] = g[j] / norm
