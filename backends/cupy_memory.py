"""All memory of a run on a GPU, for backends/cupy.py: what it needs, where it is, and how rows come into it.

How this departs from the reference, which holds arrays (L, M) and (M, d) whole:

- Neurons are taken in chunks, runs of neurons with views of their parameters and memory that chunks use in turn.  What
  is (L, M) or (M, d) in the reference is only ever (L, chunk) or (chunk, d) here, but for the parameters, their
  moments, the codes and a_m v_m: with the default CHUNK a million neurons at d = 1536 and L = 4096 need 34 GiB in
  bfloat16, and 55 GiB where they are untied (`needs`).
- Rows of matrices begin at multiples of ALIGNED numbers.  The device's d, `Work.d`, counts the zeros that fill a row
  up; neurons are not filled up, only what a row of (L, chunk) has is.
- All memory is taken by `init`.  A device with too little is refused there, with what would fit.
- Rows come through pinned memory, on a stream of their own, while earlier steps run.  Memory of rows that are gone is
  used again, after the last step that read it: not after all steps that are launched by then.

tests/test_cupy_host.py guards all of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import cupy as cp
import numpy as np

from refgba import measured
from refgba.backends.base import AnyConfig
from refgba.backends.cupy_device import PRODUCTS, ROW_BLOCKS, Device, aligned
from refgba.bias import Buffer
from refgba.config import GBAConfig
from refgba.errors import InputError
from refgba.measured import Shares
from refgba.sae import Params
from refgba.types import Array

CHUNK = 2**28  # bytes of pre-activations held at a time
STAGES = 3  # batches in pinned memory, on their way to the device
BATCHES = 5  # batches on the device: two prefetched, one in use, one that comes and one that goes
ROWED = ("W", "W_dec", "b_pre")  # parameters whose rows are filled up


@dataclass
class Chunk:
    """Consecutive neurons: views of their parameters and moments, and memory that the chunks use in turn."""

    size: int
    ld: int  # numbers from one row of z, s or g to the next
    W: Any  # (size, d) code
    V: Any  # (size, d) code
    aV: Any  # (size, d) code   a_m v_m, for the next step
    weights: list[tuple[Any, ...]]  # of W, and of W_dec if untied: theta, m, v, low, gradient but for a_m / L
    a: tuple[Any, ...]  # (size,) real   a and its moments m and v
    b: Any  # (size,) real
    held: Any  # (size,) bool
    counts: Any  # (size,) int64
    peaks: Any  # (size,) real
    active: Any  # (size,) int32
    mean: Any  # (size,) real   mean of (v_m · r) on_m over the batch
    z: Any  # (L, size) real    w_m · (x - b_pre)
    vr: Any  # (L, size) code   v_m · r, in the memory of z
    gates: Any  # (L, ld / 8) uint8   which gates are open, a bit each, kept from forward to backward
    g: Any  # (L, size) code    (v_m · r) on_m
    s: Any  # (L, size) code    codes, kept from forward to backward; right after g,
    gs: Any  # (2L, size) code  so that this is both


@dataclass
class Halves:
    """What the products of a batch of L rows read, above one another in one array."""

    L: int
    xr: Any  # (2L, d) code     x - b_pre, and f - x after it

    @property
    def xc(self) -> Any:
        """x - b_pre, (L, d) code."""
        return self.xr[: self.L]

    @property
    def r(self) -> Any:
        """f - x, (L, d) code."""
        return self.xr[self.L :]


@dataclass
class Work(Halves):
    """Memory for a batch of L rows, and the chunks over all neurons."""

    d: int
    f: Any  # (L, d) real       f - b_pre
    sums: Any  # (2, d) real    columns of r and of r^2
    shift: Any  # (at most ROW_BLOCKS, d) real   parts of the mean of Σ_m a_m (v_m · r) on_m w_m
    b_pre: tuple[Any, ...]  # (d,) real   b_pre and its moments m and v
    active: Any  # (M,) int32   active entries of the batch
    room: Any  # (at least aligned(M),) real, of which every chunk's z is a view
    chunks: list[Chunk]


@dataclass
class State:
    """A run between two steps, on the device.

    d: of the data; rows on the device are filled up.  theta: parameters by name.  low: W and W_dec as matrix products
    read them, `theta` itself where they need no copy.  aV: (M, d) code, a_m v_m, which the forward pass reads and every
    step writes.  moments: m and v by name.  updates: how many AdamW has made of each parameter.  decoder: memory for
    W_dec while it is not there yet, as `weight` orders it.  held: (M,) as in `refgba.gba.State`.  rows, counts, peaks:
    the buffer, and last, on the host, the one that the last adaptation used.  feed: how rows come in.  t: steps done.
    shares: on the host, as in `refgba.gba.State`.
    """

    config: GBAConfig
    d: int
    device: Device
    theta: dict[str, Any]
    low: dict[str, Any]
    aV: Any
    moments: dict[str, tuple[Any, Any]]
    counts: Any
    peaks: Any
    held: Any
    feed: Feed
    work: Work = field(init=False)
    decoder: tuple[Any, ...] = ()
    updates: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    last: Buffer | None = None
    t: int = 0
    shares: Shares | None = None


@dataclass
class Feed:
    """How rows come onto the device, for `put`.

    steps, copies: the streams of steps and of incoming rows.  stages: pinned memory for batches on their way, each with
    the event after which it is free.  spare: memory on the device of rows that are gone, each with the event after
    which nothing reads it, oldest first.  puts: batches so far.
    """

    device: Device
    steps: Any = field(default_factory=lambda: cp.cuda.get_current_stream())
    copies: Any = field(default_factory=lambda: cp.cuda.Stream(non_blocking=True))
    stages: list[tuple[Array, Any]] = field(default_factory=list)
    spare: deque[tuple[Any, Any]] = field(default_factory=deque)
    puts: int = 0


@dataclass
class Rows:
    """Rows (L, d) on the device, filled up with zeros, and the event after which all of them are there.

    read: the event after which nothing reads them, of what has been launched.  spare: where their memory goes when they
    are gone.
    """

    array: Any
    there: Any
    read: Any
    spare: deque[tuple[Any, Any]]

    def __del__(self) -> None:
        """Leave the memory to the batches that come."""
        self.spare.append((self.array, self.read))


def chunk_size(M: int, L: int, itemsize: int) -> int:
    """Neurons per chunk: as few chunks as CHUNK bytes of pre-activations allow, equal but for multiples of 256."""
    most = max(256, CHUNK // (L * itemsize) // 256 * 256)
    chunks = -(-M // most)
    return min(M, -(-M // (256 * chunks)) * 256)


def needs(dtype: str, M: int, L: int, d: int, untied: bool = False) -> int:
    """Bytes of device memory that a run takes, nearly all of them in `init`."""
    code, real = np.dtype(PRODUCTS[dtype][0]).itemsize, 8 if dtype == "float64" else 4
    decoders, chunk, d = 2 if untied else 1, chunk_size(M, L, real), aligned(d)
    weights = decoders * M * d * (3 * real + (code if code != real else 0)) + M * d * code
    batch = L * d * ((1 + BATCHES) * real + 2 * code) + L * aligned(M) * code + L * aligned(M) // 8
    batch += min(chunk, ROW_BLOCKS) * d * real
    room = max(L * aligned(chunk), aligned(M)) * real + L * aligned(chunk) * code + chunk * d * decoders * real
    return weights + batch + room + M * (6 * real + 13) + 2**25  # cuBLAS takes the last


def too_large(config: GBAConfig, d: int) -> InputError:
    """The error of a device that is too small: what the run needs, and which width or batch would fit."""
    return refusal(config, d, lambda M, L: needs(config.dtype, M, L, d, config.untied) + looks(config, M))


def looks(config: GBAConfig, M: int) -> int:
    """Bytes of device memory by which targets are measured: pre-activations, and their copies to sort; else 0."""
    rows = min(config.batch, measured.ROWS)
    return (config.targets_from == "data") * 4 * rows * aligned(M) * np.dtype(config.master).itemsize


def refusal(config: AnyConfig, d: int, bytes_of: Callable[[int, int], int]) -> InputError:
    """The same for any method, by the bytes that a run takes at a width M and a batch L."""
    cp.get_default_memory_pool().free_all_blocks()
    free = cp.cuda.Device().mem_info[0]
    M, L = config.width, config.batch

    def largest(upto: int, taken: Callable[[int], int]) -> int:
        low, high = 0, upto  # fits, does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if taken(middle) <= free else (low, middle)
        return low

    wide = largest(M, lambda M: bytes_of(M, L))
    long = largest(L, lambda L: bytes_of(M, L))
    fits = [f"width {wide} at batch {L}"] * (wide > 0) + [f"batch {long} at width {M}"] * (long > 0)
    return InputError(
        f"the GPU's memory is too small: width {M}, batch {L} and d {d} in {config.dtype} need "
        f"{bytes_of(M, L) / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
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
    M, d = params.W.shape
    device = Device(config.dtype, aligned(d))
    theta = {name: cp.asarray(filled(name, array), order="C") for name, array in params.arrays().items()}
    low: dict[str, Any] = {name: theta[name] for name in ("W", "W_dec") if name in theta}
    if device.copies:
        for name, array in low.items():
            low[name] = cp.empty(array.shape, device.code)
            device.each("narrow", array.size, array, low[name])
    state = State(
        config=config,
        d=d,
        device=device,
        theta=theta,
        low=low,
        aV=cp.empty(theta["W"].shape, device.code),
        moments={name: (cp.zeros_like(array), cp.zeros_like(array)) for name, array in theta.items() if name != "b"},
        counts=cp.zeros(M, np.int64),
        peaks=cp.zeros(M, device.real),
        held=cp.zeros(M, np.bool_),
        feed=feed(device, config.batch, aligned(d)),
        shares=measured.first(config, M),
    )
    if config.untied and "W_dec" not in theta:
        W, m, v, low_W = weight(state, "W")
        own = [cp.empty_like(array) for array in (W, m, v)]
        state.decoder = (*own, cp.empty_like(low_W) if device.copies else own[0])
    state.work = work_for(state, config.batch, state.counts, state.peaks, state.held, state.moments)
    if state.shares is not None:
        cp.empty(looks(config, M), np.uint8)  # goes back to the pool, for the first look
    for c in state.work.chunks:
        V, scaled = c.weights[-1][0], c.weights[-1][-1]
        cp.multiply(c.a[0][:, None], V, out=scaled)
        device.each("narrow", scaled.size, scaled, c.aV)
    state.feed.steps.synchronize()
    cp.get_default_pinned_memory_pool().free_all_blocks()  # the copies above left it as large as the parameters
    return state


def filled(name: str, array: Array) -> Array:
    """A parameter or a moment on the host as the device has it: rows filled up with zeros."""
    d = array.shape[-1]
    if name not in ROWED or aligned(d) == d:
        return array
    wide = np.zeros((*array.shape[:-1], aligned(d)), array.dtype)
    wide[..., :d] = array
    return wide


def fetched(name: str, array: Any, d: int) -> Array:
    """A parameter of rows of d numbers, or a moment of it, on the host: without what fills rows up."""
    host: Array = cp.asnumpy(array)
    return np.ascontiguousarray(host[..., :d]) if name in ROWED else host


def chunk_sizes(M: int, L: int, itemsize: int) -> list[int]:
    """How many neurons each chunk has, from the first on; none has more than the one before."""
    width = chunk_size(M, L, itemsize)
    return [min(width, M - start) for start in range(0, M, width)]


def work_for(state: State, L: int, counts: Any, peaks: Any, held: Any, moments: Mapping[str, tuple[Any, Any]]) -> Work:
    """Memory for batches of L rows whose activity is added to counts and peaks (M,), and which move these moments."""
    theta, low = state.theta, state.low
    (M, d), real, code = theta["W"].shape, state.device.real, state.device.code
    sizes, tied = chunk_sizes(M, L, np.dtype(real).itemsize), "W_dec" not in theta
    first = aligned(sizes[0])
    z, codes = cp.empty(max(L * first, aligned(M)), real), cp.empty(L * (first + sum(map(aligned, sizes))), code)
    gradients = [cp.empty((sizes[0], d), real) for _ in range(1 + state.config.untied)]
    mean, active = cp.empty(M, real), cp.empty(M, np.int32)
    gates = cp.empty(L * sum(map(aligned, sizes)) // 8, np.uint8)
    chunks, start, at = [], 0, L * first  # `at` is where the codes of a chunk begin, after those of the chunk before
    for size in sizes:
        here, ld = slice(start, start + size), aligned(size)
        own, gates = gates[: L * ld // 8].reshape(L, ld // 8), gates[L * ld // 8 :]
        weights = [
            (theta[name][here], *(moment[here] for moment in moments[name]), copy[here], g[:size])
            for (name, copy), g in zip(low.items(), gradients, strict=False)
        ]
        # A chunk's g takes the place of the codes of the chunk before it, which backward has done with.
        gs = codes[at - L * ld : at + L * ld].reshape(2 * L, ld)[:, :size]
        chunks.append(
            Chunk(
                size=size, ld=ld, W=low["W"][here], V=low["W" if tied else "W_dec"][here], aV=state.aV[here],
                weights=weights, a=(theta["a"][here], *(moment[here] for moment in moments["a"])), b=theta["b"][here],
                held=held[here], counts=counts[here], peaks=peaks[here], active=active[here], mean=mean[here],
                z=z[: L * ld].reshape(L, ld)[:, :size], vr=z.view(code)[: L * ld].reshape(L, ld)[:, :size], gates=own,
                g=gs[:L], s=gs[L:], gs=gs,
            )
        )  # fmt: skip
        start, at = start + size, at + L * ld
    return Work(
        L=L, d=d, xr=cp.empty((2 * L, d), code), f=cp.empty((L, d), real), sums=cp.empty((2, d), real),
        shift=cp.empty((min(sizes[0], ROW_BLOCKS), d), real), b_pre=(theta["b_pre"], *moments["b_pre"]), active=active,
        room=z, chunks=chunks,
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
        state.work = work_for(state, L, state.counts, state.peaks, state.held, state.moments)


def weight(state: State, name: str) -> tuple[Any, ...]:
    """W or W_dec: theta, m, v and low."""
    return (state.theta[name], *state.moments[name], state.low[name])


# ---- rows ------------------------------------------------------------------------------------------------------------


def feed(device: Device, L: int, d: int) -> Feed:
    """How batches of L rows, d numbers each and filled up, come onto the device, with memory for BATCHES of them."""
    made = Feed(device)
    with made.copies:
        made.spare.extend((cp.empty((L, d), device.real), event()) for _ in range(BATCHES))
    return made


def event() -> Any:
    """An event that streams wait for; before it is recorded, it has happened."""
    return cp.cuda.Event(disable_timing=True)


class Fed(Protocol):
    """What has rows coming in: the state of a run, whatever its method."""

    feed: Feed


def put(state: Fed, x: Array) -> Rows:
    """Rows x (L, d) on their way to the device, through pinned memory and on a stream of their own.

    Waits only where the copy of STAGES batches ago is not done: its pinned memory is used again.  The copy begins when
    the memory it goes to is free, whatever steps have been launched since then.
    """
    feed = state.feed
    real, shape = feed.device.real, (len(x), aligned(x.shape[1]))
    if len(feed.stages) < STAGES:
        feed.stages.append((np.empty(0, real), None))
    slot = feed.puts % STAGES
    pinned, free = feed.stages[slot]
    feed.puts += 1
    with feed.device.here, feed.copies:  # both belong to a thread, and this may be one of its own
        if free is not None:
            free.synchronize()
        if pinned.size < shape[0] * shape[1]:
            memory = cp.cuda.alloc_pinned_memory(shape[0] * shape[1] * pinned.itemsize)
            pinned = np.frombuffer(memory, pinned.dtype, shape[0] * shape[1])
        rows = pinned[: shape[0] * shape[1]].reshape(shape)
        np.copyto(rows[:, : x.shape[1]], x, casting="same_kind")
        rows[:, x.shape[1] :] = 0
        array, read = _memory(feed, shape)
        array.set(rows, stream=feed.copies)
        there = feed.copies.record(cp.cuda.Event(block=True, disable_timing=True))
    feed.stages[slot] = pinned, there
    return Rows(array, there, read, feed.spare)


def _memory(feed: Feed, shape: tuple[int, int]) -> tuple[Any, Any]:
    """Memory for rows, which copies from here on may write to, and its event.

    Memory of another size goes back to the pool of this stream, and only copies take it from there.
    """
    while feed.spare:
        array, read = feed.spare.popleft()
        feed.copies.wait_event(read)
        if array.shape == shape:
            return array, read
    return cp.empty(shape, feed.device.real), event()


def arrived(state: Fed, x: Rows) -> Any:
    """The rows (L, d): what is launched on the stream of the steps from here on waits for them, the host does not."""
    state.feed.steps.wait_event(x.there)
    return x.array


def done_with(state: Fed, x: Rows) -> None:
    """Say that what has been launched on the stream of the steps is the last to read the rows, for now."""
    x.read.record(state.feed.steps)
