"""The demonstration: known features recovered, from data to judgement, on the paper's imbalanced set."""

from __future__ import annotations

import io
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refgba import model
from refgba.data import files, synthetic
from refgba.data.activations import open_activations
from refgba.runs import folder
from refgba.runs.accumulate import Evaluation
from refgba.runs.held_out import Choice
from refgba.runs.judging import CHUNK, THRESHOLDS, evaluate, recovery, trained, trained_result
from refgba.runs.launch import Launch, Say, Waiting, customary, plan
from refgba.runs.settings import Request
from refgba.sae import unit_rows

STEPS = 3000  # Enough for 128 features, and well under a minute on two cores.
HELD_OUT = 20_000  # The demonstration is judged on this many fresh rows.
D = model.imbalanced().d
PAGE = "demo.html"  # in the folder of the run


class Look(NamedTuple):
    """A look at a run that is being trained: the step, and FRR at each of THRESHOLDS."""

    step: int
    frr: tuple[float, ...]


@dataclass(frozen=True)
class Demo:
    """A demonstration ready to train: the model of its data, how many rows were drawn, and the run.

    looks: become those of the training, from before the first step to the last.
    """

    truth: model.SyntheticModel
    rows: int
    launch: Launch
    looks: list[Look] = field(default_factory=list)

    @property
    def page(self) -> Path:
        """Where the page of the demonstration is to be."""
        return self.launch.path / PAGE

    def judged(self) -> tuple[Evaluation, dict[str, Any]]:
        """What the trained network does on rows that it was not trained on, and which features it recovered."""
        run = self.launch
        assert run.held_out is not None
        network = folder.open_network(run.path)
        with trained(run.path):
            chunks = run.held_out.chunks(HELD_OUT, CHUNK)
            evaluation = evaluate(network.params, network.config, run.backend, chunks, centre=network.centre)
        result = trained_result(evaluation, network, run.path) | recovery(network.params.V, self.truth.V)
        return evaluation, result


def begin(
    path: Path, rows: int, weights: str, request: Request, say: Say = id, waiting: Waiting = nullcontext
) -> Demo:  # fmt: skip
    """Draw the data into the folder `path` / data, and make a run on them ready; InputError as `plan`.

    weights: a key of `refgba.model.WEIGHTS`.  The seed of the settings is that of the data too.
    """
    data, fresh = path / "data" / "X.npy", path / "data" / "held-out.npy"
    for file in (fresh, path / PAGE):
        files.refuse_new_file(file)
    request, defaults = customary(request)
    planned = plan(path, request, D, say, waiting, steps=STEPS, **defaults)
    if rows > 0:  # fewer are refused below
        planned.refuse_batch(rows)
    seed = planned.config.seed
    truth = replace(model.imbalanced(seed), weights=weights)
    about = {"set": "imbalanced", "weights": weights, "seed": seed}
    synthetic.write(truth, rows, data.parent, about, keep_H=False)
    drawn = io.BytesIO()
    np.save(drawn, truth.draw(rows, rows + HELD_OUT).X)
    files.write_output(fresh, drawn.getvalue())
    looks: list[Look] = []
    unit = unit_rows(truth.V)

    def look(state: Any) -> None:
        # No BLAS: its threads would wait for more work in a loop, and take the cores from the steps that follow.
        cosine = np.einsum("nd,md->nm", unit, unit_rows(planned.backend.params(state).V)).max(axis=1)
        looks.append(Look(state.t, tuple(float(np.mean(cosine >= tau)) for tau in THRESHOLDS)))

    launch = planned.launch(open_activations(data), choice=Choice(data=fresh), look=look)
    return Demo(truth, rows, launch, looks)
