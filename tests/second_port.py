"""GBA written a second time, a port that the oracle is held against.

It shares nothing with refgba but the settings and the names of quantities: all matrix products are einsum, and biases
move neuron by neuron.  `mutations` makes mistakes in its source.
"""

from __future__ import annotations

import numpy as np

MOVED = ("W", "W_dec", "a", "b_pre")
STATE = ["left.seen", "left.counts", "left.peaks", "held", "b"]
STATE += [part + theta for part in ("", "m.", "v.", "updates.") for theta in MOVED]


def port(trace, starts="trace", dtype=np.float64):
    """What `step` makes of a trace's rows, from the trace's state before each step or from its own."""

    def cast(values):
        return {n: v.astype(dtype) if v.dtype.kind == "f" and "peaks" not in n else v for n, v in values.items()}

    kept, dump = cast(trace.before(trace.first)), {}
    for t in trace.numbers:
        kept = cast(trace.before(t)) if starts == "trace" else kept
        got = step(trace.config, t, trace.at(t)["rows"].astype(dtype), kept)
        dump |= {f"{t}/{name}": np.asarray(value) for name, value in got.items()}
        kept = {name: got[name] for name in STATE if name in got}
    return dump


def step(c, t, rows, was):
    """Lines 1 to 6 on a batch; all quantities by name."""
    L, M, K = len(rows), c.width, c.groups
    # what the recipe adds
    formed = round(c.form * c.steps)
    held = was["held"]
    if t == formed + 1 and formed > 0:
        cosine = np.einsum("md,nd->mn", was["W"], was["W"]) - 2 * np.eye(M)
        held = np.max(cosine, axis=1) >= c.hold if c.hold < 1 else held
        if c.untied:
            was = was | {n + "W_dec": was[n + "W"] for n in ("", "m.", "v.", "updates.")}
    begin, end = (0, formed) if t <= formed else (formed, c.steps)
    lr = c.lr
    if c.lr_decay > 0:
        lr = c.lr * min(1, (end - t + 1) / (end - begin) / c.lr_decay)
    trained = ("W",) if t <= formed else MOVED
    W, a, b, b_pre = was["W"], was["a"], was["b"], was["b_pre"]
    own_decoder = "W_dec" in was
    V = was["W_dec"] if own_decoder else W
    # 1. rows at unit norm
    x = rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))
    # 2. forward
    xc = x - b_pre
    z = np.einsum("ld,md->lm", xc, W)
    y = z + b
    on = y > 0
    passed = z if c.activation == "jumprelu" else y
    s = np.where(on, passed, 0)
    f = np.einsum("lm,m,md->ld", s, a, V) + b_pre
    loss = 0.5 * ((f - x) ** 2).sum() / L
    # 3. backward
    r = f - x
    vr = np.einsum("ld,md->lm", r, V)
    into = a * vr * on
    detector = np.einsum("lm,ld->md", into, xc) / L
    reconstructor = np.einsum("lm,m,ld->md", s, a, r) / L
    g = {"W": detector if own_decoder else detector + reconstructor}
    g["W_dec"] = reconstructor
    g["a"] = (s * vr).sum(axis=0) / L
    g["b_pre"] = (r - np.einsum("lm,md->ld", into, W)).sum(axis=0) / L
    db = 0 * b
    # 3. AdamW
    q, new = {}, {}
    for name in [name for name in MOVED if name in was]:
        theta, m, v, n = was[name], was["m." + name], was["v." + name], int(was["updates." + name])
        if name in trained:
            n = n + 1
            m = c.beta1 * m + (1 - c.beta1) * g[name]
            v = c.beta2 * v + (1 - c.beta2) * g[name] ** 2
            m_hat = m / (1 - c.beta1**n)
            v_hat = v / (1 - c.beta2**n)
            theta = theta - lr * (m_hat / (np.sqrt(v_hat) + c.adam_eps) + c.weight_decay * theta)
        new[name] = theta
        q |= {"m." + name: m, "v." + name: v, "updates." + name: n, "d" + name: g[name]}
        if name in ("W", "W_dec"):  # 4. renormalise
            q["moved." + name] = theta
            new[name] = theta / np.sqrt((theta**2).sum(axis=1, keepdims=True))
    for name in {"W", "W_dec"} & set(new):
        new[name] = np.where(held[:, None], was[name], new[name])
    # 5. the buffers
    seen = was["left.seen"] + L
    counts = was["left.counts"] + (y > 0).sum(axis=0)
    peaks = np.maximum(was["left.peaks"], y.max(axis=0))
    peaks = np.maximum(peaks, 0)
    # 6. the biases
    left = (seen, counts, peaks)
    if t % c.adapt_every == 0:
        group = np.array([m * K // M for m in range(M)])
        target = np.array([c.htf * (c.ltf / c.htf) ** (k / max(K - 1, 1)) for k in range(K)])
        p = counts / seen
        T = np.zeros(K)
        for k in range(K):
            positive = [peak for peak, of in zip(peaks, group, strict=True) if of == k and peak > 0]
            T[k] = sum(positive) / max(len(positive), 1)
        b, lowered, raised = b.copy(), np.zeros(M, bool), np.zeros(M, bool)
        for m, k in enumerate(group):
            lowered[m] = p[m] > target[k]
            raised[m] = not lowered[m] and p[m] < max(c.eps, c.floor * target[k])
            if lowered[m]:
                b[m] = max(b[m] - c.gamma_minus * peaks[m], -1)
            elif raised[m]:
                b[m] = min(b[m] + c.gamma_plus * T[k], 0)
        q |= {"group": group, "target": target, "p": p, "T": T, "lowered": lowered, "raised": raised}
        left = (0, np.zeros(M, int), np.zeros(M))
    q |= {"x": x, "held": held, "lr": lr, "y": y, "on": on, "s": s, "f": f, "loss": loss, "b": b, "db": db}
    q |= {"dW.detector": detector, "dW.reconstructor": reconstructor, "seen": seen, "counts": counts, "peaks": peaks}
    return q | new | dict(zip(("left.seen", "left.counts", "left.peaks"), left, strict=True))
