"""Train on activations with any backend and leave a run folder behind.

`train_run` is Algorithm 1's loop (`refgba.gba.train`) with a log: it yields a `Progress` now and then, for a progress
bar or a caller's own use, and writes the same to `metrics.jsonl`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from backends.base import Backend
from refgba import __version__, gba
from refgba.config import GBAConfig
from refgba.runs import folder
from refgba.runs.activations import Activations, Survey
from refgba.runs.prefetch import prefetched

REMEDY = "training diverged, the run has no result: try a lower lr, and other settings nearer their defaults"
LOGS = 200  # lines of metrics.jsonl in a run, about


@dataclass(frozen=True)
class Progress:
    """How training stands after a step.

    loss, l0 and fvu are of its batch.  dead (never fired) and within (at or under target) are shares of the neurons,
    over the rows between the last two adaptations.
    """

    step: int
    loss: float
    l0: float
    fvu: float
    dead: float
    within: float
    seconds: float


class TrainingError(RuntimeError):
    """Training cannot go on: it diverged, or its folder cannot be written.  The message is one line."""


def train_run(
    data: Activations, survey: Survey, config: GBAConfig, backend: Backend, names: dict[str, str], out: Path
) -> Iterator[Progress]:
    """Train and write the run folder `out`, which must not hold a run yet; yields about `LOGS` times and at the end.

    data and survey come from `refgba.runs.activations`; names, such as {"backend": "numpy"}, go to
    about.json.  Raises InputError before
    anything is written when `out` cannot take the run, and TrainingError when the loss is no longer finite.
    """
    about = names | {
        "refgba": __version__,
        "data": {"path": str(data.path), "rows": survey.rows, "dropped": survey.dropped, "d": data.d},
    }
    params = gba.random_params(config, data.d)
    state = backend.init(params, config)
    folder.create(out, config, about)
    batches = prefetched(backend.put(state, x) for x in gba.minibatches(data, config))
    every = max(1, config.steps // LOGS)
    begin = time.perf_counter()
    try:
        with (out / folder.METRICS).open("w", encoding="utf-8") as log:
            for metrics in gba.train(state, batches, backend.step, backend.adapt):
                if state.t % every == 0 or state.t == config.steps:
                    progress = _progress(state, metrics, backend, survey, time.perf_counter() - begin)
                    log.write(json.dumps(asdict(progress), allow_nan=False) + "\n")
                    log.flush()
                    yield progress
        params = backend.params(state)
        for parameter, array in params.arrays().items():  # the loss of the last step was that before its update
            if not np.isfinite(array).all():
                raise TrainingError(f"step {state.t}: {parameter} is not finite; {REMEDY}")
        folder.finish(out, params, {"step": state.t})
    except OSError as error:
        raise TrainingError(f"{out}: step {state.t}: {error.strerror or error}; the run is not complete") from None


def _progress(state: gba.AnyState, metrics: gba.Metrics, backend: Backend, survey: Survey, seconds: float) -> Progress:
    loss, config = float(metrics.loss), state.config
    if not math.isfinite(loss):
        raise TrainingError(f"step {state.t}: the loss is {loss}; {REMEDY}")
    counters = backend.counters(state)
    frequency = counters.counts / counters.rows
    return Progress(
        step=state.t,
        loss=loss,
        l0=float(metrics.l0),
        fvu=2 * loss / survey.variance,
        dead=float((counters.counts == 0).mean()),
        within=float((frequency <= config.target()[config.group()]).mean()),
        seconds=seconds,
    )
