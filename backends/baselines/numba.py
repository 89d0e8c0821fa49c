"""The baselines of `refgba.baselines` on the CPU: one dense product per step, the encoder's; else active entries only.

How this departs from the reference:

- Rows are taken in blocks of ROWS.  A block's pre-activations are one BLAS product, and its codes are selected while
  they are in the cache (numba_entries.py).
- TopK and BatchTopK look only at what exceeds a guess, a little under the smallest code of the batch before, and at
  everything where that leaves too few.  Either way the selection is exact.
- Backward is one pass over the neurons, with AdamW and renormalisation while the row is at hand, as in
  backends/numba.py; the two share kernels of numba_kernels.py.  AuxK's part is dense, over the dead neurons only, which
  have no other.
- Results are the same to the bit for any number of threads.

tests/test_baselines_numba.py holds all of it against the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numba import prange

from refgba import baselines
from refgba.adam import AdamW
from refgba.backends.base import adamw_factors
from refgba.backends.baselines import numba_entries as entries
from refgba.backends.baselines.numpy import encode
from refgba.backends.baselines.traits import TRAITS
from refgba.backends.numba import decoded
from refgba.backends.numba_compiler import njit, unusable
from refgba.backends.numba_kernels import adamw, add, dot, parallel_blocks, unit
from refgba.backends.numpy import DTYPES, counters, export, get, params, put
from refgba.baselines import Params, adapt
from refgba.config import BaselineConfig
from refgba.errors import InputError
from refgba.gba import Metrics
from refgba.types import Array, Int64, Mask

__all__ = [
    "DTYPES", "adapt", "counters", "decode", "encode", "export", "get", "gradients", "init", "params", "put", "restore",
    "step", "unusable",
]  # fmt: skip

BLOCK = 128  # neurons that a thread takes at a time, backwards
Auxiliary = tuple[Array, Array, Array, Int64]

NEAR = 0.8  # of the smallest code of a batch is the next one's guess


@dataclass
class Codes:
    """The entries of a batch that matter, row by row: the first count[l] of index[l] and z[l], by neuron.

    All that are active, and for JumpReLU those within half a bandwidth of their threshold.  Only memory that is used is
    ever touched.
    """

    index: Array  # (L, M) uint32
    z: Array  # (L, M)
    count: Int64  # (L,)


@dataclass
class State(baselines.State):
    """The reference's state, whose arrays are updated in place, room for a batch, and the next guess."""

    codes: Codes | None = None
    guess: float = field(default=np.inf)


def init(params: Params, config: BaselineConfig) -> State:
    """The state before the first step; the arrays of `params` are not shared with it."""
    return restore(baselines.init(params, config))


def restore(state: baselines.State) -> State:
    """The state of a run that goes on; its arrays are taken over.  InputError for a method that is not in TRAITS."""
    if state.config.method not in TRAITS:
        raise InputError(f"backend 'numba' has no method {state.config.method}; numpy has it")
    return State(**{name: getattr(state, name) for name in baselines.State.__dataclass_fields__})


def step(state: State, x: Array) -> Metrics:
    """One step, as `refgba.baselines.step`."""
    config, params, L = state.config, state.params, len(x)
    state.t += 1
    with parallel_blocks():
        xc, left, columns = _forward(state, x)
        r = left[-1]
        first, _, values = columns
        counts, peaks, smallest = entries.activity(first, values, _limits(state))
        state.idle = np.where(counts > 0, 0, state.idle + L)
        aux = _auxiliary(state, xc, r, state.idle >= config.dead_after)
        moments = [state.optimiser["W"], state.optimiser["W_dec"]]
        db, dtheta, db_pre = _backward(state, xc, left, columns, aux, moments, baselines.learning_rate(config, state.t))
    grads = {"b": db, "b_pre": db_pre, "theta": dtheta}
    for name in state.optimiser:
        if name in grads:
            lr, theta = baselines.learning_rate(config, state.t), getattr(params, name)
            setattr(params, name, state.optimiser[name].update(theta, grads[name], lr, config))
    if TRAITS[config.method].thresholds:
        params.theta = np.maximum(params.theta, 0)
    elif TRAITS[config.method].per_batch:
        params.theta = baselines.averaged(params.theta, smallest, config, state.t)
    state.guess = NEAR * smallest
    state.buffer.rows += L
    state.buffer.counts += counts
    np.maximum(state.buffer.peaks, peaks, out=state.buffer.peaks)
    return Metrics(0.5 * float(np.vdot(r, r)) / L, counts.sum() / L)


def gradients(state: State, x: Array) -> Params:
    """The gradients at rows x (L, d), without AuxK, by the kernels of `step`; nothing moves."""
    params = state.params
    dW, dV = np.empty_like(params.W), np.empty_like(params.W)
    with parallel_blocks():
        xc, left, columns = _forward(state, x)
        none = _auxiliary(state, xc, left[-1], np.zeros(len(params.W), bool))
        db, dtheta, db_pre = _backward(state, xc, left, columns, none, [AdamW(dW, dW), AdamW(dV, dV)], None)
    return Params(dW, db, db_pre, dV, dtheta)


def decode(state: State, s: Array) -> Array:
    """Reconstructions f (L, d) of codes s (L, M)."""
    params = state.params
    return decoded(s, np.ones(s.shape[1], s.dtype), params.W_dec, params.b_pre)


def _limits(state: State) -> Array:
    """(M,) what z of an entry has to exceed to be active: JumpReLU's has some that do not."""
    params, dtype = state.params, state.params.W.dtype
    return params.theta if TRAITS[state.config.method].thresholds else np.full(len(params.W), -np.inf, dtype)


def _ends(state: State) -> Int64:
    """(P,) how many neurons each nested prefix has, the last all; without prefixes P = 1."""
    config = state.config
    return np.array(config.ends() if TRAITS[config.method].nested else [config.width], np.int64)


def _forward(state: State, x: Array) -> tuple[Array, Array, tuple[Int64, Array, Array]]:
    """x - b_pre (L, d), what neurons see left over (P, L, d), and the entries by neuron, as `entries.columns` has them.

    Neurons see r = f - x, the only one of P = 1; with nested prefixes those that p is the first to reach see the sum of
    its residual and those of all later ones.
    """
    config, params, traits = state.config, state.params, TRAITS[state.config.method]
    (M, d), L, dtype = params.W.shape, len(x), params.W.dtype
    if state.codes is None or len(state.codes.count) != L:
        state.codes = Codes(np.empty((L, M), np.uint32), np.empty((L, M), dtype), np.empty(L, np.int64))
    codes, xc = state.codes, x - params.b_pre
    floor = np.zeros(M, dtype)  # (M,) above which z is an entry
    if traits.thresholds:
        floor = (params.theta - config.bandwidth / 2).astype(dtype)
    k = min(config.k, M) if traits.per_row else 0
    guess = dtype.type(max(state.guess, 0.0)) if traits.per_row or traits.per_batch else dtype.type(0)
    if traits.per_batch:
        places = min(config.k, M) * L
        above = np.full(M, min(guess, np.finfo(dtype).max), dtype)
        entries.select(params.W, params.b, xc, above, 0, guess, *_arrays(codes))
        if codes.count.sum() < places and guess > 0:
            entries.select(params.W, params.b, xc, floor, 0, guess, *_arrays(codes))
        if codes.count.sum() > places:
            found = np.concatenate([codes.z[l, :n] for l, n in enumerate(codes.count)])
            entries.keep(np.partition(found, len(found) - places)[len(found) - places], places, *_arrays(codes))
    else:
        entries.select(params.W, params.b, xc, floor, k, guess, *_arrays(codes))
    columns = entries.columns(M, *_arrays(codes))
    f = np.empty((len(_ends(state)), L, d), dtype)
    entries.decode(params.W_dec, _limits(state), *_arrays(codes), _ends(state), f)
    left = np.subtract(f, xc, out=f)  # both lack b_pre
    for p in reversed(range(len(left) - 1)):
        left[p] += left[p + 1]
    return xc, left, columns


def _arrays(codes: Codes) -> tuple[Array, Array, Int64]:
    return codes.index, codes.z, codes.count


def _auxiliary(state: State, xc: Array, r: Array, dead: Mask) -> Auxiliary:
    """AuxK's gradients of the dead neurons, summed over the batch: W and W_dec (D, d), b (D,), and where (M,) they are.

    As `baselines.auxiliary` and `baselines.gradients` have them; where AuxK has no part, D = 1 and no neuron is.
    """
    config, params = state.config, state.params
    d, dtype = params.W.shape[1], params.W.dtype
    slot = np.full(len(params.W), -1, np.int64)
    none = (np.zeros((1, d), dtype), np.zeros((1, d), dtype), np.zeros(1, dtype), slot)
    which = np.flatnonzero(dead)
    if not TRAITS[config.method].auxk or config.aux == 0 or not which.size:
        return none
    variance = float(np.mean(np.sum((r - r.mean(axis=0)) ** 2, axis=1)))
    if variance == 0:
        return none
    slot[which] = np.arange(len(which))
    V = params.W_dec[which]
    z = xc @ params.W[which].T + params.b[which]  # (L, D)
    s = baselines.largest(z, config.aux_k or max(1, d // 2)) * z
    u = (config.aux / variance) * (s @ V + r)  # (L, d)   the residual is -r
    dz = (u @ V.T) * (s > 0)
    parts = (dz.T @ xc, s.T @ u, dz.sum(axis=0))
    dW, dV, db = (np.ascontiguousarray(part, dtype) for part in parts)
    return dW, dV, db, slot


def _backward(
    state: State, xc: Array, left: Array, columns: tuple[Int64, Array, Array], aux: Auxiliary,
    moments: list[AdamW], lr: float | None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Updates W and W_dec, or with lr None puts their gradients where the first moments are.

    Returns the gradients of b (M,), theta (M,) and b_pre (d,).
    """
    config, params, traits = state.config, state.params, TRAITS[state.config.method]
    W, dtype, L = params.W, params.W.dtype, len(xc)
    penalty = dtype.type(config.sparsity if traits.penalised else 0)
    half = dtype.type(config.bandwidth / 2 if traits.thresholds else 0)
    adam = np.empty(0, dtype)
    if lr is not None:
        for moment in moments:
            moment.t += 1
        adam = np.array(adamw_factors(moments[0].t, lr, config), dtype)
    db, near, near_vr = np.empty(len(W), dtype), np.empty(len(W), np.int64), np.empty(len(W), dtype)
    sums = np.zeros((-(-len(W) // BLOCK), W.shape[1]), dtype)  # Σ_m dL/dz_m w_m, by block
    _sweep(
        W, params.W_dec, moments[0].m, moments[0].v, moments[1].m, moments[1].v, xc, left, _ends(state), *columns,
        params.theta, _limits(state), half, penalty, *aux, adam, db, near, near_vr, sums,
    )  # fmt: skip
    dtheta = np.zeros_like(params.theta)
    if traits.thresholds:
        dtheta -= (params.theta * near_vr + config.sparsity * near).astype(dtype) / (L * config.bandwidth)
    return db, dtheta, left[0].mean(axis=0) - sums.sum(axis=0) / L


@njit(parallel=True, nogil=True, error_model="numpy")
def _sweep(
    W, V, mW, vW, mV, vV, xc, left, ends, first, rows, values, theta, limit, half, penalty, gW, gV, gb, slot, adam, db,
    near, near_vr, sums,
):  # fmt: skip
    """Gradients averaged over the batch, then AdamW of w_m and v_m and unit norm of v_m, neuron by neuron.

        dL/dz_m = (v_m · r + penalty) on_m,   dL/dw_m = dL/dz_m (x - b_pre),   dL/db_m = dL/dz_m,   dL/dv_m = s_m r

    r = left[p] for the first p with m < ends[p].  on_m = 1{z_m > limit_m}; penalty is λ for L1 and 0 otherwise.  gW,
    gV, gb: AuxK's gradients of the neurons with slot[m] >= 0.  db <- dL/db (M,).  sums[k] <- Σ_m Σ_l dL/dz_m w_m over
    the neurons of block k.  near, near_vr <- how many rows have |z_m - θ_m| < half, and Σ_l v_m · r over those.  v_m
    moves without the part of its gradient along it.  With adam empty nothing moves: mW <- dL/dW and mV <- dL/dW_dec.
    """
    M, d = W.shape
    scale = W.dtype.type(1 / left.shape[1])
    for block in prange(len(sums)):
        g, h, p = np.empty(d, W.dtype), np.empty(d, W.dtype), 0
        for m in range(block * BLOCK, min((block + 1) * BLOCK, M)):
            while m >= ends[p]:
                p += 1
            r = left[p]  # (L, d)
            g[:] = 0
            h[:] = 0
            c = near_vr[m] = W.dtype.type(0)
            near[m] = 0
            for i in range(first[m], first[m + 1]):
                l, s = rows[i], values[i]
                vr = dot(V[m], r[l])
                if abs(s - theta[m]) < half:
                    near[m] += 1
                    near_vr[m] += vr
                if s > limit[m]:
                    dz = vr + penalty
                    c += dz
                    add(g, dz, xc[l])
                    add(h, s, r[l])
            if slot[m] >= 0:  # a dead neuron: all of the above is 0
                g[:] = gW[slot[m]]
                h[:] = gV[slot[m]]
                c = gb[slot[m]]
            db[m] = c * scale
            add(sums[block], c, W[m])
            if adam.size == 0:
                mW[m] = scale * g
                mV[m] = scale * h
            else:
                adamw(W[m], mW[m], vW[m], g, scale, adam)
                W[m] = g
                add(h, -dot(h, V[m]), V[m])  # without its part along v_m
                norm = adamw(V[m], mV[m], vV[m], h, scale, adam)
                unit(V[m], h, norm)
