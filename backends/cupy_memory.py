"""All memory of a run on a GPU, for backends/cupy.py: what it needs, where it is, and how rows come into it.

How this departs from the reference, which holds arrays (L, M) and (M, d) whole:

- Neurons are taken in chunks, runs of neurons with views of their parameters and memory that chunks use in turn.  What
  is (L, M) or (M, d) in the reference is only ever (L, chunk) or (chunk, d) here, but for the parameters, their moments
  and the codes: with the default CHUNK a million neurons at d = 1536 and L = 4096 need 30 GiB in bfloat16 (`needs`).
- All memory is taken by `init`.  A device with too little is refused there, with what would fit.
- Rows come through pinned memory, on a stream of their own, while earlier steps run.

tests/test_cupy_host.py guards all three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cupy as cp
import numpy as np

from refgba.backends.cupy_device import PRODUCTS, Device
from refgba.bias import Buffer
from refgba.config import GBAConfig
from refgba.errors import InputError
from refgba.sae import Params
from refgba.types import Array

CHUNK = 2**28  # bytes of pre-activations held at a time
STAGES = 3  # batches in pinned memory, on their way to the device
BATCHES = 5  # batches on the device: two prefetched, one in use, one that comes and one that goes


@dataclass
class Chunk:
    """Consecutive neurons: views of their parameters and moments, and memory that the chunks use in turn."""

    size: int
    W: Any  # (size, d) code
    V: Any  # (size, d) code
    a: Any  # (size,) real
    b: Any  # (size,) real
    weights: list[tuple[Any, ...]]  # of W, and of W_dec if untied: theta, m, v, low, gradient but for a_m / L, held
    counts: Any  # (size,) int64
    peaks: Any  # (size,) real
    active: Any  # (size,) int32
    z: Any  # (L, size) real    w_m · (x - b_pre), then v_m · r
    s: Any  # (L, size) code    codes, kept from forward to backward
    g: Any  # (L, size) code    (v_m · r) on_m
    aV: Any  # (size, d) code   a_m v_m
    da: Any  # (size,) real
    c: Any  # (1, size) code    a_m times the mean of (v_m · r) on_m


@dataclass
class Work:
    """Memory for a batch of L rows, and the chunks over all neurons."""

    L: int
    xc: Any  # (L, d) code      x - b_pre
    f: Any  # (L, d) real       f - b_pre
    r: Any  # (L, d) code       f - x
    sums: Any  # (2, d) real    columns of r and of r^2
    db: Any  # (1, d) real      Σ_m a_m (v_m · r) on_m w_m, mean over the batch
    da: Any  # (M,) real
    active: Any  # (M,) int32   active entries of the batch
    room: Any  # (at least M,) real, of which every chunk's z is a view
    chunks: list[Chunk]


@dataclass
class State:
    """A run between two steps, on the device.

    theta: parameters by name.  low: W and W_dec as matrix products read them, `theta` itself where they need no copy.
    moments: m and v by name.  updates: how many AdamW has made of each parameter.  decoder: memory for W_dec while it
    is not there yet, as `weight` orders it.  held: (M,) as in `refgba.gba.State`.  rows, counts, peaks: the buffer, and
    last, on the host, the one that the last adaptation used.  steps, copies: the streams of steps and of incoming rows.
    stages: pinned memory for batches on their way, each with the event after which it is free.  puts: batches so far.
    t: steps done.
    """

    config: GBAConfig
    device: Device
    theta: dict[str, Any]
    low: dict[str, Any]
    moments: dict[str, tuple[Any, Any]]
    counts: Any
    peaks: Any
    held: Any
    work: Work = field(init=False)
    decoder: tuple[Any, ...] = ()
    steps: Any = field(default_factory=lambda: cp.cuda.get_current_stream())
    copies: Any = field(default_factory=lambda: cp.cuda.Stream(non_blocking=True))
    updates: Counter[str] = field(default_factory=Counter)
    stages: list[tuple[Array, Any]] = field(default_factory=list)
    rows: int = 0
    last: Buffer | None = None
    puts: int = 0
    t: int = 0


@dataclass
class Rows:
    """Rows (L, d) on the device, and the event after which all of them are there."""

    array: Any
    there: Any


def chunk_size(M: int, L: int, itemsize: int) -> int:
    """Neurons per chunk: as many as CHUNK bytes of pre-activations hold, a multiple of 256, at most M."""
    return min(M, max(256, CHUNK // (L * itemsize) // 256 * 256))


def needs(dtype: str, M: int, L: int, d: int, untied: bool = False) -> int:
    """Bytes of device memory that a run takes, nearly all of them in `init`."""
    code, real = np.dtype(PRODUCTS[dtype][0]).itemsize, 8 if dtype == "float64" else 4
    decoders, chunk = 2 if untied else 1, chunk_size(M, L, real)
    weights = decoders * M * d * (3 * real + (code if code != real else 0))
    batch = L * d * ((1 + BATCHES) * real + 2 * code) + L * M * code
    room = max(L * chunk, M) * real + L * chunk * code + chunk * d * (code + decoders * real)
    return weights + batch + room + M * (6 * real + code + 14) + 2**25  # cuBLAS takes the last


def too_large(config: GBAConfig, d: int) -> InputError:
    """The error of a device that is too small: what the run needs, and which width or batch would fit."""
    cp.get_default_memory_pool().free_all_blocks()
    free = cp.cuda.Device().mem_info[0]
    M, L = config.width, config.batch

    def largest(upto: int, bytes_of: Callable[[int], int]) -> int:
        low, high = 0, upto  # fits, does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if bytes_of(middle) <= free else (low, middle)
        return low

    wide = largest(M, lambda M: needs(config.dtype, M, L, d, config.untied))
    long = largest(L, lambda L: needs(config.dtype, M, L, d, config.untied))
    fits = [f"width {wide} at batch {L}"] * (wide > 0) + [f"batch {long} at width {M}"] * (long > 0)
    return InputError(
        f"the GPU's memory is too small: width {M}, batch {L} and d {d} in {config.dtype} need "
        f"{needs(config.dtype, M, L, d, config.untied) / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
        f"{' or '.join(fits) or 'no width'} would fit"
    )


def init(params: Params, config: GBAConfig) -> State:
    """The state before the first step, with all memory that the steps need.

    InputError when the device has less: it says how much the run needs, and what would fit.
    """
    with suppress(cp.cuda.memory.OutOfMemoryError):
        return allocated(params.astype(config.master), config)
    raise too_large(config, params.W.shape[1])  # only here is what was allocated free again


def allocated(params: Params, config: GBAConfig) -> State:
    """`init` where the device is large enough; params are in the dtype `config.master`."""
    device, (M, d) = Device(config.dtype), params.W.shape
    theta = {name: cp.asarray(array, order="C") for name, array in params.arrays().items()}
    low: dict[str, Any] = {name: theta[name] for name in ("W", "W_dec") if name in theta}
    if device.copies:
        for name, array in low.items():
            low[name] = cp.empty((M, d), device.code)
            device.each("narrow", M * d, array, low[name])
    state = State(
        config=config,
        device=device,
        theta=theta,
        low=low,
        moments={name: (cp.zeros_like(array), cp.zeros_like(array)) for name, array in theta.items() if name != "b"},
        counts=cp.zeros(M, np.int64),
        peaks=cp.zeros(M, device.real),
        held=cp.zeros(M, np.bool_),
    )
    if config.untied and "W_dec" not in theta:
        W, m, v, low_W = weight(state, "W")
        own = [cp.empty_like(array) for array in (W, m, v)]
        state.decoder = (*own, cp.empty_like(low_W) if device.copies else own[0])
    state.work = work_for(state, config.batch, state.counts, state.peaks)
    with state.copies:
        _ = [cp.empty((config.batch, d), device.real) for _ in range(BATCHES)]  # freed, for `put`
    state.steps.synchronize()
    cp.get_default_pinned_memory_pool().free_all_blocks()  # the copies above left it as large as the parameters
    return state


def work_for(state: State, L: int, counts: Any, peaks: Any) -> Work:
    """Memory for batches of L rows whose activity is added to counts and peaks (M,)."""
    theta, low = state.theta, state.low
    (M, d), real, code = theta["W"].shape, state.device.real, state.device.code
    width, tied = chunk_size(M, L, np.dtype(real).itemsize), "W_dec" not in theta
    z, on, s = cp.empty(max(L * width, M), real), cp.empty(L * width, code), cp.empty(L * M, code)
    aV, gradients = cp.empty((width, d), code), [cp.empty((width, d), real) for _ in range(1 + state.config.untied)]
    da, c, active = cp.empty(M, real), cp.empty(M, code), cp.empty(M, np.int32)
    chunks = []
    for start in range(0, M, width):
        size = min(width, M - start)
        here = slice(start, start + size)
        held = state.held[here]
        weights = [
            (theta[name][here], *(moment[here] for moment in state.moments[name]), copy[here], g[:size], held)
            for (name, copy), g in zip(low.items(), gradients, strict=False)
        ]
        chunks.append(
            Chunk(
                size=size, W=low["W"][here], V=low["W" if tied else "W_dec"][here], a=theta["a"][here],
                b=theta["b"][here], weights=weights, counts=counts[here], peaks=peaks[here], active=active[here],
                z=z[: L * size].reshape(L, size), s=s[L * start : L * (start + size)].reshape(L, size),
                g=on[: L * size].reshape(L, size), aV=aV[:size], da=da[here],
                c=c[here].reshape(1, size),
            )
        )  # fmt: skip
    return Work(
        L=L, xc=cp.empty((L, d), code), f=cp.empty((L, d), real), r=cp.empty((L, d), code), sums=cp.empty((2, d), real),
        db=cp.empty((1, d), real), da=da, active=active, room=z, chunks=chunks,
    )  # fmt: skip


def untie(state: State) -> None:
    """Where untied, let W_dec begin at W, in the memory that `init` kept for it, and make chunks that have it."""
    for own, of_W in zip(state.decoder, weight(state, "W"), strict=False):
        own[...] = of_W
    if state.decoder:
        theta, m, v, low = state.decoder
        state.theta["W_dec"], state.moments["W_dec"], state.low["W_dec"] = theta, (m, v), low
        state.updates["W_dec"], state.decoder = state.updates["W"], ()
        L = state.work.L
        del state.work  # frees its memory first: what takes its place is as large
        state.work = work_for(state, L, state.counts, state.peaks)


def weight(state: State, name: str) -> tuple[Any, ...]:
    """W or W_dec: theta, m, v and low."""
    return (state.theta[name], *state.moments[name], state.low[name])


def put(state: State, x: Array) -> Rows:
    """Rows x (L, d) on their way to the device, through pinned memory and on a stream of their own.

    Waits only where the copy of STAGES batches ago is not done: its pinned memory is used again.
    """
    if len(state.stages) < STAGES:
        state.stages.append((np.empty(0, state.device.real), None))
    slot = state.puts % STAGES
    pinned, free = state.stages[slot]
    state.puts += 1
    if free is not None:
        free.synchronize()
    if pinned.size < x.size:
        memory = cp.cuda.alloc_pinned_memory(x.size * pinned.itemsize)
        pinned = np.frombuffer(memory, pinned.dtype, x.size)
    rows = pinned[: x.size].reshape(x.shape)
    np.copyto(rows, x, casting="same_kind")
    with state.copies:
        # The memory of this stream may be an earlier batch's, which the steps launched so far may still be reading.
        array = cp.empty(x.shape, state.device.real)
        state.copies.wait_event(state.steps.record())
        array.set(rows, stream=state.copies)
        there = state.copies.record(cp.cuda.Event(block=True, disable_timing=True))
    state.stages[slot] = pinned, there
    return Rows(array, there)


def arrived(state: State, x: Rows) -> Any:
    """The rows (L, d): what is launched on the stream of the steps from here on waits for them, the host does not."""
    state.steps.wait_event(x.there)
    return x.array
