"""Matrix products of the emulated device: what cuBLAS does with addresses and leading dimensions, and bfloat16's bits.

A part of emulated_cupy.py, and of nothing else.
"""

from __future__ import annotations

import ctypes

import numpy as np
from emulated_arrays import check_guards, inside
from emulated_device import catch_up, emulation, get_cublas_handle, get_current_stream, log


def _rounded(x, bits):
    """The bits of float32 x, rounded to nearest even so that the last ones are 0; NaN stays NaN."""
    x = np.ascontiguousarray(x, np.float32)
    u = x.view(np.uint32)
    even = (u >> np.uint32(bits)) & np.uint32(1)
    up = u + (even + np.uint32((1 << bits - 1) - 1))
    return np.where(np.isnan(x), u | np.uint32(1 << 22), up) & np.uint32(~((1 << bits) - 1) & 0xFFFFFFFF)


def to_bf16(x):
    """The bits of x as bfloat16, rounded to nearest even."""
    return (_rounded(x, 16) >> np.uint32(16)).astype(np.uint16)


def from_bf16(x):
    """The numbers, as float32, that bfloat16's bits stand for."""
    return (np.asarray(x, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


_DTYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float64), 14: np.dtype(np.uint16)}
_SUPPORTED = {68: {(0, 0), (14, 0), (14, 14)}, 70: {(1, 1)}, 77: {(0, 0)}}  # compute type: types of (A and B, C)


def _matrix(name, pointer, kind, rows, columns, ld):
    """The column-major matrix at an address of the device."""
    dtype = _DTYPES[kind]
    assert ld >= max(1, rows), f"gemmEx: ld{name} {ld} < {rows} rows"
    nbytes = (ld * (columns - 1) + rows) * dtype.itemsize if rows and columns else 0
    assert nbytes == 0 or inside(pointer, nbytes), f"gemmEx: {name} lies outside of the arrays of the device"
    memory = (ctypes.c_ubyte * nbytes).from_address(pointer)
    return np.ndarray((rows, columns), dtype, memory, strides=(dtype.itemsize, ld * dtype.itemsize))


def gemm_ex(handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, compute, algo):
    """C = alpha op(A) op(B) + beta C, column-major, by address; alpha and beta on the host."""
    assert handle == get_cublas_handle(), "gemmEx: the handle is another thread's or device's"
    assert get_current_stream().reachable(), "gemmEx: the stream is another device's"
    assert {transa, transb} <= {0, 1}, "gemmEx: operations are 0 (N) and 1 (T)"
    assert algo in (-1, 99), "gemmEx: algo is CUBLAS_GEMM_DEFAULT"
    assert Btype == Atype, "gemmEx: A and B differ in type"
    assert (Atype, Ctype) in _SUPPORTED[compute], "gemmEx: types that cuBLAS does not support"
    assert not any(inside(p, 1) for p in (alpha, beta)), "gemmEx: alpha and beta are on the host"
    catch_up()
    dtypes = (Atype, Btype, Ctype)
    at = zip((A, B, C), (lda, ldb, ldc), dtypes, strict=True)
    emulation.unaligned += any(p % 16 or ld * _DTYPES[t].itemsize % 16 for p, ld, t in at)
    log("gemmEx", [])
    a = _matrix("a", A, Atype, *((k, m) if transa else (m, k)), lda)
    b = _matrix("b", B, Btype, *((n, k) if transb else (k, n)), ldb)
    c = _matrix("c", C, Ctype, m, n, ldc)
    assert not any(np.shares_memory(c, x) for x in (a, b)), "gemmEx: C overlaps A or B"
    scalar = ctypes.c_double if compute == 70 else ctypes.c_float
    factors = np.array([scalar.from_address(alpha).value, scalar.from_address(beta).value], scalar)
    wide = [from_bf16(x) if Atype == 14 else x for x in (a.T if transa else a, b.T if transb else b)]
    if compute == 77:
        wide = [_rounded(x, 13).view(np.float32) for x in wide]
    with np.errstate(all="ignore"):
        result = factors[0] * (wide[0] @ wide[1])
        if factors[1] != 0:
            result += factors[1] * (from_bf16(c) if Ctype == 14 else c)
    c[...] = to_bf16(result) if Ctype == 14 else result
    check_guards("gemmEx")
