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
from importlib.metadata import version
from pathlib import Path

from backends.base import Backend
from refgba import gba
from refgba.config import GBAConfig
from refgba.runs import folder
from refgba.runs.activations import Activations, Survey

LOGS = 200  # lines of metrics.jsonl in a run, about


@dataclass(frozen=True)
class Progress:
    """How training stands after a step.  loss, l0 and fvu are of its batch; dead (never fired) and within (at or under

    target) are shares of the neurons over the rows since the adaptation before last.
    """

    step: int
    loss: float
    l0: float
    fvu: float
    dead: float
    within: float
    seconds: float


class TrainingError(RuntimeError):
    """Training cannot go on: the parameters are no longer finite."""


def train_run(
    data: Activations, survey: Survey, config: GBAConfig, backend: Backend, name: str, out: Path
) -> Iterator[Progress]:
    """Train and write the run folder `out`, which must not hold a run yet; yields about `LOGS` times and at the end.

    data and survey come from `refgba.runs.activations`; name is that of the backend.  Raises InputError before
    anything is written when `out` cannot take the run, and TrainingError when the loss is no longer finite.
    """
    about = {
        "backend": name,
        "refgba": version("refgba"),
        "data": {"path": str(data.path), "rows": survey.rows, "dropped": survey.dropped, "d": data.d},
    }
    params = gba.random_params(config, data.d)
    folder.create(out, config, about)
    state = backend.init(params, config)
    batches = (backend.put(state, x) for x in gba.minibatches(data, config))
    every = max(1, config.steps // LOGS)
    begin = time.perf_counter()
    with (out / folder.METRICS).open("w", encoding="utf-8") as log:
        for metrics in gba.train(state, batches, backend.step, backend.adapt):
            if state.t % every == 0 or state.t == config.steps:
                progress = _progress(state, metrics, backend, survey, time.perf_counter() - begin)
                log.write(json.dumps(asdict(progress)) + "\n")
                log.flush()
                yield progress
    folder.finish(out, backend.params(state), {"step": state.t})


def _progress(state: gba.AnyState, metrics: gba.Metrics, backend: Backend, survey: Survey, seconds: float) -> Progress:
    loss, config = float(metrics.loss), state.config
    if not math.isfinite(loss):
        raise TrainingError(f"step {state.t}: the loss is {loss}; try a lower lr than {config.lr}")
    counters = backend.counters(state)
    frequency = counters.counts / counters.rows
    return Progress(
        step=state.t,
        loss=loss,
        l0=float(metrics.l0),
        fvu=2 * loss / survey.variance if survey.variance > 0 else math.nan,
        dead=float((counters.counts == 0).mean()),
        within=float((frequency <= config.target()[config.group()]).mean()),
        seconds=seconds,
    )
