"""The entries of a batch, the codes that matter: how they are found, sorted by neuron, counted, and decoded.

Kernels of backends/baselines/numba.py.  An entry is a pre-activation z that may be active; `Codes` there holds them.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from refgba.backends.numba_compiler import njit
from refgba.backends.numba_kernels import add

ROWS = 64  # rows whose pre-activations are held at a time


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
