"""The baselines of `refgba.baselines` on a GPU: cuBLAS for their products, kernels of our own for what lies between.

How this departs from the reference, and which test guards it:

- Everything that backends/cupy.py departs in departs here too, but for chunks: arrays (L, M) are held whole.
- The k largest are found by their bits, eight at a time, from a count of how many numbers have each value of them.  Of
  equals the first are taken.
- AuxK takes the neurons that *may* be dead, known when the step before has counted; those of them that fire after all
  have codes 0.  So a step of TopK or BatchTopK waits for the counts of the step before, never for what was launched
  after them; the other methods never wait.

tests/test_baselines_cupy.py holds all of it against the reference, in the emulation.  No gain has been measured yet.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cupy as cp
import numpy as np

from refgba import baselines
from refgba.adam import AdamW
from refgba.backends import cupy_device
from refgba.backends import cupy_memory as memory
from refgba.backends.base import AdamWFactors, adamw_factors
from refgba.backends.baselines.traits import LACKING, TRAITS
from refgba.backends.cupy import STILL, buffer, counters, get, pre_activations
from refgba.backends.cupy_device import DTYPES, PRODUCTS, Device, aligned, unusable
from refgba.backends.cupy_memory import Feed, Halves, Rows, arrived, done_with, fetched, filled, put
from refgba.baselines import Params
from refgba.bias import Buffer
from refgba.config import BaselineConfig
from refgba.errors import InputError
from refgba.gba import Metrics
from refgba.types import Int64

__all__ = [
    "DTYPES", "adapt", "counters", "decode", "encode", "export", "get", "gradients", "init", "params", "put", "restore",
    "step", "unusable",
]  # fmt: skip

SOURCE = Path(cupy_device.__file__).with_name("cupy_baselines.cu")
SHARED = ("narrow", "center", "gate", "residual", "gate_gradient", "adamw_b_pre")  # kernels that GBA has too
OWN = (
    "count_digits", "choose_digit", "count_equal", "select_codes", "tally", "code_gradient", "adamw_each",
    "adamw_free_rows", "adamw_across_rows", "count_idle", "gather", "leftover",
)  # fmt: skip
WEIGHTS = ("W", "W_dec")
DIGIT = 8  # bits


@dataclass
class Work(Halves):
    """Memory for a batch of L rows."""

    f: Any  # (L, d) real       f - b_pre
    sums: Any  # (2, d) real    columns of r and of r^2
    shift: Any  # (at most ROW_BLOCKS, d) real   parts of Σ_m dL/dz_m w_m
    z: Any  # (L, M) real       w_m · (x - b_pre), without b_m
    vr: Any  # (L, M) code      v_m · r
    s: Any  # (L, M) code
    gates: Any  # (L, ld / 8) uint8   which gates are open, a bit each
    g: Any  # (L, M) code       dL/dz_m of each row
    gradients: dict[str, Any]  # W, W_dec (M, d) summed over the batch; b, theta (M,) averaged
    active: Any  # (M,) int32
    smallest: Any  # (M,) real


@dataclass
class State:
    """A run between two steps, on the device; arrays as in `cupy_memory.State`.

    idle: (M,) rows since each neuron last fired.  may: (M,) who may be dead at the next step, and which: (M,) their
    numbers, as many as there are; their number comes into `many` on the host, in pinned memory, and `known` is the
    event after which it is there.
    """

    config: BaselineConfig
    d: int
    device: Device
    theta: dict[str, Any]
    low: dict[str, Any]
    moments: dict[str, tuple[Any, Any]]
    counts: Any
    peaks: Any
    idle: Any
    may: Any
    which: Any
    many: Int64
    known: Any
    feed: Feed
    work: Work
    updates: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    last: Buffer | None = None
    t: int = 0


# ---- memory ----------------------------------------------------------------------------------------------------------


def needs(dtype: str, M: int, L: int, d: int) -> int:
    """Bytes of device memory that a run takes, but for AuxK's part, which depends on how many neurons die."""
    code, real = np.dtype(PRODUCTS[dtype][0]).itemsize, 8 if dtype == "float64" else 4
    d, ld = aligned(d), aligned(M)
    weights = 2 * M * d * (4 * real + (code if code != real else 0))
    batch = L * d * ((1 + memory.BATCHES) * real + 2 * code) + L * ld * (real + 3 * code) + L * ld // 8
    return weights + batch + min(M, cupy_device.ROW_BLOCKS) * d * real + M * (10 * real + 32) + 2**25


def init(params: Params, config: BaselineConfig) -> State:
    """The state before the first step, with nearly all memory that the steps need; InputError when there is less."""
    return restore(baselines.init(params, config))


def restore(state: baselines.State) -> State:
    """The state of a run that goes on, on the device; InputError as `init`, and for a method of LACKING."""
    config = state.config
    if config.method not in TRAITS or config.method in LACKING["cupy"]:
        raise InputError(f"backend 'cupy' has no method {config.method}; numpy has it")
    with suppress(cp.cuda.memory.OutOfMemoryError):
        return _allocated(state)
    d = state.params.W.shape[1]
    raise memory.refusal(config, d, lambda M, L: needs(config.dtype, M, L, d))


def _allocated(state: baselines.State) -> State:
    """`restore` where the device is large enough."""
    config, (M, d) = state.config, state.params.W.shape
    device = Device(config.dtype, aligned(d), SOURCE.read_text(encoding="utf-8"), SHARED + OWN)
    theta = {name: cp.asarray(filled(name, array), order="C") for name, array in state.params.arrays().items()}
    low = {name: theta[name] for name in WEIGHTS}
    if device.copies:
        low = {name: cp.empty(theta[name].shape, device.code) for name in WEIGHTS}
        for name in WEIGHTS:
            device.each("narrow", theta[name].size, theta[name], low[name])
    moments = {
        name: (cp.asarray(filled(name, adam.m), order="C"), cp.asarray(filled(name, adam.v), order="C"))
        for name, adam in state.optimiser.items()
    }
    many = np.frombuffer(cp.cuda.alloc_pinned_memory(8), np.int64, 1)
    run = State(
        config=config, d=d, device=device, theta=theta, low=low, moments=moments,
        counts=cp.asarray(state.buffer.counts), peaks=cp.asarray(state.buffer.peaks.astype(device.real)),
        idle=cp.asarray(state.idle), may=cp.empty(M, np.int32), which=cp.empty(M, np.int64), many=many,
        known=memory.event(), feed=memory.feed(device, config.batch, aligned(d)),
        work=_work(device, config.batch, M, aligned(d)), rows=state.buffer.rows, last=state.last, t=state.t,
        updates=Counter({name: adam.t for name, adam in state.optimiser.items()}),
    )  # fmt: skip
    run.may[...] = cp.asarray((state.idle + config.batch >= config.dead_after).astype(np.int32))
    _gather(run)
    run.feed.steps.synchronize()
    cp.get_default_pinned_memory_pool().free_all_blocks()  # the copies above left it as large as the parameters
    return run


def _work(device: Device, L: int, M: int, d: int) -> Work:
    """Memory for batches of L rows."""
    real, code, ld = device.real, device.code, aligned(M)
    z, vr, s, g = (cp.empty((L, ld), dtype)[:, :M] for dtype in (real, code, code, code))
    shapes = {"W": (M, d), "W_dec": (M, d), "b": (M,), "theta": (M,)}
    return Work(
        L=L, xr=cp.empty((2 * L, d), code), f=cp.empty((L, d), real), sums=cp.empty((2, d), real),
        shift=cp.empty((min(M, cupy_device.ROW_BLOCKS), d), real), z=z, vr=vr, s=s,
        gates=cp.empty((L, ld // 8), np.uint8), g=g,
        gradients={name: cp.empty(shape, real) for name, shape in shapes.items()},
        active=cp.empty(M, np.int32), smallest=cp.empty(M, real),
    )  # fmt: skip


# ---- to and from the host --------------------------------------------------------------------------------------------


def params(state: State) -> Params:
    """A copy of the parameters, on the host."""
    return Params(**{name: fetched(name, array, state.d) for name, array in state.theta.items()})


def export(state: State) -> baselines.State:
    """All of a state, copied to the host as the reference's."""
    optimiser = {
        name: AdamW(fetched(name, m, state.d), fetched(name, v, state.d), state.updates[name])
        for name, (m, v) in state.moments.items()
    }
    return baselines.State(
        state.config, params(state), optimiser, buffer(state), state.last, cp.asnumpy(state.idle), state.t
    )


def adapt(state: State, x: Rows | None = None) -> None:  # noqa: ARG001 - all backends are called alike
    """Empty the counters, as `refgba.baselines.adapt`."""
    state.last, state.rows = buffer(state), 0
    state.counts.fill(0)
    state.peaks.fill(0)


# ---- a step ----------------------------------------------------------------------------------------------------------


def step(state: State, x: Rows) -> Metrics:
    """One step, as `refgba.baselines.step`."""
    config, work, device, traits = state.config, state.work, state.device, TRAITS[state.config.method]
    if x.array.shape[0] != work.L:
        raise InputError(f"a step takes the {work.L} rows of its batch setting, not {x.array.shape[0]}")
    state.t += 1
    _forward(state, work, x, state.counts, state.peaks)
    _backward(state, work)
    M = np.int64(len(state.idle))
    idle = M, np.int64(work.L), np.int64(config.dead_after), work.active, state.idle, state.may
    device.launch("count_idle", -(-int(M) // 256), (256,), *idle)
    if traits.auxk and config.aux:
        _revive(state, work)
        _gather(state)
    lr, by = baselines.learning_rate(config, state.t), {}
    for name in state.moments:
        state.updates[name] += 1
        by[name] = adamw_factors(state.updates[name], lr, config)
    _move(state, work, by, state.moments)
    if traits.per_batch:
        smallest = cp.where(work.active.any(), work.smallest.min(), device.real(0))
        state.theta["theta"][...] = baselines.averaged(state.theta["theta"], smallest, config, state.t)
    state.rows += work.L
    return Metrics(work.sums[1].sum() * (0.5 / work.L), work.active.sum() / work.L)


def _forward(state: State, work: Work, x: Rows, counts: Any, peaks: Any) -> None:
    """Codes, counts and peaks, and the residuals r = f - x of rows x (L, d)."""
    device, theta, config, rows = state.device, state.theta, state.config, arrived(state, x)
    traits, (L, d), (M, ld) = TRAITS[config.method], rows.shape, _lengths(work.z)
    device.each("center", L * d, np.int32(d), rows, theta["b_pre"], work.xc)
    device.product(work.xc, state.low["W"], work.z, tB=True)
    if traits.chooses:
        _choose(device, work.z, theta["b"], config.k, traits.per_batch, work.s, work.gates)
        most = np.finfo(device.real).max
        of_gates = work.z, theta["b"], work.gates, counts, peaks, work.active, work.smallest
        device.columns("tally", L, M, np.int32(ld), most, *of_gates)
    else:
        limits = theta["theta"] if traits.thresholds else None
        arrays = work.z, theta["b"], limits, work.s, work.gates, counts, peaks, work.active
        device.columns("gate", L, M, np.int32(ld), np.int32(True), *arrays)
    device.product(work.s, state.low["W_dec"], work.f)
    device.columns("residual", L, d, rows, theta["b_pre"], work.f, work.r, work.sums[0], work.sums[1])
    done_with(state, x)


def _lengths(array: Any) -> tuple[int, int]:
    """Of (L, M) its M, and how many numbers lie from one row to the next."""
    return array.shape[1], array.strides[0] // array.itemsize


def _choose(device: Device, z: Any, b: Any, k: int, whole: bool, s: Any, gates: Any) -> None:
    """Codes s of the k largest positive of each row of z + b (L, M), or with `whole` of the k L largest of all.

    gates: (L, ld / 8) gets which these are.
    """
    (L, M), ld = z.shape, np.int32(_lengths(z)[1])
    segments, each, bits = 1 if whole else L, np.int32(not whole), 8 * np.dtype(device.real).itemsize
    bins, edge = cp.empty((L, 256), np.int64), cp.zeros(segments, np.int64)
    left = cp.full(segments, min(k, M) * (L if whole else 1), np.int64)
    rows = L, (min(1024, -(-M // 32) * 32),), np.int32(M), ld
    for shift in range(bits - DIGIT, -1, -DIGIT):
        device.launch("count_digits", *rows, np.int32(shift), each, z, b, edge, bins)
        device.launch("choose_digit", segments, (256,), bins.sum(axis=0) if whole else bins, edge, left)
    passed = None
    if whole:
        equal = cp.empty(L, np.int64)
        device.launch("count_equal", *rows, z, b, edge, equal)
        passed = cp.cumsum(equal) - equal
    device.launch("select_codes", *rows, each, z, b, edge, left, passed, s, gates)


def _backward(state: State, work: Work) -> None:
    """The gradients of the loss without AuxK, into work.gradients."""
    device, config, theta, grads = state.device, state.config, state.theta, work.gradients
    traits, real, (M, ld) = TRAITS[config.method], state.device.real, _lengths(work.z)
    device.product(work.r, state.low["W_dec"], work.vr, tB=True)
    numbers = real(config.sparsity if traits.penalised else 0), real(config.sparsity), real(config.bandwidth)
    limits, dtheta = (theta["theta"], grads["theta"]) if traits.thresholds else (None, None)
    arrays = work.vr, work.gates, work.z, theta["b"], limits, work.g, grads["b"], dtheta
    device.columns("code_gradient", work.L, M, np.int32(ld), *numbers, *arrays)
    device.product(work.g, work.xc, grads["W"], tA=True)
    device.product(work.s, work.r, grads["W_dec"], tA=True)


def _move(
    state: State, work: Work, by: dict[str, AdamWFactors], moments: dict[str, tuple[Any, Any]], still: bool = False
) -> None:
    """AdamW of all parameters along work.gradients, unit norm of v_m, thresholds not below 0.  still: but for W_dec."""
    device, theta, grads = state.device, state.theta, work.gradients
    M, d = theta["W"].shape
    scale, real = device.real(1 / work.L), device.real
    numbers = {name: tuple(map(real, factors)) for name, factors in by.items()}
    W = theta["W"], *moments["W"], state.low["W"], grads["W"], grads["b"], work.shift
    device.rows("adamw_free_rows", M, d, *W, scale, *numbers["W"])
    if not still:
        V = theta["W_dec"], *moments["W_dec"], state.low["W_dec"], grads["W_dec"]
        device.rows("adamw_across_rows", M, d, *V, scale, *numbers["W_dec"])
    for name, least in (("b", -np.finfo(real).max), ("theta", real(0))):
        if name in moments:
            n = np.int64(M)
            each = n, real(least), theta[name], *moments[name], grads[name], *numbers[name]
            device.launch("adamw_each", -(-M // 256), (256,), *each)
    b_pre = scale, work.sums[0], work.shift, theta["b_pre"], *moments["b_pre"], *numbers["b_pre"]
    device.columns("adamw_b_pre", len(work.shift), d, *b_pre)


def _gather(state: State) -> None:
    """The numbers of the neurons that may be dead at the next step; how many they are comes to the host by itself."""
    M, upto = len(state.may), cp.cumsum(state.may, dtype=np.int64)
    device = state.device
    device.launch("gather", -(-M // 256), (256,), np.int64(M), state.may, upto, state.which)
    upto[-1:].get(stream=state.feed.steps, blocking=False, out=state.many)
    state.known.record(state.feed.steps)


def _revive(state: State, work: Work) -> None:
    """Add AuxK's gradients, as `baselines.auxk` has them, where there is a neuron that may be dead."""
    state.known.synchronize()
    D = int(state.many[0])
    if D == 0:
        return
    device, config, theta, grads, (L, d) = state.device, state.config, state.theta, work.gradients, work.f.shape
    real, ld, which = device.real, aligned(D), state.which[:D]
    dead = state.idle[which] >= config.dead_after
    b = cp.where(dead, theta["b"][which], real(-np.finfo(real).max))  # with which none that fires has a code
    z, gates = cp.empty((L, ld), real)[:, :D], cp.empty((L, ld // 8), np.uint8)
    s, g, vr = (cp.empty((L, ld), device.code)[:, :D] for _ in range(3))
    z[...] = work.z[:, which]
    _choose(device, z, b, config.aux_k or max(1, state.d // 2), False, s, gates)
    V = state.low["W_dec"][which]
    e, u = cp.empty((L, d), real), cp.empty((L, d), device.code)
    device.product(s, V, e)
    variance = (work.sums[1] / L - (work.sums[0] / L) ** 2).sum()
    weight = cp.where(variance > 0, real(config.aux) / cp.where(variance > 0, variance, real(1)), real(0)).reshape(1)
    device.each("leftover", L * d, weight.astype(real), e, work.r, u)
    device.product(u, V, vr, tB=True)
    mean, dW, dV = cp.empty(D, real), cp.empty((D, d), real), cp.empty((D, d), real)
    device.columns("gate_gradient", L, D, np.int32(ld), vr, gates, g, mean)
    device.product(g, work.xc, dW, tA=True)
    device.product(s, u, dV, tA=True)
    for name, part in (("W", dW), ("W_dec", dV), ("b", mean)):
        grads[name][which] = grads[name][which] + part


# ---- what checks a run -----------------------------------------------------------------------------------------------


def gradients(state: State, x: Rows) -> Params:
    """The gradients at rows x (L, d), without AuxK, on the host, by the kernels of `step`; nothing moves."""
    M, L = len(state.idle), len(x.array)
    work = _work(state.device, L, M, x.array.shape[1])
    _forward(state, work, x, cp.zeros_like(state.counts), cp.zeros_like(state.peaks))
    work.gradients["theta"].fill(0)
    _backward(state, work)
    shaped = {name: state.theta[name] for name in ("W", "b", "b_pre")}
    moments = {name: (cp.zeros_like(array), cp.zeros_like(array)) for name, array in shaped.items()}
    _move(state, work, dict.fromkeys((*moments, "W_dec"), STILL), moments, still=True)
    found = {name: fetched(name, m, state.d) for name, (m, _) in moments.items()}
    found["W_dec"] = fetched("W_dec", work.gradients["W_dec"] * state.device.real(1 / L), state.d)
    return Params(theta=cp.asnumpy(work.gradients["theta"]), **found)


def encode(state: State, x: Rows) -> tuple[Any, Any]:
    """By how much rows x (L, d) exceed what makes a neuron active, and codes s, each (L, M), as in inference."""
    z, y = pre_activations(state, x)
    device, theta, config, (L, M) = state.device, state.theta, state.config, z.shape
    if TRAITS[config.method].per_row:
        s, gates = cp.empty((L, aligned(M)), device.code)[:, :M], cp.empty((L, aligned(M) // 8), np.uint8)
        _choose(device, z, theta["b"], config.k, False, s, gates)
        m = cp.arange(M)
        on = (gates[:, m // 8] >> m % 8 & 1).astype(np.bool_)  # a chosen y whose code is rounded to 0 is on, too
        return cp.where(on, y, cp.minimum(y, 0)), on * y
    over = y - theta["theta"]
    return over, (y > theta["theta"]) * y


def decode(state: State, s: Any) -> Any:
    """Reconstructions f (L, d) of codes s (L, M)."""
    device, (L, M), V = state.device, s.shape, state.low["W_dec"]
    wide = cp.zeros((L, aligned(M)), device.real)
    wide[:, :M] = s
    codes, f = cp.empty(wide.shape, device.code), cp.empty((L, V.shape[1]), device.real)
    device.each("narrow", wide.size, wide, codes)
    device.product(codes[:, :M], V, f)
    return f[:, : state.d] + state.theta["b_pre"][: state.d]
