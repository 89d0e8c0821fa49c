"""Folders of dictionary_learning 0.1: ae.pt and config.json, for its `load_dictionary`.

Its networks take rows as they are, and ours are written for rows of unit norm.  torch writes the weights; it also reads
them, and only as weights: nothing is unpickled.
"""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from refgba.data.files import read_json, regular_size, write_new_folder
from refgba.errors import InputError, brief
from refgba.formats.dictionary import ARRAYS, Dictionary, Input
from refgba.formats.fields import centre_field, choice, count, json_bytes, k_field, note
from refgba.types import Array

INDEX, WEIGHTS = "config.json", "ae.pt"
JUMPRELU, TOPK = "JumpReluAutoEncoder", "AutoEncoderTopK"  # classes of dictionary_learning
# The arrays of AutoEncoderTopK, of torch's Linear modules: what they are here.  W_dec is transposed.
MODULES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "b_dec": "b_dec"}


def form(dictionary: Dictionary) -> Dictionary:
    """The form of the library's classes: only AutoEncoderTopK takes b_dec off its input."""
    return dictionary.subtracting(dictionary.k is not None)


NAMES = {"dictionary-learning": form}


def require() -> None:
    """InputError when there is no torch."""
    _torch()


def recognises(path: Path) -> bool:
    """Whether the folder `path` looks like one of dictionary_learning; it may be one of ours if it does not."""
    return os.path.isfile(path / WEIGHTS)


def write(dictionary: Dictionary, provenance: dict[str, Any], out: Path) -> None:
    """Write a dictionary of raw or unit rows to the folder `out`, whole or not at all.

    provenance: anything JSON can hold.  InputError as `write_new_folder`, for other rows, and when there is no torch.
    """
    if dictionary.input not in ("raw", "unit"):
        raise InputError(f"dictionary_learning does not scale rows, as this dictionary needs it ({dictionary.input})")
    torch, dictionary = _torch(), form(dictionary)
    M, d = dictionary.W_enc.shape
    if dictionary.k is None:
        kind = JUMPRELU
        arrays = _tensors(torch, dictionary.arrays() | {"W_enc": dictionary.W_enc.T})
    else:
        kind = TOPK
        ours = dictionary.arrays() | {"W_dec": dictionary.W_dec.T}
        arrays = _tensors(torch, {theirs: ours[name] for theirs, name in MODULES.items()})
        arrays |= {"k": torch.tensor(dictionary.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    weights = io.BytesIO()
    torch.save(arrays, weights)
    trainer = {"dict_class": kind, "activation_dim": d, "dict_size": M} | k_field(dictionary)
    index = {"trainer": trainer} | note(dictionary, provenance)
    write_new_folder(out, {WEIGHTS: weights.getvalue(), INDEX: json_bytes(index)})


def read(path: Path) -> Dictionary:
    """Read the folder `path`, in float32.

    InputError, one line with file and field, for anything missing, damaged, inconsistent or not supported, and when
    there is no torch.
    """
    torch, index, weights = _torch(), path / INDEX, path / WEIGHTS
    fields = read_json(index)
    trainer = fields.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    kind = choice(index, "dict_class", trainer.get("dict_class"), {name: name for name in (JUMPRELU, TOPK)})
    k = count(index, "k", trainer.get("k")) if kind == TOPK else None
    names = ARRAYS if k is None else (*MODULES, "k")
    regular_size(weights)
    try:
        tensors = torch.load(weights, map_location="cpu", weights_only=True)
        arrays = {name: tensors[name].to(torch.float32).numpy() for name in names}
        if k is None:
            arrays["W_enc"] = arrays["W_enc"].T
        elif int(arrays.pop("k")) != k:
            raise ValueError(f"its k is not {k}, as {INDEX} says")
        else:
            arrays = {ours: arrays[theirs] for theirs, ours in MODULES.items()}
            arrays |= {"W_dec": arrays["W_dec"].T, "threshold": np.zeros(len(arrays["b_enc"]), np.float32)}
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise InputError(f"{weights}: damaged, or not the weights of {kind} ({brief(error)})") from None
    input: Input = "unit" if fields.get("refgba_input") == "unit" else "raw"
    try:
        centre = centre_field(index, fields, input)
        return Dictionary(**arrays, subtract_b_dec=k is not None, input=input, k=k, centre=centre)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from None


def _tensors(torch: Any, arrays: dict[str, Array]) -> dict[str, Any]:
    return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise InputError(
            f"the format dictionary-learning is written and read by torch ({error}): pip install torch"
        ) from None
