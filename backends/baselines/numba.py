"""The baselines of `refgba.baselines` on the CPU: one dense product per step, the encoder's; else active entries only.

How this departs from the reference:

- Rows are taken in blocks of ROWS.  A block's pre-activations are one BLAS product, and its codes are selected while
  they are in the cache.
- TopK, BatchTopK and Matryoshka look only at what exceeds a guess, a little under the smallest code of the batch
  before, and at everything where that leaves too few.  Either way the selection is exact.
- Backward is one pass over the neurons, with AdamW and renormalisation while the row is at hand, as in
  backends/numba.py.  The kernels are in numba_kernels.py beside this file; some are GBA's.  AuxK's part is dense, over
  the dead neurons only, which have no other.
- Gated looks at open gates only, and computes their magnitudes from them.
- Results are the same to the bit for any number of threads.

tests/test_baselines_numba.py holds all of it against the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from refgba import baselines
from refgba.adam import AdamW
from refgba.backends.base import adamw_factors
from refgba.backends.baselines import numba_kernels as kernels
from refgba.backends.baselines.numpy import encode
from refgba.backends.baselines.traits import TRAITS
from refgba.backends.numba import decoded
from refgba.backends.numba_compiler import unusable
from refgba.backends.numba_kernels import parallel_blocks
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

Auxiliary = tuple[Array, Array, Array, Int64]

NEAR = 0.8  # of the smallest code of a batch is the next one's guess


@dataclass
class Codes:
    """The entries of a batch that matter, row by row: the first count[l] of index[l] and z[l], by neuron.

    All that are active, and for JumpReLU those within half a bandwidth of their threshold, for Gated all open gates.
    Only memory that is used is ever touched.
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
        fwd = _forward(state, x)
        counts, peaks, smallest = kernels.activity(fwd.first, fwd.codes, _limits(state))
        state.idle = np.where(counts > 0, 0, state.idle + L)
        aux = _auxiliary(state, fwd.xc, fwd.r, state.idle >= config.dead_after)
        moments = [state.optimiser["W"], state.optimiser["W_dec"]]
        grads = _backward(state, fwd, aux, moments, baselines.learning_rate(config, state.t))
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
    return Metrics(0.5 * float(np.vdot(fwd.r, fwd.r)) / L, counts.sum() / L)


def gradients(state: State, x: Array) -> Params:
    """The gradients at rows x (L, d), without AuxK, by the kernels of `step`; nothing moves."""
    params = state.params
    dW, dV = np.empty_like(params.W), np.empty_like(params.W)
    with parallel_blocks():
        fwd = _forward(state, x)
        none = _auxiliary(state, fwd.xc, fwd.r, np.zeros(len(params.W), bool))
        grads = _backward(state, fwd, none, [AdamW(dW, dW), AdamW(dV, dV)], None)
    return replace(params, W=dW, W_dec=dV, **grads)


def decode(state: State, s: Array) -> Array:
    """Reconstructions f (L, d) of codes s (L, M)."""
    params = state.params
    return decoded(s, np.ones(s.shape[1], s.dtype), params.W_dec, params.b_pre)


def _limits(state: State) -> Array:
    """(M,) what z of an entry has to exceed to be active: JumpReLU and Gated have some that do not."""
    params, traits = state.params, TRAITS[state.config.method]
    if traits.thresholds:
        return params.theta
    return np.full(len(params.W), 0 if traits.gated else -np.inf, params.W.dtype)


def _ends(state: State) -> Int64:
    """(P,) how many neurons each nested prefix has, the last all; without prefixes P = 1."""
    config = state.config
    return np.array(config.ends() if TRAITS[config.method].nested else [config.width], np.int64)


class Forward(NamedTuple):
    """A forward pass: rows, what is left over, and the entries neuron by neuron, as `kernels.columns` has them.

    xc: (L, d) x - b_pre.  r: (L, d) f - x.  left: (P, L, d) what neurons see left over: r, the only one of P = 1; with
    nested prefixes those that p is the first to reach see the sum of its residual and those of all later ones; Gated's
    gates see r_g and its codes r.  first, rows, values: the entries, and codes: beside each the z that passes.
    """

    xc: Array
    r: Array
    left: Array
    first: Int64
    rows: Array
    values: Array
    codes: Array


def _forward(state: State, x: Array) -> Forward:
    """The network on rows x (L, d)."""
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
        kernels.select(params.W, params.b, xc, above, 0, guess, *_arrays(codes))
        if codes.count.sum() < places and guess > 0:
            kernels.select(params.W, params.b, xc, floor, 0, guess, *_arrays(codes))
        if codes.count.sum() > places:
            found = np.concatenate([codes.z[l, :n] for l, n in enumerate(codes.count)])
            kernels.keep(np.partition(found, len(found) - places)[len(found) - places], places, *_arrays(codes))
    else:
        kernels.select(params.W, params.b, xc, floor, k, guess, *_arrays(codes))
    first, rows, values = kernels.columns(M, *_arrays(codes))
    if traits.gated:
        return _through_gates(state, xc, first, rows, values)
    f = np.empty((len(_ends(state)), L, d), dtype)
    kernels.decode(params.W_dec, _limits(state), *_arrays(codes), _ends(state), f)
    left = np.subtract(f, xc, out=f)  # both lack b_pre
    for p in reversed(range(len(left) - 1)):
        left[p] += left[p + 1]
    return Forward(xc, left[-1], left, first, rows, values, values)


def _through_gates(state: State, xc: Array, first: Int64, rows: Array, gates: Array) -> Forward:
    """The rest of a forward pass of Gated, whose entries are its gates, from where they are; they become magnitudes."""
    params: Any = state.params
    assert state.codes is not None
    entries, left = _arrays(state.codes), np.empty((2, *xc.shape), xc.dtype)
    limits = _limits(state)
    kernels.decode(params.W_dec, limits, *entries, _ends(state), left[:1])
    kernels.magnitudes(*entries, np.exp(params.r_mag), params.b, params.b_mag)
    kernels.decode(params.W_dec, limits, *entries, _ends(state), left[1:])
    left -= xc
    return Forward(xc, left[1], left, first, rows, gates, kernels.columns(len(params.W), *entries)[2])


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
    state: State, fwd: Forward, aux: Auxiliary, moments: list[AdamW], lr: float | None
) -> dict[str, Array]:  # fmt: skip
    """Updates W and W_dec, or with lr None puts their gradients where the first moments are.

    Returns the gradients of all other parameters by name.
    """
    config, traits = state.config, TRAITS[state.config.method]
    params: Any = state.params
    W, dtype, L = params.W, params.W.dtype, len(fwd.xc)
    penalty = dtype.type(config.sparsity if traits.penalised else 0)
    adam = np.empty(0, dtype)
    if lr is not None:
        for moment in moments:
            moment.t += 1
        adam = np.array(adamw_factors(moments[0].t, lr, config), dtype)
    own = {name: np.zeros_like(array) for name, array in params.arrays().items() if array.shape == (len(W),)}
    sums = np.zeros((-(-len(W) // kernels.BLOCK), W.shape[1]), dtype)  # Σ_m dL/dz_m w_m, by block
    weights = W, params.W_dec, moments[0].m, moments[0].v, moments[1].m, moments[1].v, fwd.xc, fwd.left
    if traits.gated:
        magnitudes = np.exp(params.r_mag), params.b_mag
        kernels.sweep_gated(
            *weights, fwd.first, fwd.rows, fwd.codes, *magnitudes, penalty, adam, own["b"], own["r_mag"],
            own["b_mag"], sums,
        )  # fmt: skip
        return own | {"b_pre": fwd.r.mean(axis=0) - sums.sum(axis=0) / L}
    half = dtype.type(config.bandwidth / 2 if traits.thresholds else 0)
    near, near_vr = np.empty(len(W), np.int64), np.empty(len(W), dtype)
    kernels.sweep(
        *weights, _ends(state), fwd.first, fwd.rows, fwd.values, params.theta, _limits(state), half, penalty, *aux,
        adam, own["b"], near, near_vr, sums,
    )  # fmt: skip
    if traits.thresholds:
        own["theta"] -= (params.theta * near_vr + config.sparsity * near).astype(dtype) / (L * config.bandwidth)
    return own | {"b_pre": fwd.left[0].mean(axis=0) - sums.sum(axis=0) / L}
