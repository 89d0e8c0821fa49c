"""The emulator runs CUDA kernels as a GPU would, and it catches the mistakes in them that a GPU would not.

Its arrays, streams and matrix products are test_emulation_arrays.py's.
"""

from __future__ import annotations

import emulated_cupy
import numpy as np
import pytest

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
extern "C" __global__ void is_null(const float* x, int* out) { *out = x == nullptr; }
extern "C" __global__ void halve(const REAL* x, REAL* out) { out[threadIdx.x] = x[threadIdx.x] / 2; }
extern "C" __global__ void is_positive(const REAL* x, int* out) { out[threadIdx.x] = x[threadIdx.x] > 0; }
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
    for order, seed in [("forward", 0), ("backward", 0), *(("shuffled", seed) for seed in range(4))]:
        cp.emulation.order, cp.emulation.seed = order, seed
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


def test_none_is_a_null_pointer_as_in_cupy(cp):
    out = cp.empty((), cp.int32)
    kernel(cp, "is_null")((1,), (1,), (None, out))
    assert int(out) == 1


def test_what_is_too_small_for_a_normal_number_is_zero_in_float_and_not_in_double(cp):
    smallest = {"float": 2.0**-126, "double": 2.0**-1022}
    for real, tiny in smallest.items():
        x = np.array([tiny, -tiny, tiny / 2, -tiny / 2, 2 * tiny], np.float32 if real == "float" else np.float64)
        out, positive = cp.empty(5, x.dtype), cp.empty(5, cp.int32)
        kernel(cp, "halve", real)((1,), (5,), (cp.asarray(x), out))
        kernel(cp, "is_positive", real)((1,), (5,), (cp.asarray(x), positive))
        flushed = real == "float"
        expected = np.where(flushed & (abs(x) < 2 * tiny), np.copysign(0, x), x / 2)
        assert out.get().tobytes() == expected.astype(x.dtype).tobytes()
        assert positive.tolist() == [1, 0, not flushed, 0, 1]
    assert float(np.float32(2.0**-127) / 1) == 2.0**-127  # and afterwards the host is as before


def test_launches_and_waits_are_counted(cp):
    out = launched_everywhere(cp, (3,))
    assert (dict(cp.emulation.launches), cp.emulation.waits) == ({"where": 1}, 0)
    float(out[0])
    cp.cuda.Device(0).synchronize()
    assert cp.emulation.waits == 2


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
    cp.emulation.order = order
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
    for args in [(f32.get(), np.int32(0)), (f32, "0")]:
        with pytest.raises(TypeError, match="Unsupported type"):
            store((1,), (1,), args)
    with pytest.raises(AssertionError, match=r"argument 1 is \*null, not i4"):
        store((1,), (1,), (f32, None))
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
