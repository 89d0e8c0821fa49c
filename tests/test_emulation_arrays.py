"""The emulator's arrays, streams, matrix products and bfloat16 are those of CuPy, cuBLAS and a GPU.

Its kernels are test_emulation.py's.
"""

from __future__ import annotations

import emulated_cupy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture
def cp():
    return emulated_cupy.module()


# ---------------------------------------------------------------------------------------------------------- arrays


def test_device_and_host_never_mix(cp):
    x = cp.asarray(np.ones((2, 3), np.float32))
    for mixed in (lambda _: np.asarray(x), lambda h: x + h, lambda h: h * x, lambda h: cp.where(x > 0, h, 0)):
        with pytest.raises(TypeError):
            mixed(np.ones((2, 3), np.float32))
    with pytest.raises(TypeError):
        x[:] = np.ones((2, 3), np.float32)
    assert isinstance(x.get(), np.ndarray)
    assert isinstance(cp.asnumpy(x), np.ndarray)


def test_what_is_made_of_device_arrays_is_on_the_device(cp):
    x = cp.asarray(np.arange(6.0).reshape(2, 3))
    made = [
        x + 1,
        1 - x,
        x.T @ x,
        x.sum(),
        x.max(axis=1),
        cp.abs(x),
        np.sqrt(x),
        x[0],
        x[0, 1],
        x[x > 2],
        x.astype("f"),
    ]
    assert all(isinstance(a, cp.ndarray) for a in made)
    assert (x.sum().shape, float(x.sum()), x[0, 1].shape) == ((), 15.0, ())
    assert (x[0] + np.float64(1)).tolist() == [1, 2, 3]


def test_addresses_are_those_of_elements(cp):
    x = cp.zeros((4, 5), cp.float32)
    assert x.data.ptr % 512 == 0
    assert [a.data.ptr - x.data.ptr for a in (x[2:, 1:], x[1, 2], x.T[3], x.reshape(-1)[7:])] == [44, 28, 12, 28]
    view = x[1:]
    view += 1
    x[0, 1] = 7
    assert x.get().sum() == 22


def test_fresh_memory_is_garbage(cp):
    assert np.isnan(cp.empty(9, cp.float32).get()).all()
    assert np.isnan(cp.empty((3, 3)).get()).all()
    assert np.isnan(cp.from_bf16(cp.empty(7, cp.uint16).get())).all()
    assert (cp.empty(9, cp.int64).get() > 1 << 60).all()


def test_memory_runs_out(cp):
    cp.cuda.Device.mem_info = (1000, 5000)
    assert cp.cuda.Device(0).mem_info == (1000, 5000)
    cp.empty(1000, cp.uint8)
    with pytest.raises(cp.cuda.memory.OutOfMemoryError):
        cp.empty(1001, cp.uint8)


def test_set_wants_the_same_shape_and_dtype(cp):
    x = cp.zeros((2, 2), cp.float32)
    for wrong, error in [(np.zeros((2, 2)), TypeError), (np.zeros(4, np.float32), ValueError), ([[1, 2]], TypeError)]:
        with pytest.raises(error):
            x.set(wrong)
    x.set(np.eye(2, dtype=np.float32))
    assert x.tolist() == [[1, 0], [0, 1]]


def test_a_copy_on_another_stream_is_seen_only_after_waiting_for_it(cp):
    host = np.frombuffer(cp.cuda.alloc_pinned_memory(8), np.float32, 2)
    stream, event, x = cp.cuda.Stream(non_blocking=True), cp.cuda.Event(disable_timing=True), cp.zeros(2, cp.float32)
    host[:] = 1, 2
    with stream:
        assert cp.cuda.get_current_stream() is stream
        x.set(host)
    event.record(stream)
    x.set(np.array([7, 7], np.float32), stream)  # from memory that is not pinned, and after the event
    assert x.tolist() == [0, 0]
    host[:] = 3, 4  # too early: the copy has not read it
    cp.cuda.get_current_stream().wait_event(event)
    assert x.tolist() == [3, 4]
    assert event.done
    back = x.get(stream, blocking=False, out=np.zeros(2, np.float32))
    assert back.tolist() == [0, 0]
    stream.synchronize()
    assert (x.tolist(), back.tolist()) == ([7, 7], [7, 7])


# -------------------------------------------------------------------------------------------------------- products


def gemm(cp, a, b, c, alpha=1.0, beta=0.0, transa=0, transb=0, compute=None, **lds):
    """Row-major views on the device as the column-major matrices that cuBLAS sees: shapes are (columns, rows)."""
    scalars = np.array([alpha, beta], np.float64 if a.dtype == np.float64 else np.float32)
    kinds = {"float32": 0, "float64": 1, "uint16": 14}
    at, bt, ct = (kinds[str(x.dtype)] for x in (a, b, c))
    m, n, k = c.shape[1], c.shape[0], a.shape[1 if transa else 0]
    lda, ldb, ldc = (lds.get(ld, x.strides[0] // x.itemsize) for ld, x in (("lda", a), ("ldb", b), ("ldc", c)))
    s, size = scalars.ctypes.data, scalars.itemsize
    handle = cp.cuda.device.get_cublas_handle()
    args = (s, a.data.ptr, at, lda, b.data.ptr, bt, ldb, s + size, c.data.ptr, ct, ldc)
    cp.cuda.cublas.gemmEx(handle, transa, transb, m, n, k, *args, compute or (70 if at == 1 else 68), -1)


@pytest.mark.parametrize("transa", [0, 1])
@pytest.mark.parametrize("transb", [0, 1])
@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gemm_multiplies_parts_of_matrices_in_all_four_ways(cp, transa, transb, beta, dtype):
    rng = np.random.default_rng(2)
    m, n, k = 4, 5, 6
    shapes = [(m, k) if transa else (k, m), (k, n) if transb else (n, k), (n, m)]
    whole = [rng.normal(size=(r + 2, c + 3)).astype(dtype) for r, c in shapes]
    hosts = [w[1 : 1 + r, 2 : 2 + c] for w, (r, c) in zip(whole, shapes, strict=True)]
    before = hosts[2].copy()
    if beta == 0:
        hosts[2][...] = np.nan
    a, b, c = (cp.asarray(w)[1 : 1 + s[0], 2 : 2 + s[1]] for w, s in zip(whole, shapes, strict=True))
    gemm(cp, a, b, c, 1.5, beta, transa, transb)
    op_a, op_b = (x if trans else x.T for x, trans in ((hosts[0], transa), (hosts[1], transb)))
    expected = 1.5 * (op_a @ op_b).T + (beta * before if beta else 0)
    assert c.get() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert c.dtype == dtype


def test_gemm_over_no_terms_is_zero(cp):
    c = cp.empty((2, 3))
    gemm(cp, cp.empty((0, 3)), cp.empty((2, 0)), c, lda=3, ldb=1)
    assert c.tolist() == [[0.0] * 3] * 2


def test_gemm_widens_bfloat16_exactly(cp):
    rng = np.random.default_rng(3)
    a, b = (cp.to_bf16(rng.normal(size=s).astype(np.float32)) for s in ((6, 4), (5, 6)))
    exact = (cp.from_bf16(a).T.astype(float) @ cp.from_bf16(b).T).T
    c, narrow = cp.empty((5, 4), cp.float32), cp.empty((5, 4), cp.uint16)
    for out in (c, narrow):
        gemm(cp, cp.asarray(a), cp.asarray(b), out)
    assert c.get() == pytest.approx(exact, rel=1e-5, abs=1e-5)
    assert cp.from_bf16(narrow.get()) == pytest.approx(exact, rel=2**-8, abs=1e-5)


def test_tf32_rounds_the_factors_to_ten_bits(cp):
    ones = np.ones((1, 1), np.float32)
    c = cp.empty((1, 1), cp.float32)
    for factor, rounded in [(1 + 2**-10, 1 + 2**-10), (1 + 2**-11, 1), (1 + 3 * 2**-11, 1 + 2**-9), (1 + 2**-12, 1)]:
        gemm(cp, cp.asarray(ones * np.float32(factor)), cp.asarray(ones), c, compute=77)
        assert float(c[0, 0]) == rounded
    rng = np.random.default_rng(4)
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((50, 40), (30, 50)))
    fast, full = cp.empty((30, 40), cp.float32), cp.empty((30, 40), cp.float32)
    gemm(cp, cp.asarray(a), cp.asarray(b), fast, compute=77)
    gemm(cp, cp.asarray(a), cp.asarray(b), full)
    error = np.abs(fast - full).get()
    assert error.max() > 1e-5
    assert (error <= (2**-10 + 1e-5) * (np.abs(b) @ np.abs(a))).all()


def test_gemm_refuses_what_cublas_does_not_know_or_check(cp):
    a, b, c = cp.zeros((6, 4), cp.float32), cp.zeros((5, 6), cp.float32), cp.zeros((5, 4), cp.float32)
    for wrong in ({"lda": 3}, {"ldb": 5}, {"ldc": 3}):
        with pytest.raises(AssertionError, match="ld"):
            gemm(cp, a, b, c, **wrong)
    with pytest.raises(AssertionError, match="a lies outside"):
        gemm(cp, a, b, c, lda=5)
    with pytest.raises(AssertionError, match="overlaps"):
        gemm(cp, cp.zeros((4, 4), cp.float32), c[:, :4], c, beta=1.0)
    for compute in (68, 70):
        with pytest.raises(AssertionError, match="type"):
            gemm(cp, a, b.astype(cp.float64), c.astype(cp.float64), compute=compute)


# -------------------------------------------------------------------------------------------------------- bfloat16


def test_bfloat16_rounds_to_nearest_even(cp):
    bits = {
        0x3F800000: 0x3F80,
        0x3F808000: 0x3F80,  # a tie goes to the even one,
        0x3F818000: 0x3F82,  # which may be above,
        0x3F808001: 0x3F81,  # and what is over the tie goes up
        0xBF7F8000: 0xBF80,
        0x7F7F7FFF: 0x7F7F,
        0x7F7F8000: 0x7F80,  # the largest become infinite
        0xFF800000: 0xFF80,
        0x7F800001: 0x7FC0,  # a NaN whose bits are all cut stays one
        0xFFFFFFFF: 0xFFFF,
        0x00000001: 0x0000,
        0x00008000: 0x0000,  # subnormal ties
        0x00018000: 0x0002,
        0x80000000: 0x8000,
    }
    x = np.array(list(bits), np.uint32).view(np.float32)
    assert cp.to_bf16(x).tolist() == list(bits.values())


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
@settings(max_examples=50)
def test_bfloat16_is_never_more_than_half_a_step_away(values):
    x = np.array(values, np.float32)
    y = emulated_cupy.from_bf16(emulated_cupy.to_bf16(x))
    x, y = (a.astype(float)[np.isfinite(y)] for a in (x, y))
    assert (np.abs(x - y) <= np.maximum(np.abs(x) * 2**-8, 2.0**-134)).all()


def test_bfloat16_is_that_of_ml_dtypes(cp):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.random.default_rng(5).integers(0, 1 << 32, 10**5, np.uint32).view(np.float32)
    x = x[~np.isnan(x)]
    with np.errstate(all="ignore"):
        assert np.array_equal(cp.to_bf16(x), x.astype(ml_dtypes.bfloat16).view(np.uint16))
