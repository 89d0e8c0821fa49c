"""Dictionaries in the files of others: a trained network written for other libraries, and theirs read.

    saelens              SAELens 6: takes raw activations, as our training does
    saelens-folded       the same library without normalisation or bias on the input: takes rows of unit norm
    dictionary-learning  `load_dictionary` of dictionary_learning 0.1: takes rows of unit norm; torch writes it
    npz                  our own, exact: dictionary.npz and dictionary.json

`Dictionary` is what they have in common.  `read` takes such a folder from anyone and believes nothing in it: nothing is
unpickled, and no array is made before the file is known to be as large as the array.  What torch wrote, torch reads,
and only as weights.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from refgba import baselines
from refgba.backends.base import AnyConfig, AnyParams
from refgba.config import BaselineConfig, GBAConfig
from refgba.data.files import read_json, write_folder
from refgba.data.store import values
from refgba.errors import InputError, brief
from refgba.sae import unit_rows
from refgba.types import Array

Input = Literal["raw", "unit", "sqrt_d", "layer_norm"]
T = TypeVar("T")

FORMATS = ("saelens", "saelens-folded", "dictionary-learning", "npz")
ARRAYS = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")
NPZ, ABOUT = "dictionary.npz", "dictionary.json"
SAELENS, WEIGHTS = "cfg.json", "sae_weights.safetensors"
TORCH, TRAINER = "ae.pt", "config.json"
JUMPRELU, TOPK = "JumpReluAutoEncoder", "AutoEncoderTopK"  # classes of dictionary_learning
# The latter's arrays, of torch's Linear modules, and what they are here; W_dec is turned
MODULES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "b_dec": "b_dec"}
SAE_LENS_VERSION = "6.54.12"  # whose format is written; without a version SAELens takes a folder for one before 6

NORMALISATIONS: dict[str, Input] = {"none": "raw", "constant_norm_rescale": "sqrt_d", "layer_norm": "layer_norm"}
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
# SAELens' names for what it computes in, and what computes for it here
DTYPES = {"float64": "float64", "float32": "float32", "bfloat16": "float32", "float16": "float32"}
DTYPES |= {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
# The one form in which NumPy writes a plain array: anything else, Python objects above all, is not parsed at all.
NPY = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '<f([48])', 'fortran_order': (True|False), "
    rb"'shape': \(([1-9][0-9]{0,17})(?:,|, ([1-9][0-9]{0,17}))\), \} *\n",
    re.DOTALL,
)


@dataclass(frozen=True, eq=False)
class Dictionary:
    """A sparse autoencoder of any origin, M neurons in d dimensions, for rows x that `prepare` made.

        z = (x - b_dec) · W_enc^T + b_enc ,    s = z 1{z > threshold} ,    f = s · W_dec + b_dec

    with b_dec taken off the input only where `subtract_b_dec` says so.  JumpReLU; a threshold of 0 is ReLU.  With k it
    is TopK: of each row the k largest z, as far as they are positive, and no thresholds.

    W_enc, W_dec: (M, d), rows of any norm.  b_enc: (M,).  threshold: (M,), not negative.  b_dec: (d,).  All float32 or
    all float64, which is what every method computes in, and finite; InputError otherwise, naming the array.  k: None,
    or from 1 to M.

    input: what `prepare` makes of a row of activations.  "raw": nothing.  "unit": scaled to unit norm, as our training
    does.  "sqrt_d": norm √d, SAELens' constant_norm_rescale.  "layer_norm": SAELens' of that name, less the row's mean
    and over its standard deviation.  Reconstructions are of the prepared rows.
    """

    W_enc: Array
    b_enc: Array
    threshold: Array
    W_dec: Array
    b_dec: Array
    subtract_b_dec: bool
    input: Input
    k: int | None = None

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2 or self.W_enc.size == 0:
            raise InputError(f"W_enc has shape {self.W_enc.shape}, it should be (neurons, dimensions)")
        dtype = self.W_enc.dtype
        for name, shape in _shapes(*self.W_enc.shape).items():
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
        if self.input == "layer_norm" and self.W_enc.shape[1] < 2:
            raise InputError("layer_norm needs at least 2 dimensions")

    def prepare(self, x: Array) -> Array:
        """Rows of activations x (L, d) of any float dtype as the network takes them, (L, d).

        InputError for a row of zeros that should get a norm.
        """
        x = x.astype(self.W_enc.dtype, copy=False)
        if self.input == "raw":
            return x
        if self.input == "layer_norm":
            x = x - x.mean(axis=1, keepdims=True)
            # with n - 1, and 1e-5 beside the deviation rather than the variance: torch's `std` as SAELens uses it
            scaled: Array = x / (x.std(axis=1, ddof=1, keepdims=True) + 1e-5)
            return scaled
        unit = unit_rows(x)
        return unit * math.sqrt(x.shape[1]) if self.input == "sqrt_d" else unit

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


def from_params(params: AnyParams, config: AnyConfig) -> Dictionary:
    """A trained network as a `Dictionary` of unit rows: the same codes and reconstructions, to the last bit.

    In GBA, JumpReLU's gate z + b > 0 is z > -b, so a bias is a threshold; with ReLU it is part of the pre-activation.
    InputError, naming the first neuron, where a JumpReLU has a bias above 0: other libraries make it a ReLU without a
    word.  Algorithm 2 leaves no such bias.
    """
    if isinstance(params, baselines.Params):
        k = config.k if isinstance(config, BaselineConfig) and config.method == "topk" else None
        return Dictionary(
            params.W, params.b, params.theta, params.W_dec, params.b_pre, subtract_b_dec=True, input="unit", k=k
        )
    assert isinstance(config, GBAConfig)
    zero = np.zeros_like(params.b)
    if config.activation == "relu":
        b_enc, threshold = params.b, zero
    else:
        positive = np.flatnonzero(params.b > 0)
        if positive.size:
            raise InputError(
                f"neuron {positive[0]} has the bias {params.b[positive[0]]:.6g} ({positive.size} such neurons); "
                "as a threshold it would be negative, which other libraries take for ReLU"
            )
        b_enc, threshold = zero, 0 - params.b  # not -b: of b = 0 that is -0.0
    W_dec = params.a[:, None] * params.V  # (M, d)
    return Dictionary(params.W, b_enc, threshold, W_dec, params.b_pre, subtract_b_dec=True, input="unit")


def export(params: AnyParams, config: AnyConfig, provenance: dict[str, Any], out: Path, format: str) -> None:
    """Write a trained network to the folder `out` in one of FORMATS, whole or not at all.

    provenance, anything JSON can hold, goes along.  InputError when `out` exists and is not an empty folder or cannot
    be written, when a neuron cannot be expressed (`from_params`), when the format is unknown, and for
    dictionary-learning when there is no torch.
    """
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}; the formats are {', '.join(FORMATS)}")
    dictionary = from_params(params, config)
    if format == "npz":
        write_npz(dictionary, provenance, out)
    elif format == "saelens":
        _write(out, _saelens(_at_norm_sqrt_d(dictionary), provenance))
    elif format == "saelens-folded":
        _write(out, _saelens(_folded(dictionary), provenance))
    else:
        _write(out, _dictionary_learning(dictionary, provenance))


def write_npz(dictionary: Dictionary, provenance: dict[str, Any], out: Path) -> None:
    """Write any dictionary to the folder `out` in the format npz, exactly, whole or not at all; errors as `export`."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {**_arrays(dictionary)}
    np.savez(file, **arrays)
    about = {
        "activation": _architecture(dictionary, thresholds=bool(dictionary.threshold.any())),
        "subtract_b_dec": dictionary.subtract_b_dec,
        "input": dictionary.input,
        "provenance": provenance,
    } | _k(dictionary)
    _write(out, {NPZ: file.getvalue(), ABOUT: _json(about)})


def is_dictionary(path: Path) -> bool:
    """Whether `path` looks like a folder that `read` takes, rather than a run."""
    return any(
        os.path.isfile(path / name) for name in (ABOUT, SAELENS, TORCH)
    )  # Path's own raises where it may not look


def read(path: Path) -> Dictionary:
    """Read a folder of the format npz, of SAELens (standard or jumprelu, of version 6 or before, or its topk), or of
    dictionary_learning (JumpReluAutoEncoder, AutoEncoderTopK).

    SAELens' cfg.json decides the dtype, in which 16 bits become float32.  InputError, one line with the file and the
    field, for anything that is missing, damaged, inconsistent or not supported.
    """
    if os.path.isfile(path / ABOUT):
        return _read_npz(path)
    if os.path.isfile(path / SAELENS):
        return _read_saelens(path)
    if os.path.isfile(path / TORCH):
        return _read_dictionary_learning(path)
    raise InputError(f"{path}: not a dictionary, it has neither {ABOUT} nor SAELens' {SAELENS}, nor {TORCH}")


# ---- writing ---------------------------------------------------------------------------------------------------------


def _at_norm_sqrt_d(dictionary: Dictionary) -> Dictionary:
    """The same network of unit rows for rows of norm √d: its codes are √d times as large."""
    scale = math.sqrt(dictionary.W_enc.shape[1])
    scaled = {name: getattr(dictionary, name) * scale for name in ("b_enc", "threshold", "b_dec")}
    return replace(dictionary, **scaled, input="sqrt_d")


def _folded(dictionary: Dictionary) -> Dictionary:
    """The same network with b_dec taken off in b_enc: -b_dec · W_enc^T, summed in float64 and rounded once."""
    shift = np.einsum("md,d->m", dictionary.W_enc, dictionary.b_dec, dtype=np.float64)  # (M,)
    b_enc = (dictionary.b_enc - shift).astype(dictionary.b_enc.dtype)
    return replace(dictionary, b_enc=b_enc, subtract_b_dec=False)


def _note(dictionary: Dictionary, provenance: dict[str, Any]) -> dict[str, Any]:
    """What our files tell beside the numbers: which rows to give to the other library, and where they come from."""
    rows = "raw activations" if dictionary.input == "sqrt_d" else "rows scaled to unit norm, which it reconstructs"
    takes = "raw" if dictionary.input == "sqrt_d" else "unit"
    return {"refgba_input": takes, "refgba_note": f"takes {rows}", "refgba": provenance}


def _architecture(dictionary: Dictionary, thresholds: bool = True) -> str:
    return "topk" if dictionary.k is not None else "jumprelu" if thresholds else "relu"


def _k(dictionary: Dictionary) -> dict[str, int]:
    return {} if dictionary.k is None else {"k": dictionary.k}


def _saelens(dictionary: Dictionary, provenance: dict[str, Any]) -> dict[str, bytes]:
    M, d = dictionary.W_enc.shape
    cfg: dict[str, Any] = {
        "architecture": _architecture(dictionary),
        "d_in": d,
        "d_sae": M,
        "dtype": str(dictionary.W_enc.dtype),
        "apply_b_dec_to_input": dictionary.subtract_b_dec,
        "normalize_activations": "constant_norm_rescale" if dictionary.input == "sqrt_d" else "none",
        "metadata": {"sae_lens_version": SAE_LENS_VERSION} | _note(dictionary, provenance),
    } | _k(dictionary)
    return {SAELENS: _json(cfg), WEIGHTS: save(_theirs(dictionary))}


def _dictionary_learning(dictionary: Dictionary, provenance: dict[str, Any]) -> dict[str, bytes]:
    torch = _torch()
    M, d = dictionary.W_enc.shape
    if dictionary.k is None:  # a JumpReluAutoEncoder does not take b_dec off
        kind, arrays = JUMPRELU, {name: torch.tensor(array) for name, array in _theirs(_folded(dictionary)).items()}
    else:
        kind, arrays = TOPK, {name: torch.tensor(array) for name, array in _modules(dictionary).items()}
        arrays |= {"k": torch.tensor(dictionary.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    file = io.BytesIO()
    torch.save(arrays, file)
    trainer = {"dict_class": kind, "activation_dim": d, "dict_size": M} | _k(dictionary)
    return {TORCH: file.getvalue(), TRAINER: _json({"trainer": trainer} | _note(dictionary, provenance))}


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise InputError(
            f"the format dictionary-learning is written and read by torch ({error}): pip install 'refgba[interop]'"
        ) from None


def _arrays(dictionary: Dictionary) -> dict[str, Array]:
    return {name: np.ascontiguousarray(getattr(dictionary, name)) for name in ARRAYS}


def _theirs(dictionary: Dictionary) -> dict[str, Array]:
    """The arrays as both libraries name and turn them: W_enc is (d, M)."""
    # safetensors writes an array's memory as it lies, whatever its strides say: a transpose would be scrambled.
    arrays = _arrays(dictionary) | {"W_enc": np.ascontiguousarray(dictionary.W_enc.T)}
    if dictionary.k is not None:
        del arrays["threshold"]
    return arrays


def _modules(dictionary: Dictionary) -> dict[str, Array]:
    """The arrays of MODULES."""
    ours = _arrays(dictionary) | {"W_dec": np.ascontiguousarray(dictionary.W_dec.T)}
    return {theirs: ours[name] for theirs, name in MODULES.items()}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _write(out: Path, files: dict[str, bytes]) -> None:
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: exists and is not a folder")
        if out.exists() and any(out.iterdir()):
            raise InputError(f"{out}: is not empty; choose another folder")
        folder = Path(os.path.realpath(out))  # so that "." has a name and a folder it is in
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(folder, files)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None


# ---- reading ---------------------------------------------------------------------------------------------------------


def _shapes(M: int, d: int) -> dict[str, tuple[int, ...]]:
    return {"W_enc": (M, d), "b_enc": (M,), "threshold": (M,), "W_dec": (M, d), "b_dec": (d,)}


def _read_npz(path: Path) -> Dictionary:
    about = read_json(path / ABOUT)
    subtract_b_dec = _boolean(path / ABOUT, "subtract_b_dec", about.get("subtract_b_dec"))
    input = _choice(path / ABOUT, "input", about.get("input"), {name: name for name in get_args(Input)})
    k = _count(path / ABOUT, "k", about["k"]) if "k" in about else None
    path = path / NPZ
    try:
        size = _size(path)
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _read_npy(archive, name, size) for name in ARRAYS}
        return Dictionary(**arrays, subtract_b_dec=subtract_b_dec, input=input, k=k)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # damaged archives make zipfile raise nearly anything
        raise InputError(f"{path}: damaged or cannot be read ({brief(error)})") from None


def _read_npy(archive: zipfile.ZipFile, name: str, size: int) -> Array:
    """The array of this name in an archive of `size` bytes; InputError if it is not there, uncompressed and plain."""
    if f"{name}.npy" not in archive.namelist():
        raise InputError(f"{name} is missing")
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED or max(info.file_size, info.compress_size) > size:
        raise InputError(f"{name} is compressed or larger than the file; numpy.savez stores arrays as they are")
    data = archive.read(info)
    header = NPY.match(data)
    if header is None or int.from_bytes(header[1], "little") + len(b"\x93NUMPY\x01\x00..") != header.end():
        raise InputError(f"{name} is not a plain array of float32 or float64, 1-D or 2-D")
    dtype, fortran = np.dtype(f"<f{int(header[2])}"), header[3] == b"True"
    shape = tuple(int(n) for n in header.groups()[3:] if n is not None)
    if math.prod(shape) * dtype.itemsize != len(data) - header.end():
        raise InputError(f"{name} has shape {shape} and {len(data) - header.end()} bytes, which do not agree")
    return np.frombuffer(data, dtype, offset=header.end()).reshape(shape, order="F" if fortran else "C")


def _read_saelens(path: Path) -> Dictionary:
    file, weights = path / SAELENS, path / WEIGHTS
    cfg = read_json(file)
    kinds = {name: name for name in ("standard", "jumprelu", "topk")}
    kind = _choice(file, "architecture", cfg.get("architecture", "standard"), kinds)
    for name in ("activation_fn", "activation_fn_str"):  # before version 6
        _choice(file, name, cfg.get(name, "relu"), {"relu": None})
    dtype = _choice(file, "dtype", cfg.get("dtype"), DTYPES)
    normalisation = cfg.get("normalize_activations", "none")
    if normalisation is None or isinstance(normalisation, bool):  # before version 6
        normalisation = "expected_average_only_in" if normalisation else "none"
    if normalisation == "expected_average_only_in":
        raise InputError(
            f"{file}: normalize_activations is {normalisation}, whose scale is not in the folder; fold it in first, "
            "with SAELens' fold_activation_norm_scaling_factor"
        )
    input = _choice(file, "normalize_activations", normalisation, NORMALISATIONS)
    metadata = cfg.get("metadata")
    if input == "raw" and isinstance(metadata, dict) and metadata.get("refgba_input") == "unit":
        input = "unit"  # our own saelens-folded, which leaves the scaling to its user
    subtract_b_dec = _boolean(file, "apply_b_dec_to_input", cfg.get("apply_b_dec_to_input", True))
    M, d = (_count(file, name, cfg.get(name)) for name in ("d_sae", "d_in"))
    k = _count(file, "k", cfg.get("k")) if kind == "topk" else None
    rescale = "rescale_acts_by_decoder_norm"
    rescaled = kind == "topk" and _boolean(file, rescale, cfg.get(rescale, False))
    try:
        arrays = _read_weights(weights, M, d, kind == "jumprelu", dtype)
        if rescaled:  # codes are made as large as if decoder rows had unit norm, and picked by that
            norm = np.linalg.norm(arrays["W_dec"], axis=1)  # (M,)
            arrays["W_dec"] = unit_rows(arrays["W_dec"])
            arrays |= {"W_enc": arrays["W_enc"] * norm[:, None], "b_enc": arrays["b_enc"] * norm}
        return Dictionary(**arrays, subtract_b_dec=subtract_b_dec, input=input, k=k)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from None


def _read_dictionary_learning(path: Path) -> Dictionary:
    torch, told = _torch(), read_json(path / TRAINER)
    trainer = told.get("trainer")
    said = trainer if isinstance(trainer, dict) else {}
    kind = _choice(path / TRAINER, "dict_class", said.get("dict_class"), {name: name for name in (JUMPRELU, TOPK)})
    k = _count(path / TRAINER, "k", said.get("k")) if kind == TOPK else None
    names = ARRAYS if k is None else (*MODULES, "k")
    try:
        found = torch.load(path / TORCH, map_location="cpu", weights_only=True)
        arrays = {name: found[name].to(torch.float32).numpy() for name in names}
        if k is None:
            arrays["W_enc"] = arrays["W_enc"].T
        elif int(arrays.pop("k")) != k:
            raise ValueError(f"its k is not {k}, as {TRAINER} says")
        else:
            arrays = {ours: arrays[theirs] for theirs, ours in MODULES.items()}
            arrays |= {"W_dec": arrays["W_dec"].T, "threshold": np.zeros(len(arrays["b_enc"]), np.float32)}
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise InputError(f"{path / TORCH}: damaged, or not the weights of {kind} ({brief(error)})") from None
    input: Input = "unit" if told.get("refgba_input") == "unit" else "raw"
    try:
        return Dictionary(**arrays, subtract_b_dec=k is not None, input=input, k=k)
    except InputError as error:
        raise InputError(f"{path / TORCH}: {error}") from None


def _read_weights(path: Path, M: int, d: int, jump: bool, dtype: str) -> dict[str, Array]:
    """The arrays of a `Dictionary` from SAELens' weights, in `dtype`; of standard ones the threshold is 0."""
    shapes = _shapes(M, d) | {"W_enc": (d, M)}
    if not jump:
        del shapes["threshold"]
    try:
        _size(path)
        with safe_open(path, framework="numpy") as file, np.errstate(over="ignore"):
            names = set(file.keys())
            if jump and "log_threshold" in names:  # as SAELens once trained it
                shapes["log_threshold"] = shapes.pop("threshold")
            arrays = {name: _read_tensor(path, file, name, shape).astype(dtype) for name, shape in shapes.items()}
            more = names - set(shapes)
            if "scaling_factor" in more and (_read_tensor(path, file, "scaling_factor", (M,)) == 1).all():
                more.remove("scaling_factor")  # older versions wrote one that does nothing
            if more:
                raise InputError(f"holds {_shown(min(more))}, which changes what the others mean and is not supported")
            if "log_threshold" in arrays:
                arrays["threshold"] = np.exp(arrays.pop("log_threshold"))
    except InputError:
        raise
    except (SafetensorError, OSError, MemoryError, ValueError) as error:
        raise InputError(f"damaged or cannot be read ({brief(error)})") from None
    return {"threshold": np.zeros(M, dtype)} | arrays | {"W_enc": arrays["W_enc"].T}


def _read_tensor(path: Path, file: Any, name: str, shape: tuple[int, ...]) -> Array:
    if name not in file.keys():  # noqa: SIM118 - not a dict
        raise InputError(f"{name} is missing")
    tensor = file.get_slice(name)
    found = tuple(tensor.get_shape())
    if found != shape:
        raise InputError(f"{name} has shape {str(found)[:60]}, by {SAELENS} it should be {shape}")
    if tensor.get_dtype() not in FLOATS:
        raise InputError(f"{name} holds {tensor.get_dtype()}; it should hold one of {', '.join(FLOATS)}")
    array: Array = _bfloat16(path, name).reshape(shape) if tensor.get_dtype() == "BF16" else file.get_tensor(name)
    return array


def _bfloat16(path: Path, name: str) -> Array:
    """The values of a bfloat16 tensor, for which safetensors has no NumPy dtype, in a file that it has accepted."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        start, stop = json.loads(file.read(size))[name]["data_offsets"]
        file.seek(8 + size + start)
        return values(np.frombuffer(file.read(stop - start), np.uint16))


def _size(path: Path) -> int:
    """Bytes of a file; InputError if there is none: a pipe or a device would be read without end."""
    if not os.path.isfile(path):
        raise InputError("no such file")
    return path.stat().st_size


def _choice(path: Path, name: str, value: Any, choices: dict[str, T]) -> T:
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{path}: {name} is {_shown(value)}; supported are {', '.join(choices)}")
    return choices[value]


def _boolean(path: Path, name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{path}: {name} should be true or false, not {_shown(value)}")
    return value


def _count(path: Path, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{path}: {name} should be a whole number of at least 1, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value from an untrusted file."""
    if value is None:
        return "missing"
    return brief(repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}")
