"""The demonstration: known features recovered, from data to judgement, on the paper's imbalanced set."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refgba import model
from refgba.data import synthetic
from refgba.data.activations import open_activations
from refgba.runs import folder
from refgba.runs.judging import evaluate, recovery, trained, trained_result
from refgba.runs.launch import Launch, Say, Waiting, customary, plan
from refgba.runs.settings import Request

STEPS = 3000  # Enough for 128 features, and well under a minute on two cores.
HELD_OUT = 20_000  # The demonstration is judged on so many fresh rows.
D = model.imbalanced().d


@dataclass(frozen=True)
class Demo:
    """A demonstration ready to train: the model of its data, how many rows were drawn, and the run."""

    truth: model.SyntheticModel
    rows: int
    launch: Launch

    def result(self) -> dict[str, Any]:
        """What the trained network does on rows that it was not trained on, and which features it recovered."""
        network = folder.open_network(self.launch.path)
        fresh = (draw.X for draw in self.truth.chunks(self.rows + HELD_OUT, synthetic.CHUNK, start=self.rows))
        with trained(self.launch.path):
            evaluation = evaluate(network.params, network.config, self.launch.backend, fresh, centre=network.centre)
        return trained_result(evaluation, network, self.launch.path) | recovery(network.params.V, self.truth.V)


def begin(
    path: Path, rows: int, weights: str, request: Request, say: Say = id, waiting: Waiting = nullcontext
) -> Demo:  # fmt: skip
    """Draw the data into the folder `path` / data, and make a run on them ready; InputError as `plan`.

    weights: a key of `refgba.model.WEIGHTS`.  The seed of the settings is that of the data too.
    """
    request, defaults = customary(request)
    planned = plan(path, request, D, say, waiting, steps=STEPS, **defaults)
    if rows > 0:  # fewer are refused below
        planned.refuse_batch(rows)
    seed = planned.config.seed
    truth = replace(model.imbalanced(seed), weights=weights)
    about = {"set": "imbalanced", "weights": weights, "seed": seed}
    synthetic.write(truth, rows, path / "data", about, keep_H=False)
    return Demo(truth, rows, planned.launch(open_activations(path / "data" / "X.npy")))
