"""The kernels of baselines/numba.py: entries of a batch are found, sorted by neuron and decoded, and neurons moved.

An entry is a pre-activation z that may be active; `numba.Codes` holds those of a batch.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from refgba.backends.numba_compiler import njit
from refgba.backends.numba_kernels import adamw, add, dot, unit

ROWS = 64  # rows whose pre-activations are held at a time
BLOCK = 128  # neurons that a thread takes at a time, backwards


@njit(parallel=True, nogil=True)
def select(W, b, xc, floor, k, guess, index, z, count):
    """The entries of every row of z_m = w_m · (x - b_pre) + b_m: with k > 0 its k largest positive, else z_m > floor_m.

    index, z (L, M) and count (L,) hold the entries as `Codes` says.
    """
    L, M = z.shape
    for block in prange((L + ROWS - 1) // ROWS):
        low, high = block * ROWS, min((block + 1) * ROWS, L)
        y = np.dot(xc[low:high], W.T)  # (rows, M)
        best = np.empty(M, W.dtype)
        for l in range(low, high):
            row = y[l - low]
            for m in range(M):
                row[m] += b[m]
            if k > 0:
                edge = kth(row, k, guess, best)
                n = above(row, edge, index[l], z[l], 0, k)  # fewer than k, and then, of equals, as many as are missing
                count[l] = equal(row, edge, index[l], z[l], n, k)
            else:
                n = 0
                for m in range(M):
                    if row[m] > floor[m]:
                        index[l, n] = m
                        z[l, n] = row[m]
                        n += 1
                count[l] = n


@njit(nogil=True)
def kth(row, k, guess, best):
    """The k-th largest of the entries of row (M,), at least 0.  Overwrites best (M,)."""
    n = 0
    for m in range(row.size):
        if row[m] > guess:
            best[n] = row[m]
            n += 1
    if n < k:
        best[:] = row
        n = row.size
    edge = np.partition(best[:n], n - k)[n - k]
    return edge if edge > 0 else row.dtype.type(0)


@njit(nogil=True)
def above(row, edge, index, z, n, k):
    """After n entries, add those of row with z_m > edge, up to k in all; returns how many there are then."""
    for m in range(row.size):
        if row[m] > edge and n < k:
            index[n] = m
            z[n] = row[m]
            n += 1
    return n


@njit(nogil=True)
def equal(row, edge, index, z, n, k):
    """After n entries, add those of row with z_m = edge > 0, up to k in all; returns how many there are then."""
    if edge > 0:
        for m in range(row.size):
            if row[m] == edge and n < k:
                index[n] = m
                z[n] = row[m]
                n += 1
    return n


@njit(nogil=True)
def keep(edge, places, index, z, count):
    """Keep the `places` largest entries of a batch, of which `edge` is the smallest; of equals, the first."""
    more = 0
    for l in range(count.size):
        for i in range(count[l]):
            more += z[l, i] > edge
    equal = places - more
    for l in range(count.size):
        n = 0
        for i in range(count[l]):
            take = z[l, i] > edge
            if z[l, i] == edge and equal > 0:
                equal -= 1
                take = True
            if take:
                index[l, n] = index[l, i]
                z[l, n] = z[l, i]
                n += 1
        count[l] = n


@njit(nogil=True)
def columns(M, index, z, count):
    """The entries neuron by neuron: those of m are rows[first[m] : first[m + 1]] and values likewise, in row order."""
    first = np.zeros(M + 1, np.int64)
    for l in range(count.size):
        for i in range(count[l]):
            first[index[l, i] + 1] += 1
    for m in range(M):
        first[m + 1] += first[m]
    rows, values, at = np.empty(first[M], np.uint32), np.empty(first[M], z.dtype), first[:M].copy()
    for l in range(count.size):
        for i in range(count[l]):
            m = index[l, i]
            rows[at[m]] = l
            values[at[m]] = z[l, i]
            at[m] += 1
    return first, rows, values


@njit(nogil=True)
def activity(first, values, limit):
    """Σ_l 1{z_m > limit_m} and max_l z_m over those, both (M,), and the smallest of them all, 0 where there is none."""
    M = first.size - 1
    counts, peaks, smallest = np.zeros(M, np.int64), np.zeros(M), np.inf
    for m in range(M):
        for i in range(first[m], first[m + 1]):
            if values[i] > limit[m]:
                counts[m] += 1
                peaks[m] = max(peaks[m], values[i])
                smallest = min(smallest, values[i])
    return counts, peaks, smallest if smallest < np.inf else 0.0


@njit(parallel=True, nogil=True)
def decode(V, limit, index, z, count, ends, f):
    """f[p] <- Σ_{m < ends[p]} s_m v_m with s_m = z_m 1{z_m > limit_m}, row by row, for each of P prefixes: (P, L, d).

    With more than one prefix the entries of a row have to be in the order of their neurons.
    """
    for l in prange(count.size):
        p = 0
        f[0, l] = 0
        for i in range(count[l]):
            m = index[l, i]
            while m >= ends[p]:
                p += 1
                f[p, l] = f[p - 1, l]
            if z[l, i] > limit[m]:
                add(f[p, l], z[l, i], V[m])
        for q in range(p + 1, ends.size):
            f[q, l] = f[p, l]


@njit(nogil=True)
def magnitudes(index, z, count, scale, b, c):
    """z <- scale_m (z - b_m) + c_m at every entry: of gates, the magnitudes."""
    for l in range(count.size):
        for i in range(count[l]):
            m = index[l, i]
            z[l, i] = scale[m] * (z[l, i] - b[m]) + c[m]


@njit(nogil=True, error_model="numpy")
def move(W, V, mW, vW, mV, vV, m, g, h, scale, adam):
    """AdamW of w_m and v_m along scale g and scale h, v_m without the part along it and then at unit norm.

    With adam empty nothing moves: mW <- dL/dW and mV <- dL/dW_dec.  Overwrites g and h (d,).
    """
    if adam.size == 0:
        mW[m] = scale * g
        mV[m] = scale * h
    else:
        adamw(W[m], mW[m], vW[m], g, scale, adam)
        W[m] = g
        add(h, -dot(h, V[m]), V[m])
        norm = adamw(V[m], mV[m], vV[m], h, scale, adam)
        unit(V[m], h, norm)


@njit(parallel=True, nogil=True, error_model="numpy")
def sweep(
    W, V, mW, vW, mV, vV, xc, left, ends, first, rows, values, theta, limit, half, penalty, gW, gV, gb, slot, adam, db,
    near, near_vr, sums,
):  # fmt: skip
    """Gradients averaged over the batch, then `move`, neuron by neuron.

        dL/dz_m = (v_m · r + penalty) on_m,   dL/dw_m = dL/dz_m (x - b_pre),   dL/db_m = dL/dz_m,   dL/dv_m = s_m r

    r = left[p] for the first p with m < ends[p].  on_m = 1{z_m > limit_m}; penalty is λ for L1 and 0 otherwise.  gW,
    gV, gb: AuxK's gradients of the neurons with slot[m] >= 0.  db <- dL/db (M,).  sums[k] <- Σ_m Σ_l dL/dz_m w_m over
    the neurons of block k.  near, near_vr <- how many rows have |z_m - θ_m| < half, and Σ_l v_m · r over those.
    """
    M, d = W.shape
    scale = W.dtype.type(1 / left.shape[1])
    for block in prange(len(sums)):
        g, h, p = np.empty(d, W.dtype), np.empty(d, W.dtype), 0
        for m in range(block * BLOCK, min((block + 1) * BLOCK, M)):
            while m >= ends[p]:
                p += 1
            r = left[p]  # (L, d)
            g[:] = 0
            h[:] = 0
            c = near_vr[m] = W.dtype.type(0)
            near[m] = 0
            for i in range(first[m], first[m + 1]):
                l, s = rows[i], values[i]
                vr = dot(V[m], r[l])
                if abs(s - theta[m]) < half:
                    near[m] += 1
                    near_vr[m] += vr
                if s > limit[m]:
                    dz = vr + penalty
                    c += dz
                    add(g, dz, xc[l])
                    add(h, s, r[l])
            if slot[m] >= 0:  # a dead neuron: all of the above is 0
                g[:] = gW[slot[m]]
                h[:] = gV[slot[m]]
                c = gb[slot[m]]
            db[m] = c * scale
            add(sums[block], c, W[m])
            move(W, V, mW, vW, mV, vV, m, g, h, scale, adam)


@njit(parallel=True, nogil=True, error_model="numpy")
def sweep_gated(
    W, V, mW, vW, mV, vV, xc, left, first, rows, codes, magnitude, b_mag, penalty, adam, db, dr_mag, db_mag,
    sums,
):  # fmt: skip
    """The same of a gated network, whose entries are the gates π_m > 0: beside each its z_m, a code where z_m > 0.

        dL/dπ_m = v_m · r_g + λ,   dL/dz_m = (v_m · r) 1{z_m > 0},   dL/dv_m = s_m r
        dL/dw_m = (e^{ρ_m} dL/dz_m + dL/dπ_m) (x - b_pre)

    left: r_g and r, (2, L, d).  magnitude: e^ρ (M,).  penalty: λ.  db, db_mag, dr_mag <- dL/db, dL/dc, and dL/dρ, which
    is dL/dz_m (z_m - c_m), (M,).
    """
    M, d = W.shape
    scale = W.dtype.type(1 / left.shape[1])
    for block in prange(len(sums)):
        g, h = np.empty(d, W.dtype), np.empty(d, W.dtype)
        for m in range(block * BLOCK, min((block + 1) * BLOCK, M)):
            g[:] = 0
            h[:] = 0
            of_gate = of_code = of_scale = both = W.dtype.type(0)
            for i in range(first[m], first[m + 1]):
                l, z = rows[i], codes[i]
                c = dot(V[m], left[0, l]) + penalty
                of_gate += c
                if z > 0:
                    dz = dot(V[m], left[1, l])
                    of_code += dz
                    of_scale += dz * (z - b_mag[m])
                    c += magnitude[m] * dz
                    add(h, z, left[1, l])
                both += c
                add(g, c, xc[l])
            db[m], db_mag[m], dr_mag[m] = scale * of_gate, scale * of_code, scale * of_scale
            add(sums[block], both, W[m])
            move(W, V, mW, vW, mV, vV, m, g, h, scale, adam)
