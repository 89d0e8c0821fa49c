"""The floors of the hardware: a product of matrices and a pass over memory, to hold the time of a step against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

from candidates import Candidate
from setting import Data, Setting, host

COPY = 2**26  # numbers copied to measure the bandwidth of a GPU


def cpu_floors(s: Setting, data: Data, dtype: str) -> Iterator[Candidate]:
    """The encoder's product x W^T, and AdamW's pass over W, m, v and g, by NumPy and numba."""
    import numpy as np

    x, W = data.x[0].astype(host(dtype)), data.params.W.astype(host(dtype))
    z, rate = np.empty((s.batch, s.width), W.dtype), W.dtype.type(1e-3)
    arrays = [np.random.default_rng(0).standard_normal(W.size * (1 + s.untied), W.dtype) for _ in range(4)]
    stream = adam_stream()[0]
    yield Candidate("floor", "encode_ms", "cpu", dtype, lambda _: np.matmul(x, W.T, out=z))
    yield Candidate("floor", "adam_ms", "cpu", dtype, lambda _: stream(*arrays, rate))


def adam_stream() -> tuple[Callable[..., None], str]:
    """A function that passes once over W, m, v and g with next to no arithmetic, and what runs it."""

    def blocks(W: Any, m: Any, v: Any, g: Any, rate: Any) -> None:
        for start in range(0, W.size, 2**14):
            here = slice(start, start + 2**14)
            m[here] += rate * g[here]
            v[here] += rate * g[here]
            W[here] -= rate * m[here]

    def threads(W: Any, m: Any, v: Any, g: Any, rate: Any) -> None:
        for i in prange(W.size):
            m[i] += rate * (g[i] - m[i])
            v[i] += rate * (g[i] - v[i])
            W[i] -= rate * m[i]

    try:
        numba = import_module("numba")
    except ImportError:
        return blocks, "NumPy, on one thread"
    prange = numba.prange
    return numba.njit(threads, parallel=True, fastmath=True), "numba, on all threads"


def gpu_floors(s: Setting, dtype: str) -> Iterator[Candidate]:
    """The first of the five products of a dense step, all five, and a copy: by CuPy, or by torch where CuPy cannot.

    The products are those of a tied step: they read and write the dtypes that the backend's do, and the codes are 0
    where a gate is closed, which takes less power, and so less time, than numbers that are not.
    """
    from refgba import backends

    floors_of = by_cupy if backends.status()["cupy"] is None else by_torch
    products, copy, wait = floors_of(s, dtype)
    for name, times in {"gpu_encode_ms": 1, "five_gemm_ms": 5}.items():
        yield Candidate("floor", name, "cuda", dtype, partial(products, times), lambda _: wait())
    yield Candidate("floor", "copy", "cuda", dtype, copy, lambda _: wait())


Floors = tuple[Callable[[int, int], object], Callable[[int], int], Callable[[], object]]


def factors(s: Setting, neurons: int) -> tuple[Any, Any, Any]:
    """Rows (2L, d), weights (neurons, d), and codes (2L, neurons) of the setting's density: random, on the host."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows, weights = (rng.standard_normal((n, s.d), "f") for n in (2 * s.batch, neurons))
    codes = rng.standard_normal((2 * s.batch, neurons), "f")
    codes *= rng.random(codes.shape, "f") < s.density
    return rows, weights, codes


def by_cupy(s: Setting, dtype: str) -> Floors:
    """Five products by cuBLAS as the backend calls it, chunk by chunk; a copy; and waiting for the GPU.

    Four calls: where tied, the last two products are one.
    """
    import numpy as np

    backend = import_module("refgba.backends.cupy")
    cp, memory, cupy_device = backend.cp, backend.memory, import_module("refgba.backends.cupy_device")
    device = cupy_device.Device(dtype, cupy_device.aligned(s.d))
    sizes = memory.chunk_sizes(s.width, s.batch, np.dtype(device.real).itemsize)

    def on_device(host: Any) -> Any:
        wide = np.zeros((len(host), cupy_device.aligned(host.shape[1])), device.real)
        wide[:, : host.shape[1]] = host
        code = cp.empty(wide.shape, device.code)
        device.each("narrow", wide.size, cp.asarray(wide), code)
        return code[:, : host.shape[1]]

    rows, W, codes = map(on_device, factors(s, sizes[0]))
    ld = cupy_device.aligned(sizes[0])
    z, vr = (cp.empty((s.batch, ld), dtype) for dtype in (device.real, device.code))
    f, g = (cp.empty((n, cupy_device.aligned(s.d)), device.real)[:, : s.d] for n in (s.batch, sizes[0]))
    source, target = cp.zeros(COPY, device.real), cp.empty(COPY, device.real)

    def products(times: int, _: int) -> None:
        for i, size in enumerate(sizes):
            device.product(rows[: s.batch], W[:size], z[:, :size], tB=True)
            if times == 5:
                device.product(codes[: s.batch, :size], W[:size], f, add=i > 0)
                device.product(rows[s.batch :], W[:size], vr[:, :size], tB=True)
                device.product(codes[:, :size], rows, g[:size], tA=True)

    def copy(_: int) -> int:
        target[...] = source
        return 2 * int(source.nbytes)

    return products, copy, cp.cuda.Device().synchronize


def by_torch(s: Setting, dtype: str) -> Floors:
    """The same by torch, on all neurons at once."""
    torch, precision = import_module("torch"), import_module("peers").set_precision
    kind = getattr(torch, "float32" if dtype == "tf32" else dtype)
    rows, W, codes = (torch.tensor(host, device="cuda").to(kind) for host in factors(s, s.width))
    xc, r, on = rows[: s.batch], rows[s.batch :], codes[: s.batch]
    source, target = torch.zeros(COPY, device="cuda", dtype=kind), torch.empty(COPY, device="cuda", dtype=kind)
    # A step sums in float32 whatever it multiplies: products write 4 bytes, but for v · r, which is rounded.
    mm = partial(torch.mm, out_dtype=torch.float32) if dtype == "bfloat16" else torch.mm

    def products(times: int, _: int) -> None:
        precision(dtype)
        mm(xc, W.T)
        if times == 5:
            mm(on, W), torch.mm(r, W.T), mm(codes.T, rows)
        precision("float32")  # what backends in CuPy rely on

    def copy(_: int) -> int:
        target[:] = source
        return 2 * int(source.nbytes)

    return products, copy, torch.cuda.synchronize


def floors(s: Setting, measured: list[Candidate]) -> dict[str, float]:
    """The floors in one dtype, in ms; on a GPU AdamW's follows from the bandwidth of a copy, copy_gb_s."""
    floor = {c.name: c.ms for c in measured}
    if "copy" in floor:
        floor["copy_gb_s"] = 1e-6 * measured[-1].last / floor.pop("copy")
        moved = 7 * s.width * s.d * (1 + s.untied) * (8 if measured[-1].dtype == "float64" else 4)
        floor["gpu_adam_ms"] = 1e-6 * moved / floor["copy_gb_s"]
    return floor
