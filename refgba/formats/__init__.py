"""Dictionaries in the files of others: a trained network written for other libraries, and theirs read.

    dictionary.py            `Dictionary`, what all formats have in common
    trained.py               a network trained here as a `Dictionary`
    saelens.py               SAELens 6, as `saelens` or `saelens-folded`
    dictionary_learning.py   dictionary_learning 0.1, by torch
    npz.py                   our own, exact: NumPy arrays and JSON
    sparsify.py              sparsify's TopK, to read only
    gemma_scope.py           Gemma Scope's JumpReLU, a file or a folder, to read only
    parameters.py            the bare arrays W, a, b, b_pre and W_dec of a port, to read only
    fields.py                the fields of their JSON files
    tensors.py               the tensors of their .safetensors files

A format is a module with the names of `Format`, and FORMATS finds it by the name that `--format` has for it.  `read`
takes a folder of any of them from anyone and believes nothing in it: nothing is unpickled, and no array is made before
the file is known to be as large as the array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from refgba.backends.base import AnyConfig, AnyParams
from refgba.errors import InputError
from refgba.formats import dictionary_learning, gemma_scope, npz, parameters, saelens, sparsify
from refgba.formats.dictionary import Dictionary
from refgba.formats.fields import rows_taken
from refgba.formats.trained import from_params
from refgba.types import Activation, Float64

# What a dictionary's `input` means for rows of activations.
INPUTS = {
    "raw": "as they are",
    "unit": "scaled to unit norm",
    "sqrt_d": "scaled to norm sqrt(d)",
    "layer_norm": "scaled by layer norm",
}


class Reader(Protocol):
    """What the module of a format provides that is read only."""

    def recognises(self, path: Path) -> bool:
        """Whether the folder `path`, or the file, looks like one of this format; never raises."""

    def read(self, path: Path) -> Dictionary:
        """Read the folder `path`, or the file; InputError, one line with file and field, where that cannot be right."""


class Format(Reader, Protocol):
    """What the module of a format provides that is written too."""

    INDEX: str  # the JSON file in its folders
    WEIGHTS: str  # the file of arrays in its folders

    @property
    def NAMES(self) -> Mapping[str, Callable[[Dictionary], Dictionary]]:
        """What `--format` calls it: to each name the form in which a network of unit rows is written."""

    def require(self) -> None:
        """InputError when something that writes and reads this format is not installed."""

    def write(self, dictionary: Dictionary, provenance: dict[str, Any], out: Path) -> None:
        """Write a dictionary to the new folder `out`, whole or not at all; InputError if it cannot be.

        provenance, anything JSON can hold, goes along.  centre: as in `Dictionary`.
        """


FORMATS: dict[str, Format] = {
    "saelens": saelens,
    "saelens-folded": saelens,
    "dictionary-learning": dictionary_learning,
    "npz": npz,
}
READERS: tuple[Format, ...] = (npz, saelens, dictionary_learning)
ALL: tuple[Reader, ...] = (sparsify, gemma_scope, *READERS)  # the first that recognises a folder reads it


def export(
    params: AnyParams, config: AnyConfig, provenance: dict[str, Any], out: Path, format: str,
    centre: Float64 | None = None,
) -> str:  # fmt: skip
    """Write a trained network to the folder `out` in one of FORMATS, whole or not at all; says which rows it takes.

    provenance, anything JSON can hold, goes along.  InputError when `out` exists and is not an empty folder or cannot
    be written, when a neuron cannot be expressed (`from_params`), when the format is unknown, and for
    dictionary-learning when there is no torch.
    """
    require(format)
    library = FORMATS[format]
    dictionary = library.NAMES[format](from_params(params, config, centre))
    library.write(dictionary, provenance, out)
    return rows_taken(dictionary)


def require(format: str) -> None:
    """InputError unless a format can be written here: it is one of FORMATS, and what writes it is installed."""
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}; the formats are {', '.join(FORMATS)}")
    FORMATS[format].require()


def is_dictionary(path: Path) -> bool:
    """Whether `path` looks like a folder or a file that `read` takes, rather than a run."""
    return any(library.recognises(path) for library in ALL)


def bring(source: Path, activation: Activation | None = None) -> Dictionary:
    """The dictionary in a folder of any format, or of the bare parameters in a file; for `refgba import`.

    activation: of a file's network, jumprelu if it is not named.  InputError as `read` and `parameters.read`, and for a
    folder with an activation, since a folder says itself what its activation is.
    """
    if not source.is_dir() and not is_dictionary(source):
        return parameters.read(source, activation or "jumprelu")
    if activation is not None:
        raise InputError(f"{source}: a folder says itself what its activation is: leave --activation out")
    return read(source)


def read(path: Path) -> Dictionary:
    """Read a folder of any format.

    Of SAELens standard, jumprelu and topk are read, of version 6 or before; of dictionary_learning JumpReluAutoEncoder
    and AutoEncoderTopK; of sparsify TopK autoencoders; of Gemma Scope the folder or the .npz file.  InputError, one
    line with file and field, for anything missing, damaged, inconsistent or not supported.
    """
    for library in ALL:
        if library.recognises(path):
            return library.read(path)
    raise InputError(
        f"{path}: not a dictionary, it has neither {npz.INDEX} nor SAELens' {saelens.INDEX}, "
        f"nor {dictionary_learning.WEIGHTS}, {sparsify.WEIGHTS} or {gemma_scope.WEIGHTS}"
    )
