"""`load`: what a path holds, ready to use: a run, a checkpoint, or a dictionary in the files of any format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from refgba import formats
from refgba.formats.dictionary import Dictionary
from refgba.notebook import show
from refgba.notebook.autoencoder import Autoencoder
from refgba.notebook.estimator import GBA
from refgba.runs import folder, log
from refgba.types import Array, Dtype


def load(path: str | Path, backend: str | None = None, dtype: Dtype | None = None) -> Autoencoder:
    """The network at `path`, as `refgba evaluate` takes it: a run or one of its checkpoints as a fitted `GBA`, a folder
    of SAELens, dictionary_learning or `refgba export` as a `PretrainedDictionary`.

    backend: what computes codes, numpy if it is not named; dtype: in which arithmetic, that of the run if it is not
    named.  A dictionary takes neither.  InputError for what cannot be read.
    """
    path = Path(path)
    if formats.is_dictionary(path):
        return PretrainedDictionary(formats.read(path), path)
    network = folder.open_network(path)
    if dtype is not None:
        network = replace(network, config=replace(network.config, dtype=dtype))
    lines = log.read(path) if (path / folder.CONFIG).is_file() else []
    return GBA.of_network(network, backend, lines)


class PretrainedDictionary(Autoencoder):
    """A sparse autoencoder from the files of some library, computed with NumPy.

    dictionary: its arrays, `refgba.formats.dictionary.Dictionary`.  path: where it was read.
    """

    def __init__(self, dictionary: Dictionary, path: Path) -> None:
        """Take over what was read."""
        self.dictionary, self.path = dictionary, path
        self.history_: list[dict[str, float]] = []

    def __repr__(self) -> str:
        M, d = self.dictionary.W_enc.shape
        return f"PretrainedDictionary({str(self.path)!r}): {M} neurons, d = {d}, {self.dictionary.activation}"

    def _repr_html_(self) -> str:
        M, d = self.dictionary.W_enc.shape
        facts = {"neurons": M, "dimensions": d, "codes": self.dictionary.activation, "rows": self.dictionary.input}
        return show.card("PretrainedDictionary", str(self.path), facts)

    @property
    def components_(self) -> Array:
        """The features: the decoder rows, (M, d), of any norm."""
        return self.dictionary.W_dec

    def _coder(self) -> Dictionary:
        return self.dictionary

    def _dictionary(self) -> tuple[Dictionary, dict[str, Any]]:
        return self.dictionary, {"read": self.path.resolve().name}

    def _at_scale(self, f: Array, prepared: Array, x: Array) -> Array:
        if self.dictionary.input != "layer_norm":
            return super()._at_scale(f, prepared, x)
        mean, deviation = x.mean(axis=1, keepdims=True), x.std(axis=1, ddof=1, keepdims=True)
        raw: Array = f * (deviation + 1e-5) + mean  # what `Dictionary.prepare` took away
        return raw
