"""The slice of CuPy 14 that `backends/cupy.py` uses, on the CPU: its host code and its kernels run where no GPU is.

`module()` stands in for `cupy`; kernels are compiled as C++ behind `emulated_cuda.h`.  Stricter than a GPU on purpose:

- fresh memory is NaN, and between guards that every launch and product checks (emulated_arrays.py);
- a kernel's arguments have the types of its parameters, which CuPy never checks (emulated_kernels.py);
- device and host arrays never mix (emulated_arrays.py);
- to a kernel in float what is below the smallest normal number is 0, as CuPy compiles it (emulated_cuda.h);
- the current device, and cuBLAS's handles, belong to a thread; streams of another device are refused;
- a copy to or from the device on a non-blocking stream happens as late as the waits of the host code allow
  (emulated_device.py).

`emulation` says in which order threads take turns, counts launches, waits and products of unaligned matrices, and can
log the work of all streams; `cuda.Device.mem_info` is the memory there is.  `module()` resets both.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
from emulated_arrays import OutOfMemoryError, array, asarray, asnumpy, empty, empty_like, ndarray, through
from emulated_cublas import from_bf16, gemm_ex, to_bf16
from emulated_device import (
    ORDERS,
    Device,
    Event,
    Stream,
    alloc_pinned_memory,
    emulation,
    get_cublas_handle,
    get_current_stream,
    get_elapsed_time,
)
from emulated_kernels import CompileException, RawKernel, RawModule, compiler

__all__ = [
    "ORDERS", "Device", "RawKernel", "RawModule", "array", "asarray", "asnumpy", "compiler", "cuda", "empty",
    "empty_like", "emulation", "from_bf16", "get_default_memory_pool", "get_default_pinned_memory_pool", "module",
    "ndarray", "to_bf16",
]  # fmt: skip


def module() -> ModuleType:
    """This module in the place of `cupy`, with its settings as they were at first."""
    emulation.reset()
    return sys.modules[__name__]


def __getattr__(name):
    """What NumPy has, CuPy has, for device arrays."""
    if name.startswith("__"):
        raise AttributeError(name)
    return through(getattr(np, name))


def get_default_memory_pool() -> SimpleNamespace:
    """The pool of a device where freed memory is free at once."""
    return SimpleNamespace(free_all_blocks=lambda: None)


get_default_pinned_memory_pool = get_default_memory_pool

cuda = SimpleNamespace(
    Device=Device,
    Event=Event,
    Stream=Stream,
    alloc_pinned_memory=alloc_pinned_memory,
    compiler=SimpleNamespace(CompileException=CompileException),
    cublas=SimpleNamespace(gemmEx=gemm_ex),
    device=SimpleNamespace(get_cublas_handle=get_cublas_handle),
    get_cublas_handle=get_cublas_handle,
    get_current_stream=get_current_stream,
    get_elapsed_time=get_elapsed_time,
    is_available=lambda: True,
    memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=SimpleNamespace(
        CUDARuntimeError=type("CUDARuntimeError", (RuntimeError,), {}),
        getDeviceCount=lambda: 2,
        getDeviceProperties=lambda _: {"name": b"emulated"},
    ),
)
