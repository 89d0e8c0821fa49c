"""The GPU backend: cuBLAS for the five matrix products of a step, kernels of our own for what lies between them.

This file has the verbs of the contract, line by line as `refgba.gba.step` has them; cupy_device.py multiplies and
launches, cupy_memory.py has the arrays, cupy_kernels.cu the kernels.  How this departs from the reference, and which
test guards it:

- Neurons are taken in chunks that use the same memory in turn (cupy_memory.py).  tests/test_conformance.py takes them
  in one chunk and in several.
- Kernels fuse what lies between two products: gate, codes, counts and peaks; gate and gradient of the codes; AdamW of a
  row and of its a_m, renormalisation, and the copies of w_m and a_m v_m that the next step's products read.
  tests/test_kernels.py holds each to its formula.
- dL/da_m comes from the summed gradients of w_m and v_m, not from the codes, and where tied these two are one product.
  The second term of dL/db_pre is a sum over parts, one per thread block, and is formed only where b_pre is trained.
  tests/test_conformance.py bounds what their rounding can do.
- `dtype` tf32 and bfloat16 round the factors of matrix products, and bfloat16 v_m · r where it is written: it is the
  factor of the next.  Pre-activations, sums, parameters and moments stay float32.  tests/test_conformance.py bounds
  what that can do.
- A step never waits for the device.  tests/test_cupy_host.py.
- CuPy compiles with -ftz=true: except in float64, a pre-activation below 2^-126 in size is 0, and its gate is closed.
  tests/test_kernels.py.

What that gains on an H100, and what was tried besides: benchmarks/results/gpu-2026-11-26.md; `make gpu` measures it.
Without a GPU the tests run this file through tests/emulated_cupy.py.

The one place where devices with neurons of their own would have to agree is the reconstruction, in `forward`.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Protocol

import cupy as cp
import numpy as np

from refgba import gba, measured, recipe
from refgba.adam import AdamW
from refgba.backends import cupy_memory as memory
from refgba.backends.base import AdamWFactors, adamw_factors
from refgba.backends.cupy_device import DTYPES, aligned, unusable
from refgba.backends.cupy_memory import Rows, State, Work, arrived, done_with, fetched, filled, init, put
from refgba.bias import Buffer
from refgba.bias import adapt as algorithm_2
from refgba.errors import InputError
from refgba.gba import Metrics
from refgba.sae import Params
from refgba.types import Array, Float64

__all__ = [
    "DTYPES", "adapt", "counters", "decode", "encode", "export", "get", "gradients", "init", "params", "put", "restore",
    "step", "unusable",
]  # fmt: skip


STILL = AdamWFactors(toward1=1.0, toward2=0.0, rate=0.0, root=0.0, eps=1.0, keep=1.0)  # m <- g, and nothing moves


class Counted(Protocol):
    """What `buffer` and `counters` know of a state: this backend's, or that of a baseline."""

    counts: Any
    peaks: Any
    rows: int
    last: Buffer | None


def params(state: State) -> Params:
    """A copy of the parameters, on the host."""
    return Params(**{name: fetched(name, array, state.d) for name, array in state.theta.items()})


def export(state: State) -> gba.State:
    """All of a state, copied to the host as the reference's."""
    moments = {name: [fetched(name, array, state.d) for array in pair] for name, pair in state.moments.items()}
    return gba.State(
        config=state.config,
        params=params(state),
        optimiser={name: AdamW(m, v, state.updates[name]) for name, (m, v) in moments.items()},
        buffer=buffer(state),
        last=state.last,
        held=cp.asnumpy(state.held),
        t=state.t,
        shares=deepcopy(state.shares),
    )


def restore(state: gba.State) -> State:
    """The state of a run that goes on, on the device; InputError as `init`."""
    run = init(state.params, state.config)
    sources: list[tuple[Any, Any]] = [
        (array, filled(name, host))
        for name, adam in state.optimiser.items()
        for array, host in zip(run.moments[name], (adam.m, adam.v), strict=True)
    ]
    sources += [(run.counts, state.buffer.counts), (run.peaks, state.buffer.peaks.astype(run.device.real))]
    sources += [(run.held, state.held)]
    for array, host in sources:
        array.set(host)
    run.feed.steps.synchronize()  # before any of the host's arrays goes: they are not pinned
    run.updates.update({name: adam.t for name, adam in state.optimiser.items()})
    run.rows, run.last, run.t, run.shares = state.buffer.rows, state.last, state.t, deepcopy(state.shares)
    return run


def get(array: Any) -> Array:
    """A device array on the host."""
    host: Array = cp.asnumpy(array)
    return host


def step(state: State, x: Rows) -> Metrics:
    """Lines 2 to 5 of Algorithm 1, as `refgba.gba.step`."""
    config = state.config
    if x.array.shape[0] != state.work.L:
        raise InputError(f"a step takes the {state.work.L} rows of its batch setting, not {x.array.shape[0]}")
    state.t += 1
    if recipe.fit_begins(config, state.t):
        hold(state)
        memory.untie(state)
    work = state.work
    lr = recipe.learning_rate(config, state.t)
    by = {name: factors(state, name, lr) for name in recipe.trained(config, state.t)}
    forward(state, work, x)  # 2. forward, and 5. the buffers
    backward(state, work, by)  # 3. backward and AdamW, and 4.
    state.rows += work.L
    return Metrics(work.sums[1].sum() * (0.5 / work.L), work.active.sum() / work.L)


def factors(state: State, name: str, lr: float) -> AdamWFactors:
    """Count an update of a parameter, and give the factors of it."""
    state.updates[name] += 1
    return adamw_factors(state.updates[name], lr, state.config)


def forward(state: State, work: Work, x: Rows) -> None:
    """Lines 2 and 5 on rows x (L, d): codes, counts and peaks chunk by chunk, and the residuals r = f - x."""
    device, theta, rows = state.device, state.theta, arrived(state, x)
    L, d = rows.shape
    relu = np.int32(state.config.activation == "relu")
    device.each("center", L * d, np.int32(d), rows, theta["b_pre"], work.xc)
    for i, c in enumerate(work.chunks):
        device.product(work.xc, c.W, c.z, tB=True)  # (L, chunk)   z_m = w_m · (x - b_pre)
        columns = np.int32(c.ld), relu, c.z, c.b, None, c.s, c.gates, c.counts, c.peaks, c.active
        device.columns("gate", L, c.size, *columns)
        device.product(c.s, c.aV, work.f, add=i > 0)  # (L, d)   Σ_m a_m v_m s_m
    # Devices with neurons of their own would add up work.f here; nothing else of a step is shared but work.shift below.
    device.columns("residual", L, d, rows, theta["b_pre"], work.f, work.r, work.sums[0], work.sums[1])
    done_with(state, x)


def backward(state: State, work: Work, by: dict[str, AdamWFactors]) -> None:
    """Lines 3 and 4 at the residuals of `forward`: gradients, AdamW of the parameters in `by`, and unit norm."""
    device, L, d, relu = state.device, work.L, work.d, state.config.activation == "relu"
    shifted, scaled = "b_pre" in by, "a" in by
    numbers = {name: tuple(map(device.real, factors)) for name, factors in by.items()}
    scale = device.real(1 / L)
    for i, c in enumerate(work.chunks):
        tied = len(c.weights) == 1
        device.product(work.r, c.V, c.vr, tB=True)  # (L, chunk)   v_m · r
        of_b = c.b if relu and tied and scaled else None
        mean = c.mean if shifted or of_b is not None else None
        device.columns("gate_gradient", L, c.size, np.int32(c.ld), c.vr, c.gates, c.g, mean)
        if tied:  # Σ_l (v_m · r) on_m (x - b_pre) + Σ_l s_m r
            device.product(c.gs, work.xr, c.weights[0][4], tA=True)  # (chunk, d)
        else:
            device.product(c.g, work.xc, c.weights[0][4], tA=True)  # (chunk, d)   Σ_l (v_m · r) on_m (x - b_pre)
            device.product(c.s, work.r, c.weights[1][4], tA=True)  # (chunk, d)   Σ_l s_m r
        for name, (theta, m, v, low, g) in zip(("W", "W_dec"), c.weights, strict=False):
            decodes = tied or name == "W_dec"  # its rows are v_m, and a moves with the last of both
            m_a, v_a = c.a[1:] if decodes and scaled else (None, None)
            shift = work.shift if shifted and name == "W" else None
            share = device.real(0.5 / L if tied else 1 / L)
            _, _, rate_a, root_a, *_ = numbers["a"] if scaled else (device.real(0),) * 6
            device.rows(
                "adamw_rows", c.size, d, theta, m, v, low, g, c.held, c.a[0], m_a, v_a, of_b, mean,
                c.aV if decodes else None, shift, np.int32(i > 0), scale, share, *numbers[name], rate_a, root_a,
            )  # fmt: skip
    if shifted:
        b_pre = scale, work.sums[0], work.shift, *work.b_pre, *numbers["b_pre"]
        device.columns("adamw_b_pre", len(work.shift), d, *b_pre)


def hold(state: State) -> None:
    """`refgba.recipe.agreeing` into state.held, for as many rows of W at a time as there is memory for."""
    W, tau = state.theta["W"], state.config.hold
    M, ld = len(W), aligned(len(W))
    rows = state.work.room.size // ld
    if tau == 1:
        return
    for start in range(0, M, rows):
        block = W[start : start + rows]
        cosine = state.work.room[: len(block) * ld].reshape(len(block), ld)[:, :M]
        state.device.product(block, W, cosine, tB=True, exact=True)
        held = state.held[start : start + rows]
        numbers = np.int32(M), np.int32(ld), np.int64(start), state.device.real(tau)
        state.device.launch("agree", len(block), (256,), *numbers, cosine, held)


def adapt(state: State, x: Rows | None = None) -> None:
    """Line 6: Algorithm 2, the reference's own, on the host; the arrays (M,) that it needs are small."""
    c, b = state.config, state.theta["b"]
    state.last = buffer(state)
    gammas = c.gamma_minus, c.gamma_plus
    own = own_targets(state, x)
    b[...] = cp.asarray(
        algorithm_2(cp.asnumpy(b), state.last, c.group(), c.target(), *gammas, c.eps, c.floor, own)
    )  # fmt: skip
    state.rows = 0
    state.counts.fill(0)
    state.peaks.fill(0)


def own_targets(state: State, x: Rows | None) -> Float64 | None:
    """`refgba.measured.own_targets`, from products on the device; only the shares (M,) come to the host."""
    if state.shares is None:
        return None
    if x is None:
        raise measured.no_rows()
    rows = arrived(state, x)[: measured.ROWS]
    z = product_of(state, rows) * state.theta["a"]
    if state.config.relative:
        highest = cp.asnumpy(z.max(axis=0))
        z /= cp.asarray(measured.divisors(state.shares, state.config, highest).astype(highest.dtype))

    def count() -> float:
        V = state.theta.get("W_dec", state.theta["W"])
        return measured.counted(rows[: measured.PURSUED], V, state.d)

    def rank(l0: float) -> Float64:
        share: Float64 = cp.asnumpy(measured.ranked(z, l0))
        return share

    own = measured.targets(state.shares, state.config, rank, count)
    done_with(state, x)
    return own


def buffer(state: Counted) -> Buffer:
    """Counts and peaks since the last adaptation, a copy on the host."""
    since = Buffer(len(state.counts))
    since.rows, since.counts = state.rows, cp.asnumpy(state.counts)
    since.peaks = cp.asnumpy(state.peaks).astype(np.float64)
    return since


def counters(state: Counted) -> Buffer:
    """Counts and peaks that the last adaptation used (before the first: so far), a copy on the host."""
    return deepcopy(state.last) if state.last else buffer(state)


def gradients(state: State, x: Rows) -> Params:
    """The gradients at rows x (L, d), on the host, by the kernels of `step`; nothing moves.

    Moments of their own take the gradients up, and all neurons are held.
    """
    moments = {name: (cp.zeros_like(array), cp.zeros_like(array)) for name, array in state.theta.items() if name != "b"}
    counts, peaks, held = cp.zeros_like(state.counts), cp.zeros_like(state.peaks), cp.ones_like(state.held)
    work = memory.work_for(state, len(x.array), counts, peaks, held, moments)
    forward(state, work, x)
    backward(state, work, dict.fromkeys(moments, STILL))
    found = {name: fetched(name, m, state.d) for name, (m, _) in moments.items()}
    return Params(b=np.zeros(len(state.counts), state.device.real), **found)


def pre_activations(state: Any, x: Rows) -> tuple[Any, Any]:
    """z = w_m · (x - b_pre) and y = z + b_m of rows x (L, d), each (L, M); of a baseline's state too."""
    z = product_of(state, arrived(state, x))
    done_with(state, x)
    return z, z + state.theta["b"]


def product_of(state: Any, rows: Any) -> Any:
    """z = w_m · (x - b_pre) of rows x (L, d) that are on the device, (L, M)."""
    device, (L, d), M = state.device, rows.shape, len(state.counts)
    xc, z = cp.empty((L, d), device.code), cp.empty((L, aligned(M)), device.real)[:, :M]
    device.each("center", L * d, np.int32(d), rows, state.theta["b_pre"], xc)
    device.product(xc, state.low["W"], z, tB=True)
    return z


def encode(state: State, x: Rows) -> tuple[Any, Any]:
    """Pre-activations y and codes s of rows x (L, d), each (L, M)."""
    z, y = pre_activations(state, x)
    return y, (y > 0) * (z if state.config.activation == "jumprelu" else y)


def decode(state: State, s: Any) -> Any:
    """Reconstructions f (L, d) of codes s (L, M)."""
    device, (L, M) = state.device, s.shape
    wide = cp.zeros((L, aligned(M)), device.real)
    wide[:, :M] = s
    codes, f = cp.empty(wide.shape, device.code), cp.empty((L, state.aV.shape[1]), device.real)
    device.each("narrow", wide.size, wide, codes)
    device.product(codes[:, :M], state.aV, f)
    return f[:, : state.d] + state.theta["b_pre"][: state.d]
