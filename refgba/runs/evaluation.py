"""Evaluate a network over activations in one streaming pass, and against the true features where they are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from backends.base import Backend
from refgba.config import GBAConfig
from refgba.identifiability import partners
from refgba.metrics import Evaluation, frr, matched_recovery
from refgba.sae import Params, unit_rows
from refgba.types import Array

THRESHOLDS = (0.8, 0.9)


def evaluate(
    params: Params,
    config: GBAConfig,
    backend: Backend,
    chunks: Iterable[Array],
    tick: Callable[[int], object] = id,
) -> Evaluation:
    """Everything `refgba.metrics.Evaluation` measures, on the rows of `chunks` (rows, d), each scaled to unit norm.

    `tick` is called with the number of rows of each chunk done.
    """
    M, d = params.W.shape
    state = backend.init(params, config)
    evaluation = Evaluation(M, d)
    for chunk in chunks:
        x = unit_rows(chunk.astype(config.master))
        y, s = backend.encode(state, backend.put(state, x))
        evaluation.update(x, backend.get(backend.decode(state, s)), backend.get(y))
        tick(len(chunk))
    return evaluation


def recovery(W: Array, V: Array) -> dict[str, Any]:
    """FRR of the neurons W (M, d) against the true features V (n, d), one-to-one recovery, and e (section 5).

    e is None where there are fewer neurons than features.
    """
    return {
        "frr": {str(tau): frr(W, V, tau) for tau in THRESHOLDS},
        "one_to_one": {str(tau): matched_recovery(W, V, tau) for tau in THRESHOLDS},
        "e": partners(W, V).e if len(W) >= len(V) else None,
    }
