"""What backends/numba.py compiles: lines 2 to 5 of Algorithm 1, each kernel with its formula in the paper's symbols.

`refgba.backends.base.TWINS` names the reference's function and the CUDA kernel beside each of these.  `encode`,
`decode_dense`, `decode_sparse` and `sweep` are called by numba.py on the codes of a batch (`numba.Codes`), and
`decode_codes` on codes in an array; the others by these five.  `add`, `adamw`, `dot`, `unit` and `parallel_blocks`
serve backends/baselines/numba.py too.

L rows in a batch, d dimensions, M neurons.  Within one neuron its index m is left out: z, y, s and the gate are (L,),
and θ stands for its row w_m or v_m.  r = f - x is the residual; the paper's peaks r_m are called peaks.

numba caches what it compiled and notices a change only in the file of the kernel itself.  After a change of `add`,
`adamw`, `dot` or `unit`, delete backends/baselines/__pycache__, or the baselines keep the old ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import numba
import numpy as np
from numba import prange
from threadpoolctl import ThreadpoolController

from refgba.backends.numba_compiler import njit

BLOCK = 256  # neurons whose pre-activations are held at a time
ROWS, COLUMNS = 256, 384  # tile of f that a thread decodes, 393 kB in float32
DENSE_ROWS, RUN = 256, 4  # rows, and dense blocks, decoded with one product

REORDER = {"reassoc", "contract", "arcp"}  # fastmath: sums may be vectorised, but NaN and infinity stay what they are

import_module("scipy.linalg")  # numba calls its BLAS, which must be loaded before the controller looks for libraries
BLAS = ThreadpoolController()


@contextmanager
def parallel_blocks() -> Iterator[None]:
    """Within it, each block goes to whichever thread is free, and BLAS starts no threads of its own in a block."""
    with BLAS.limit(limits=1, user_api="blas"), numba.parallel_chunksize(1):
        yield


@njit(parallel=True, nogil=True, error_model="numpy")
def encode(W, b, xc, relu, threshold, rows, values, first, dense, counts, peaks):
    """Lines 2 and 5, a block of neurons at a time.

    z_m = w_m · (x - b_pre),  y_m = z_m + b_m,  s_m = φ(y_m);  counts <- Σ_l 1{y_m > 0},  peaks <- max(peaks, max_l y_m)

    xc: (L, d), x - b_pre.  A block with more than the share `threshold` of its gates open is dense; rows, values and
    first hold its codes as `numba.Codes` says.  counts (M,) are of this batch, peaks (M,) since the last adaptation.
    """
    L = len(xc)
    for k in prange(dense.size):
        start, stop = k * BLOCK, min((k + 1) * BLOCK, len(W))
        z = np.empty((stop - start, L), W.dtype)
        np.dot(W[start:stop], xc.T, z)  # z_m = w_m · (x - b_pre)
        on = np.zeros((stop - start, first.shape[1] * ROWS), np.uint8)  # gates, a byte each
        active = at = 0
        for m in range(start, stop):
            counts[m] = gate(z[m - start], b[m], on[m - start])
            active += counts[m]
        dense[k] = active > threshold * z.size
        for m in range(start, stop):
            if dense[k]:
                spread(z[m - start], b[m], relu, values[k, (m - start) * L : (m - start + 1) * L])
                peaks[m] = max(peaks[m], z[m - start].max() + b[m])
            elif counts[m]:
                begin, at = at, compress(z[m - start], b[m], relu, on[m - start], rows[k], values[k], first[m], at)
                top = values[k, begin:at].max()
                peaks[m] = max(peaks[m], top if relu else top + b[m])
            else:
                first[m] = at


@njit(nogil=True)
def gate(z, b, on):
    """on <- 1{y > 0} with y = z + b; returns Σ_l 1{y > 0}."""
    for l in range(z.size):
        on[l] = z[l] + b > 0
    n = 0
    for l in range(on.size):
        n += on[l]
    return n


@njit(nogil=True)
def spread(z, b, relu, s):
    """s <- φ(y) on all rows, with y = z + b: y 1{y > 0} for ReLU, z 1{y > 0} for JumpReLU.

    An open gate that passes 0 is stored as -0.0, a closed one as 0.0.
    """
    zero = z.dtype.type(0)
    for l in range(z.size):
        y = z[l] + b
        passed = y if relu else z[l]
        s[l] = (passed if passed != 0 else -zero) if y > 0 else zero


@njit(nogil=True)
def compress(z, b, relu, on, rows, values, first, at):
    """s <- φ(y) as `spread`, on the rows with y > 0 only: from entry `at` of rows and values on.  Returns their end."""
    eight = on.view(np.uint64)  # gates are looked at by eights, since most are closed
    for j in range(first.size - 1):
        first[j] = at
        for word in range(j * ROWS // 8, (j + 1) * ROWS // 8):
            if eight[word] != 0:
                for l in range(8 * word, min(8 * word + 8, z.size)):
                    rows[at] = l
                    values[at] = z[l] + b if relu else z[l]
                    at += on[l]
    first[-1] = at
    return at


@njit(parallel=True, nogil=True)
def decode_dense(V, a, values, dense, f):
    """f <- f + Σ_m a_m v_m s_m over the neurons of dense blocks, in their order, RUN blocks at a time."""
    L, d = f.shape
    for k in prange((L + DENSE_ROWS - 1) // DENSE_ROWS):
        low, high = k * DENSE_ROWS, min((k + 1) * DENSE_ROWS, L)
        product = np.empty((high - low, d), V.dtype)
        block = 0
        while block < dense.size:
            end = block
            while end < min(block + RUN, dense.size) and dense[end]:
                end += 1
            if end > block:
                start, stop = block * BLOCK, min(end * BLOCK, len(V))
                scaled = np.empty((stop - start, high - low), V.dtype)
                for m in range(start, stop):
                    at = m % BLOCK * L
                    scaled[m - start] = a[m] * values[m // BLOCK, at + low : at + high]
                np.dot(scaled.T, V[start:stop], product)
                f[low:high] += product
            block = max(end, block + 1)


@njit(parallel=True, nogil=True)
def decode_sparse(V, a, rows, values, first, dense, f):
    """f <- f + Σ_m a_m v_m s_m over the neurons of sparse blocks, in their order, a tile of f at a time."""
    L, d = f.shape
    wide = (d + COLUMNS - 1) // COLUMNS
    for tile in prange((L + ROWS - 1) // ROWS * wide):
        j, low = tile // wide, tile % wide * COLUMNS
        high = min(low + COLUMNS, d)
        for m in range(len(V)):
            k = m // BLOCK
            if not dense[k]:
                for i in range(first[m, j], first[m, j + 1]):
                    add(f[rows[k, i], low:high], a[m] * values[k, i], V[m, low:high])


@njit(parallel=True, nogil=True)
def decode_codes(V, a, s, f):
    """f <- f + Σ_m a_m v_m s_m for codes s (L, M) most of which are 0, row by row."""
    for l in prange(len(f)):
        for m in range(len(V)):
            if s[l, m] != 0:
                add(f[l], a[m] * s[l, m], V[m])


@njit(parallel=True, nogil=True, error_model="numpy")
def sweep(W, V, mW, vW, mV, vV, tied, a, xr, rows, values, first, dense, held, adam, da, sums, broken):
    """Lines 3 and 4, neuron by neuron: gradients averaged over the batch, then AdamW and unit norm of w_m and v_m.

    dL/dw_m = a_m (v_m · r) on_m (x - b_pre),  dL/dv_m = a_m s_m r  (tied: their sum),  dL/da_m = s_m (v_m · r)

    xr: (2 L, d), x - b_pre above r.  da <- dL/da (M,).  sums[k] <- Σ_m a_m Σ_l (v_m · r) on_m w_m over the neurons of
    block k, from which dL/db_pre follows.  With adam empty nothing moves: mW <- dL/dW and mV <- dL/dW_dec.
    broken[k] becomes true where the new norm of a row is 0 or not finite.  Rows of held neurons stay as they are.
    """
    xc, r = xr[: len(xr) // 2], xr[len(xr) // 2 :]
    for k in prange(dense.size):
        start, stop = k * BLOCK, min((k + 1) * BLOCK, len(W))
        if dense[k]:
            s, vr, gW, gV = products(V[start:stop], xc, r, values[k, : (stop - start) * len(r)], tied)
        else:
            s = vr = np.empty((1, 1), W.dtype)
            gW, gV = np.empty((1, W.shape[1]), W.dtype), np.empty((0 if tied else 1, W.shape[1]), W.dtype)
        for m in range(start, stop):
            row = m - start if dense[k] else 0
            g, h = gW[row], gW[row] if tied else gV[row]
            if dense[k]:
                ds, c = dot(s[row], vr[row]), vr[row].sum()
            else:
                active = slice(first[m, 0], first[m, -1])
                ds, c = entries(V, m, xc, r, rows[k, active], values[k, active], tied, g, h)
            da[m] = ds / len(r)
            scale = a[m] / len(r)
            add(sums[k], a[m] * c, W[m])
            if adam.size == 0:
                mW[m] = scale * g
                mV[m] = scale * h
            else:
                norm = adamw(W[m], mW[m], vW[m], g, scale, adam)
                broken[k] |= not 0 < norm < np.inf
                if not held[m]:
                    unit(W[m], g, norm)
                if not tied:
                    norm = adamw(V[m], mV[m], vV[m], h, scale, adam)
                    broken[k] |= not 0 < norm < np.inf
                    if not held[m]:
                        unit(V[m], h, norm)


@njit(nogil=True)
def products(V, xc, r, values, tied):
    """A dense block: s and vr = (v_m · r) on_m, both (block, L), and Σ_l vr (x - b_pre) and Σ_l s r, both (block, d).

    Tied, the first of the two sums has the second added.
    """
    s = values.reshape((len(V), len(r)))
    vr = np.dot(V, r.T)
    for m in range(len(s)):
        for l in range(s.shape[1]):
            on = s[m, l] != 0 or math.copysign(1, s[m, l]) < 0  # see spread
            vr[m, l] = vr[m, l] if on else vr.dtype.type(0)
    gW, gV = np.dot(vr, xc), np.dot(s, r)
    if tied:
        gW += gV
    return s, vr, gW, gV


@njit(nogil=True, fastmath=REORDER)
def entries(V, m, xc, r, rows, s, tied, g, h):
    """g <- Σ_l (v_m · r) (x - b_pre) and h <- Σ_l s r over the active rows of neuron m; tied, g gets both.

    Returns Σ_l s (v_m · r) and Σ_l v_m · r.  Rows are taken in pairs, an odd last one alone, so that g is read and
    written half as often.
    """
    zero = V.dtype.type(0)
    ds = c = zero
    g[:] = zero
    h[:] = zero
    for i in range(0, rows.size, 2):
        alone = i + 1 == rows.size
        l, k = rows[i], rows[i] if alone else rows[i + 1]
        sl, sk = s[i], zero if alone else s[i + 1]
        vl = vk = zero
        for j in range(V.shape[1]):
            vl += V[m, j] * r[l, j]
            vk += V[m, j] * r[k, j]
        vk = zero if alone else vk
        ds += sl * vl + sk * vk
        c += vl + vk
        if tied:
            for j in range(g.size):
                g[j] += vl * xc[l, j] + sl * r[l, j] + vk * xc[k, j] + sk * r[k, j]
        else:
            for j in range(g.size):
                g[j] += vl * xc[l, j] + vk * xc[k, j]
            for j in range(g.size):
                h[j] += sl * r[l, j] + sk * r[k, j]
    return ds, c


@njit(nogil=True, fastmath=REORDER)
def dot(u, v):
    """u · v."""
    total = u.dtype.type(0)
    for j in range(u.size):
        total += u[j] * v[j]
    return total


@njit(nogil=True, fastmath=REORDER)
def add(g, c, u):
    """g <- g + c u."""
    for j in range(g.size):
        g[j] += c * u[j]


@njit(nogil=True, fastmath=REORDER, error_model="numpy")
def adamw(theta, m, v, g, scale, adam):
    """One row θ along its gradient G = scale g: g becomes the new θ, whose norm is returned; θ itself stays.

    m <- m + (1 - β1) (G - m),  v <- v + (1 - β2) (G² - v),  θ <- (1 - lr λ) θ - lr m̂ / (√v̂ + ε)

    adam: the numbers of `refgba.backends.base.AdamWFactors`, in its order and in the dtype of θ.
    """
    squares = theta.dtype.type(0)
    for j in range(theta.size):
        gj = scale * g[j]
        m[j] += adam[0] * (gj - m[j])
        v[j] += adam[1] * (gj * gj - v[j])
        g[j] = adam[5] * theta[j] - adam[2] * m[j] / (np.sqrt(adam[3] * v[j]) + adam[4])
        squares += g[j] * g[j]
    return np.sqrt(squares)


@njit(nogil=True, fastmath=REORDER, error_model="numpy")
def unit(theta, g, norm):
    """θ <- g / norm, with norm = ||g||: line 4."""
    for j in range(theta.size):
        theta[j] = g[j] / norm
