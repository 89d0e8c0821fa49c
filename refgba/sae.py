"""Section 2: the network, its loss, and every gradient, written out.

    f(x; Θ) = Σ_m a_m v_m φ(y_m) + b_pre ,      y_m = w_m · (x - b_pre) + b_m

The paper ties the weights: the decoder row v_m *is* the detector w_m.  An untied decoder (`W_dec`, ours) keeps the same
formula with unit rows v_m of its own, so that a_m stays the output scale in both cases.

This file leaves the optimiser to `adam`, the biases to `bias` and the loop to `gba`.

Shapes: L rows in a batch, d input dimensions, M neurons.  Every function computes in the dtype of its parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from refgba.errors import InputError
from refgba.types import Activation, Array, Int64, Mask


@dataclass
class Params:
    """Θ, the parameters of the network (section 2); also the container of their gradients.

    W: (M, d) unit rows w_m, detector and (tied) reconstructor.  a: (M,) output scales.  b: (M,) neuron biases.
    b_pre: (d,).  W_dec: (M, d) unit rows v_m of an untied decoder (ours), or None for the paper's tied weights.
    """

    W: Array
    a: Array
    b: Array
    b_pre: Array
    W_dec: Array | None = None

    @property
    def V(self) -> Array:
        """The decoder rows v_m, (M, d): `W` itself when tied."""
        return self.W if self.W_dec is None else self.W_dec

    def arrays(self) -> dict[str, Array]:
        """The arrays that exist, by name and in the order of the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def astype(self, dtype: npt.DTypeLike) -> Params:
        """A C-contiguous copy with every array in `dtype`."""
        return replace(self, **{name: value.astype(dtype, order="C") for name, value in self.arrays().items()})


@dataclass
class Forward:
    """What one forward pass leaves behind for the gradients, the buffers and the metrics.

    y: (L, M) pre-activations.  on: (L, M) gates 1{y > 0}.  s: (L, M) codes φ(y).  f: (L, d) reconstructions.
    """

    y: Array
    on: Mask
    s: Array
    f: Array


def unit_rows(A: Array, numbers: Int64 | None = None, *, otherwise: Array | None = None) -> Array:
    """Each row of A (any, d) divided by its norm.

    A row of zeros has no direction.  otherwise: (any, d) the rows that take their place; A itself keeps them.  Raises
    InputError for a row of zeros without it.  numbers: (any,) the rows' numbers for that message, where they are not
    their places in A.

    >>> import numpy as np
    >>> from refgba.sae import unit_rows
    >>> unit_rows(np.array([[3.0, 4.0]]))
    array([[0.6, 0.8]])
    >>> zeros = np.zeros((1, 2))
    >>> unit_rows(zeros, otherwise=zeros)
    array([[0., 0.]])
    """
    norm = np.linalg.norm(A, axis=1, keepdims=True)  # (any, 1)
    if otherwise is not None:
        has_direction = norm > 0
        return np.where(has_direction, A / np.where(has_direction, norm, 1), otherwise)
    zero = np.flatnonzero(norm == 0)
    if zero.size:
        first = zero[0] if numbers is None else numbers[zero[0]]
        raise InputError(f"row {first} is all zeros and cannot be scaled to unit norm ({zero.size} such rows)")
    unit: Array = A / norm
    return unit


def encode(params: Params, x: Array, activation: Activation) -> tuple[Array, Mask, Array]:
    """Pre-activations y, gates and codes s of the rows x (L, d), each (L, M).

    ReLU:      φ = max(y, 0).
    JumpReLU:  φ = (y - b) 1{y > 0}: the gate uses the bias, the magnitude that passes does not.
    """
    z = (x - params.b_pre) @ params.W.T  # (L, M)   z_m = w_m · (x - b_pre)
    y = z + params.b  # (L, M)
    on = y > 0  # (L, M)
    s = on * (z if activation == "jumprelu" else y)  # (L, M)
    return y, on, s


def decode(params: Params, s: Array) -> Array:
    """f = Σ_m a_m v_m s_m + b_pre for codes s (L, M): (L, d)."""
    f: Array = s @ (params.a[:, None] * params.V) + params.b_pre  # a scales the rows v_m, as in the formula: (M, d)
    return f


def forward(params: Params, x: Array, activation: Activation) -> Forward:
    """The network on the rows x (L, d).

    Two neurons along the axes: only the first exceeds its bias.  JumpReLU passes its magnitude 0.6 whole, ReLU would
    pass 0.6 - 0.1; a halves it.

    >>> import numpy as np
    >>> from refgba.sae import Params, forward, loss
    >>> params = Params(W=np.eye(2), a=np.array([0.5, 1.0]), b=np.array([-0.1, -0.9]), b_pre=np.zeros(2))
    >>> x = np.array([[0.6, 0.8]])
    >>> fwd = forward(params, x, "jumprelu")
    >>> fwd.y, fwd.s, fwd.f
    (array([[ 0.5, -0.1]]), array([[0.6, 0. ]]), array([[0.3, 0. ]]))
    >>> round(loss(x, fwd.f), 12)  # (0.3² + 0.8²) / 2
    0.365
    """
    y, on, s = encode(params, x, activation)
    return Forward(y, on, s, decode(params, s))


def loss(x: Array, f: Array) -> float:
    """L_rec = 1/2 ||f(x) - x||², mean over the batch.  No sparsity penalty at all."""
    return float(0.5 * np.mean(np.sum((f - x) ** 2, axis=1)))


def gradients(params: Params, x: Array, fwd: Forward) -> Params:
    """The gradients of `loss`, as a `Params` (section 2), with r = f(x) - x and no gradient through the jump.

        dL/dw_m   = a_m (v_m · r) on_m (x - b_pre)      as detector
        dL/dv_m   = a_m s_m r                           as reconstructor; tied weights add the two
        dL/da_m   = s_m (v_m · r)
        dL/db_pre = r - Σ_m a_m (v_m · r) on_m w_m

    each averaged over the batch.  The same lines serve both activations, since dφ/dz = on for either.  b gets none:
    Algorithm 2 moves it.

    The example of `forward`, where r = (-0.3, -0.8) and the second neuron is off:

    >>> import numpy as np
    >>> from refgba.sae import Params, forward, gradients
    >>> params = Params(W=np.eye(2), a=np.array([0.5, 1.0]), b=np.array([-0.1, -0.9]), b_pre=np.zeros(2))
    >>> x = np.array([[0.6, 0.8]])
    >>> g = gradients(params, x, forward(params, x, "jumprelu"))
    >>> g.W[0]  # 0.5 * 0.6 (-0.3, -0.8) + 0.5 * (-0.3) (0.6, 0.8)
    array([-0.18, -0.36])
    >>> g.a[0].round(12)  # 0.6 * (-0.3)
    np.float64(-0.18)
    >>> g.b_pre  # (-0.3, -0.8) - 0.5 * (-0.3) (1, 0)
    array([-0.15, -0.8 ])
    """
    L, a = len(x), params.a[:, None]
    r = fwd.f - x  # (L, d)
    vr = r @ params.V.T  # (L, M)
    vr *= fwd.on  # (v_m · r) on_m
    dW = a * (vr.T @ (x - params.b_pre)) / L  # (M, d)
    dV = a * (fwd.s.T @ r) / L  # (M, d)
    da = np.einsum("lm,lm->m", fwd.s, vr) / L  # (M,)
    db_pre = r.mean(axis=0) - (params.a * vr.mean(axis=0)) @ params.W  # (d,)   the mean goes inside the product
    tied = params.W_dec is None
    return Params(dW + dV if tied else dW, da, np.zeros_like(params.b), db_pre, None if tied else dV)
