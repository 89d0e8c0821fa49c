"""What experiments train on, known features and real activations, and the two algorithms: Modified BA and Algorithm 1.

A seed draws the features, the rows and the initial neurons, each from a stream of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from refgba import backends, gba, theory
from refgba.backends.base import AnyConfig, AnyParams
from refgba.config import GBAConfig
from refgba.data import feed
from refgba.data.activations import Activations, open_activations
from refgba.data.survey import Check, survey
from refgba.errors import InputError
from refgba.model import Rows, SyntheticModel, features
from refgba.runs.accumulate import Evaluation
from refgba.runs.judging import evaluate
from refgba.sae import unit_rows
from refgba.streams import stream
from refgba.types import Array, Float64

SAMPLE = ("minilm-l3-mlp.npy", "minilm-l3-mlp.heldout.npy")
CHUNK = 2048  # rows of real activations judged at a time
# The setting by which each baseline is made more or less sparse.
DIALS = {
    "topk": "k", "batchtopk": "k", "matryoshka": "k", "l1": "sparsity", "jumprelu": "sparsity", "gated": "sparsity",
}  # fmt: skip


def gaussian(n: int, d: int, seed: int) -> Array:
    """The theory's features: unit rows of Gaussian entries, (n, d)."""
    return features(n, d, "gaussian", stream(seed, "features"))


def mixture(rows: Rows, V: Array, N: int, seed: int) -> Array:
    """X = H V at unit norm in float32, for features V (n, d) of any kind; rows without a feature are left out."""
    H = SyntheticModel(rows, d=1, seed=seed, dtype=np.float32).draw(0, N).H  # does not depend on d
    return unit_rows(H[H.any(axis=1)] @ V.astype(np.float32))


def neurons(M: int, d: int, seed: int) -> Array:
    """The M neurons that a run begins with: those of `gba.random_params`, float32."""
    return unit_rows(stream(seed, "weights").standard_normal((M, d))).astype(np.float32)


def climb(X: Array, W: Array, p: float, steps: int) -> Array:
    """The neurons W (M, d) after `steps` steps of Modified BA at frequency p."""
    *_, W = theory.modified_ba(X, W, p, steps)
    return W


@dataclass(frozen=True)
class Trained:
    """Algorithm 1 after its last step: what the neurons stand for, the decoder rows (M, d), and how often each fired
    since the last adaptation (M,).
    """

    neurons: Array
    frequency: Float64


def train(X: Array, config: GBAConfig, backend: str) -> Trained:
    """Run Algorithm 1 on rows X (N, d)."""
    engine, state = trained(gba.minibatches(X, config), X.shape[1], config, backend)
    counters = engine.counters(state)
    return Trained(engine.params(state).V, counters.counts / counters.rows)


def trained(
    minibatches: Iterable[Array], d: int, config: AnyConfig, backend: str, params: AnyParams | None = None
) -> tuple[backends.Backend, Any]:
    """A backend, and its state of a network of any method after all of the minibatches of rows (L, d).

    params: what to begin with, where not with the method's own random start.
    """
    engine = backends.load_for(backend, config)
    state = engine.init(params, config) if params else backends.begin(engine, config, d)
    for _ in gba.train(state, (engine.put(state, x) for x in minibatches), engine.step, engine.adapt):
        pass
    return engine, state


@dataclass(frozen=True)
class Real:
    """Real activations: rows to train on, which have been surveyed, and rows to judge on."""

    train: Activations
    held_out: Activations

    def about(self) -> dict[str, Any]:
        """What an outcome tells of them."""
        return {
            "name": self.train.store.path.name,
            "rows": len(self.train),
            "held_out": len(self.held_out),
            "d": self.train.d,
        }

    def seen(self, config: AnyConfig) -> Iterator[Array]:
        """The rows to train on, in order, checked and CHUNK at a time."""
        return Check(self.train.store, config.master).chunks(self.train, CHUNK)

    def judged(self, config: AnyConfig, half: int | None = None) -> Iterator[Array]:
        """The held-out rows, checked and CHUNK at a time, or their first or last half, 0 or 1."""
        middle, start = len(self.held_out) // 2, 0
        low, high = (0, len(self.held_out)) if half is None else ((0, middle), (middle, len(self.held_out)))[half]
        for chunk in Check(self.held_out.store, config.master).chunks(self.held_out, CHUNK):
            if low < start + len(chunk) and start < high:
                yield chunk[max(low - start, 0) : high - start]
            start += len(chunk)


def opened(data: tuple[Path, Path] | None) -> Real:
    """The activations `data`, to train and to judge on, or for None the sample that comes along."""
    train, held_out = data or sample()
    rows, _ = survey(open_activations(train), "float32")
    return Real(rows, open_activations(held_out, rows.d))


@cache
def opened_once(data: tuple[Path, Path] | None) -> Real:
    """`opened`, surveyed once per process."""
    return opened(data)


def sample() -> tuple[Path, Path]:
    """The files of the sample of real activations that comes along."""
    folder = resources.files("refgba.experiments") / "data"
    train, held_out = (Path(str(folder / name)) for name in SAMPLE)
    return train, held_out


@cache
def about_sample() -> dict[str, Any]:
    """What an outcome tells of the sample, `Real.about`, by the headers of its files."""
    train, held_out = map(open_activations, sample())
    return Real(train, held_out).about()


def require(data: tuple[Path, Path]) -> None:
    """InputError unless these are activations to train on and others to judge on; reads all rows of both.

    What is found of the rows to train on is kept for `opened_once`.
    """
    train, held_out = data
    if train.resolve() == held_out.resolve():
        raise InputError(f"{held_out}: is what is trained on; give other rows to judge on")
    survey(opened_once(data).held_out, "float32")


def evaluated(real: Real, config: AnyConfig, backend: str) -> tuple[AnyParams, Evaluation]:
    """A network of any method trained on real activations, and what it does on the held-out rows."""
    engine, state = trained(feed.minibatches(real.train, config), real.train.d, config, backend)
    params = engine.params(state)
    return params, evaluate(params, config, engine, real.judged(config))


def evaluated_once(
    config: AnyConfig, backend: str, data: tuple[Path, Path] | None
) -> tuple[AnyParams, Evaluation]:  # fmt: skip
    """`evaluated` on activations that a process opens once."""
    return evaluated(opened_once(data), config, backend)
