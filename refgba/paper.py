"""Group Bias Adaptation as in the paper, and nothing else: Algorithms 1 and 2, tied weights, NumPy only.

    f(x; Θ) = Σ_m a_m w_m φ(y_m) + b_pre ,      y_m = w_m · (x - b_pre) + b_m          (section 2)

`python refgba/paper.py` makes data whose features are known and finds them.  The rest of the project is this file
grown up: `refgba.gba` with `--recipe paper` gives the same numbers to the bit (tests/test_paper.py).  Ours, where the
paper is silent: rows at unit norm as the reading of "normalize", T_k = 0 in a group without positive peaks, groups of
unequal size where K does not divide M, and the defaults of lr, a_init and AdamW's constants.

L rows per minibatch, d dimensions, M neurons, K groups.  W: (M, d) unit rows w_m.  a: (M,) output scales.  b: (M,)
neuron biases.  b_pre: (d,).
"""

from __future__ import annotations

import numpy as np


def unit(A):
    """Each row of A (any, d) divided by its norm."""
    return A / np.linalg.norm(A, axis=1, keepdims=True)


def forward(W, a, b, b_pre, x, jump=True):
    """The network on the rows x (L, d): pre-activations y, gates, codes s = φ(y), each (L, M), and f (L, d)."""
    z = (x - b_pre) @ W.T  # (L, M)   z_m = w_m · (x - b_pre)
    y = z + b  # (L, M)
    on = y > 0  # (L, M)   the gate 1{y_m > 0}
    s = on * (z if jump else y)  # (L, M)   JumpReLU: (y_m - b_m) 1{y_m > 0};  ReLU: max(y_m, 0)
    return y, on, s, s @ (a[:, None] * W) + b_pre


def gradients(W, a, b_pre, x, on, s, f):
    """Gradients of L_rec = 1/2 ||f(x) - x||², mean over the rows x (L, d), by W, a and b_pre; b gets none."""
    L, r = len(x), f - x  # (L, d)
    wr = on * (r @ W.T)  # (L, M)   (w_m · r) on_m
    detector = a[:, None] * (wr.T @ (x - b_pre)) / L  # (M, d)   a_m (w_m · r) on_m (x - b_pre)
    reconstructor = a[:, None] * (s.T @ r) / L  # (M, d)   a_m s_m r
    da = np.einsum("lm,lm->m", s, wr) / L  # (M,)   s_m (w_m · r)
    db_pre = r.mean(axis=0) - (a * wr.mean(axis=0)) @ W  # (d,)   r - Σ_m a_m (w_m · r) on_m w_m
    return detector + reconstructor, da, db_pre


def target_frequencies(K, htf, ltf):
    """The target activation frequency (TAF) p_k of each group, (K,): geometric, from HTF down to LTF."""
    return htf * (ltf / htf) ** (np.arange(K) / max(K - 1, 1))


def adapt(b, count, peak, rows, group, p_k, gamma_minus=0.01, gamma_plus=0.01, eps=1e-6):
    """Algorithm 2, b <- A(b, B).  Three numbers of each buffer B_m suffice.

    count: how many entries are above 0.  peak: the largest entry, or 0.  rows: how many entries there are.
    """
    p = count / rows  # (M,)   p_m, the empirical activation frequency
    r = peak  # (M,)   r_m = max(max_{y in B_m} y, 0)
    positive = np.bincount(group, r > 0, len(p_k))  # (K,)
    T = np.bincount(group, r, len(p_k)) / np.maximum(positive, 1)  # (K,)   mean of the group's positive peaks
    lowered = np.maximum(b - gamma_minus * r, -1)  # (M,)   where p_m > p_k: fires too often
    raised = np.minimum(b + gamma_plus * T[group], 0)  # (M,)   where p_m < ε: never fires
    return np.where(p > p_k[group], lowered, np.where(p < eps, raised, b))


def train(W, minibatches, K=10, htf=0.5, ltf=1e-3, gamma=0.01, adapt_every=50, lr=1e-3, a_init=1.0, jump=True):
    """Algorithm 1 from the unit rows W (M, d); `minibatches` yields rows (L, d).  Returns W, a, b, b_pre."""
    M, d = W.shape
    W, a, b, b_pre = W.copy(), np.full(M, a_init), np.zeros(M), np.zeros(d)
    group, p_k = np.arange(M) * K // M, target_frequencies(K, htf, ltf)
    moments = [[np.zeros_like(theta)] * 2 for theta in (W, a, b_pre)]
    count, peak, rows = np.zeros(M, int), np.zeros(M), 0  # of the buffers B_1..B_M
    for t, x in enumerate(minibatches, start=1):
        x = unit(x)  # 1. draw a minibatch, each row at unit norm
        y, on, s, f = forward(W, a, b, b_pre, x, jump)  # 2. forward
        grads = gradients(W, a, b_pre, x, on, s, f)  # 3. backward, and a step of AdamW on everything but b
        W, a, b_pre = (adam(*given, t, lr) for given in zip((W, a, b_pre), grads, moments, strict=True))
        W = unit(W)  # 4. renormalise
        count, peak, rows = count + on.sum(axis=0), np.maximum(peak, y.max(axis=0)), rows + len(x)  # 5. the buffers
        if t % adapt_every == 0:  # 6. adapt the biases, and empty the buffers
            b = adapt(b, count, peak, rows, group, p_k, gamma, gamma)
            count, peak, rows = np.zeros(M, int), np.zeros(M), 0
    return W, a, b, b_pre


def adam(theta, g, moment, t, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    """θ after update t of AdamW with weight decay 0, which is Adam, along g; its two moments in `moment` move too."""
    m, v = moment
    m, v = moment[:] = m + (1 - beta1) * (g - m), v + (1 - beta2) * (g * g - v)
    return theta - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)


def main():
    """32 features in 24 dimensions, two of them in each row: how many does GBA find?"""
    rng = np.random.default_rng(0)
    V = unit(rng.standard_normal((32, 24)))  # the true features
    pairs = np.array([rng.choice(32, 2, replace=False) for _ in range(20_000)])
    X = V[pairs].sum(axis=1)  # (N, d)
    batches = (X[rng.integers(len(X), size=256)] for _ in range(1000))
    W = unit(rng.standard_normal((256, 24)))  # M = 256 random neurons
    # A short run: biases adapt faster than in the paper's runs of 100,000s of steps, and from a lower HTF.
    W, a, b, b_pre = train(W, batches, htf=0.1, gamma=0.03, adapt_every=5, lr=1e-2, a_init=0.02)
    _, on, _, f = forward(W, a, b, b_pre, unit(X))
    nearest = (V @ W.T).max(axis=1)  # (n,)   the cosine of each feature with the neuron nearest to it
    print(f"features with a neuron at cosine 0.9 or more: {np.mean(nearest >= 0.9):.0%}")
    print(
        f"loss {0.5 * np.mean(np.sum((f - unit(X)) ** 2, axis=1)):.4f}, active neurons per row {on.sum() / len(X):.1f}"
    )


if __name__ == "__main__":
    main()
