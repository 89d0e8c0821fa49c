"""What GBA is compared with: autoencoders trained with an L1 penalty, TopK, BatchTopK and JumpReLU.

    f(x) = Σ_m s_m v_m + b_pre ,      z_m = w_m · (x - b_pre) + b_m ,      r = f(x) - x

    method      codes s                                   loss besides 1/2 ||r||², mean over the batch
    l1          max(z, 0)                                 λ Σ_m s_m
    topk        z, the k largest positive of a row        AuxK
    batchtopk   z, the k L largest positive of L rows     AuxK
    jumprelu    z 1{z > θ}                                λ Σ_m 1{z_m > θ_m}

The network is untied and v_m has unit norm: only so do penalties on s and thresholds on z mean the same for every
neuron.  w_m is free, every bias gets its gradient, and there are no output scales.  The sources:

    l1          Bricken et al. 2023, "Towards Monosemanticity"
    topk        Gao et al. 2024, arXiv 2406.04093, with AuxK against dead neurons
    batchtopk   Bussmann et al. 2024, arXiv 2412.06410
    jumprelu    Rajamanoharan et al. 2024, arXiv 2407.14435

Where this departs from them, for all four: the reconstruction loss has a factor 1/2, as everywhere here, and AuxK has
it too.  So λ is half of what it is beside ||r||², and `aux` weighs what it does there.  b_pre starts at 0, not at a
median of the data, and neither the learning rate nor λ is warmed up.

The optimiser is in `adam`, the minibatches and the loop are in `gba`: `gba.train(state, batches, step, adapt)`.

Shapes: L rows in a batch, d input dimensions, M neurons.  Every function computes in the dtype of its parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refgba.adam import AdamW
from refgba.bias import Buffer
from refgba.config import BaselineConfig
from refgba.gba import Metrics
from refgba.sae import unit_rows
from refgba.streams import stream
from refgba.types import Array, Int64, Mask

AVERAGED = 1000  # steps over which BatchTopK's threshold is averaged, or a twentieth of the run if that is less


# --- the network ------------------------------------------------------------------------------------------------------


@dataclass
class Params:
    """The parameters of a baseline; also the container of their gradients.

    W: (M, d) encoder rows w_m.  b: (M,) neuron biases.  b_pre: (d,).  W_dec: (M, d) decoder rows v_m of unit norm.
    theta: (M,) thresholds θ_m >= 0: of JumpReLU; of BatchTopK those of inference, all alike; 0 and unused otherwise.
    """

    W: Array
    b: Array
    b_pre: Array
    W_dec: Array
    theta: Array

    @property
    def V(self) -> Array:
        """The decoder rows v_m, (M, d), as in `sae.Params`."""
        return self.W_dec

    def arrays(self) -> dict[str, Array]:
        """The arrays by name, in the order of the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def astype(self, dtype: npt.DTypeLike) -> Params:
        """A C-contiguous copy with every array in `dtype`."""
        return replace(self, **{name: value.astype(dtype, order="C") for name, value in self.arrays().items()})


@dataclass
class Forward:
    """What one forward pass leaves behind for the gradients, the counters and the metrics.

    z: (L, M) pre-activations.  on: (L, M) which neurons are active.  s: (L, M) codes.  f: (L, d) reconstructions.
    """

    z: Array
    on: Mask
    s: Array
    f: Array


def encode(params: Params, x: Array, config: BaselineConfig, training: bool) -> tuple[Array, Mask, Array]:
    """Pre-activations z, who is active, and codes s of the rows x (L, d), each (L, M).

    Only BatchTopK differs in training: there rows compete for the k L places of their batch.  Inference cannot let the
    code of a row depend on others, and takes a threshold instead: the mean of the smallest code that got a place.
    """
    z = (x - params.b_pre) @ params.W.T + params.b  # (L, M)   z_m = w_m · (x - b_pre) + b_m
    if config.method == "l1":
        on = z > 0
    elif config.method == "topk":
        on = largest(z, config.k)
    elif config.method == "batchtopk" and training:
        on = largest(z.reshape(1, -1), config.k * len(x)).reshape(z.shape)
    else:
        on = z > params.theta
    return z, on, on * z


def largest(z: Array, k: int) -> Mask:
    """Which are the k largest of each row of z (L, M), as far as they are positive: (L, M) bool.

    Among equals at the edge some are taken, always the same in the same z.

    >>> import numpy as np
    >>> from refgba.baselines import largest
    >>> largest(np.array([[3.0, -1.0, 2.0, 1.0], [-4.0, -3.0, -2.0, 1.0]]), k=2)
    array([[ True, False,  True, False],
           [False, False, False,  True]])
    """
    M = z.shape[1]
    if k >= M:
        return z > 0
    on = np.zeros(z.shape, bool)
    np.put_along_axis(on, np.argpartition(z, M - k, axis=1)[:, M - k :], True, axis=1)
    return on & (z > 0)


def decode(params: Params, s: Array) -> Array:
    """f = Σ_m s_m v_m + b_pre for codes s (L, M): (L, d)."""
    f: Array = s @ params.W_dec + params.b_pre
    return f


def forward(params: Params, x: Array, config: BaselineConfig, training: bool = True) -> Forward:
    """The network on the rows x (L, d)."""
    z, on, s = encode(params, x, config, training)
    return Forward(z, on, s, decode(params, s))


def evaluation_codes(params: Params, x: Array, config: BaselineConfig) -> tuple[Array, Array]:
    """y and the codes s of inference on the rows x (L, d), each (L, M), for evaluation: y > 0 exactly where active.

    y is by how much z exceeds what it has to.  For TopK that depends on the row's other neurons: there it is z where
    active, and elsewhere at most 0.
    """
    z, on, s = encode(params, x, config, training=False)
    if config.method == "topk":
        return signed(z, on), s
    return z - params.theta, s  # θ = 0 for L1


def signed(z: Array, on: Mask) -> Array:
    """Z (L, M) where active, and elsewhere at most 0: positive exactly where active, since codes are positive."""
    return np.where(on, z, np.minimum(z, 0))


# --- the losses and their gradients -----------------------------------------------------------------------------------


@dataclass
class Aux:
    """AuxK: the neurons that are dead reconstruct what the others leave over, and so get a gradient to revive by.

    dead: (D,) which.  s: (L, D) their codes, of each row the `aux_k` largest positive z.  e: (L, d) the residual x - f,
    a constant to the gradient.  weight: `aux` over the residual's variance, mean_l ||e_l - ē||², a constant too.
    """

    dead: Int64
    s: Array
    e: Array
    weight: float


def auxiliary(x: Array, fwd: Forward, config: BaselineConfig, dead: Mask) -> Aux | None:
    """What AuxK needs on the rows x (L, d), with the neurons that are `dead` (M,); None where it has no part.

    The codes are of the z of this forward pass, dead neurons that happen to be positive; b_pre is no part of what they
    reconstruct.  One row alone has no variance to divide by, and no AuxK.
    """
    if config.method not in ("topk", "batchtopk") or config.aux == 0 or not dead.any():
        return None
    which = np.flatnonzero(dead)  # (D,)
    z = fwd.z[:, which]  # (L, D)
    e = x - fwd.f  # (L, d)
    variance = float(np.mean(np.sum((e - e.mean(axis=0)) ** 2, axis=1)))
    if variance == 0:
        return None
    return Aux(which, largest(z, config.aux_k or max(1, x.shape[1] // 2)) * z, e, config.aux / variance)


class Loss(NamedTuple):
    """The loss of a batch: `total` is what is minimised, the sum of the other two."""

    total: float
    reconstruction: float
    penalty: float


def loss(params: Params, x: Array, fwd: Forward, config: BaselineConfig, aux: Aux | None = None) -> Loss:
    """The losses of the table above on the rows x (L, d), each a mean over the batch.

    L1's penalty is λ Σ_m s_m ||v_m||, and ||v_m|| = 1: the part of its gradient in v_m would be along v_m, and `step`
    removes that.  AuxK's is aux · 1/2 ||ê - e||² / mean ||e - ē||², with the residual e and ê = Σ_dead s_m v_m.
    """
    reconstruction = float(0.5 * np.mean(np.sum((fwd.f - x) ** 2, axis=1)))
    penalty = 0.0
    if config.method == "l1":
        penalty = config.sparsity * float(np.mean(np.sum(fwd.s, axis=1)))
    elif config.method == "jumprelu":
        penalty = config.sparsity * np.count_nonzero(fwd.on) / len(x)
    elif aux is not None:
        left = aux.s @ params.W_dec[aux.dead] - aux.e  # (L, d)   ê - e
        penalty = aux.weight * float(0.5 * np.mean(np.sum(left**2, axis=1)))
    return Loss(reconstruction + penalty, reconstruction, penalty)


def gradients(params: Params, x: Array, fwd: Forward, config: BaselineConfig, aux: Aux | None = None) -> Params:
    """The gradients of `loss`, as a `Params`; of what is selected, none through the selection.

        dL/dz_m   = (v_m · r + λ) on_m          λ for L1 only
        dL/dw_m   = dL/dz_m (x - b_pre)
        dL/db_m   = dL/dz_m
        dL/dv_m   = s_m r
        dL/db_pre = r - Σ_m dL/dz_m w_m
        dL/dθ_m   = -(θ_m v_m · r + λ) K((z_m - θ_m) / ε) / ε          JumpReLU; K(u) = 1{|u| < 1/2}

    each averaged over the batch.  With u = weight (ê - e), AuxK adds for its active dead neurons v_m · u to dL/dz_m,
    and s_m u to dL/dv_m.

    The last line is no derivative: the loss is a staircase in θ.  It estimates that of the *expected* loss, to which
    only rows with z_m at θ_m contribute, by those within half a bandwidth ε of it (their section 4).  K sees z,
    on both sides of θ_m, as in their equations; dictionary_learning's L0 term looks at the codes, which are 0 below it.
    """
    L = len(x)
    r = fwd.f - x  # (L, d)
    dz = r @ params.W_dec.T  # (L, M)   v_m · r
    theta = np.zeros_like(params.theta)
    if config.method == "jumprelu":
        near = np.abs(fwd.z - params.theta) < config.bandwidth / 2  # (L, M)   K
        theta -= params.theta * np.mean(near * dz, axis=0) / config.bandwidth
        theta -= config.sparsity * (np.count_nonzero(near, axis=0) / L / config.bandwidth).astype(theta.dtype)
    if config.method == "l1":
        dz += config.sparsity
    dz *= fwd.on
    dV = fwd.s.T @ r  # (M, d)
    if aux is not None:
        V = params.W_dec[aux.dead]  # (D, d)
        u = aux.weight * (aux.s @ V - aux.e)  # (L, d)
        dz[:, aux.dead] += (u @ V.T) * (aux.s > 0)
        dV[aux.dead] += aux.s.T @ u
    dW = dz.T @ (x - params.b_pre) / L  # (M, d)
    db = dz.mean(axis=0)  # (M,)
    return Params(W=dW, b=db, b_pre=r.mean(axis=0) - db @ params.W, W_dec=dV / L, theta=theta)


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass
class State:
    """A run between two steps.

    buffer: counts and peaks of the codes since the last `adapt`.  last: those before, None at first.  idle: (M,) rows
    since each neuron last fired, counted in whole batches.  t: steps done.
    """

    config: BaselineConfig
    params: Params
    optimiser: dict[str, AdamW]
    buffer: Buffer
    last: Buffer | None
    idle: Int64
    t: int = 0


def random_params(config: BaselineConfig, d: int) -> Params:
    """The start: random unit w_m, v_m = w_m, biases 0, and JumpReLU's thresholds at `theta_init`."""
    W = unit_rows(stream(config.seed, "weights").standard_normal((config.width, d)))  # (M, d)
    theta = config.theta_init if config.method == "jumprelu" else 0.0
    params = Params(W, np.zeros(config.width), np.zeros(d), W.copy(), np.full(config.width, theta))
    return params.astype(config.master)


def trained(config: BaselineConfig) -> tuple[str, ...]:
    """The parameters that AdamW trains."""
    weights = ("W", "b", "b_pre", "W_dec")
    return (*weights, "theta") if config.method == "jumprelu" else weights


def learning_rate(config: BaselineConfig, t: int) -> float:
    """The learning rate of step t = 1..T: `lr`, and over the last `lr_decay` share of the steps linearly to zero."""
    left = (config.steps - t + 1) / config.steps  # share of the run still to go, from 1 down
    return config.lr * min(1.0, left / config.lr_decay) if config.lr_decay else config.lr


def init(params: Params, config: BaselineConfig) -> State:
    """The state before the first step; the arrays of `params` are not shared with it."""
    params = params.astype(config.master)
    optimiser = {name: AdamW.like(getattr(params, name)) for name in trained(config)}
    return State(config, params, optimiser, Buffer(config.width), None, np.zeros(config.width, np.int64))


def step(state: State, x: Array) -> Metrics:
    """One step on a minibatch x (L, d) of unit rows, in the dtype of the run.

    The loss it reports is the reconstruction's, without the penalty: comparable between methods, and with GBA's.
    """
    config, params = state.config, state.params
    state.t += 1
    fwd = forward(params, x, config)
    state.idle = np.where(fwd.on.any(axis=0), 0, state.idle + len(x))  # (M,)
    aux = auxiliary(x, fwd, config, dead=state.idle >= config.dead_after)
    found = loss(params, x, fwd, config, aux)
    grads = gradients(params, x, fwd, config, aux)
    grads.W_dec = across(grads.W_dec, params.W_dec)
    for name in trained(config):
        theta, g = getattr(params, name), getattr(grads, name)
        lr = learning_rate(config, state.t)
        setattr(params, name, state.optimiser[name].update(theta, g, lr, config))
    params.W_dec = unit_rows(params.W_dec)
    if config.method == "jumprelu":
        params.theta = np.maximum(params.theta, 0)  # a code is never negative
    elif config.method == "batchtopk":
        smallest = float(fwd.s[fwd.on].min()) if fwd.on.any() else 0.0
        params.theta = averaged(params.theta, smallest, config, state.t)
    state.buffer.add(signed(fwd.z, fwd.on))
    return Metrics(found.reconstruction, np.count_nonzero(fwd.on) / len(x))


def across(g: Array, V: Array) -> Array:
    """The gradients g (M, d) without their parts along the unit rows of V (M, d): g_m - (g_m · v_m) v_m.

    Renormalising undoes a move along v_m anyway, but Adam would take that part into its moments and scale the rest by
    it (Bricken et al. 2023, appendix on training).
    """
    rest: Array = g - np.einsum("md,md->m", g, V)[:, None] * V
    return rest


def averaged(theta: Array, smallest: float, config: BaselineConfig, t: int) -> Array:
    """BatchTopK's thresholds of inference (M,) after step t = 1..T, whose smallest active code is `smallest`.

    The mean over batches of the smallest active code, as its authors take it, or 0 of a batch without any.  Since it
    moves while the network learns, only about the last AVERAGED steps count, but no more than a twentieth of the run
    (ours; dictionary_learning averages over 1000, and not before step 1000): θ + (smallest - θ) / n, the plain mean of
    the first n steps, and from there an exponential one.
    """
    n = min(t, AVERAGED, max(1, config.steps // 20))
    moved: Array = theta + (smallest - theta) / n
    return moved


def adapt(state: State) -> None:
    """Empty the counters.  Nothing adapts here: the loop calls it every `adapt_every` steps, and logs read `last`."""
    state.last, state.buffer = state.buffer, Buffer(state.config.width)
