// What the baselines need on a GPU besides the kernels of cupy_kernels.cu, which come before this in one source.
// backends/baselines/cupy.py passes the arrays; the reference is refgba/baselines/.
//
// Here y_m = w_m . (x - b_pre) + b_m is computed as z_m + b_m wherever it is needed.  Integers are counted with atomics
// in shared memory: their sum does not depend on the order.  tests/test_baselines_cupy.py runs this file on the CPU.

typedef unsigned long long u64;
__device__ __forceinline__ u64 key(float y) { return __float_as_uint(y); }  // of y > 0: in the order of the numbers
__device__ __forceinline__ u64 key(double y) { return (u64)__double_as_longlong(y); }

// bins_l <- how many y_m > 0 of row l have each value of the 8 bits from `shift` on, among those whose bits above are
// prefix; one thread block per row of z (L, M).  `each`: a row has a prefix of its own, otherwise all have one.
extern "C" __global__ void __launch_bounds__(1024)
count_digits(int M, int ld, int shift, int each, const REAL* __restrict__ z, const REAL* __restrict__ b,
             const i64* __restrict__ prefix, i64* __restrict__ bins) {
    __shared__ int own[256];
    const i64 row = blockIdx.x;
    for (int i = threadIdx.x; i < 256; i += blockDim.x) own[i] = 0;
    __syncthreads();
    const u64 above = (u64)prefix[each ? row : 0];
    for (int m = threadIdx.x; m < M; m += blockDim.x) {
        const REAL y = z[row * ld + m] + b[m];
        const u64 bits_of_y = key(y);
        // The bits above the first eight are none; a shift by all 64 bits is undefined.
        if (y > 0 && bits_of_y >> shift >> 8 == above) atomicAdd(&own[(bits_of_y >> shift) & 255], 1);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) bins[row * 256 + i] = own[i];
}

// The `left` largest of a segment, a row of bins: prefix <- 256 prefix + the 8 bits of the smallest of them, and left <-
// how many of those with just these bits are among the largest; one thread block of 256 threads per segment.  A segment
// with fewer positive numbers than places has left <- -1, and then prefix <- 0: all of them are taken.
extern "C" __global__ void __launch_bounds__(256)
choose_digit(const i64* __restrict__ bins, i64* __restrict__ prefix, i64* __restrict__ left) {
    __shared__ i64 total[256];
    total[threadIdx.x] = bins[(i64)blockIdx.x * 256 + threadIdx.x];
    __syncthreads();
    if (threadIdx.x != 0) return;
    i64 places = left[blockIdx.x], digit = 255;
    if (places >= 0)
        for (; digit >= 0 && total[digit] < places; digit--) places -= total[digit];
    if (places < 0 || digit < 0) {
        prefix[blockIdx.x] = 0;
        left[blockIdx.x] = -1;
    } else {
        prefix[blockIdx.x] = prefix[blockIdx.x] << 8 | digit;
        left[blockIdx.x] = places;
    }
}

// equal_l <- how many y_m > 0 of row l have the bits of the edge; one thread block of whole warps per row.
extern "C" __global__ void __launch_bounds__(1024)
count_equal(int M, int ld, const REAL* __restrict__ z, const REAL* __restrict__ b, const i64* __restrict__ edge,
            i64* __restrict__ equal) {
    __shared__ int own;
    const i64 row = blockIdx.x;
    if (threadIdx.x == 0) own = 0;
    __syncthreads();
    int n = 0;
    for (int m = threadIdx.x; m < M; m += blockDim.x) {
        const REAL y = z[row * ld + m] + b[m];
        n += y > 0 && key(y) == (u64)edge[0];
    }
    if (n) atomicAdd(&own, n);
    __syncthreads();
    if (threadIdx.x == 0) equal[row] = own;
}

// How many threads before this one have `on`, and in `all` how many of the block have; a block of whole warps.
__device__ __forceinline__ int before(bool on, int& all) {
    __shared__ int part[32];
    int n = on;
    for (int lane = 1; lane < 32; lane *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, n, lane);
        if (threadIdx.x % 32 >= lane) n += other;
    }
    __syncthreads();  // what the last call left has been read
    if (threadIdx.x % 32 == 31) part[threadIdx.x / 32] = n;
    __syncthreads();
    int sum = n - on;
    all = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) {
        if (warp < threadIdx.x / 32) sum += part[warp];
        all += part[warp];
    }
    return sum;
}

// s_m <- y_m where it is above the edge, or is the edge and has a place, otherwise 0, and open: for which it is not;
// one block of whole warps per row.  Of equals the first have places, `left` of the segment; `passed` (L,) of them are in the rows before.  `each`: as above.
extern "C" __global__ void __launch_bounds__(1024)
select_codes(int M, int ld, int each, const REAL* __restrict__ z, const REAL* __restrict__ b,
             const i64* __restrict__ edge, const i64* __restrict__ left, const i64* __restrict__ passed,
             CODE* __restrict__ s, BYTE* __restrict__ open) {
    const i64 row = blockIdx.x, segment = each ? row : 0, places = left[segment];
    const u64 at = (u64)edge[segment];
    i64 taken = passed ? passed[row] : 0;
    for (int start = 0; start < M; start += blockDim.x) {
        const int m = start + threadIdx.x;
        const REAL y = m < M ? z[row * ld + m] + b[m] : (REAL)0;
        const bool equal = y > 0 && key(y) == at;
        int all;
        const i64 rank = taken + before(equal, all);
        const bool on = y > 0 && (key(y) > at || (equal && rank < places));
        if (m < M) s[row * ld + m] = on ? narrow_one(y) : (CODE)0;
        const unsigned int word = __ballot_sync(0xffffffffu, on);
        if (m % 8 == 0 && m < M) open[row * (ld / 8) + m / 8] = (BYTE)(word >> m % 32);
        taken += all;
    }
}

// The same as column_sum, for the largest.
__device__ __forceinline__ REAL column_max(REAL value) {
    __shared__ REAL part[32][33];
    __syncthreads();  // the last call's have been read
    part[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    REAL top = value;
    if (threadIdx.y == 0)
        for (int i = 1; i < 32; i++) top = part[i][threadIdx.x] > top ? part[i][threadIdx.x] : top;
    return top;
}

// Who is active, where codes have been chosen; one thread block per 32 columns.
//     active <- sum_l open_m,   counts <- counts + active,   peaks <- max(peaks, max_l y_m open_m),   all (M,)
//     smallest <- min of y_m over the rows where open_m, or `most` where there is none (M,)
extern "C" __global__ void __launch_bounds__(1024)
tally(int L, int M, int ld, REAL most, const REAL* __restrict__ z, const REAL* __restrict__ b,
      const BYTE* __restrict__ open, i64* __restrict__ counts, REAL* __restrict__ peaks, int* __restrict__ active,
      REAL* __restrict__ smallest) {
    const int m = own_column();
    int n = 0;
    REAL top = 0, low = -most;
    if (m < M) {
        const REAL bias = b[m];
        const i64 step = 32 * (i64)ld;
        i64 i = (i64)threadIdx.y * ld + m;
#pragma unroll 2
        for (int l = threadIdx.y; l < L; l += 32, i += step) {
            const REAL y = z[i] + bias;
            if (!is_open(open, ld, l, m)) continue;
            n++;
            top = y > top ? y : top;
            low = -y > low ? -y : low;
        }
    }
    n = column_sum(n);
    top = column_max(top);
    low = column_max(low);
    if (threadIdx.y == 0 && m < M) {
        active[m] = n;
        counts[m] += n;
        if (top > peaks[m]) peaks[m] = top;
        smallest[m] = -low;
    }
}

// From vr = v_m . r (L, M), rounded to CODE, and which gates are open, the gradients of z_m, b_m and, with theta, theta_m:
//     g <- (v_m . r + penalty) open_m (L, M),   mean <- 1/L sum_l of that (M,)
//     dtheta <- -(theta_m sum_l (v_m . r) K + sparsity sum_l K) / (L bandwidth),   K = 1{|y_m - theta_m| < bandwidth / 2}
extern "C" __global__ void __launch_bounds__(1024)
code_gradient(int L, int M, int ld, REAL penalty, REAL sparsity, REAL bandwidth,
              const CODE* __restrict__ vr, const BYTE* __restrict__ open, const REAL* __restrict__ z, const REAL* __restrict__ b,
              const REAL* __restrict__ theta, CODE* __restrict__ g, REAL* __restrict__ mean,
              REAL* __restrict__ dtheta) {
    const int m = own_column();
    REAL sum = 0, near_vr = 0;
    int near = 0;
    if (m < M) {
        const REAL bias = b[m], edge = theta ? theta[m] : (REAL)0;
#pragma unroll 2
        for (int l = threadIdx.y; l < L; l += 32) {
            const i64 i = (i64)l * ld + m;
            const REAL vrl = wide(vr[i]), dz = is_open(open, ld, l, m) ? vrl + penalty : (REAL)0;
            g[i] = narrow_one(dz);
            sum += dz;
            if (theta) {
                const REAL off = z[i] + bias - edge;
                const bool is_near = (off < 0 ? -off : off) < (REAL)0.5 * bandwidth;
                near += is_near;
                near_vr += is_near ? vrl : (REAL)0;
            }
        }
    }
    sum = column_sum(sum);
    near_vr = column_sum(near_vr);
    near = column_sum(near);
    if (threadIdx.y == 0 && m < M) {
        mean[m] = sum / L;
        if (theta) dtheta[m] = -(theta[m] * near_vr + sparsity * near) / (L * bandwidth);
    }
}

// AdamW of theta along g, n entries in place, and not below `least`.
extern "C" __global__ void __launch_bounds__(256)
adamw_each(i64 n, REAL least, REAL* __restrict__ theta, REAL* __restrict__ m, REAL* __restrict__ v,
           const REAL* __restrict__ g, REAL toward1, REAL toward2, REAL rate, REAL root, REAL eps, REAL keep) {
    const AdamW adam = {toward1, toward2, rate, root, eps, keep};
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    REAL mi = m[i], vi = v[i];
    const REAL moved = adam.moved(theta[i], mi, vi, g[i]);
    theta[i] = moved < least ? least : moved;
    m[i] = mi;
    v[i] = vi;
}

// w_m <- AdamW(w_m) along scale G_m, whatever its norm, and low; a thread block takes every gridDim.x-th row.
//     shift_i <- sum_m mean_m w_m over the rows of block i, by w_m of before
extern "C" __global__ void __launch_bounds__(512,1)
adamw_free_rows(int M, int d, REAL* __restrict__ W, REAL* __restrict__ m, REAL* __restrict__ v, CODE* __restrict__ low,
                const REAL* __restrict__ G, const REAL* __restrict__ mean, REAL* __restrict__ shift, REAL scale,
                REAL toward1, REAL toward2, REAL rate, REAL root, REAL eps, REAL keep) {
    const AdamW adam = {toward1, toward2, rate, root, eps, keep};
    Reals sum[PER] = {};
    for (int row = blockIdx.x; row < M; row += gridDim.x) {
        const i64 first = (i64)row * d;
        const REAL c = mean[row];
#pragma unroll
        for (int p = 0; p < PER; p++) {
            const int i = threadIdx.x + p * blockDim.x;
            if (i >= d / WIDE) break;
            Reals w = load(W + first, i);
#pragma unroll
            for (int k = 0; k < WIDE; k++) sum[p].x[k] += c * w.x[k];
            const Reals g = load(G + first, i);
            Reals mi = load(m + first, i), vi = load(v + first, i);
#pragma unroll
            for (int k = 0; k < WIDE; k++) {
                w.x[k] = adam.moved(w.x[k], mi.x[k], vi.x[k], scale * g.x[k]);
            }
            store(W + first, i, w);
            store(m + first, i, mi);
            store(v + first, i, vi);
#ifdef BF16
            store_codes(low + first, i, w);
#endif
        }
    }
    store_shift(shift, d, 0, sum);
}

// v_m <- AdamW(v_m) along scale (G_m - (G_m . v_m) v_m),   v_m <- v_m / ||v_m||, and low; rows as above.
extern "C" __global__ void __launch_bounds__(512)
adamw_across_rows(int M, int d, REAL* __restrict__ V, REAL* __restrict__ m, REAL* __restrict__ v,
                  CODE* __restrict__ low, const REAL* __restrict__ G, REAL scale, REAL toward1, REAL toward2, REAL rate,
                  REAL root, REAL eps, REAL keep) {
    const AdamW adam = {toward1, toward2, rate, root, eps, keep};
    for (int row = blockIdx.x; row < M; row += gridDim.x) {
        const i64 first = (i64)row * d;
        Reals own[PER], g[PER];
        REAL along[1] = {0}, squares[1] = {0};
#pragma unroll
        for (int p = 0; p < PER; p++) {
            const int i = threadIdx.x + p * blockDim.x;
            if (i >= d / WIDE) break;
            own[p] = load(V + first, i);
            g[p] = load(G + first, i);
#pragma unroll
            for (int k = 0; k < WIDE; k++) along[0] += g[p].x[k] * own[p].x[k];
        }
        block_sums(along, 0);
#pragma unroll
        for (int p = 0; p < PER; p++) {
            const int i = threadIdx.x + p * blockDim.x;
            if (i >= d / WIDE) break;
            Reals mi = load(m + first, i), vi = load(v + first, i);
#pragma unroll
            for (int k = 0; k < WIDE; k++) {
                const REAL across = g[p].x[k] - along[0] * own[p].x[k];
                own[p].x[k] = adam.moved(own[p].x[k], mi.x[k], vi.x[k], scale * across);
                squares[0] += own[p].x[k] * own[p].x[k];
            }
            store(m + first, i, mi);
            store(v + first, i, vi);
        }
        block_sums(squares, 1);
        const REAL norm = sqrt(squares[0]);
#pragma unroll
        for (int p = 0; p < PER; p++) {
            const int i = threadIdx.x + p * blockDim.x;
            if (i >= d / WIDE) break;
#pragma unroll
            for (int k = 0; k < WIDE; k++) own[p].x[k] /= norm;
            store(V + first, i, own[p]);
#ifdef BF16
            store_codes(low + first, i, own[p]);
#endif
        }
    }
}

// idle_m <- 0 where active_m > 0, otherwise idle_m + L;  may_m <- 1{idle_m + L >= dead_after}: who may be dead next time.
extern "C" __global__ void __launch_bounds__(256)
count_idle(i64 M, i64 L, i64 dead_after, const int* __restrict__ active, i64* __restrict__ idle, int* __restrict__ may) {
    const i64 m = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= M) return;
    const i64 now = active[m] ? 0 : idle[m] + L;
    idle[m] = now;
    may[m] = now + L >= dead_after;
}

// which_(upto_m - 1) <- m where may_m, with upto (M,) the sums of may so far: the numbers of those who may, in order.
extern "C" __global__ void __launch_bounds__(256)
gather(i64 M, const int* __restrict__ may, const i64* __restrict__ upto, i64* __restrict__ which) {
    const i64 m = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (m < M && may[m]) which[upto[m] - 1] = m;
}

// u <- weight (e + r), n entries, rounded to CODE: the residual that AuxK's codes leave, times its weight.
extern "C" __global__ void __launch_bounds__(256)
leftover(i64 n, const REAL* __restrict__ weight, const REAL* __restrict__ e, const CODE* __restrict__ r,
         CODE* __restrict__ u) {
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
        u[i] = narrow_one(weight[0] * (e[i] + wide(r[i])));
}
