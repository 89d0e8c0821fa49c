"""The dictionary that is put into a model: a run, a checkpoint, or a folder of any library that refgba reads.

It is computed by torch, where the model is.  A network of unit rows is spliced as ||x|| f(x / ||x||): the norm of each
row is kept beside it and given back.  Where rows were centred, too, it is c + ||x - c|| f((x - c) / ||x - c||).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refgba import formats
from refgba.data.store import read_meta
from refgba.errors import InputError
from refgba.formats.dictionary import Dictionary
from refgba.formats.trained import from_params
from refgba.llm import quantities
from refgba.llm.matching import Origin, holds, origin_of, refuse_other_site, run_about
from refgba.llm.records import is_harvest, open_harvest
from refgba.runs import folder
from refgba.types import Array


@dataclass(frozen=True, eq=False)
class Network:
    """A dictionary, and what is known of the rows that it was trained on.

    path: as it was given.  harvested: `harvest` of the meta.json of the store that it was trained on, None where that
    store is not there, or no harvest wrote it.  store: that store, or None.  lost: None, or why the data that a run was
    trained on tell nothing any more, in words.  origin: where it was trained, by its own record.
    """

    path: Path
    dictionary: Dictionary
    harvested: dict[str, Any] | None
    store: Path | None = None
    lost: str | None = None
    origin: Origin = Origin()

    @property
    def d(self) -> int:
        """Dimensions of the rows."""
        return int(self.dictionary.W_enc.shape[1])

    @property
    def M(self) -> int:
        """Neurons, "latents" elsewhere."""
        return int(self.dictionary.W_enc.shape[0])

    def neuron(self, number: int) -> int:
        """The number, if there is such a neuron; InputError if not."""
        if not 0 <= number < self.M:
            raise InputError(f"{self.path}: there is no neuron {number}; they are numbered from 0 to {self.M - 1}")
        return number

    def neurons(self, numbers: Any) -> list[int]:
        """One number or several, as `neuron`; InputError for none, and for one that is named twice."""
        return [self.neuron(number) for number in quantities.neurons(numbers)]

    def __repr__(self) -> str:
        site = f", {self.harvested['settings']['site']}" if self.harvested else ""
        return f"Network({str(self.path)!r}): {self.M} neurons, d = {self.d}, {self.dictionary.activation}{site}"


def open_network(path: str | Path, store: str | Path | None = None) -> Network:
    """A run, one of its checkpoints, or the folder of a dictionary.

    store: a harvest that says which rows it is for; of a run it is found by itself where it was at training.
    InputError for what cannot be read or does not fit, and for a store of another site than that which it is for.
    """
    path, store = Path(path), None if store is None else Path(store)
    if formats.is_dictionary(path):
        dictionary, about = formats.read(path), None
    else:
        opened = folder.open_network(path)
        dictionary, about = from_params(opened.params, opened.config, opened.centre), run_about(path)
    origin, lost = origin_of(path), None
    if store is None:
        store, lost = _own_store(about)
    harvest = None if store is None else open_harvest(store, int(dictionary.W_enc.shape[1]))
    if harvest is not None:
        refuse_other_site(origin, harvest, path)
    return Network(path, dictionary, None if harvest is None else harvest.about, store, lost, origin)


def harvest_of(path: Path, d: int, store: Path | None = None) -> tuple[dict[str, Any], str | None]:
    """`harvest` of the store that a run on rows of d dimensions was trained on, for those who export the run.

    store: as for `open_network`.  Nothing where no harvest wrote the data, or they are not there any more; why, for a
    run that says that a harvest did.  InputError for a store that cannot be opened, has another d, or is of another
    site.
    """
    about, lost = run_about(path), None
    if store is None:
        store, lost = _own_store(about)
    if store is None:
        return {}, lost if about is not None and "harvest" in about["data"] else None
    harvest = open_harvest(store, d)
    refuse_other_site(origin_of(path), harvest, path)
    return {"harvest": harvest.about}, None


def _own_store(about: Mapping[str, Any] | None) -> tuple[Path | None, str | None]:
    """The harvest that a run was trained on, by its about.json; else None, and why what was there is there no more."""
    if about is None or not about["data"]["path"]:
        return None, None
    data = about["data"]
    path = Path(data["path"])
    if not path.exists():
        return None, f"the data that it was trained on, {path}, are not there any more"
    if not path.is_dir() or not is_harvest(path):
        return None, f"{path}, which it was trained on, is no harvest any more" if "harvest" in data else None
    if not holds(read_meta(path), data):
        return None, f"{path} holds other rows now than when it was trained on them"
    return path, None


class Coder:
    """A dictionary in torch: codes and reconstructions of rows (R, d), at the scale of the rows."""

    def __init__(self, dictionary: Dictionary, device: Any = "cpu", dtype: str = "float32") -> None:
        """dtype: of the arithmetic; the model's rows are converted to it and back."""
        import torch

        self.dictionary, self.input, self.k = dictionary, dictionary.input, dictionary.k
        self.dtype = getattr(torch, dtype)

        def tensor(array: Array) -> Any:  # which torch wants writable, as arrays of a file are not
            return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device, self.dtype)

        arrays = {name: tensor(array) for name, array in dictionary.arrays().items()}
        self.W_enc, self.b_enc, self.threshold = arrays["W_enc"], arrays["b_enc"], arrays["threshold"]
        self.W_dec, self.b_dec = arrays["W_dec"], arrays["b_dec"]
        centre = dictionary.centre
        self.centre = 0.0 if centre is None else tensor(centre[None])

    def prepare(self, x: Any) -> tuple[Any, Any, Any]:
        """Rows (R, d) as the network takes them, and what brings them back: x = prepared * scale + shift.

        scale: (R, 1).  shift: (R, 1), (1, d), or 0.  A row of zeros stays one.
        """
        x = x.to(self.dtype)
        if self.input == "raw":
            return x, x.new_ones(len(x), 1), 0.0
        if self.input == "layer_norm":
            shift = x.mean(dim=1, keepdim=True)
            scale = (x - shift).std(dim=1, keepdim=True) + 1e-5
            return (x - shift) / scale, scale, shift
        if self.input not in ("unit", "sqrt_d"):
            raise InputError(f"rows that are {self.input} cannot be spliced")
        x = x - self.centre
        norm = x.norm(dim=1, keepdim=True)
        scale = norm if self.input == "unit" else norm / math.sqrt(x.shape[1])
        return x / scale.clamp(min=1e-30), scale, self.centre

    def encode(self, prepared: Any) -> Any:
        """Codes (R, M) of prepared rows."""
        z = (prepared - self.b_dec if self.dictionary.subtract_b_dec else prepared) @ self.W_enc.T + self.b_enc
        if self.k is None:
            return z * (z > self.threshold)
        top = z.topk(self.k, dim=1)
        return z.new_zeros(z.shape).scatter(1, top.indices, top.values.clamp(min=0))

    def decode(self, codes: Any) -> Any:
        """Reconstructions (R, d) of prepared rows."""
        return codes @ self.W_dec + self.b_dec

    def codes(self, x: Any) -> Any:
        """Codes (R, M) of rows as the model has them."""
        return self.encode(self.prepare(x)[0])

    def reconstruct(self, x: Any) -> Any:
        """Reconstructions (R, d) at the scale and place of the rows: ||x|| f(x / ||x||) for a network of unit rows."""
        prepared, scale, shift = self.prepare(x)
        return self.decode(self.encode(prepared)) * scale + shift

    def edited(self, x: Any, change: Any, replaced: bool) -> Any:
        """Rows x (R, d) after a change of their codes.

        change: from codes (R, M) to codes.  replaced: whether rows become the reconstruction of the changed codes; else
        the error of the reconstruction is kept, and rows become x + (change of the codes) · W_dec, at their scale.
        """
        prepared, scale, shift = self.prepare(x)
        codes = self.encode(prepared)
        changed = change(codes)
        if replaced:
            return self.decode(changed) * scale + shift
        return x + ((changed - codes) @ self.W_dec) * scale

    def direction(self, neuron: int) -> Array:
        """The decoder row of a neuron, (d,)."""
        row: Array = self.dictionary.W_dec[neuron]
        return row
