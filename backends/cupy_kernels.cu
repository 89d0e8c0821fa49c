// What a step does between its matrix products, which are cuBLAS's.  cupy_device.py compiles and launches these
// kernels, cupy.py passes their arrays, and TWINS in base.py names the reference's function and numba's kernel beside
// each.
//
// REAL is the dtype of parameters, moments and sums.  CODE is what matrix products read: REAL itself, or with -DBF16
// bfloat16, kept as its 16 bits so that no header is needed.  L rows, d dimensions, M neurons of a chunk; all arrays
// are C-contiguous.  r = f - x is the residual; the paper's peaks r_m are called peaks.  This text is ASCII, since CuPy
// may write it to a file in the encoding of the locale.
//
// How this departs from the reference: formulas that follow one another are fused, arrays are rounded to CODE where a
// product reads them, and sums run in an order of their own.  That order is fixed: a thread block owns the columns or
// the row that it sums, and there are no atomics.  tests/test_kernels.py runs this file on the CPU, with threads in
// several orders; tests/test_kernels_compile.py compiles it for every architecture.

typedef long long i64;

#ifdef BF16
typedef unsigned short CODE;
#define OPEN_ZERO ((CODE)0x8000)
__device__ __forceinline__ float wide(CODE c) { return __uint_as_float((unsigned int)c << 16); }
__device__ __forceinline__ CODE narrow_one(float x) {  // to nearest, ties to even; NaN stays NaN
    const unsigned int u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (CODE)((u >> 16) | 0x40u);
    return (CODE)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
__device__ __forceinline__ bool is_open(CODE c) { return c != 0; }
#else
typedef REAL CODE;
#define OPEN_ZERO ((CODE)-0.0)
__device__ __forceinline__ REAL wide(CODE c) { return c; }
__device__ __forceinline__ CODE narrow_one(REAL x) { return x; }
__device__ __forceinline__ unsigned int bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ i64 bits(double x) { return __double_as_longlong(x); }
__device__ __forceinline__ bool is_open(CODE c) { return bits(c) != 0; }
#endif

// An open gate may pass 0, or what rounds to it: stored as -0, so that open is what has a bit set.
__device__ __forceinline__ CODE opened(REAL s) {
    const CODE c = narrow_one(s);
    return wide(c) == 0 ? OPEN_ZERO : c;
}

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

// Line 2.  aV <- a_m v_m (M, d), rounded to CODE; one thread block per row.
extern "C" __global__ void __launch_bounds__(256)
scale_rows(int d, const REAL* __restrict__ a, const REAL* __restrict__ V, CODE* __restrict__ aV) {
    const i64 first = (i64)blockIdx.x * d;
    const REAL by = a[blockIdx.x];
#pragma unroll 4
    for (int j = threadIdx.x; j < d; j += blockDim.x) aV[first + j] = narrow_one(by * V[first + j]);
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

__device__ __forceinline__ REAL column_max(REAL value) {
    __shared__ REAL part[32][33];
    part[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    REAL top = value;
    if (threadIdx.y == 0)
        for (int i = 1; i < 32; i++) top = part[i][threadIdx.x] > top ? part[i][threadIdx.x] : top;
    return top;
}

// Lines 2 and 5, from z_m = w_m . (x - b_pre) (L, M) and b (M,).
//     y_m = z_m + b_m,   s_m <- phi(y_m) (L, M): y_m 1{y_m > 0} with relu, otherwise z_m 1{y_m > 0}
//     active <- sum_l 1{y_m > 0},   counts <- counts + active,   peaks <- max(peaks, max_l y_m), all (M,)
extern "C" __global__ void __launch_bounds__(1024)
gate(int L, int M, int relu, const REAL* __restrict__ z, const REAL* __restrict__ b, CODE* __restrict__ s,
     i64* __restrict__ counts, REAL* __restrict__ peaks, int* __restrict__ active) {
    const int m = own_column();
    int n = 0;
    REAL top = 0;
    if (m < M) {
        const REAL bias = b[m];
#pragma unroll 4
        for (int l = threadIdx.y; l < L; l += 32) {
            const REAL zl = z[(i64)l * M + m], y = zl + bias;
            s[(i64)l * M + m] = y > 0 ? opened(relu ? y : zl) : (CODE)0;
            n += y > 0;
            top = y > top ? y : top;
        }
    }
    n = column_sum(n);
    top = column_max(top);
    if (threadIdx.y == 0 && m < M) {
        active[m] = n;
        counts[m] += n;
        if (top > peaks[m]) peaks[m] = top;
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

// Line 3, from vr = v_m . r (L, M) and the codes s (L, M); on_m = 1{y_m > 0}.
//     g <- (v_m . r) on_m (L, M)
//     da <- dL/da_m = 1/L sum_l s_m (v_m . r),   c <- a_m / L sum_l (v_m . r) on_m, both (M,)
// The products after it are sum_l g (x - b_pre) and sum_l s_m r, times a_m / L the gradients of w_m and v_m, and
// sum_m c_m w_m.
extern "C" __global__ void __launch_bounds__(1024)
gate_gradient(int L, int M, const REAL* __restrict__ vr, const CODE* __restrict__ s, const REAL* __restrict__ a,
              CODE* __restrict__ g, REAL* __restrict__ da, CODE* __restrict__ c) {
    const int m = own_column();
    REAL along_s = 0, along_one = 0;
    if (m < M) {
#pragma unroll 4
        for (int l = threadIdx.y; l < L; l += 32) {
            const i64 i = (i64)l * M + m;
            const CODE sl = s[i];
            const REAL vrl = is_open(sl) ? vr[i] : (REAL)0;
            g[i] = narrow_one(vrl);
            along_s += wide(sl) * vrl;
            along_one += vrl;
        }
    }
    along_s = column_sum(along_s);
    along_one = column_sum(along_one);
    if (threadIdx.y == 0 && m < M) {
        da[m] = along_s / L;
        c[m] = narrow_one(a[m] * along_one / L);
    }
}

// Line 3, AdamW of one entry theta along its gradient g, which moves m and v and returns the new theta.
//     m <- m + (1 - beta1) (g - m),   v <- v + (1 - beta2) (g^2 - v)
//     theta <- (1 - lr lambda) theta - lr m_hat / (sqrt(v_hat) + eps)
// Its numbers are AdamWFactors in base.py: toward = 1 - beta, rate = lr / (1 - beta1^t), root = 1 / (1 - beta2^t),
// keep = 1 - lr lambda.
struct AdamW {
    REAL toward1, toward2, rate, root, eps, keep;
    __device__ __forceinline__ REAL moved(REAL theta, REAL* m, REAL* v, REAL gi) const {
        *m += toward1 * (gi - *m);
        *v += toward2 * (gi * gi - *v);
        return keep * theta - rate * *m / (sqrt(root * *v) + eps);
    }
};

// Line 3.  theta <- AdamW(theta) along g, n entries in place.
extern "C" __global__ void adamw(int n, REAL* __restrict__ theta, REAL* __restrict__ m, REAL* __restrict__ v,
                                 const REAL* __restrict__ g, REAL toward1, REAL toward2, REAL rate, REAL root, REAL eps,
                                 REAL keep) {
    const AdamW adam = {toward1, toward2, rate, root, eps, keep};
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) theta[i] = adam.moved(theta[i], m + i, v + i, g[i]);
}

// The sum of every thread's value, in all threads of a block of whole warps, at most 1024 threads.
__device__ __forceinline__ REAL block_sum(REAL value) {
    __shared__ REAL part[32];
    for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = value;
    __syncthreads();
    REAL sum = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) sum += part[warp];
    return sum;
}

// Lines 3 and 4, one thread block per row w_m of W (M, d), or v_m of W_dec.
//     w_m <- AdamW(w_m) along scale a_m g_m,   w_m <- w_m / ||w_m||,   low <- w_m, rounded to CODE (only with BF16)
// scale = 1 / L.  Where held_m (ours), m and v move and w_m does not.  g is overwritten.
extern "C" __global__ void __launch_bounds__(256)
adamw_rows(int d, REAL* __restrict__ W, REAL* __restrict__ m, REAL* __restrict__ v, REAL* __restrict__ g,
           const REAL* __restrict__ a, REAL scale, const bool* __restrict__ held, CODE* __restrict__ low, REAL toward1,
           REAL toward2, REAL rate, REAL root, REAL eps, REAL keep) {
    const AdamW adam = {toward1, toward2, rate, root, eps, keep};
    const int row = blockIdx.x;
    const i64 first = (i64)row * d;
    const REAL by = scale * a[row];
    REAL squares = 0;
    for (int j = threadIdx.x; j < d; j += blockDim.x) {
        const i64 i = first + j;
        const REAL moved = adam.moved(W[i], m + i, v + i, by * g[i]);
        g[i] = moved;  // read back below by the thread that wrote it
        squares += moved * moved;
    }
    const REAL norm = sqrt(block_sum(squares));
    if (held[row]) return;
    for (int j = threadIdx.x; j < d; j += blockDim.x) {
        const REAL unit = g[first + j] / norm;
        W[first + j] = unit;
#ifdef BF16
        low[first + j] = narrow_one(unit);
#endif
    }
}

// Ours.  held_i <- 1{cosine_ik >= tau for some k other than first + i}; one thread block per row of cosine (rows, M),
// which has w_(first + i) . w_k.
extern "C" __global__ void __launch_bounds__(256)
agree(int M, i64 first, REAL tau, const REAL* __restrict__ cosine, bool* __restrict__ held) {
    const i64 row = blockIdx.x;
    REAL others = 0;
    for (int k = threadIdx.x; k < M; k += blockDim.x) others += k != first + row && cosine[row * M + k] >= tau;
    others = block_sum(others);
    if (threadIdx.x == 0) held[row] = others > 0;
}
