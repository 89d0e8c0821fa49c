// What a step does between its matrix products, which are cuBLAS's.  cupy_device.py compiles and launches these
// kernels, cupy.py passes their arrays, and TWINS in base.py names the reference's function and numba's kernel beside
// each.
//
// REAL is the dtype of parameters, moments and sums.  CODE is what matrix products read: REAL itself, or with -DBF16
// bfloat16, kept as its 16 bits so that no header is needed.  L rows, d dimensions, M neurons of a chunk.  Rows of d
// numbers are padded with zeros to a multiple of 8, and d counts the padding.  Rows of M numbers begin `ld` numbers
// after one another, ld >= M a multiple of 8; what lies between is never read.  r = f - x is the residual; the paper's
// peaks r_m are called peaks.  This text is ASCII, since CuPy may write it to a file in the encoding of the locale.
//
// How this departs from the reference: formulas that follow one another are fused, arrays are rounded to CODE where a
// product reads them, and sums run in an order of their own.  That order is fixed: a thread block owns the columns or
// the rows that it sums, and there are no atomics.  tests/test_kernels.py runs this file on the CPU, with threads in
// several orders; tests/test_kernels_compile.py compiles it for every architecture, and benchmarks/kernels.py --static
// tells the registers that each kernel takes there.

typedef long long i64;

#ifdef BF16
typedef unsigned short CODE;
__device__ __forceinline__ float wide(CODE c) { return __uint_as_float((unsigned int)c << 16); }
__device__ __forceinline__ CODE narrow_one(float x) {  // to nearest, ties to even; NaN stays NaN
    const unsigned int u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (CODE)((u >> 16) | 0x40u);
    return (CODE)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
#else
typedef REAL CODE;
__device__ __forceinline__ REAL wide(CODE c) { return c; }
__device__ __forceinline__ CODE narrow_one(REAL x) { return x; }
#endif

// Ours.  out_i <- in_i, rounded to CODE.
extern "C" __global__ void narrow(i64 n, const REAL* __restrict__ in, CODE* __restrict__ out) {
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
        out[i] = narrow_one(in[i]);
}

// Line 2.  xc <- x - b_pre (L, d), rounded to CODE; n = L d.
extern "C" __global__ void center(i64 n, int d, const REAL* __restrict__ x, const REAL* __restrict__ b_pre,
                                  CODE* __restrict__ xc) {
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
        xc[i] = narrow_one(x[i] - b_pre[i % d]);
}

// The column that a thread of a (32, 32) block works on; its rows are threadIdx.y, threadIdx.y + 32, ...
__device__ __forceinline__ int own_column() { return blockIdx.x * 32 + threadIdx.x; }

// The sum over threadIdx.y of every thread's value, in the threads of row 0.
template <typename T>
__device__ __forceinline__ T column_sum(T value) {
    __shared__ T part[32][33];
    __syncthreads();  // the last call's sums have been read
    part[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    T sum = 0;
    if (threadIdx.y == 0)
        for (int i = 0; i < 32; i++) sum += part[i][threadIdx.x];
    return sum;
}

// Which gates are open, 1{y_m > 0}: bit m % 8 of byte m / 8 of a row of ld / 8.  A code cannot say it, since an open gate
// may pass 0, or what rounds to it; and a bit is a sixteenth of what a code in bfloat16 takes to read.
typedef unsigned char BYTE;
__device__ __forceinline__ bool is_open(const BYTE* __restrict__ open, int ld, int l, int m) {
    return open[(i64)l * (ld / 8) + m / 8] >> m % 8 & 1;
}

// A thread of `gate` and `gate_gradient` works on 8 neighbouring columns, so that codes in bfloat16 are 16 bytes, and its
// block of 512 threads, (LANES, 512 / LANES), on 8 LANES.  Columns from M on, which fill a row up, are closed.
struct alignas(16) Reals8 { REAL x[8]; };
struct alignas(16) Codes8 { CODE x[8]; };

// In thread t < 8 LANES of such a block, what `join` makes of all values of column t.
template <int LANES, typename T, typename Join>
__device__ __forceinline__ T over_rows(const T (&value)[8], Join join) {
    __shared__ T part[16][8 * LANES];
    const int thread = LANES * threadIdx.y + threadIdx.x;
    __syncthreads();  // what the last call left has been read
#pragma unroll
    for (int k = 0; k < 8; k++) {
        T joined = value[k];
#pragma unroll
        for (int lane = LANES; lane < 32; lane *= 2) joined = join(joined, __shfl_xor_sync(0xffffffffu, joined, lane));
        if (thread % 32 < LANES) part[thread / 32][8 * threadIdx.x + k] = joined;
    }
    __syncthreads();
    T all = part[0][thread % (8 * LANES)];
    if (thread < 8 * LANES)
        for (int warp = 1; warp < 16; warp++) all = join(all, part[warp][thread]);
    return all;
}
template <typename T> struct Sum { __device__ __forceinline__ T operator()(T x, T y) const { return x + y; } };
template <typename T> struct Max { __device__ __forceinline__ T operator()(T x, T y) const { return y > x ? y : x; } };

// Lines 2 and 5, from z_m = w_m . (x - b_pre) (L, M) and b (M,).
//     y_m = z_m + b_m,   open_m <- 1{y_m > 0},   s_m <- phi(y_m) (L, M): with relu y_m open_m, otherwise z_m open_m
//     active <- sum_l open_m,   counts <- counts + active,   peaks <- max(peaks, max_l y_m), all (M,)
// With theta (M,) >= 0, which only a baseline has, a gate opens at y_m > theta_m.
extern "C" __global__ void __launch_bounds__(512)
gate(int L, int M, int ld, int relu, const REAL* __restrict__ z, const REAL* __restrict__ b,
     const REAL* __restrict__ theta, CODE* __restrict__ s, BYTE* __restrict__ open, i64* __restrict__ counts,
     REAL* __restrict__ peaks, int* __restrict__ active) {
    const int first = 64 * blockIdx.x + 8 * threadIdx.x;
    int n[8] = {};
    REAL top[8] = {}, bias[8] = {};
    if (first < M) {
        for (int k = 0; k < 8; k++)
            if (first + k < M) bias[k] = b[first + k];
        for (int l = threadIdx.y; l < L; l += 64) {
            const i64 i = (i64)l * ld + first;
            const Reals8 zl = *reinterpret_cast<const Reals8*>(z + i);
            Codes8 sl;
            unsigned int byte = 0;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const REAL y = zl.x[k] + bias[k], edge = theta && first + k < M ? theta[first + k] : (REAL)0;
                const bool on = y > edge && first + k < M;
                sl.x[k] = on ? narrow_one(relu ? y : zl.x[k]) : (CODE)0;
                n[k] += on;
                top[k] = on && y > top[k] ? y : top[k];
                byte |= (unsigned int)on << k;
            }
            *reinterpret_cast<Codes8*>(s + i) = sl;
            open[i / 8] = (BYTE)byte;
        }
    }
    const int sum = over_rows<8>(n, Sum<int>());
    const REAL highest = over_rows<8>(top, Max<REAL>());
    const int thread = 8 * threadIdx.y + threadIdx.x, m = 64 * blockIdx.x + thread;
    if (thread < 64 && m < M) {
        active[m] = sum;
        counts[m] += sum;
        if (highest > peaks[m]) peaks[m] = highest;
    }
}

// Lines 2 and 3, from x (L, d) and f - b_pre = sum_m a_m v_m s_m (L, d).
//     r <- (f - b_pre) - (x - b_pre) (L, d),   sums <- sum_l r,   squares <- sum_l r^2, both (d,)
// L_rec = 1/2 ||r||^2 is half the sum of squares / L, and sums / L is the first term of dL/db_pre.
extern "C" __global__ void __launch_bounds__(1024)
residual(int L, int d, const REAL* __restrict__ x, const REAL* __restrict__ b_pre, const REAL* __restrict__ f,
         CODE* __restrict__ r, REAL* __restrict__ sums, REAL* __restrict__ squares) {
    const int j = own_column();
    REAL sum = 0, square = 0;
    if (j < d) {
        const REAL shift = b_pre[j];
#pragma unroll 4
        for (int l = threadIdx.y; l < L; l += 32) {
            const i64 i = (i64)l * d + j;
            const REAL rl = f[i] - (x[i] - shift);
            r[i] = narrow_one(rl);
            sum += rl;
            square += rl * rl;
        }
    }
    sum = column_sum(sum);
    square = column_sum(square);
    if (threadIdx.y == 0 && j < d) {
        sums[j] = sum;
        squares[j] = square;
    }
}

// Line 3, from vr = v_m . r (L, M), rounded to CODE, and which gates are open.
//     g <- (v_m . r) open_m (L, M),   and where it is wanted, mean <- 1/L sum_l (v_m . r) open_m (M,)
// The products after it are sum_l g (x - b_pre) and sum_l s_m r: times a_m / L they are the gradients of w_m and v_m.
extern "C" __global__ void __launch_bounds__(512)
gate_gradient(int L, int M, int ld, const CODE* __restrict__ vr, const BYTE* __restrict__ open, CODE* __restrict__ g,
              REAL* __restrict__ mean) {
    const int first = 32 * blockIdx.x + 8 * threadIdx.x;
    REAL sum[8] = {};
    if (first < M) {
#pragma unroll 2
        for (int l = threadIdx.y; l < L; l += 128) {
            const i64 i = (i64)l * ld + first;
            const unsigned int byte = open[i / 8];
            Codes8 gl = {};
            if (byte) {
                const Codes8 vrl = *reinterpret_cast<const Codes8*>(vr + i);
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    if (byte >> k & 1) gl.x[k] = vrl.x[k];
                    sum[k] += wide(gl.x[k]);
                }
            }
            *reinterpret_cast<Codes8*>(g + i) = gl;
        }
    }
    if (!mean) return;  // all threads of all blocks, or none
    const REAL all = over_rows<4>(sum, Sum<REAL>());
    const int thread = 4 * threadIdx.y + threadIdx.x, m = 32 * blockIdx.x + thread;
    if (thread < 32 && m < M) mean[m] = all / L;
}

// Line 3, AdamW of one entry theta along its gradient g, which moves m and v and returns the new theta.
//     m <- m + (1 - beta1) (g - m),   v <- v + (1 - beta2) (g^2 - v)
//     theta <- (1 - lr lambda) theta - lr m_hat / (sqrt(v_hat) + eps)
// Its numbers are AdamWFactors in base.py: toward = 1 - beta, rate = lr / (1 - beta1^t), root = 1 / (1 - beta2^t),
// keep = 1 - lr lambda.
struct AdamW {
    REAL toward1, toward2, rate, root, eps, keep;
    __device__ __forceinline__ REAL moved(REAL theta, REAL& m, REAL& v, REAL g) const {
        m += toward1 * (g - m);
        v += toward2 * (g * g - v);
        return keep * theta - rate * m / (sqrt(root * v) + eps);
    }
};

// Line 3.  b_pre <- AdamW(b_pre) along scale sums - sum_i shift_i, with sums (d,) and shift (n, d); scale = 1 / L.
// One thread block per 32 columns.
extern "C" __global__ void __launch_bounds__(1024)
adamw_b_pre(int n, int d, REAL scale, const REAL* __restrict__ sums, const REAL* __restrict__ shift,
            REAL* __restrict__ b_pre, REAL* __restrict__ m, REAL* __restrict__ v, REAL toward1, REAL toward2, REAL rate,
            REAL root, REAL eps, REAL keep) {
    const AdamW adam = {toward1, toward2, rate, root, eps, keep};
    const int j = own_column();
    REAL sum = 0;
    if (j < d)
        for (int i = threadIdx.y; i < n; i += 32) sum += shift[(i64)i * d + j];
    sum = column_sum(sum);
    if (threadIdx.y == 0 && j < d) {
        REAL mj = m[j], vj = v[j];
        b_pre[j] = adam.moved(b_pre[j], mj, vj, scale * sums[j] - sum);
        m[j] = mj;
        v[j] = vj;
    }
}

// The sums of every thread's N values, in all threads of a block of whole warps, at most 1024 threads.  Where a kernel
// calls it in a loop, `turn` is 0 and 1 by turns: a thread that is ahead writes where no other still reads.
template <int N>
__device__ __forceinline__ void block_sums(REAL (&value)[N], int turn) {
    __shared__ REAL part[2][N][32];
#pragma unroll
    for (int k = 0; k < N; k++) {
        for (int lane = 16; lane > 0; lane /= 2) value[k] += __shfl_xor_sync(0xffffffffu, value[k], lane);
        if (threadIdx.x % 32 == 0) part[turn][k][threadIdx.x / 32] = value[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; k++) {
        value[k] = 0;
        for (int warp = 0; warp < blockDim.x / 32; warp++) value[k] += part[turn][k][warp];
    }
}

// 16 bytes of a row, which a thread loads and stores at once, and as many numbers rounded to CODE.  A thread has PER of
// them: they stay in registers, so that a row is read once and written once.  cupy_device.py sets PER by d.
#ifndef PER
#define PER 1
#endif
constexpr int WIDE = 16 / sizeof(REAL);
struct alignas(16) Reals { REAL x[WIDE]; };
struct alignas(WIDE * sizeof(CODE)) Codes { CODE x[WIDE]; };
__device__ __forceinline__ Reals load(const REAL* row, int i) { return reinterpret_cast<const Reals*>(row)[i]; }
__device__ __forceinline__ void store(REAL* row, int i, const Reals& x) { reinterpret_cast<Reals*>(row)[i] = x; }
__device__ __forceinline__ void store_codes(CODE* row, int i, const Reals& x) {
    Codes c;
#pragma unroll
    for (int k = 0; k < WIDE; k++) c.x[k] = narrow_one(x.x[k]);
    reinterpret_cast<Codes*>(row)[i] = c;
}

// What the rows w that a thread block has taken add up to, sum_m c_m w_m, in the place of the block in shift.
__device__ __forceinline__ void store_shift(REAL* __restrict__ shift, int d, int more, Reals (&sum)[PER]) {
    REAL* const own = shift + (i64)blockIdx.x * d;
#pragma unroll
    for (int p = 0; p < PER; p++) {
        const int i = threadIdx.x + p * blockDim.x;
        if (i >= d / WIDE) break;
        if (more) {
            const Reals before = load(own, i);
            for (int k = 0; k < WIDE; k++) sum[p].x[k] += before.x[k];
        }
        store(own, i, sum[p]);
    }
}

// Lines 3 and 4 for the rows w_m of W (M, d), or v_m of W_dec, and for a; a thread block takes every gridDim.x-th row.
// G (M, d) is the gradient of the row but for a_m / L, summed over the batch: of a tied network that of w_m and v_m.
//     w_m <- AdamW(w_m) along scale a_m G_m,   w_m <- w_m / ||w_m||,   low <- w_m, rounded to CODE (only with BF16)
//     a_m <- AdamW(a_m) along share w_m . G_m + 1/2 b_m mean_m,   both with w_m of before
//     aV <- a_m w_m, both of after, rounded to CODE: what the next step decodes with
//     shift_i <- sum_m a_m mean_m w_m over the rows of block i (`more`: that and what was there), both of before
// scale = 1 / L.  w_m . G_m is the sum over the batch of s_m (v_m . r) for an untied v_m, where share = 1 / L, and twice
// that where tied, share = 1 / 2L; but for tied ReLU it lacks b_m sum_l (v_m . r) on_m, so only there b is given.
// mean (M,) is that of gate_gradient.  Without m_a, a stays; without aV or shift, they are not written.  Where held_m
// (ours), the moments move and w_m does not.
extern "C" __global__ void __launch_bounds__(512)
adamw_rows(int M, int d, REAL* __restrict__ W, REAL* __restrict__ m, REAL* __restrict__ v, CODE* __restrict__ low,
           const REAL* __restrict__ G, const bool* __restrict__ held, REAL* __restrict__ a, REAL* __restrict__ m_a,
           REAL* __restrict__ v_a, const REAL* __restrict__ b, const REAL* __restrict__ mean, CODE* __restrict__ aV,
           REAL* __restrict__ shift, int more, REAL scale, REAL share, REAL toward1, REAL toward2, REAL rate, REAL root,
           REAL eps, REAL keep, REAL rate_a, REAL root_a) {
    const AdamW adam = {toward1, toward2, rate, root, eps, keep};
    Reals c_w[PER] = {};
    int turn = 0;
    for (int row = blockIdx.x; row < M; row += gridDim.x, turn ^= 1) {
        const i64 first = (i64)row * d;
        const bool still = held[row];
        REAL own_a = a[row], m_row = 0, v_row = 0;
        if (m_a) m_row = m_a[row], v_row = v_a[row];
        const REAL by = scale * own_a, c = shift ? own_a * mean[row] : (REAL)0;
        Reals next[PER];
        REAL sums[2] = {0, 0};  // w_m . G_m, and the square of the norm of the row to be
#pragma unroll
        for (int p = 0; p < PER; p++) {
            const int i = threadIdx.x + p * blockDim.x;
            if (i >= d / WIDE) break;
            const Reals w = load(W + first, i), g = load(G + first, i);
            Reals mi = load(m + first, i), vi = load(v + first, i);
#pragma unroll
            for (int k = 0; k < WIDE; k++) {
                const REAL moved = adam.moved(w.x[k], mi.x[k], vi.x[k], by * g.x[k]);
                next[p].x[k] = still ? w.x[k] : moved;
                sums[0] += w.x[k] * g.x[k];
                sums[1] += moved * moved;
                c_w[p].x[k] += c * w.x[k];
            }
            store(m + first, i, mi);
            store(v + first, i, vi);
        }
        block_sums(sums, turn);
        if (m_a) {
            const AdamW adam_a = {toward1, toward2, rate_a, root_a, eps, keep};
            own_a = adam_a.moved(own_a, m_row, v_row, share * sums[0] + (b ? (REAL)0.5 * b[row] * mean[row] : (REAL)0));
            if (threadIdx.x == 0) a[row] = own_a, m_a[row] = m_row, v_a[row] = v_row;
        }
        const REAL norm = still ? (REAL)1 : sqrt(sums[1]);
#pragma unroll
        for (int p = 0; p < PER; p++) {
            const int i = threadIdx.x + p * blockDim.x;
            if (i >= d / WIDE) break;
            Reals scaled;
            for (int k = 0; k < WIDE; k++) {
                next[p].x[k] /= norm;
                scaled.x[k] = own_a * next[p].x[k];
            }
            if (!still) {
                store(W + first, i, next[p]);
#ifdef BF16
                store_codes(low + first, i, next[p]);
#endif
            }
            if (aV) store_codes(aV + first, i, scaled);
        }
    }
    if (shift) store_shift(shift, d, more, c_w);
}

// Ours.  held_i <- 1{cosine_ik >= tau for some k other than first + i}; one thread block per row of cosine (rows, M),
// which has w_(first + i) . w_k.
extern "C" __global__ void __launch_bounds__(256)
agree(int M, int ld, i64 first, REAL tau, const REAL* __restrict__ cosine, bool* __restrict__ held) {
    const i64 row = blockIdx.x;
    REAL others[1] = {0};
    for (int k = threadIdx.x; k < M; k += blockDim.x) others[0] += k != first + row && cosine[row * ld + k] >= tau;
    block_sums(others, 0);
    if (threadIdx.x == 0) held[row] = others[0] > 0;
}
