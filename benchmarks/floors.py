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


def by_torch(torch: Any, kind: str, *shape: int) -> Any:
    """A random array on the GPU."""
    return torch.randn(shape, device="cuda").to(getattr(torch, kind))


def by_cupy(kind: Any) -> tuple[Callable[..., Any], Callable[[str], None], Callable[[], None]]:
    """Random arrays of a shape on the GPU, how float32 products are computed, and waiting for the GPU."""
    cupy = import_module("cupy")
    products = import_module("cupy._core")._routines_linalg  # CuPy has no public way to choose TF32
    kind = import_module("ml_dtypes").bfloat16 if kind == "bfloat16" else kind

    def random(*shape: int) -> Any:
        return cupy.random.standard_normal(shape, dtype="f").astype(kind)

    def precision(dtype: str) -> None:
        fast = products.COMPUTE_TYPE_TF32 if dtype == "tf32" else products.COMPUTE_TYPE_DEFAULT
        products.set_compute_type("f", fast)

    return random, precision, cupy.cuda.Device().synchronize


def gpu_floors(s: Setting, dtype: str) -> Iterator[Candidate]:
    """The first of the five products of a dense step, all five, and a copy: by torch, or by CuPy where torch cannot."""
    kind = "float32" if dtype == "tf32" else dtype
    try:
        torch = import_module("torch")
        torch.zeros(1, device="cuda")
    except (ImportError, AssertionError, RuntimeError):  # no torch, one without CUDA, no device that it can use
        random, precision, wait = by_cupy(kind)
    else:
        random, wait = partial(by_torch, torch, kind), torch.cuda.synchronize
        precision = import_module("peers").set_precision
    x, W, c = random(s.batch, s.d), random(s.width, s.d), random(s.batch, s.width)
    source, target = random(COPY), random(COPY)

    def products(times: int, _: int) -> None:
        precision(dtype)
        x @ W.T
        if times == 5:
            x @ W.T, c @ W, c.T @ x, c.T @ x
        precision("float32")  # what backends in CuPy rely on

    def copy(_: int) -> int:
        target[:] = source
        return 2 * int(source.nbytes)

    for name, times in {"gpu_encode_ms": 1, "five_gemm_ms": 5}.items():
        yield Candidate("floor", name, "cuda", dtype, partial(products, times), lambda _: wait())
    yield Candidate("floor", "copy", "cuda", dtype, copy, lambda _: wait())


def floors(s: Setting, measured: list[Candidate]) -> dict[str, float]:
    """The floors in one dtype, in ms; on a GPU AdamW's follows from the bandwidth of a copy, copy_gb_s."""
    floor = {c.name: c.ms for c in measured}
    if "copy" in floor:
        floor["copy_gb_s"] = 1e-6 * measured[-1].last / floor.pop("copy")
        moved = 7 * s.width * s.d * (1 + s.untied) * (8 if measured[-1].dtype == "float64" else 4)
        floor["gpu_adam_ms"] = 1e-6 * moved / floor["copy_gb_s"]
    return floor
