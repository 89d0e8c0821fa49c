"""The network that all baselines share, and the gradients that follow from those of its pre-activations.

    f(x) = Σ_m s_m v_m + b_pre ,      y_m = w_m · (x - b_pre) + b_m ,      r = f(x) - x

The network is untied and v_m has unit norm: only so do penalties on s and thresholds on y mean the same for every
neuron.  w_m is free, every bias gets its gradient, and there are no output scales.  How y becomes the codes s is the
method's own, one file each.

Shapes: L rows in a batch, d input dimensions, M neurons.  Every function computes in the dtype of its parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from refgba.config import BaselineConfig
from refgba.sae import unit_rows
from refgba.streams import stream
from refgba.types import Array, Mask


@dataclass
class Params:
    """The parameters of a baseline; also the container of their gradients.

    W: (M, d) encoder rows w_m.  b: (M,) neuron biases.  b_pre: (d,).  W_dec: (M, d) decoder rows v_m of unit norm.
    theta: (M,) thresholds θ_m >= 0, which only JumpReLU trains.  BatchTopK's and Matryoshka's are those of inference,
    all alike; those of the others stay 0, and nothing reads them.
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

    y: (L, M) pre-activations.  on: (L, M) which neurons are active.  s: (L, M) codes.  f: (L, d) reconstructions.
    """

    y: Array
    on: Mask
    s: Array
    f: Array


def random_params(config: BaselineConfig, d: int) -> Params:
    """The parameters before the first step: random unit w_m, v_m = w_m, biases and thresholds 0."""
    return starting_params(config, d, theta=0.0)


def starting_params(config: BaselineConfig, d: int, theta: float) -> Params:
    """The same with every threshold at `theta`."""
    W = unit_rows(stream(config.seed, "weights").standard_normal((config.width, d)))  # (M, d)
    params = Params(W, np.zeros(config.width), np.zeros(d), W.copy(), np.full(config.width, theta))
    return params.astype(config.master)


def pre_activations(params: Params, x: Array) -> Array:
    """y_m = w_m · (x - b_pre) + b_m for rows x (L, d): (L, M)."""
    y: Array = (x - params.b_pre) @ params.W.T + params.b
    return y


def decode(params: Params, s: Array) -> Array:
    """f = Σ_m s_m v_m + b_pre for codes s (L, M): (L, d)."""
    f: Array = s @ params.W_dec + params.b_pre
    return f


def backward(params: Params, x: Array, r: Array, dy: Array, dV: Array) -> Params:
    """All gradients but those of the thresholds, which are 0 here, as a `Params`.

    x, r: (L, d) rows and residuals f - x.  dy: (L, M) the gradients dL/dy_m of each row.  dV: (M, d) the gradients
    dL/dv_m, summed over the batch.  Then

        dL/dw_m   = dL/dy_m (x - b_pre)
        dL/db_m   = dL/dy_m
        dL/db_pre = r - Σ_m dL/dy_m w_m

    each averaged over the batch.
    """
    L = len(x)
    dW = dy.T @ (x - params.b_pre) / L  # (M, d)
    db = dy.mean(axis=0)  # (M,)
    b_pre = r.mean(axis=0) - db @ params.W  # (d,)
    return Params(W=dW, b=db, b_pre=b_pre, W_dec=dV / L, theta=np.zeros_like(params.theta))


def largest(y: Array, k: int) -> Mask:
    """Which are the k largest of each row of y (L, M), as far as they are positive: (L, M) bool.

    Where several equal the k-th largest, some of them are taken, always the same in the same y.

    >>> import numpy as np
    >>> from refgba.baselines import largest
    >>> largest(np.array([[3.0, -1.0, 2.0, 1.0], [-4.0, -3.0, -2.0, 1.0]]), k=2)
    array([[ True, False,  True, False],
           [False, False, False,  True]])
    """
    M = y.shape[1]
    if k >= M:
        return y > 0
    on = np.zeros(y.shape, bool)
    np.put_along_axis(on, np.argpartition(y, M - k, axis=1)[:, M - k :], True, axis=1)
    return on & (y > 0)


def signed(y: Array, on: Mask) -> Array:
    """y (L, M) where active, and elsewhere at most 0: positive exactly where active, since codes are positive."""
    return np.where(on, y, np.minimum(y, 0))
