"""The GPU backend: cuBLAS for the five matrix products of a step, kernels of our own for what lies between them.

This file has the verbs of the contract, line by line as `refgba.gba.step` has them; cupy_device.py multiplies and
launches, cupy_memory.py has the arrays, cupy_kernels.cu the kernels.  How this departs from the reference, and which
test guards it:

- Neurons are taken in chunks that use the same memory in turn (cupy_memory.py).  tests/test_conformance.py takes them
  in one chunk and in several.
- Kernels fuse what lies between two products: gate, codes, counts and peaks; gate and gradient of the codes; AdamW,
  renormalisation and the copy of W that products read.  tests/test_kernels.py holds each to its formula.
- `dtype` tf32 and bfloat16 round the factors of matrix products; sums, parameters and moments stay float32.
  tests/test_conformance.py bounds what that can do.
- A step never waits for the device.  tests/test_cupy_host.py.
- CuPy compiles with -ftz=true: except in float64, a GPU takes a pre-activation below 2^-126 in size for 0.  The tests
  on the CPU cannot show it.

No gain has been measured yet: benchmarks/step.py and `make gpu` do it on a machine with a GPU.  Elsewhere the tests run
this file through tests/emulated_cupy.py.

The one place where devices with neurons of their own would have to agree is the reconstruction, in `forward`.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import cupy as cp
import numpy as np

from refgba import gba, recipe
from refgba.adam import AdamW
from refgba.backends import cupy_memory as memory
from refgba.backends.base import adamw_factors
from refgba.backends.cupy_device import DTYPES, unusable
from refgba.backends.cupy_memory import Chunk, Rows, State, Work, arrived, init, put
from refgba.bias import Buffer
from refgba.bias import adapt as algorithm_2
from refgba.errors import InputError
from refgba.gba import Metrics
from refgba.sae import Params
from refgba.types import Array

__all__ = [
    "DTYPES", "adapt", "counters", "decode", "encode", "export", "get", "gradients", "init", "params", "put", "restore",
    "step", "unusable",
]  # fmt: skip


def params(state: State) -> Params:
    """A copy of the parameters, on the host."""
    return Params(**{name: cp.asnumpy(array) for name, array in state.theta.items()})


def export(state: State) -> gba.State:
    """All of a state, copied to the host as the reference's."""
    moments = {name: [cp.asnumpy(array) for array in pair] for name, pair in state.moments.items()}
    return gba.State(
        config=state.config,
        params=params(state),
        optimiser={name: AdamW(m, v, state.updates[name]) for name, (m, v) in moments.items()},
        buffer=buffer(state),
        last=state.last,
        held=cp.asnumpy(state.held),
        t=state.t,
    )


def restore(state: gba.State) -> State:
    """The state of a run that goes on, on the device; InputError as `init`."""
    run = init(state.params, state.config)
    for name, adam in state.optimiser.items():
        for array, host in zip(run.moments[name], (adam.m, adam.v), strict=True):
            array.set(host)
        run.updates[name] = adam.t
    run.counts.set(state.buffer.counts)
    run.peaks.set(state.buffer.peaks.astype(run.device.real))
    run.held.set(state.held)
    run.rows, run.last, run.t = state.buffer.rows, state.last, state.t
    return run


def get(array: Any) -> Array:
    """A device array on the host."""
    host: Array = cp.asnumpy(array)
    return host


def step(state: State, x: Rows) -> Metrics:
    """Lines 2 to 5 of Algorithm 1, as `refgba.gba.step`."""
    config, device = state.config, state.device
    if x.array.shape[0] != state.work.L:
        raise InputError(f"a step takes the {state.work.L} rows of its batch setting, not {x.array.shape[0]}")
    state.t += 1
    if recipe.fit_begins(config, state.t):
        hold(state)
        memory.untie(state)
    work = state.work
    lr = recipe.learning_rate(config, state.t)
    trained = recipe.trained(config, state.t)
    by = {name: factors(state, name, lr) for name in trained}
    rows = arrived(state, x)
    forward(state, work, rows)  # 2. forward, and 5. the buffers
    d = rows.shape[1]
    for chunk in backward(state, work):  # 3. backward; AdamW and 4. for W and W_dec
        for name, (theta, m, v, low, g, held) in zip(("W", "W_dec"), chunk.weights, strict=False):
            device.rows(
                "adamw_rows", chunk.size, d, theta, m, v, g, chunk.a, device.real(1 / work.L), held, low, *by[name]
            )
    for name, g in (("a", work.da), ("b_pre", work.sums[0] / work.L - work.db[0])):  # 3. AdamW for the others
        if name in trained:
            n = g.size
            m, v = state.moments[name]
            device.launch("adamw", -(-n // 256), (256,), np.int32(n), state.theta[name], m, v, g, *by[name])
    state.rows += work.L
    return Metrics(work.sums[1].sum() * (0.5 / work.L), work.active.sum() / work.L)


def factors(state: State, name: str, lr: float) -> tuple[Any, ...]:
    """Count an update of a parameter; its `refgba.backends.base.AdamWFactors`, the last arguments of both kernels."""
    state.updates[name] += 1
    return tuple(map(state.device.real, adamw_factors(state.updates[name], lr, state.config)))


def forward(state: State, work: Work, x: Any) -> None:
    """Lines 2 and 5 on rows x (L, d): codes, counts and peaks chunk by chunk, and the residuals r = f - x."""
    device, theta, (L, d) = state.device, state.theta, x.shape
    relu = np.int32(state.config.activation == "relu")
    device.each("center", L * d, np.int32(d), x, theta["b_pre"], work.xc)
    for i, c in enumerate(work.chunks):
        device.product(work.xc, c.W, c.z, tB=True)  # (L, chunk)   z_m = w_m · (x - b_pre)
        device.columns("gate", L, c.size, relu, c.z, c.b, c.s, c.counts, c.peaks, c.active)
        device.rows("scale_rows", c.size, d, c.a, c.weights[-1][0], c.aV)
        device.product(c.s, c.aV, work.f, add=i > 0)  # (L, d)   Σ_m a_m v_m s_m
    # Devices with neurons of their own would add up work.f here; nothing else of a step is shared but work.db below.
    device.columns("residual", L, d, x, theta["b_pre"], work.f, work.r, work.sums[0], work.sums[1])


def backward(state: State, work: Work) -> Iterator[Chunk]:
    """Line 3's gradients at the residuals of `forward`: yields each chunk with its own, whose memory the next takes."""
    device = state.device
    for i, c in enumerate(work.chunks):
        device.product(work.r, c.V, c.z, tB=True)  # (L, chunk)   v_m · r
        device.columns("gate_gradient", work.L, c.size, c.z, c.s, c.a, c.g, c.da, c.c)
        device.product(c.c, c.W, work.db, add=i > 0)  # (1, d)   Σ_m a_m (v_m · r) on_m w_m, before W moves
        device.product(c.g, work.xc, c.weights[0][4], tA=True)  # (chunk, d)   Σ_l (v_m · r) on_m (x - b_pre)
        device.product(c.s, work.r, c.weights[-1][4], tA=True, add=len(c.weights) == 1)  # + Σ_l s_m r; tied: the sum
        yield c


def hold(state: State) -> None:
    """`refgba.recipe.agreeing` into state.held, for as many rows of W at a time as there is memory for."""
    W, tau = state.theta["W"], state.config.hold
    M, rows = len(W), state.work.room.size // len(W)
    if tau == 1:
        return
    for start in range(0, M, rows):
        block = W[start : start + rows]
        cosine = state.work.room[: len(block) * M].reshape(len(block), M)
        state.device.product(block, W, cosine, tB=True, exact=True)
        held = state.held[start : start + rows]
        state.device.launch(
            "agree", len(block), (256,), np.int32(M), np.int64(start), state.device.real(tau), cosine, held
        )


def adapt(state: State) -> None:
    """Line 6: Algorithm 2, the reference's own, on the host; the arrays (M,) that it needs are small."""
    c, b = state.config, state.theta["b"]
    state.last = buffer(state)
    b.set(algorithm_2(cp.asnumpy(b), state.last, c.group(), c.target(), c.gamma_minus, c.gamma_plus, c.eps, c.floor))
    state.rows = 0
    state.counts.fill(0)
    state.peaks.fill(0)


def buffer(state: State) -> Buffer:
    """Counts and peaks since the last adaptation, a copy on the host."""
    since = Buffer(len(state.counts))
    since.rows, since.counts = state.rows, cp.asnumpy(state.counts)
    since.peaks = cp.asnumpy(state.peaks).astype(np.float64)
    return since


def counters(state: State) -> Buffer:
    """Counts and peaks that the last adaptation used (before the first: so far), a copy on the host."""
    return deepcopy(state.last) if state.last else buffer(state)


def gradients(state: State, x: Rows) -> Params:
    """The gradients at rows x (L, d), on the host, by the kernels of `step`; nothing moves."""
    rows = arrived(state, x)
    work = memory.work_for(state, len(rows), cp.zeros_like(state.counts), cp.zeros_like(state.peaks))
    forward(state, work, rows)
    parts: list[list[Array]] = [[], []]
    for chunk in backward(state, work):
        scale = cp.asnumpy(chunk.a)[:, None] / work.L
        for part, (*_, g, _held) in zip(parts, chunk.weights, strict=False):
            part.append(scale * cp.asnumpy(g))
    return Params(
        W=np.concatenate(parts[0]),
        a=cp.asnumpy(work.da),
        b=np.zeros(len(state.counts), state.device.real),
        b_pre=cp.asnumpy(work.sums[0] / work.L - work.db[0]),
        W_dec=np.concatenate(parts[1]) if parts[1] else None,
    )


def encode(state: State, x: Rows) -> tuple[Any, Any]:
    """Pre-activations y and codes s of rows x (L, d), each (L, M)."""
    rows, device = arrived(state, x), state.device
    (L, d), M = rows.shape, len(state.counts)
    xc, z = cp.empty((L, d), device.code), cp.empty((L, M), device.real)
    device.each("center", L * d, np.int32(d), rows, state.theta["b_pre"], xc)
    device.product(xc, state.low["W"], z, tB=True)
    y = z + state.theta["b"]
    return y, (y > 0) * (z if state.config.activation == "jumprelu" else y)


def decode(state: State, s: Any) -> Any:
    """Reconstructions f (L, d) of codes s (L, M)."""
    device, V = state.device, state.theta.get("W_dec", state.theta["W"])
    (L, M), d = s.shape, V.shape[1]
    codes, aV, f = cp.empty((L, M), device.code), cp.empty((M, d), device.code), cp.empty((L, d), device.real)
    device.each("narrow", L * M, s, codes)
    device.rows("scale_rows", M, d, state.theta["a"], V, aV)
    device.product(codes, aV, f)
    return f + state.theta["b_pre"]
