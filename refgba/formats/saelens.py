"""Folders of SAELens: cfg.json and sae_weights.safetensors.

Written for version 6, under two names:

    saelens          takes raw activations, as our training does: SAELens scales each row to norm √d
    saelens-folded   without normalisation or bias on the input: takes rows of unit norm

SAELens divides by a row's norm unchecked: of a row of zeros, `saelens` makes NaN there, and its note says to leave such
rows out.  `saelens-folded` takes them as they are.

Where the provenance of a network holds its harvest, the metadata say of which model and site it is, and on what it was
trained, so that SAELens opens the model (`load_model`) and its rows (`ActivationsStore.from_sae`).

Read: standard and jumprelu, of version 6 or before, and topk.  Nothing is believed, and a dictionary whose numbers
would mean something else is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from refgba.data.files import read_json, regular_size, write_new_folder
from refgba.errors import InputError, brief
from refgba.formats.dictionary import Dictionary, Input, shapes
from refgba.formats.fields import boolean, centre_field, choice, count, json_bytes, k_field, note, shown
from refgba.formats.tensors import tensor
from refgba.sae import unit_rows
from refgba.types import Array

INDEX, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"  # of the format that is written; a folder without a version is taken for one before 6 by SAELens
NORMALISATIONS: dict[str, Input] = {"none": "raw", "constant_norm_rescale": "sqrt_d", "layer_norm": "layer_norm"}
# SAELens' name of the dtype it computes in: the dtype that computes here.
DTYPES = {"float64": "float64", "float32": "float32", "bfloat16": "float32", "float16": "float32"}
CLASSES = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "encoder": "AutoModel"}
DTYPES |= {f"torch.{name}": dtype for name, dtype in DTYPES.items()}


def folded(dictionary: Dictionary) -> Dictionary:
    """The form of saelens-folded: b_dec is folded into b_enc."""
    return dictionary.subtracting(False)


NAMES = {"saelens": Dictionary.at_norm_sqrt_d, "saelens-folded": folded}


def require() -> None:
    """Nothing: what writes this format is always installed."""


def recognises(path: Path) -> bool:
    """Whether the folder `path` looks like one of SAELens."""
    return os.path.isfile(path / INDEX)


def write(dictionary: Dictionary, provenance: dict[str, Any], out: Path) -> None:
    """Write any dictionary to the folder `out`, whole or not at all; InputError as `write_new_folder`.

    For rows of unit norm, SAELens' user does the scaling.  provenance: anything JSON can hold; SAELens keeps it.
    """
    M, d = dictionary.W_enc.shape
    normalisation = {input: name for name, input in NORMALISATIONS.items()} | {"unit": "none"}
    cfg: dict[str, Any] = {
        "architecture": "jumprelu" if dictionary.k is None else "topk",
        "d_in": d,
        "d_sae": M,
        "dtype": str(dictionary.W_enc.dtype),
        "apply_b_dec_to_input": dictionary.subtract_b_dec,
        "normalize_activations": normalisation[dictionary.input],
        "metadata": {"sae_lens_version": VERSION} | place(provenance) | note(dictionary, provenance),
    } | k_field(dictionary)
    # safetensors writes an array's memory as it lies, whatever its strides say: a transpose would be scrambled.
    arrays = dictionary.arrays() | {"W_enc": np.ascontiguousarray(dictionary.W_enc.T)}  # (d, M)
    if dictionary.k is not None:
        del arrays["threshold"]
    write_new_folder(out, {INDEX: json_bytes(cfg), WEIGHTS: save(arrays)})


def place(provenance: dict[str, Any]) -> dict[str, Any]:
    """SAELens' names for what `harvest` of a provenance, as of a store's meta.json, says; nothing where there is none.

    SAELens hooks outputs: of the input of a site there is no hook_name.  It takes the tokenizer of a .gguf file for
    missing.
    """
    if "harvest" not in provenance:
        return {}
    settings, tokenizer = provenance["harvest"]["settings"], provenance["harvest"]["tokenizer"]
    model, options = str(settings["model"]), {"torch_dtype": settings.get("computed_in", "float32")}
    if model.lower().endswith(".gguf"):
        options["gguf_file"], model = os.path.basename(model), os.path.dirname(model)
    drop, pack, text = settings.get("drop_first", 0), settings.get("pack", False), settings.get("text", {})
    hook = {"hook_name": settings["site"]} if settings["of"] == "output" else {"refgba_input_of": settings["site"]}
    return {
        "model_name": model,
        "model_class_name": CLASSES.get(settings.get("kind", "causal")),
        "model_from_pretrained_kwargs": options,
        **hook,
        "hook_head_index": None,
        "context_size": settings.get("context"),
        "prepend_bos": bool(tokenizer.get("prefix")),
        "seqpos_slice": [drop, None] if drop else [None],
        "exclude_special_tokens": not settings.get("keep_special", False),
        "dataset_path": ", ".join(str(path) for path in text.get("paths", [])),
        "disable_concat_sequences": not pack,
        "sequence_separator_token": "eos" if pack else None,
    }


def read(path: Path) -> Dictionary:
    """Read the folder `path`, in the dtype of cfg.json, 16 bits as float32.

    InputError, one line with file and field, for anything missing, damaged, inconsistent or not supported.
    """
    file, weights = path / INDEX, path / WEIGHTS
    cfg = read_json(file)
    kinds = {name: name for name in ("standard", "jumprelu", "topk")}
    kind = choice(file, "architecture", cfg.get("architecture", "standard"), kinds)
    for name in ("activation_fn", "activation_fn_str"):  # before version 6
        choice(file, name, cfg.get(name, "relu"), {"relu": None})
    dtype = choice(file, "dtype", cfg.get("dtype"), DTYPES)
    input = _input(file, cfg)
    subtract_b_dec = boolean(file, "apply_b_dec_to_input", cfg.get("apply_b_dec_to_input", True))
    M, d = (count(file, name, cfg.get(name)) for name in ("d_sae", "d_in"))
    k = count(file, "k", cfg.get("k")) if kind == "topk" else None
    rescale = "rescale_acts_by_decoder_norm"
    rescaled = kind == "topk" and boolean(file, rescale, cfg.get(rescale, False))
    regular_size(weights)
    try:
        arrays = _weights(weights, M, d, kind == "jumprelu", dtype)
        if rescaled:  # codes are made as large as if decoder rows had unit norm, and the largest are picked of those
            norm = np.linalg.norm(arrays["W_dec"], axis=1)  # (M,)
            arrays["W_dec"] = unit_rows(arrays["W_dec"])
            arrays |= {"W_enc": arrays["W_enc"] * norm[:, None], "b_enc": arrays["b_enc"] * norm}
        metadata = cfg.get("metadata")
        centre = centre_field(file, metadata if isinstance(metadata, dict) else {}, input)
        return Dictionary(**arrays, subtract_b_dec=subtract_b_dec, input=input, k=k, centre=centre)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from None


def _input(file: Path, cfg: dict[str, Any]) -> Input:
    """What the network takes, by `normalize_activations` and our note."""
    normalisation = cfg.get("normalize_activations", "none")
    if normalisation is None or isinstance(normalisation, bool):  # before version 6
        normalisation = "expected_average_only_in" if normalisation else "none"
    if normalisation == "expected_average_only_in":
        raise InputError(
            f"{file}: normalize_activations is {normalisation}, whose scale is not in the folder; fold it in first, "
            "with SAELens' fold_activation_norm_scaling_factor"
        )
    input = choice(file, "normalize_activations", normalisation, NORMALISATIONS)
    metadata = cfg.get("metadata")
    if input == "raw" and isinstance(metadata, dict) and metadata.get("refgba_input") == "unit":
        return "unit"  # our own saelens-folded, which leaves the scaling to its user
    return input


def _weights(path: Path, M: int, d: int, jump: bool, dtype: str) -> dict[str, Array]:
    """The arrays of a `Dictionary` from SAELens' weights, in `dtype`; of standard ones the threshold is 0."""
    expected = shapes(M, d) | {"W_enc": (d, M)}
    if not jump:
        del expected["threshold"]
    try:
        with safe_open(path, framework="numpy") as file, np.errstate(over="ignore"):
            names = set(file.keys())
            if jump and "log_threshold" in names:  # as SAELens once trained it
                expected["log_threshold"] = expected.pop("threshold")
            missing = [name for name in expected if name not in names]
            if missing:
                raise InputError(f"{missing[0]} is missing")
            arrays = {name: tensor(path, file, name, shape, INDEX).astype(dtype) for name, shape in expected.items()}
            more = names - set(expected)
            if "scaling_factor" in more and (tensor(path, file, "scaling_factor", (M,), INDEX) == 1).all():
                more.remove("scaling_factor")  # older versions wrote one that does nothing
            if more:
                raise InputError(f"holds {shown(min(more))}, which changes what the others mean and is not supported")
            if "log_threshold" in arrays:
                arrays["threshold"] = np.exp(arrays.pop("log_threshold"))
    except InputError:
        raise
    except (SafetensorError, OSError, MemoryError, ValueError) as error:
        raise InputError(f"damaged or cannot be read ({brief(error)})") from None
    return {"threshold": np.zeros(M, dtype)} | arrays | {"W_enc": arrays["W_enc"].T}
