// What a step does between its matrix products, which are cuBLAS's; cupy.py launches these and names their shapes.
//
// REAL is the dtype of parameters, moments and sums.  CODE is what matrix products read: REAL itself, or with -DBF16
// bfloat16, kept as its 16 bits so that no header is needed.  L rows, d dimensions, M neurons of a block; all arrays are
// C-contiguous.  Sums run in a fixed order: a thread block owns the columns or the row that it sums, and there are no
// atomics.  tests/test_kernels.py runs this file on the CPU and compiles it for every architecture.

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

// out[i] = in[i] as CODE
extern "C" __global__ void narrow(i64 n, const REAL* __restrict__ in, CODE* __restrict__ out) {
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
        out[i] = narrow_one(in[i]);
}

// xc[l, j] = x[l, j] - b_pre[j]
extern "C" __global__ void center(i64 n, int d, const REAL* __restrict__ x, const REAL* __restrict__ b_pre,
                                  CODE* __restrict__ xc) {
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
        xc[i] = narrow_one(x[i] - b_pre[i % d]);
}

// aV[m, j] = a[m] V[m, j], a row a block
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

// z (L, M) = w_m . (x - b_pre)  ->  codes s (L, M);  counts += sum 1{y > 0}, peaks = max(peaks, y), active = sum 1{y > 0}
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

// f (L, d), without b_pre  ->  r = f - (x - b_pre) (L, d), and for every column the sums of r and of r^2
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

// vr (L, M) = v_m . r  ->  g = vr 1{y > 0} (L, M);  da = mean of s vr, and c = a times the mean of g
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

// AdamW's moments and step along the gradient gi: refgba/adam.py.  toward: 1 - beta.
struct AdamW {
    REAL toward1, toward2, rate, root, eps, keep;
    __device__ __forceinline__ REAL moved(REAL theta, REAL* m, REAL* v, REAL gi) const {
        *m += toward1 * (gi - *m);
        *v += toward2 * (gi * gi - *v);
        return keep * theta - rate * *m / (sqrt(root * *v) + eps);
    }
};

// n parameters, in place
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

// A row of W (M, d) a block: AdamW along scale a[m] g[m], then unit norm, and the copy `low` that matrix products read
// (only with BF16).  The moments of a held row move, the row does not.
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

// found[i] = 1{cosine[i, k] >= tau for a k other than first + i}, a row of cosines (rows, M) a block
extern "C" __global__ void __launch_bounds__(256)
agree(int M, i64 first, REAL tau, const REAL* __restrict__ cosine, bool* __restrict__ found) {
    const i64 row = blockIdx.x;
    REAL others = 0;
    for (int k = threadIdx.x; k < M; k += blockDim.x) others += k != first + row && cosine[row * M + k] >= tau;
    others = block_sum(others);
    if (threadIdx.x == 0) found[row] = others > 0;
}
