"""GBA in JAX, written from refgba/oracle/format.md and tutorial.md alone: what someone who ports it would write.

Gradients are JAX's own, of a loss in which W appears once as detector and once as reconstructor.  Settings are
attributes of `config`, named as on the page; T is config.steps.  `step` works in the dtype of the state it is given,
and gives all the quantities that the page lists.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)


def forming_steps(config):
    """F; Python's round goes to the even of two equally near integers, as the page wants."""
    return round(config.form * config.steps)


def learning_rate(config, t):
    """The learning rate of step t = 1.. of the run."""
    F, T = forming_steps(config), config.steps
    first, last = (1, F) if t <= F else (F + 1, T)
    if config.lr_decay == 0:
        return config.lr
    return config.lr * min(1.0, (last - t + 1) / (last - first + 1) / config.lr_decay)


def unit(A):
    """Rows at unit norm."""
    return A / jnp.linalg.norm(A, axis=1, keepdims=True)


# ---- the network -----------------------------------------------------------------------------------------------------


def forward(config, theta, x):
    """Pre-activations, gates, codes and the reconstruction.  theta: W, V, a, b, b_pre; V is what reconstructs."""
    z = (x - theta["b_pre"]) @ theta["W"].T
    y = z + theta["b"]
    on = y > 0
    passed = z if config.activation == "jumprelu" else y
    s = jnp.where(on, passed, 0)
    f = s @ (theta["a"][:, None] * theta["V"]) + theta["b_pre"]
    return y, on, s, f


def loss_of(theta, config, x):
    """The loss, and what it was computed from."""
    y, on, s, f = forward(config, theta, x)
    return jnp.mean(jnp.sum((f - x) ** 2, axis=1)) / 2, (y, on, s, f)


# ---- AdamW -----------------------------------------------------------------------------------------------------------


def adamw(config, lr, theta, g, m, v, n):
    """One update, the n-th of this parameter."""
    m = config.beta1 * m + (1 - config.beta1) * g
    v = config.beta2 * v + (1 - config.beta2) * g**2
    m_hat = m / (1 - config.beta1**n)
    v_hat = v / (1 - config.beta2**n)
    theta = (1 - lr * config.weight_decay) * theta - lr * m_hat / (jnp.sqrt(v_hat) + config.adam_eps)
    return theta, m, v


# ---- what happens between the phases ---------------------------------------------------------------------------------


def agreeing(config, W):
    """Which neurons have another at a cosine of at least `hold`."""
    cosine = W @ W.T
    cosine = jnp.where(jnp.eye(len(W), dtype=bool), -2, cosine)
    return (cosine >= config.hold).any(axis=1) & (config.hold < 1)


def untied(state):
    """The state with a decoder of its own, a copy of W with all that belongs to it."""
    return state | {f"{part}W_dec": state[f"{part}W"] for part in ("", "m.", "v.", "updates.")}


# ---- Algorithm 2 -----------------------------------------------------------------------------------------------------


def groups(config):
    """The group of each neuron, counted from 0."""
    return jnp.arange(config.width) * config.groups // config.width


def targets(config):
    """The target frequency of each group."""
    k = jnp.arange(config.groups)
    return config.htf * (config.ltf / config.htf) ** (k / max(config.groups - 1, 1))


def adapt(config, b, seen, counts, peaks):
    """Algorithm 2, in float64: the new biases, and what was computed on the way."""
    group, target = groups(config), targets(config)
    K = config.groups
    p = counts / seen
    positive = jax.ops.segment_sum((peaks > 0).astype(int), group, K)
    T = jax.ops.segment_sum(peaks, group, K) / jnp.maximum(positive, 1)
    p_k = target[group]
    lowered = p > p_k
    raised = ~lowered & (p < jnp.maximum(config.eps, config.floor * p_k))
    b = b.astype(float)
    down = jnp.maximum(b - config.gamma_minus * peaks, -1)
    up = jnp.minimum(b + config.gamma_plus * T[group], 0)
    b = jnp.where(lowered, down, jnp.where(raised, up, b))
    return b, {"group": group, "target": target, "p": p, "T": T, "lowered": lowered, "raised": raised}


# ---- a step ----------------------------------------------------------------------------------------------------------


def start(config, W):
    """The state before step 1."""
    W = unit(W)
    M, d = W.shape
    state = {"W": W, "a": jnp.full(M, config.a_init, W.dtype), "b": jnp.full(M, config.b_init, W.dtype)}
    state |= {"b_pre": jnp.zeros(d, W.dtype), "held": jnp.zeros(M, bool)}
    for name in ("W", "a", "b_pre"):
        state |= {f"m.{name}": 0 * state[name], f"v.{name}": 0 * state[name], f"updates.{name}": 0}
    if config.untied and forming_steps(config) == 0:
        state |= {"W_dec": W, "m.W_dec": 0 * W, "v.W_dec": 0 * W, "updates.W_dec": 0}
    return state | emptied(M)


def emptied(M):
    """Buffers that hold nothing."""
    return {"left.seen": 0, "left.counts": jnp.zeros(M, int), "left.peaks": jnp.zeros(M)}


def step(config, t, rows, state):
    """Step t on rows (L, d), in the dtype of the state's W: all quantities by name."""
    F = forming_steps(config)
    if t == F + 1 and t > 1:
        state = state | {"held": agreeing(config, state["W"])}
        if config.untied:
            state = untied(state)
    own_decoder, held = "W_dec" in state, state["held"]
    trained = ["W"]
    if t > F:
        trained = [name for name in ("W", "W_dec", "a", "b_pre") if name in state]

    x = unit(jnp.asarray(rows, state["W"].dtype))
    theta = {name: state[name] for name in ("W", "a", "b", "b_pre")}
    theta["V"] = state["W_dec"] if own_decoder else state["W"]
    (loss, (y, on, s, f)), grads = jax.value_and_grad(loss_of, has_aux=True)(theta, config, x)
    grads["b"] = 0 * grads["b"]
    got = {"x": x, "held": held, "y": y, "on": on, "s": s, "f": f, "loss": loss}
    got |= {"dW.detector": grads["W"], "dW.reconstructor": grads["V"]}
    if own_decoder:
        grads["W_dec"] = grads["V"]
    else:
        grads["W"] = grads["W"] + grads["V"]
    got |= {f"d{name}": grads[name] for name in ("W", "W_dec", "a", "b", "b_pre") if name in grads}

    lr = learning_rate(config, t)
    got["lr"] = lr
    new = {}
    for name in [name for name in ("W", "W_dec", "a", "b_pre") if name in state]:
        value, m, v, n = (state[part + name] for part in ("", "m.", "v.", "updates."))
        if name in trained:
            n = int(n) + 1
            value, m, v = adamw(config, lr, value, grads[name], m, v, n)
        new |= {name: value, f"m.{name}": m, f"v.{name}": v, f"updates.{name}": n}
    for name in [name for name in ("W", "W_dec") if name in new]:
        got[f"moved.{name}"] = new[name]
        new[name] = jnp.where(held[:, None], state[name], unit(new[name]))

    seen = state["left.seen"] + len(x)
    counts = state["left.counts"] + on.sum(axis=0)
    peaks = jnp.maximum(state["left.peaks"], y.max(axis=0).astype(float))
    got |= {"seen": seen, "counts": counts, "peaks": peaks}
    b, left = state["b"], {"left.seen": seen, "left.counts": counts, "left.peaks": peaks}
    if t % config.adapt_every == 0:
        b, quantities = adapt(config, b, seen, counts, peaks)
        got |= quantities
        left = emptied(config.width)
    return got | new | left | {"b": b.astype(x.dtype)}


def train(config, W, batches):
    """Run on from W, step by step on these batches: what each step gives."""
    state = start(config, W)
    for t, rows in enumerate(batches, 1):
        state = step(config, t, rows, state)
        yield state
