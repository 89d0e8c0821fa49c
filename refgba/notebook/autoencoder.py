"""What every network that codes rows gives in Python, wherever it comes from: `GBA`, and the files of others.

Rows X are taken as they come, raw, and scaled as the network needs them; see `refgba.notebook.rows`.  M neurons
("latents" elsewhere), d dimensions, N rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refgba import formats
from refgba.data.activations import Activations
from refgba.data.memory import matrix
from refgba.data.survey import Check
from refgba.errors import InputError
from refgba.formats.dictionary import Dictionary
from refgba.metrics import frr
from refgba.notebook import rows
from refgba.runs import judging
from refgba.runs.accumulate import Evaluation
from refgba.runs.copies import Copies
from refgba.runs.passes import passing_dictionary
from refgba.types import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Autoencoder(ABC):
    """A sparse autoencoder that is ready to use.

    A subclass says what codes (`_coder`), what its files hold (`_dictionary`), and what is known of its training.
    """

    history_: list[dict[str, float]]

    @abstractmethod
    def _coder(self) -> judging.Dictionary:
        """What codes rows; NotFitted where nothing does yet."""

    @abstractmethod
    def _dictionary(self) -> tuple[Dictionary, dict[str, Any]]:
        """The network in the terms of all formats, and where it comes from."""

    def _evaluation(self, chunks: Iterator[Array], top: int) -> Evaluation:
        """What the network does on the rows of the chunks (any, d)."""
        return judging.evaluate_dictionary(self._coder(), chunks, top=top)

    def _copies(self, evaluation: Evaluation, chunks: Iterator[Array]) -> Copies | None:
        """Which neurons share a feature, and what that costs on the rows of the chunks (any, d)."""
        forward, V = passing_dictionary(self._coder()), self.components_
        return judging.find_copies(forward, V, V, evaluation.frequency, None, chunks)

    def _result(self, evaluation: Evaluation) -> dict[str, Any]:
        """The object that `refgba evaluate --json` prints."""
        return judging.result(evaluation, None)

    @property
    @abstractmethod
    def components_(self) -> Array:
        """The features found: the decoder rows, (M, d)."""

    # ---- codes and reconstructions -----------------------------------------------------------------------------------

    def transform(self, X: Any) -> Array:
        """The codes of rows X (N, d), dense, (N, M): not 0 exactly where a neuron is active.

        Rows are raw: they are scaled as in training.  InputError for rows that are zero, not finite, or not of d
        dimensions.
        """
        coder = self._coder()
        data = self._rows(X)
        codes = np.empty((len(data), len(coder.W_enc)), coder.W_enc.dtype)
        done = 0
        for x in self._chunks(data):
            codes[done : done + len(x)] = coder.encode(coder.prepare(x))[1]
            done += len(x)
        return codes

    def inverse_transform(self, X: Any) -> Array:
        """The reconstructions of codes X (N, M), (N, d), as the network sees rows: GBA's are of rows at unit norm.

        The norm of a row is not in its codes; `reconstruct` brings it back.
        """
        coder = self._coder()
        codes = matrix(X)
        if codes.shape[1] != len(coder.W_enc):
            raise InputError(f"codes have {len(coder.W_enc)} columns, one per neuron, not {codes.shape[1]}")
        return coder.decode(codes.astype(coder.W_enc.dtype, copy=False))

    def reconstruct(self, X: Any) -> Array:
        """The reconstructions of rows X (N, d) at the scale of these rows, (N, d)."""
        coder = self._coder()
        parts = []
        for x in self._chunks(self._rows(X)):
            prepared = coder.prepare(x)
            parts.append(self._at_scale(coder.decode(coder.encode(prepared)[1]), prepared, x))
        return np.concatenate(parts)

    def _at_scale(self, f: Array, prepared: Array, x: Array) -> Array:
        """Reconstructions f (L, d) of prepared rows, at the scale that the rows x (L, d) had before."""
        centre = self._coder().centre
        left = x if centre is None else x - centre
        scale: Array = np.linalg.norm(left, axis=1) / np.linalg.norm(prepared, axis=1)  # (L,)
        scaled: Array = f * scale[:, None].astype(f.dtype)
        return scaled if centre is None else scaled + centre.astype(f.dtype)

    # ---- how good it is ----------------------------------------------------------------------------------------------

    def evaluate(self, X: Any, top: int = 0) -> dict[str, Any]:
        """What `refgba evaluate --json` prints for rows X (N, d), and of each neuron what `evaluate -o` writes.

        Scalars such as "fvu", "l0" and "dead"; "l0_distribution"; "groups" where there are any; "copies", the neurons
        that share a feature and what they cost, None for networks that are too large to be searched; and arrays of one
        entry per neuron, "frequency", "peak", "mean", "std" and "z_score".  With `top` also "top_rows" and
        "top_values", the rows on which each neuron is highest.
        """
        data = self._rows(X)
        evaluation = self._evaluation(self._read(data, judging.CHUNK), top)
        found = self._copies(evaluation, self._read(data, judging.CHUNK))
        summary = {"copies": None if found is None else found.summary}
        return self._result(evaluation) | summary | judging.arrays(evaluation)

    def score(self, X: Any, y: None = None) -> float:
        """Explained variance of rows X (N, d), 1 - FVU: 1 is perfect, 0 is no better than the mean row."""
        evaluation = self._evaluation(self._read(self._rows(X), judging.CHUNK), 0)
        explained: float = self._result(evaluation)["explained_variance"]
        return explained

    def recovery(self, truth: Any) -> dict[str, Any]:
        """How many of the true features (n, d), an array or a path, were found: FRR, one to one, and e (section 5)."""
        V = self.components_
        return judging.recovery(V, rows.features(truth, V.shape[1]))

    def frr(self, truth: Any, tau: float = 0.9) -> float:
        """The share of the true features (n, d) that have a neuron at cosine tau or more."""
        V = self.components_
        return frr(V, rows.features(truth, V.shape[1]), tau)

    # ---- to show, and to give away -----------------------------------------------------------------------------------

    def plot(self, X: Any = None, truth: Any = None) -> Figure:
        """A figure: how training went, how often the neurons fire, and which of the true features (n, d) were found.

        Each part is there where it is known: the first for runs, the second on rows X (N, d) or else on the last rows
        of training, the third with a truth.  InputError where nothing is.
        """
        from refgba.notebook import plots

        V = self.components_
        features = None if truth is None else rows.features(truth, V.shape[1])
        frequency = self._frequency() if X is None else self.evaluate(X)["frequency"]
        return plots.overview(self.history_, self._formed(), frequency, self._target(), V, features)

    def _frequency(self) -> Array | None:
        """How often each neuron fired at the end of training, (M,), where that is known."""
        return None

    def _formed(self) -> int:
        """The step of training up to which features form, 0 where there is no such phase."""
        return 0

    def _target(self) -> Array | None:
        """The target frequency of each neuron, (M,), where there are targets."""
        return None

    def export(self, path: str | Path, format: str = "saelens") -> Path:
        """Write the network to the new folder `path` for other libraries; returns the path.

        format: "saelens", "saelens-folded", "dictionary-learning" or "npz", as `refgba export` has them.  InputError
        when the folder holds something, or the network cannot be expressed.
        """
        if format not in formats.FORMATS:
            raise InputError(f"unknown format {format!r}; the formats are {', '.join(formats.FORMATS)}")
        dictionary, provenance = self._dictionary()
        library = formats.FORMATS[format]
        form = library.NAMES[format](dictionary) if dictionary.input == "unit" else dictionary
        library.write(form, provenance, Path(path))
        return Path(path)

    # ---- rows --------------------------------------------------------------------------------------------------------

    def _rows(self, X: Any) -> Activations:
        """The rows of X, if they have the network's dimensions."""
        return rows.rows_of(X, self._coder().W_enc.shape[1], type(self).__name__)

    def _read(self, data: Activations, size: int) -> Iterator[Array]:
        """All rows, in order and checked, at most `size` at a time."""
        with rows.in_python(dropping=False):
            yield from Check(data.store, str(self._coder().W_enc.dtype)).chunks(data, size)

    def _chunks(self, data: Activations) -> Iterator[Array]:
        """The same, as many at a time as can be coded without much memory."""
        return self._read(data, max(1, judging.ENTRIES // len(self._coder().W_enc)))
