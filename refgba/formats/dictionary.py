"""`Dictionary`: what the files of all formats have in common, a sparse autoencoder of any origin.

Every format reads its files into a `Dictionary` and writes one out; nothing here knows a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from refgba import baselines
from refgba.data.unit_rows import prepared
from refgba.errors import InputError
from refgba.sae import unit_rows
from refgba.types import Array, Float64

Input = Literal["raw", "unit", "sqrt_d", "layer_norm"]

ARRAYS = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")


@dataclass(frozen=True, eq=False)
class Dictionary:
    """A sparse autoencoder of any origin, M neurons ("latents" elsewhere) in d dimensions, for rows x from `prepare`.

        z = (x - b_dec) · W_enc^T + b_enc ,    s = z 1{z > threshold} ,    f = s · W_dec + b_dec

    b_dec is taken off the input only if `subtract_b_dec` is true.  This is a JumpReLU; a threshold of 0 makes it a
    ReLU.  With k it is a TopK: the k largest z of each row are kept, as far as they are positive, and all thresholds
    are 0.

    W_enc, W_dec: (M, d), rows of any norm.  b_enc: (M,).  threshold: (M,), not negative.  b_dec: (d,).  All are finite,
    and all are float32 or all float64, which is what every method computes in.  InputError otherwise, naming the array.
    k: None, or from 1 to M.

    input: what `prepare` makes of a row of activations.  "raw": nothing.  "unit": scaled to unit norm, as our training
    does.  "sqrt_d": scaled to norm √d, SAELens' constant_norm_rescale.  "layer_norm": SAELens' of that name, less the
    row's mean and over its standard deviation.  Reconstructions are of the prepared rows.

    centre: (d,) float64, what "unit" rows lose before they are scaled, None if nothing (`refgba.data.centre`).
    """

    W_enc: Array
    b_enc: Array
    threshold: Array
    W_dec: Array
    b_dec: Array
    subtract_b_dec: bool
    input: Input
    k: int | None = None
    centre: Float64 | None = None

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2 or self.W_enc.size == 0:
            raise InputError(f"W_enc has shape {self.W_enc.shape}, it should be (neurons, dimensions)")
        dtype = self.W_enc.dtype
        for name, shape in shapes(*self.W_enc.shape).items():
            array: Array = getattr(self, name)
            if array.shape != shape:
                raise InputError(f"{name} has shape {array.shape}, with this W_enc it should be {shape}")
            if array.dtype != dtype or dtype not in (np.float32, np.float64):
                raise InputError(f"{name} holds {array.dtype}; all arrays should be float32, or all float64")
            if not np.isfinite(array).all():
                raise InputError(f"{name} holds a NaN or an infinity")
        negative = np.flatnonzero(self.threshold < 0)
        if negative.size:
            raise InputError(
                f"neuron {negative[0]} has the threshold {self.threshold[negative[0]]:.6g} ({negative.size} such "
                "neurons); a threshold of a JumpReLU is not negative"
            )
        if self.k is not None and not 1 <= self.k <= len(self.W_enc):
            raise InputError(f"k is {self.k}, it should be from 1 to {len(self.W_enc)}, the number of neurons")
        if self.k is not None and self.threshold.any():
            raise InputError(f"with thresholds there cannot be a k ({self.k}) too")
        if self.centre is not None:
            if self.input != "unit":
                raise InputError(f"a centre goes with unit rows only, not with {self.input} ones")
            if self.centre.shape != (self.W_enc.shape[1],) or self.centre.dtype != np.float64:
                raise InputError(f"the centre should be ({self.W_enc.shape[1]},) float64 numbers")
            if not np.isfinite(self.centre).all():
                raise InputError("the centre holds a NaN or an infinity")
        if self.input == "layer_norm" and self.W_enc.shape[1] < 2:
            raise InputError("layer_norm needs at least 2 dimensions")

    @property
    def activation(self) -> Literal["topk", "jumprelu", "relu"]:
        """The simplest name of what makes codes of pre-activations."""
        return "topk" if self.k is not None else "jumprelu" if self.threshold.any() else "relu"

    def arrays(self) -> dict[str, Array]:
        """The arrays by name, in the order of ARRAYS, each C-contiguous."""
        return {name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}

    def prepare(self, x: Array) -> Array:
        """Rows of activations x (L, d) of any float dtype as the network takes them, (L, d).

        InputError for a row of zeros that should get a norm.
        """
        if self.input == "unit":
            return prepared(x, str(self.W_enc.dtype), self.centre)
        x = x.astype(self.W_enc.dtype, copy=False)
        if self.input == "raw":
            return x
        if self.input == "layer_norm":
            x = x - x.mean(axis=1, keepdims=True)
            # n - 1, and 1e-5 beside the deviation rather than the variance, as SAELens does with torch's `std`.
            scaled: Array = x / (x.std(axis=1, ddof=1, keepdims=True) + 1e-5)
            return scaled
        at_norm: Array = unit_rows(x) * math.sqrt(x.shape[1])
        return at_norm

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Margins, above 0 exactly where a neuron is active, and codes s of prepared rows x (L, d), each (L, M).

        A margin is z - threshold; of TopK it is z where active, and elsewhere at most 0.
        """
        z = (x - self.b_dec if self.subtract_b_dec else x) @ self.W_enc.T + self.b_enc  # (L, M)
        if self.k is not None:
            on = baselines.largest(z, self.k)
            return baselines.signed(z, on), z * on
        return z - self.threshold, z * (z > self.threshold)

    def decode(self, s: Array) -> Array:
        """The reconstruction f, (L, d), of prepared rows from their codes s (L, M)."""
        f: Array = s @ self.W_dec + self.b_dec
        return f

    def subtracting(self, subtract_b_dec: bool) -> Dictionary:
        """The same network with b_dec taken off its input, or with that folded into b_enc.

        The difference, b_dec · W_enc^T, is summed in float64 and rounded once.
        """
        if subtract_b_dec == self.subtract_b_dec:
            return self
        shift = np.einsum("md,d->m", self.W_enc, self.b_dec, dtype=np.float64)  # (M,)
        b_enc = self.b_enc + shift if subtract_b_dec else self.b_enc - shift
        return replace(self, b_enc=b_enc.astype(self.b_enc.dtype), subtract_b_dec=subtract_b_dec)

    def at_norm_sqrt_d(self) -> Dictionary:
        """The same network of unit rows for rows of norm √d: its codes are √d times as large."""
        assert self.input == "unit"
        if self.centre is not None:
            raise InputError(
                "rows were centred before they were scaled, which SAELens cannot do to raw activations: saelens-folded "
                "takes the rows that `refgba_centre` and the norm make, and npz holds all of it"
            )
        scale = math.sqrt(self.W_enc.shape[1])
        scaled = {name: getattr(self, name) * scale for name in ("b_enc", "threshold", "b_dec")}
        return replace(self, **scaled, input="sqrt_d")


def shapes(M: int, d: int) -> dict[str, tuple[int, ...]]:
    """The shape of each of ARRAYS."""
    return {"W_enc": (M, d), "b_enc": (M,), "threshold": (M,), "W_dec": (M, d), "b_dec": (d,)}
