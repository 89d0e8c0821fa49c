"""Folders of EleutherAI's sparsify: cfg.json and sae.safetensors; to read only.

Its TopK autoencoders are read: z = (x - b_dec) · W_enc^T + b_enc of activations as they are, the k largest of each row
pass as far as they are positive.  Its transcoders, skip connections and groupmax compute something else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from refgba.data.files import read_json, regular_size
from refgba.errors import InputError, brief
from refgba.formats.dictionary import Dictionary
from refgba.formats.fields import boolean, choice, count, shown
from refgba.formats.tensors import tensor
from refgba.types import Array

INDEX, WEIGHTS = "cfg.json", "sae.safetensors"
TENSORS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
OTHER = ("transcode", "skip_connection", "signed")  # settings that, where true, make it compute something else


def recognises(path: Path) -> bool:
    """Whether the folder `path` looks like one of sparsify."""
    return os.path.isfile(path / WEIGHTS)


def read(path: Path) -> Dictionary:
    """Read the folder `path`, in float32, or in float64 where its weights are.

    InputError, one line with file and field, for anything missing, damaged, inconsistent or not supported.
    """
    file, weights = path / INDEX, path / WEIGHTS
    cfg = read_json(file)
    choice(file, "activation", cfg.get("activation", "topk"), {"topk": None})
    for name in OTHER:
        if boolean(file, name, cfg.get(name, False)):
            raise InputError(f"{file}: {name} is true, which is not supported")
    d, k = (count(file, name, cfg.get(name)) for name in ("d_in", "k"))
    M = cfg.get("num_latents") or d * count(file, "expansion_factor", cfg.get("expansion_factor"))
    M = count(file, "num_latents", M)
    regular_size(weights)
    try:
        arrays: dict[str, Any] = _arrays(
            weights, {"encoder.weight": (M, d), "encoder.bias": (M,), "W_dec": (M, d), "b_dec": (d,)}
        )
        threshold = np.zeros(M, arrays["b_enc"].dtype)
        return Dictionary(**arrays, threshold=threshold, subtract_b_dec=True, input="raw", k=k)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from None


def _arrays(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            missing = [name for name in shapes if name not in names]
            if missing:
                raise InputError(f"{missing[0]} is missing")
            more = names - set(shapes)
            if more:
                raise InputError(f"holds {shown(min(more))}, which changes what the others mean and is not supported")
            arrays = {TENSORS[name]: tensor(path, file, name, shape, INDEX) for name, shape in shapes.items()}
    except InputError:
        raise
    except (SafetensorError, OSError, MemoryError, ValueError) as error:
        raise InputError(f"damaged or cannot be read ({brief(error)})") from None
    dtype = "float64" if any(array.dtype == np.float64 for array in arrays.values()) else "float32"
    return {name: array.astype(dtype) for name, array in arrays.items()}
