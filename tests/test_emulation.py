"""The emulator of CUDA and CuPy can be trusted: it computes what a GPU would, and it catches what a GPU would not."""

from __future__ import annotations

import emulated_cupy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

KERNELS = r"""
typedef unsigned short bf16;
__device__ __forceinline__ REAL warp_sum(REAL v) {
  #pragma unroll
  for (int d = 16; d; d /= 2) v += __shfl_down_sync(0xffffffffu, v, d);
  return v;
}
__device__ __forceinline__ REAL block_sum(REAL v) {
  __shared__ REAL parts[32];
  const int lane = threadIdx.x % warpSize, warp = threadIdx.x / warpSize;
  v = warp_sum(v);
  if (lane == 0) parts[warp] = v;
  __syncthreads();
  return warp_sum(lane < (int)(blockDim.x + 31) / warpSize ? parts[lane] : 0);
}
extern "C" __global__ void __launch_bounds__(32 * (16 + 16)) sum(const REAL* __restrict__ x, REAL* out, int n) {
  REAL v = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) v += x[i];
  v = block_sum(v);
  if (threadIdx.x == 0) *out = v;
}
extern "C" __launch_bounds__(1024) __global__ void sum_any_block(const REAL* x, REAL* out) {  // the order is odd
  __shared__ REAL t[1024];
  t[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  for (int n = blockDim.x; n > 1; n = (n + 1) / 2) {
    REAL v = threadIdx.x + (n + 1) / 2 < n ? t[threadIdx.x + (n + 1) / 2] : 0;
    __syncthreads();
    t[threadIdx.x] += v;
    __syncthreads();
  }
  if (threadIdx.x == 0) *out = t[0];
}
extern "C" __global__ void transpose(const REAL* x, REAL* out, int rows, int columns) {
  __shared__ REAL t[32][33];
  int r = blockIdx.y * 32 + threadIdx.y, c = blockIdx.x * 32 + threadIdx.x;
  if (r < rows && c < columns) t[threadIdx.y][threadIdx.x] = x[r * columns + c];
  __syncthreads();
  r = blockIdx.y * 32 + threadIdx.x, c = blockIdx.x * 32 + threadIdx.y;
  if (r < rows && c < columns) out[c * rows + r] = t[threadIdx.x][threadIdx.y];
}
extern "C" __global__ void shuffles(const REAL* x, REAL* out, long long* wide) {
  int i = threadIdx.x;
  out[i] = __shfl_sync(~0u, x[i], 5);
  out[32 + i] = __shfl_xor_sync(~0u, x[i], 3);
  out[64 + i] = __shfl_down_sync(~0u, x[i], 30);
  out[96 + i] = __shfl_up_sync(~0u, x[i], 2, 8);
  wide[i] = __shfl_sync(~0u, (long long)i << 40, 31);
  if (i < 16) out[i] += __shfl_xor_sync(0xffffu, x[i], 1);
}
extern "C" __global__ void atomics(const int* x, int* count, unsigned* top, unsigned long long* total, float* low) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(count, x[i] > 0);
  atomicMax(top, __float_as_uint(max((float)x[i], 0.0f)));
  atomicAdd(total, (unsigned long long)(long long)x[i]);
  for (unsigned old = __float_as_uint(*low), was; __uint_as_float(old) > x[i]; old = was)
    if ((was = atomicCAS((unsigned*)low, old, __float_as_uint(x[i]))) == old) break;
}
extern "C" __global__ void widen(const bf16* __restrict__ x, float* out, bool negate, double scale, void* unused) {
  float v = __uint_as_float((unsigned)x[threadIdx.x] << 16);
  out[threadIdx.x] = (negate ? -v : v) * scale;
}
extern "C" __global__ void where(int* out) {
  if (threadIdx.x == 0) out[blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)] += 1;
}
#ifdef NEVER
extern "C" __global__ void never(int* out) {}
#endif

// From here on kernels with mistakes.
extern "C" __global__ void no_barrier(const REAL* x, REAL* out) {
  __shared__ REAL t[1024];
  t[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = t[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void no_second_barrier(REAL* out) {  // a warp that is ahead overwrites what another still reads
  __shared__ REAL t;
  REAL v = 0;
  for (int i = 0; i < 3; i++) {
    if (threadIdx.x == 32 * i) t = i;
    __syncthreads();
    v += __shfl_sync(~0u, t, 0);
  }
  out[threadIdx.x] = v;
}
extern "C" __global__ void divergent(int odd) {
  if ((int)threadIdx.x % 2 == odd) __syncthreads();
}
extern "C" __global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
extern "C" __global__ void lanes_missing(REAL* out) {
  if (threadIdx.x < 20) out[threadIdx.x] = warp_sum(1);
}
extern "C" __global__ void store(REAL* out, int i) { out[i] = 1; }
extern "C" __global__ void copy(const REAL* x, REAL* out, int i) { out[i] = x[i]; }
extern "C" __global__ void stale(REAL* out, int write) {
  __shared__ REAL t[32];
  if (write) t[threadIdx.x] = 1;
  out[threadIdx.x] = t[threadIdx.x];
}
"""


@pytest.fixture
def cp():
    return emulated_cupy.module()


def compiled(cp, code, *options):
    if cp.compiler() is None:
        pytest.skip("no C++ compiler for Linux to emulate CUDA")
    return cp.RawModule(code=code, options=options)


def kernel(cp, name, real="float"):
    return compiled(cp, KERNELS, "--std=c++17", f"-DREAL={real}", "-arch=sm_90").get_function(name)


def in_all_orders(cp, run):
    """The distinct results of run() over the orders, with several seeds."""
    results = []
    for cp.order, cp.seed in [("forward", 0), ("backward", 0), *(("shuffled", seed) for seed in range(4))]:
        result = run().get()
        if not any(np.array_equal(result, r, equal_nan=True) for r in results):
            results.append(result)
    return results


# --------------------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("block", [32, 96, 1024])
def test_a_reduction_through_shuffles_and_shared_memory_is_the_sum(cp, real, block):
    x = np.arange(4001, dtype=np.float32 if real == "float" else np.float64) - 1000

    def run():
        out = cp.empty((), x.dtype)
        kernel(cp, "sum", real)((1,), (block,), (cp.asarray(x), out, np.int32(len(x))))
        return out

    assert in_all_orders(cp, run) == [x.sum()]


@pytest.mark.parametrize("block", [1, 2, 31, 33, 777, 1023, 1024])
def test_blocks_of_any_size_keep_their_threads_in_step(cp, block):
    x = np.arange(block, dtype=np.float32) ** 2 % 11

    def run():
        out = cp.empty((), cp.float32)
        kernel(cp, "sum_any_block")((1,), (block,), (cp.asarray(x), out))
        return out

    assert in_all_orders(cp, run) == [x.sum()]


def test_square_blocks_transpose_through_a_tile(cp):
    x = np.random.default_rng(0).normal(size=(70, 45)).astype(np.float32)

    def run():
        out = cp.empty((45, 70), cp.float32)
        kernel(cp, "transpose")((2, 3), (32, 32), (cp.asarray(x), out, np.int32(70), np.int32(45)))
        return out

    (result,) = in_all_orders(cp, run)
    assert np.array_equal(result, x.T)


def test_every_shuffle_takes_from_the_lane_cuda_says(cp):
    x = np.arange(32, dtype=np.float64) / 8
    out, wide = cp.empty((4, 32)), cp.empty(32, cp.int64)
    kernel(cp, "shuffles", "double")((1,), (32,), (cp.asarray(x), out, wide))
    lane = np.arange(32)
    expected = np.array([5 + 0 * lane, lane ^ 3, np.where(lane < 2, lane + 30, lane), lane - 2 * (lane % 8 > 1)]) / 8
    expected[0, :16] += x[lane[:16] ^ 1]
    assert np.array_equal(out.get(), expected)
    assert wide.tolist() == [31 << 40] * 32


def test_what_comes_from_a_lane_that_does_not_exist_is_garbage(cp):
    out = cp.empty((), cp.float32)
    kernel(cp, "sum")((1,), (40,), (cp.zeros(40, cp.float32), out, np.int32(40)))
    assert np.isnan(float(out))


def test_atomics_do_as_their_names_say(cp):
    x = np.random.default_rng(1).integers(-1000, 1000, 640).astype(np.int32)
    count, top, total, low = (cp.zeros((), t) for t in (cp.int32, cp.float32, cp.int64, cp.float32))
    kernel(cp, "atomics")((10,), (64,), (cp.asarray(x), count, top.view(cp.int32), total, low))
    assert [int(a) for a in (count, top, total, low)] == [(x > 0).sum(), x.max(), x.sum(), x.min()]


def test_every_block_of_a_grid_runs_once(cp):
    assert len(results := in_all_orders(cp, lambda: launched_everywhere(cp, (3, 4, 5)))) == 1
    assert results[0].tolist() == [1] * 60
    assert launched_everywhere(cp, (3, 0)).tolist() == [1] * 3 + [0] * 57  # CuPy launches one block in place of none


def launched_everywhere(cp, grid):
    out = cp.zeros(60, cp.int32)
    kernel(cp, "where")(grid, (64,), (out,))
    return out


def test_scalars_of_every_size_reach_the_kernel(cp):
    x = cp.asarray(cp.to_bf16(np.array([1.5, -2.0], np.float32)))
    out = cp.empty(2, cp.float32)
    kernel(cp, "widen")((1,), (2,), (x, out, np.True_, 3.0, out))
    assert out.tolist() == [-4.5, 6.0]


def test_launches_and_waits_are_counted(cp):
    out = launched_everywhere(cp, (3,))
    assert (dict(cp.launches), cp.waits) == ({"where": 1}, 0)
    float(out[0])
    cp.cuda.Device(0).synchronize()
    assert cp.waits == 2


# ------------------------------------------------------------------------------------------------ mistakes in kernels


@pytest.mark.parametrize("block", [2, 32, 64, 1000])
def test_a_missing_barrier_shows_as_results_that_depend_on_the_order(cp, block):
    def run():
        out = cp.empty(block, cp.float32)
        kernel(cp, "no_barrier")((1,), (block,), (cp.arange(block, dtype=cp.float32), out))
        return out

    results = in_all_orders(cp, run)
    assert len(results) > 1
    assert all(np.isnan(r).any() for r in results)


def test_a_warp_can_be_ahead_of_the_others_as_far_as_barriers_allow(cp):
    def run():
        out = cp.empty(96, cp.float32)
        kernel(cp, "no_second_barrier")((1,), (96,), (out,))
        return out

    assert len(in_all_orders(cp, run)) > 1


@pytest.mark.parametrize("order", emulated_cupy.ORDERS)
def test_a_barrier_that_not_all_threads_reach_is_reported(cp, order):
    cp.order = order
    with pytest.raises(
        AssertionError, match=r"divergent: deadlock in block \(0, 0, 0\): of 64 threads 32 wait at __sync"
    ):
        kernel(cp, "divergent")((1,), (64,), (np.int32(1),))
    with pytest.raises(AssertionError, match="two_barriers: deadlock"):
        kernel(cp, "two_barriers")((1,), (64,), ())
    with pytest.raises(AssertionError, match="20 in a warp operation, lines 5 to 5; 12 have returned"):
        kernel(cp, "lanes_missing")((1,), (32,), (cp.empty(32, cp.float32),))
    kernel(cp, "two_barriers")((1,), (32,), ())  # and afterwards all is as before


@pytest.mark.parametrize("i", [-1, 3, 30, -200])
def test_a_write_outside_of_an_array_is_caught(cp, i):
    out, x = cp.zeros(3, cp.float32), cp.zeros(3, cp.float32)
    with pytest.raises(AssertionError, match="store wrote outside of an array of 12 bytes"):
        kernel(cp, "store")((1,), (1,), (out, np.int32(i)))
    out = cp.zeros(3, cp.float32)
    with pytest.raises(AssertionError, match="copy wrote outside"):
        kernel(cp, "copy")((1,), (1,), (x, out, np.int32(i)))


def test_a_read_outside_of_an_array_is_nan(cp):
    x, out = cp.zeros(3, cp.float32), cp.zeros(4, cp.float32)
    kernel(cp, "copy")((1,), (1,), (x, out, np.int32(3)))
    assert np.isnan(out.get()).tolist() == [False] * 3 + [True]


@pytest.mark.parametrize("real", ["float", "double"])
def test_shared_memory_is_garbage_when_a_block_starts(cp, real):
    out = cp.zeros(32, {"float": cp.float32, "double": cp.float64}[real])
    for write in (0, 1, 0):
        kernel(cp, "stale", real)((1,), (32,), (out, np.int32(write)))
        assert np.isnan(out.get()).all() == (not write)


def test_arguments_of_the_wrong_type_are_refused(cp):
    f32, f64, i32 = cp.zeros(32, cp.float32), cp.zeros(32), cp.zeros(32, cp.int32)
    store = kernel(cp, "store")
    for args in [(f64, np.int32(0)), (i32, np.int32(0)), (f32, 0), (f32, np.int64(0)), (f32, np.float32(0)), (f32,)]:
        with pytest.raises(AssertionError, match="store: "):
            store((1,), (1,), args)
    for args in [(f32.get(), np.int32(0)), (None, np.int32(0)), (f32, "0")]:
        with pytest.raises(TypeError, match="Unsupported type"):
            store((1,), (1,), args)
    with pytest.raises(AssertionError, match=r"argument 0 is \*f4, not \*i2"):
        kernel(cp, "widen")((1,), (1,), (f32, f32, np.True_, 1.0, f32))
    with pytest.raises(AssertionError, match="argument 3 is f4, not f8"):
        kernel(cp, "widen")((1,), (1,), (f32.view(cp.uint16), f32, np.True_, np.float32(1), f32))
    with pytest.raises(AssertionError, match="of over 1024 threads"):
        store((1,), (1025,), (f32, np.int32(0)))


def test_macros_choose_the_kernels(cp):
    with pytest.raises(AssertionError, match="no kernel never"):
        kernel(cp, "never")
    never = compiled(cp, KERNELS, "-DREAL=float", "-DNEVER").get_function("never")
    never((1,), (1,), (cp.zeros(1, cp.int32),))


@pytest.mark.parametrize("line", ["float v = INFINITY;", "float v = max(1.0f, 2);", "long long n; atomicAdd(&n, 1LL);"])
def test_what_nvrtc_refuses_is_refused(cp, line):
    module = compiled(cp, f'\nextern "C" __global__ void k() {{ {line} }}')
    with pytest.raises(cp.cuda.compiler.CompileException, match=r"kernels\.cu:2"):
        module.get_function("k")


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
