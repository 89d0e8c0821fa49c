"""GBA in torch, written from tutorial.md and refgba/oracle/format.md alone: the proof that they suffice for a port.

The tutorial's lessons 3 to 6 have the formulas; "The method, exactly" on the page has orders, ties, phases and dtypes.

It shares nothing with refgba but the settings: gradients are autograd's, AdamW is written out.  A state is a dictionary
of tensors, and so is what a step gives; both have the names of refgba/oracle/format.md, so that a step's results hold
the state before the next one and are, as they are, what `refgba oracle check` reads.  Tensors are never changed in
place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from refgba.config import GBAConfig

Values = dict[str, Tensor]


def train(config: GBAConfig, W: Tensor, minibatches: Iterable[Tensor]) -> Iterator[Values]:
    """Algorithm 1 from the weights W (M, d): what each step gives, on minibatches (L, d)."""
    state = start(config, W)
    for t, rows in enumerate(minibatches, 1):
        state = step(config, t, rows, state)
        yield state


def start(config: GBAConfig, W: Tensor) -> Values:
    """The state before the first step ("The start"); the rows of W (M, d) are scaled to unit norm."""
    M, d = W.shape
    theta = {"W": unit_rows(W), "a": W.new_full((M,), config.a_init), "b_pre": W.new_zeros(d)}
    if config.untied and forming_steps(config) == 0:
        theta["W_dec"] = theta["W"]
    state = theta | {"b": W.new_full((M,), config.b_init), "held": torch.zeros(M, dtype=torch.bool)} | empty_buffers(M)
    for name, value in theta.items():
        state |= {f"m.{name}": 0 * value, f"v.{name}": 0 * value, f"updates.{name}": torch.tensor(0)}
    return state


def step(config: GBAConfig, t: int, rows: Tensor, state: Values) -> Values:
    """Step t, counted from 1, on rows (L, d), from the state before it ("Step t = 1..T")."""
    F = forming_steps(config)
    if t == F + 1 and t > 1:  # 1. forming is over
        state = state | end_of_forming(config, state)
    x = unit_rows(rows)
    lr = learning_rate(config, t)
    got = carried(state) | {"rows": rows, "x": x, "lr": torch.tensor(lr, dtype=x.dtype)}
    got |= forward_backward(config, x, state)  # 2.

    for name in ("W", "a", "b_pre", "W_dec"):  # 3.
        if name == "W" or (t > F and name in state):
            got |= adamw(config, lr, name, state, got[f"d{name}"])
    got["moved.W"] = got["W"]  # 4.
    got["W"] = torch.where(state["held"][:, None], state["W"], unit_rows(got["W"]))
    if "W_dec" in state:
        got["moved.W_dec"] = got["W_dec"]
        got["W_dec"] = torch.where(state["held"][:, None], state["W_dec"], unit_rows(got["W_dec"]))

    seen = state["left.seen"] + len(x)  # 5.
    counts = state["left.counts"] + (got["y"] > 0).sum(dim=0)
    peaks = torch.maximum(state["left.peaks"], got["y"].double().amax(dim=0))  # from 0 on: max(max y, 0)
    got |= {"seen": seen, "counts": counts, "peaks": peaks}
    if t % config.adapt_every == 0:  # 7.
        return got | adapt(config, state["b"], seen, counts, peaks) | empty_buffers(len(counts))
    return got | {"left.seen": seen, "left.counts": counts, "left.peaks": peaks}


def carried(values: Values) -> Values:
    """Of what a step gave, the state that the next one begins with."""
    whole, parts = ("W", "W_dec", "a", "b_pre", "b", "held"), ("m.", "v.", "updates.", "left.")
    return {name: value for name, value in values.items() if name in whole or name.startswith(parts)}


def forward_backward(config: GBAConfig, x: Tensor, state: Values) -> Values:
    """The network on x (L, d), lesson 3, its loss and autograd's gradients in place of those of lesson 4."""
    leaf = {name: state[name].clone().requires_grad_() for name in ("W", "a", "b_pre")}
    V = state.get("W_dec", state["W"]).clone().requires_grad_()  # (M, d)   w_m as reconstructor is a leaf of its own
    z = (x - leaf["b_pre"]) @ leaf["W"].T  # (L, M)
    y = z + state["b"]
    on = y > 0  # a comparison has no gradient, so none goes through the jump
    s = on * (z if config.activation == "jumprelu" else y)
    f = s @ (leaf["a"][:, None] * V) + leaf["b_pre"]  # (L, d)
    loss = (f - x).square().sum(dim=1).mean() / 2
    detector, da, db_pre, reconstructor = torch.autograd.grad(loss, (*leaf.values(), V))
    got = {"y": y, "on": on, "s": s, "f": f, "loss": loss, "da": da, "db_pre": db_pre, "db": 0 * state["b"]}
    got |= {"dW.detector": detector, "dW.reconstructor": reconstructor}
    got |= {"dW": detector, "dW_dec": reconstructor} if "W_dec" in state else {"dW": detector + reconstructor}
    return {name: value.detach() for name, value in got.items()}


def adamw(config: GBAConfig, lr: float, name: str, state: Values, g: Tensor) -> Values:
    """One parameter after AdamW with gradient g, and its moments and count (lesson 6)."""
    updates = state[f"updates.{name}"] + 1
    m = config.beta1 * state[f"m.{name}"] + (1 - config.beta1) * g
    v = config.beta2 * state[f"v.{name}"] + (1 - config.beta2) * g**2
    m_hat = m / (1 - config.beta1 ** int(updates))
    v_hat = v / (1 - config.beta2 ** int(updates))
    theta = (1 - lr * config.weight_decay) * state[name] - lr * m_hat / (v_hat.sqrt() + config.adam_eps)
    return {name: theta, f"m.{name}": m, f"v.{name}": v, f"updates.{name}": updates}


def adapt(config: GBAConfig, b: Tensor, seen: Tensor, counts: Tensor, peaks: Tensor) -> Values:
    """Algorithm 2, lesson 5, in float64 whatever the dtype of b (M,)."""
    K = config.groups
    group = torch.arange(len(b)) * K // len(b)
    target = config.htf * (config.ltf / config.htf) ** (torch.arange(K, dtype=torch.float64) / max(K - 1, 1))
    p = counts.double() / seen
    members = torch.arange(K)[:, None] == group  # (K, M)
    T = (members * peaks).sum(dim=1) / (members & (peaks > 0)).sum(dim=1).clamp(min=1)
    lowered = p > target[group]
    raised = ~lowered & (p < (config.floor * target[group]).clamp(min=config.eps))
    down = (b.double() - config.gamma_minus * peaks).clamp(min=-1)
    up = (b.double() + config.gamma_plus * T[group]).clamp(max=0)
    moved = torch.where(lowered, down, torch.where(raised, up, b.double())).to(b.dtype)
    return {"group": group, "target": target, "p": p, "T": T, "lowered": lowered, "raised": raised, "b": moved}


def empty_buffers(M: int) -> Values:
    """The buffers of M neurons after no row; peaks are float64 in every dtype."""
    counts, peaks = torch.zeros(M, dtype=torch.int64), torch.zeros(M, dtype=torch.float64)
    return {"left.seen": torch.tensor(0), "left.counts": counts, "left.peaks": peaks}


def end_of_forming(config: GBAConfig, state: Values) -> Values:
    """Which neurons are held for good and, if untied, the decoder that begins as a copy of W, moments and all."""
    cosine = (state["W"] @ state["W"].T).fill_diagonal_(-torch.inf)
    then = {"held": (cosine >= config.hold).any(dim=1) & (config.hold < 1)}
    if config.untied:
        then |= {f"{of}W_dec": state[f"{of}W"] for of in ("", "m.", "v.", "updates.")}
    return then


def learning_rate(config: GBAConfig, t: int) -> float:
    """Constant, or in each phase falling to its end."""
    F = forming_steps(config)
    first, last = (1, F) if t <= F else (F + 1, config.steps)
    if config.lr_decay == 0:
        return config.lr
    return config.lr * min(1.0, (last - t + 1) / (last - first + 1) / config.lr_decay)


def forming_steps(config: GBAConfig) -> int:
    """F, the steps that train W alone; Python's round takes halves to the even number, as the page asks."""
    return round(config.form * config.steps)


def unit_rows(x: Tensor) -> Tensor:
    """Rows over their norms."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
