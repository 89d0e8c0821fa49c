"""The GPU that backends/cupy.py computes on: its matrix products by cuBLAS, and the launches of our kernels.

`Device` knows shapes and dtypes, nothing of the network.  The kernels are in cupy_kernels.cu, the arrays in
cupy_memory.py.  tests/test_kernels.py runs each kernel by itself on the CPU, tests/test_kernels_compile.py compiles
them for every architecture.

What of CuPy 14.2 shows in its source only, and matters here: it adds -ftz=true to every compilation; cuBLAS's handles
belong to a thread, so that one is fetched for every product; a kernel takes None for a null pointer; and a step cannot
become a CUDA graph, since every product sets the stream of its handle, which CuPy refuses while it captures.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cupy as cp
import numpy as np

from refgba.errors import InputError

KERNELS = ("narrow", "center", "gate", "residual", "gate_gradient", "adamw_b_pre", "adamw_rows", "agree")
SOURCE = Path(__file__).with_name("cupy_kernels.cu")
ALIGNED = 8  # rows of matrices begin at multiples of so many numbers: 16 bytes of any dtype, as tensor cores want it
BLOCKS = {"gate": (8, 64), "gate_gradient": (4, 128)}  # by kernel, threads of a block, each with 8 columns
ROW_THREADS = 512  # the most of a block that has a row in registers
ROW_BLOCKS = 1024  # thread blocks that share the rows of a chunk, and as many partial sums over them
THREADS_OWN_STREAM = "CUPY_CUDA_PER_THREAD_DEFAULT_STREAM"
R_32F, R_64F, R_16BF = 0, 1, 14  # cudaDataType
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77  # cublasComputeType

# By dtype of the run: what matrix products read (bfloat16 as its bits), its cudaDataType, and how cuBLAS multiplies it.
PRODUCTS: dict[str, tuple[type, int, int]] = {
    "float64": (np.float64, R_64F, COMPUTE_64F),
    "float32": (np.float32, R_32F, COMPUTE_32F),
    "tf32": (np.float32, R_32F, COMPUTE_32F_FAST_TF32),
    "bfloat16": (np.uint16, R_16BF, COMPUTE_32F),
}
DTYPES = tuple(PRODUCTS)


def aligned(n: int) -> int:
    """The least multiple of ALIGNED that is at least n."""
    return -(-n // ALIGNED) * ALIGNED


def compilation(dtype: str, d: int) -> tuple[str, tuple[str, ...]]:
    """The source of the kernels and the options that make those of a dtype and of rows of d numbers of it."""
    code, real = PRODUCTS[dtype][0], np.float64 if dtype == "float64" else np.float32
    per, _ = row_shape(d, np.dtype(real).itemsize)
    options = [f"-DREAL={'double' if dtype == 'float64' else 'float'}", f"-DPER={per}"]
    return SOURCE.read_text(encoding="utf-8"), (*options, *(["-DBF16"] if code != real else []))


def unusable() -> str | None:
    """Why CuPy cannot compute here, in one line; None when it can."""
    if os.environ.get(THREADS_OWN_STREAM, "0") != "0":
        return (
            f"{THREADS_OWN_STREAM}={os.environ[THREADS_OWN_STREAM]} gives the thread that copies rows a stream that "
            "the steps do not wait for: unset it"
        )
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
    """The kernels and products of one dtype of a run, on the GPU that is current where it is made.

    real: dtype of parameters and sums.  code: dtype of what matrix products read.  copies: whether these differ, and
    products read copies of the parameters.  here: the GPU, as a context; the current one belongs to a thread.
    """

    def __init__(self, dtype: str, d: int, source: str = "", names: tuple[str, ...] = KERNELS) -> None:
        """Compile the kernels, or take them from CuPy's cache.  InputError when the GPU cannot compute in dtype.

        d: numbers of a row, padding included.  source: more kernels, after those of SOURCE.  names: those to launch.
        """
        self.here = cp.cuda.Device()
        if dtype in ("tf32", "bfloat16") and int(self.here.compute_capability) < 80:
            raise InputError(f"this GPU has no {dtype}: that takes compute capability 8.0; float32 and float64 run")
        self.code, self.code_type, self.compute = PRODUCTS[dtype]
        self.real: type = np.float64 if dtype == "float64" else np.float32
        self.real_type, self.real_compute = (R_64F, COMPUTE_64F) if dtype == "float64" else (R_32F, COMPUTE_32F)
        self.copies = self.code != self.real
        self.row_block = row_shape(d, np.dtype(self.real).itemsize)[1]
        code, options = compilation(dtype, d)
        kernels = cp.RawModule(code=code + source, options=options)
        self._kernels = {name: kernels.get_function(name) for name in names}
        self._one, self._zero = np.ones(1, self.real), np.zeros(1, self.real)  # cuBLAS reads them from the host

    def launch(self, name: str, blocks: int, block: tuple[int, ...], *arguments: Any) -> None:
        """Run a kernel on that many thread blocks, each of the shape `block`; None is a null pointer."""
        self._kernels[name]((blocks,), block, arguments)

    def each(self, name: str, n: int, *arguments: Any) -> None:
        """Run a kernel over n entries, whatever their shape."""
        self.launch(name, min(-(-n // 256), 2**16), (256,), np.int64(n), *arguments)

    def rows(self, name: str, M: int, d: int, *arguments: Any) -> None:
        """Run a kernel over the rows of (M, d), on ROW_BLOCKS thread blocks or one per row."""
        self.launch(name, min(M, ROW_BLOCKS), (self.row_block,), np.int32(M), np.int32(d), *arguments)

    def columns(self, name: str, L: int, M: int, *arguments: Any) -> None:
        """Run a kernel that sums over the L rows of (L, M), on blocks of 32 columns, or of 8 a thread as in BLOCKS."""
        block = BLOCKS.get(name, (32, 32))
        columns = 8 * block[0] if name in BLOCKS else block[0]
        self.launch(name, -(-M // columns), block, np.int32(L), np.int32(M), *arguments)

    def product(
        self, A: Any, B: Any, C: Any, *, tA: bool = False, tB: bool = False, add: bool = False, exact: bool = False
    ) -> None:
        """C <- op(A) op(B), or C <- C + op(A) op(B) with add; all are 2-D, and what is in a row is contiguous.

        op transposes where tA or tB is true.  A and B have dtype code, and C has dtype real or code: sums are in real,
        and rounded once where C is code.  exact: A and B have dtype real too, and nothing is rounded.
        """
        kind, compute = (self.real_type, self.real_compute) if exact else (self.code_type, self.compute)
        m, n = C.shape
        k = A.shape[0] if tA else A.shape[1]
        lda, ldb, ldc = (X.strides[0] // X.itemsize for X in (A, B, C))
        # To cuBLAS an array whose rows are contiguous is its transpose: C^T = op(B)^T op(A)^T.
        cp.cuda.cublas.gemmEx(
            cp.cuda.device.get_cublas_handle(), int(tB), int(tA), n, m, k, self._one.ctypes.data,
            B.data.ptr, kind, ldb, A.data.ptr, kind, lda,
            (self._one if add else self._zero).ctypes.data, C.data.ptr,
            self.real_type if C.dtype == self.real else self.code_type, ldc, compute, -1,
        )  # fmt: skip


def row_shape(d: int, itemsize: int) -> tuple[int, int]:
    """Of a thread block that has a row of d numbers in registers: 16-byte pieces per thread, and threads.

    At d = 1536 in float32 (1, 384), at 4096 (2, 512).
    """
    pieces = -(-d * itemsize // 16)
    per = -(-pieces // ROW_THREADS)
    return per, -(-pieces // (32 * per)) * 32
