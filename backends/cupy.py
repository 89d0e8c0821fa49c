"""The GPU backend: cuBLAS for the five matrix products of a step, kernels of our own for what lies between them.

How this departs from the reference, `refgba.gba.step`:

- Neurons are taken in chunks.  What is (L, M) or (M, d) in the reference is only ever (L, chunk) or (chunk, d) here,
  but for the parameters, their moments and the codes: with the default CHUNK a million neurons at d = 1536 and
  L = 4096 need 30 GiB in bfloat16 (`needs`).
- `cupy_kernels.cu` fuses gate, codes, counts and peaks; gate and gradient of the codes; AdamW, renormalisation and the
  copy of W that matrix products read.
- `dtype` tf32 and bfloat16 round the factors of matrix products; sums, parameters and moments stay float32.
- All memory is taken by `init`, and a step never waits for the device.  Rows come on a stream of their own.

The one place where devices with neurons of their own would have to agree is the reconstruction, in `_forward`.

tests/test_conformance.py holds this file against the reference, on a GPU where there is one and through
tests/emulated_cupy.py everywhere; `benchmarks/step.py` measures it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cupy as cp
import numpy as np

from refgba import gba, recipe
from refgba.adam import AdamW
from refgba.bias import Buffer
from refgba.bias import adapt as algorithm_2
from refgba.config import GBAConfig
from refgba.errors import InputError
from refgba.gba import Metrics
from refgba.sae import Params
from refgba.types import Array

CHUNK = 2**28  # bytes of pre-activations held at a time
STAGES = 3  # batches in pinned memory, on their way to the device
BATCHES = 5  # batches on the device: two prefetched, one in use, one that comes and one that goes
KERNELS = ("narrow", "center", "scale_rows", "gate", "residual", "gate_gradient", "adamw", "adamw_rows", "agree")
R_32F, R_64F, R_16BF = 0, 1, 14  # cudaDataType
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77  # cublasComputeType

# dtype: what matrix products read (bfloat16 as its bits), and how cuBLAS is to multiply it
PRODUCTS: dict[str, tuple[type, int, int]] = {
    "float64": (np.float64, R_64F, COMPUTE_64F),
    "float32": (np.float32, R_32F, COMPUTE_32F),
    "tf32": (np.float32, R_32F, COMPUTE_32F_FAST_TF32),
    "bfloat16": (np.uint16, R_16BF, COMPUTE_32F),
}
DTYPES = tuple(PRODUCTS)


def unusable() -> str | None:
    """Why CuPy cannot compute here, in one line; None when it can."""
    try:
        if cp.cuda.runtime.getDeviceCount() == 0:
            return "CuPy is installed, but there is no NVIDIA GPU"
    except cp.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy is installed, but finds no NVIDIA driver and GPU ({error}): install NVIDIA's driver"
    try:
        assert cp.cuda.cublas.gemmEx  # loads cuBLAS
        cp.RawKernel('extern "C" __global__ void nothing() {}', "nothing").compile()  # wants NVRTC and CUDA's headers
    except (ImportError, RuntimeError, cp.cuda.compiler.CompileException) as error:
        install = "pip install 'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]'"
        return f"a CUDA library is missing ({' '.join(str(error).split())}): {install}"
    return None


class Device:
    """The kernels and products of one dtype.

    real: dtype of parameters and sums.  code: dtype of what matrix products read.
    """

    def __init__(self, dtype: str) -> None:
        """Compiles the kernels, or takes them from CuPy's cache.  InputError when the GPU cannot compute in dtype."""
        if dtype in ("tf32", "bfloat16") and int(cp.cuda.Device().compute_capability) < 80:
            raise InputError(f"this GPU has no {dtype}: that takes compute capability 8.0; float32 and float64 run")
        self.code, self.code_type, self.compute = PRODUCTS[dtype]
        self.real: type = np.float64 if dtype == "float64" else np.float32
        self.real_type, self.real_compute = (R_64F, COMPUTE_64F) if dtype == "float64" else (R_32F, COMPUTE_32F)
        self.copies = self.code != self.real  # whether matrix products read copies of the parameters
        options = ["-DREAL=double" if dtype == "float64" else "-DREAL=float", *(["-DBF16"] if self.copies else [])]
        source = Path(__file__).with_name("cupy_kernels.cu").read_text(encoding="utf-8")
        kernels = cp.RawModule(code=source, options=tuple(options))
        self._kernels = {name: kernels.get_function(name) for name in KERNELS}
        self._handle = cp.cuda.device.get_cublas_handle()
        self._one, self._zero = np.ones(1, self.real), np.zeros(1, self.real)  # cuBLAS reads them from the host

    def launch(self, name: str, blocks: int, block: tuple[int, ...], *arguments: Any) -> None:
        """Run a kernel on that many blocks."""
        self._kernels[name]((blocks,), block, arguments)

    def each(self, name: str, n: int, *arguments: Any) -> None:
        """Run a kernel over n elements."""
        self.launch(name, min(-(-n // 256), 2**16), (256,), np.int64(n), *arguments)

    def rows(self, name: str, M: int, d: int, *arguments: Any) -> None:
        """Run a kernel that takes each row of (M, d) in a block of its own."""
        self.launch(name, M, (min(256, -(-d // 32) * 32),), np.int32(d), *arguments)

    def columns(self, name: str, L: int, M: int, *arguments: Any) -> None:
        """Run a kernel that sums over the columns of (L, M)."""
        self.launch(name, -(-M // 32), (32, 32), np.int32(L), np.int32(M), *arguments)

    def product(
        self, A: Any, B: Any, C: Any, *, tA: bool = False, tB: bool = False, add: bool = False, exact: bool = False
    ) -> None:
        """C <- op(A) op(B), or C += with add; of dtype code, C of dtype real, all 2-D and C-contiguous.

        exact: A and B are of dtype real, and are not rounded.
        """
        kind, compute = (self.real_type, self.real_compute) if exact else (self.code_type, self.compute)
        m, n = C.shape
        k = A.shape[0] if tA else A.shape[1]
        # To cuBLAS a C-contiguous array is its transpose: C^T = op(B)^T op(A)^T.
        cp.cuda.cublas.gemmEx(
            self._handle, int(tB), int(tA), n, m, k, self._one.ctypes.data,
            B.data.ptr, kind, B.shape[1], A.data.ptr, kind, A.shape[1],
            (self._one if add else self._zero).ctypes.data, C.data.ptr, self.real_type, n, compute, -1,
        )  # fmt: skip


@dataclass
class Chunk:
    """A run of neurons: views of their parameters and moments, and room that chunks take in turn."""

    size: int
    W: Any  # (size, d) code
    V: Any  # (size, d) code
    a: Any
    b: Any
    weights: list[tuple[Any, ...]]  # W, and W_dec if untied: theta, m, v, low, gradient but for a_m / L, held
    counts: Any
    peaks: Any
    active: Any
    z: Any  # (L, size) real    w_m . (x - b_pre), then v_m . r
    s: Any  # (L, size) code    codes, kept from forward to backward
    g: Any  # (L, size) code    (v_m . r) on_m
    aV: Any  # (size, d) code   a_m v_m
    da: Any  # (size,) real
    c: Any  # (1, size) code    a_m times the mean of (v_m . r) on_m


@dataclass
class Work:
    """Room for a batch of L rows, and the chunks over all neurons."""

    L: int
    xc: Any  # (L, d) code      x - b_pre
    f: Any  # (L, d) real       f - b_pre
    r: Any  # (L, d) code       f - x
    sums: Any  # (2, d) real    columns of r and of r^2
    db: Any  # (1, d) real      Σ_m a_m (v_m . r) on_m w_m, mean over the batch
    da: Any  # (M,) real
    active: Any  # (M,) int32   active entries of the batch
    room: Any  # (at least M,) real, what every chunk's z is a view of
    chunks: list[Chunk]


@dataclass
class State:
    """A run between two steps, on the device.

    theta: parameters by name.  low: W and W_dec as matrix products read them.  moments: m and v by name; updates: how
    many of each.  decoder: room for W_dec while it is not there yet, as `_weight`.  rows, counts, peaks: the buffer;
    last: on the host, the one that the last adaptation used.  stages:
    pinned memory for batches on their way, each with the event after which it is free.
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
    """Rows (L, d) on the device, and the event after which they are there."""

    array: Any
    there: Any


def chunk_size(M: int, L: int, itemsize: int) -> int:
    """Neurons in a chunk: what CHUNK bytes of pre-activations hold, in whole 256s."""
    return min(M, max(256, CHUNK // (L * itemsize) // 256 * 256))


def needs(dtype: str, M: int, L: int, d: int, untied: bool = False) -> int:
    """Bytes of device memory that a run takes, nearly all of it in `init`."""
    code, real = np.dtype(PRODUCTS[dtype][0]).itemsize, 8 if dtype == "float64" else 4
    decoders, chunk = 2 if untied else 1, chunk_size(M, L, real)
    weights = decoders * M * d * (3 * real + (code if code != real else 0))
    batch = L * d * ((1 + BATCHES) * real + 2 * code) + L * M * code
    room = max(L * chunk, M) * real + L * chunk * code + chunk * d * (code + decoders * real)
    return weights + batch + room + M * (6 * real + code + 14) + 2**25  # the last for cuBLAS


def _too_large(config: GBAConfig, d: int) -> InputError:
    """The device is full: what was needed, and what would fit."""
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

    InputError when the device has not so much: it says how much was needed, and what would fit.
    """
    with suppress(cp.cuda.memory.OutOfMemoryError):
        return _allocated(params.astype(config.master), config)
    raise _too_large(config, params.W.shape[1])  # here, where what was allocated is free again


def _allocated(params: Params, config: GBAConfig) -> State:
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
        W, m, v, low_W = _weight(state, "W")
        mine = [cp.empty_like(array) for array in (W, m, v)]
        state.decoder = (*mine, cp.empty_like(low_W) if device.copies else mine[0])
    state.work = _work(state, config.batch, state.counts, state.peaks)
    with state.copies:
        _ = [cp.empty((config.batch, d), device.real) for _ in range(BATCHES)]  # left to `put`
    state.steps.synchronize()
    cp.get_default_pinned_memory_pool().free_all_blocks()  # as large as the parameters
    return state


def _work(state: State, L: int, counts: Any, peaks: Any) -> Work:
    """Room for batches of L rows whose activity is added to counts and peaks (M,)."""
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
        buffer=_buffer(state),
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


def put(state: State, x: Array) -> Rows:
    """Rows x (L, d) on their way to the device, through pinned memory and on a stream of their own."""
    if len(state.stages) < STAGES:
        state.stages.append((np.empty(0, state.device.real), None))
    slot = state.puts % STAGES
    pinned, free = state.stages[slot]
    state.puts += 1
    if free is not None:
        free.synchronize()  # the copy of STAGES batches ago
    if pinned.size < x.size:
        memory = cp.cuda.alloc_pinned_memory(x.size * pinned.itemsize)
        pinned = np.frombuffer(memory, pinned.dtype, x.size)
    rows = pinned[: x.size].reshape(x.shape)
    np.copyto(rows, x, casting="same_kind")
    with state.copies:
        array = cp.empty(x.shape, state.device.real)  # of this stream's memory: an earlier batch's, perhaps,
        state.copies.wait_event(state.steps.record())  # which the steps so far may still be reading
        array.set(rows, stream=state.copies)
        there = state.copies.record(cp.cuda.Event(block=True, disable_timing=True))
    state.stages[slot] = pinned, there
    return Rows(array, there)


def _arrived(state: State, x: Rows) -> Any:
    """The rows, for what is launched from here on."""
    state.steps.wait_event(x.there)
    return x.array


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
        _hold(state)
        _untie(state)
    work = state.work
    lr = recipe.learning_rate(config, state.t)
    trained = recipe.trained(config, state.t)
    factors = {name: _adam(state, name, lr) for name in trained}
    rows = _arrived(state, x)
    _forward(state, work, rows)
    d = rows.shape[1]
    for chunk in _backward(state, work):
        for name, (theta, m, v, low, g, held) in zip(("W", "W_dec"), chunk.weights, strict=False):
            device.rows(
                "adamw_rows", chunk.size, d, theta, m, v, g, chunk.a, device.real(1 / work.L), held, low, *factors[name]
            )
    for name, g in (("a", work.da), ("b_pre", work.sums[0] / work.L - work.db[0])):
        if name in trained:
            n = g.size
            m, v = state.moments[name]
            device.launch("adamw", -(-n // 256), (256,), np.int32(n), state.theta[name], m, v, g, *factors[name])
    state.rows += work.L
    return Metrics(work.sums[1].sum() * (0.5 / work.L), work.active.sum() / work.L)


def _adam(state: State, name: str, lr: float) -> tuple[Any, ...]:
    """Count an update of a parameter; the factors of `struct AdamW` in the kernels."""
    config, real = state.config, state.device.real
    state.updates[name] += 1
    t, beta1, beta2 = state.updates[name], config.beta1, config.beta2
    rate, root = lr / (1 - beta1**t), 1 / (1 - beta2**t)
    return tuple(map(real, (1 - beta1, 1 - beta2, rate, root, config.adam_eps, 1 - lr * config.weight_decay)))


def _forward(state: State, work: Work, x: Any) -> None:
    """Line 2 and line 5: codes, counts, peaks, and the residuals r."""
    device, theta, (L, d) = state.device, state.theta, x.shape
    relu = np.int32(state.config.activation == "relu")
    device.each("center", L * d, np.int32(d), x, theta["b_pre"], work.xc)
    for i, c in enumerate(work.chunks):
        device.product(work.xc, c.W, c.z, tB=True)
        device.columns("gate", L, c.size, relu, c.z, c.b, c.s, c.counts, c.peaks, c.active)
        device.rows("scale_rows", c.size, d, c.a, c.weights[-1][0], c.aV)
        device.product(c.s, c.aV, work.f, add=i > 0)
    # Devices with neurons of their own would add up work.f here; nothing else of a step is shared but work.db below.
    device.columns("residual", L, d, x, theta["b_pre"], work.f, work.r, work.sums[0], work.sums[1])


def _backward(state: State, work: Work) -> Iterator[Chunk]:
    """Line 3 at the residuals of `_forward`, chunk by chunk: each is yielded with its gradients, and then reused."""
    device = state.device
    for i, c in enumerate(work.chunks):
        device.product(work.r, c.V, c.z, tB=True)
        device.columns("gate_gradient", work.L, c.size, c.z, c.s, c.a, c.g, c.da, c.c)
        device.product(c.c, c.W, work.db, add=i > 0)  # before W moves
        device.product(c.g, work.xc, c.weights[0][4], tA=True)
        device.product(c.s, work.r, c.weights[-1][4], tA=True, add=len(c.weights) == 1)  # tied weights add the two
        yield c


def _hold(state: State) -> None:
    """`refgba.recipe.agreeing`, on the device."""
    W, tau = state.theta["W"], state.config.hold
    M, rows = len(W), state.work.room.size // len(W)
    if tau == 1:
        return
    for start in range(0, M, rows):
        block = W[start : start + rows]
        cosine = state.work.room[: len(block) * M].reshape(len(block), M)
        state.device.product(block, W, cosine, tB=True, exact=True)
        found = state.held[start : start + rows]
        state.device.launch(
            "agree", len(block), (256,), np.int32(M), np.int64(start), state.device.real(tau), cosine, found
        )


def _untie(state: State) -> None:
    """Where untied, give W the decoder that `init` left room for, and chunks that know of it."""
    for mine, ws in zip(state.decoder, _weight(state, "W"), strict=False):
        mine[...] = ws
    if state.decoder:
        theta, m, v, low = state.decoder
        state.theta["W_dec"], state.moments["W_dec"], state.low["W_dec"] = theta, (m, v), low
        state.updates["W_dec"], state.decoder = state.updates["W"], ()
        L = state.work.L
        del state.work  # so that its memory is there for what takes its place, and is as large
        state.work = _work(state, L, state.counts, state.peaks)


def _weight(state: State, name: str) -> tuple[Any, ...]:
    """theta, m, v and low of W or W_dec."""
    return (state.theta[name], *state.moments[name], state.low[name])


def adapt(state: State) -> None:
    """Line 6: Algorithm 2, the reference's own, on the host; the (M,) arrays it needs are small."""
    c, b = state.config, state.theta["b"]
    state.last = _buffer(state)
    b.set(algorithm_2(cp.asnumpy(b), state.last, c.group(), c.target(), c.gamma_minus, c.gamma_plus, c.eps, c.floor))
    state.rows = 0
    state.counts.fill(0)
    state.peaks.fill(0)


def _buffer(state: State) -> Buffer:
    buffer = Buffer(len(state.counts))
    buffer.rows, buffer.counts = state.rows, cp.asnumpy(state.counts)
    buffer.peaks = cp.asnumpy(state.peaks).astype(np.float64)
    return buffer


def counters(state: State) -> Buffer:
    """Counts and peaks that the last adaptation used (before the first: so far), a copy on the host."""
    return deepcopy(state.last) if state.last else _buffer(state)


def gradients(state: State, x: Rows) -> Params:
    """The gradients at rows x (L, d), on the host, by the kernels of `step`; nothing moves."""
    rows = _arrived(state, x)
    work = _work(state, len(rows), cp.zeros_like(state.counts), cp.zeros_like(state.peaks))
    _forward(state, work, rows)
    parts: list[list[Array]] = [[], []]
    for chunk in _backward(state, work):
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
    rows, device = _arrived(state, x), state.device
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
