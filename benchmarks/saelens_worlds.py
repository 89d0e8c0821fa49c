"""SAELens' own synthetic world: which of its features a network finds, by its evaluation.

    python benchmarks/saelens_worlds.py [--seeds 3] [-o benchmarks/results/saelens-worlds.json]

SAELens' are the world, the loop and trainers of its networks, and all figures but seconds:

    features    `FeatureDictionary` of 1024 in d = 128, made as orthogonal as that goes, which is its default
    rows        `ActivationGenerator`: each feature is there or not, independently of the others and at strength 1 (its
                default), with the frequencies of `zipfian_firing_probabilities`, exponent 1 (its default), 0.2 to 0.002
    networks    TopK, BatchTopK, JumpReLU and Matryoshka by `train_toy_sae`, with the defaults of their configurations
    figures     `eval_sae_on_synthetic_data` of what `SAE.load_from_disk` reads back

Ours are the seeds, GBA by its default recipe and with measured targets (nothing is set but the length of the run), and
one change of the world, for all networks alike: rows are scaled to unit norm, which GBA is for.  Rows without a
feature, 3%, stay zeros; GBA is not trained on them, and judged on them as the others are.  GBA is written in the format
saelens-folded.

All networks have 1024 neurons and see as many rows, each of them once, in batches of 512.  SAELens' get the K that is
right, the mean number of active features per row (TopK the whole number next to it, JumpReLU as `target_l0` of its
quadratic loss), and GBA does not.  Their learning rate is the best of RATES by F1 on a world of another seed, in runs
of TRIED steps, and falls to zero over the second half of a run, as GBA's does.  JumpReLU's sparsity loss is weighted by
WEIGHT, with which it found more than with ten times as much.

Seconds are of one thread, of the processor's clock, and include SAELens' drawing of the rows, for all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sae_lens
import torch
from sae_lens import synthetic
from setting import environment

from refgba import recipe
from refgba.experiments.training import trained
from refgba.formats import export
from refgba.types import Array

FEATURES, D = 1024, 128
FREQUENCIES: dict[str, float] = {"exponent": 1.0, "max_prob": 0.2, "min_prob": 0.002}
BATCH, STEPS = 512, 1250
JUDGED = 20_000  # rows
LEVELS = [64, 256, 1024]  # of Matryoshka
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
TRIED = 400  # steps with each of them
WEIGHT = 1e-3  # of JumpReLU's sparsity loss
CHOSEN_ON = 100  # the seed on which learning rates are chosen

OURS = {"measured": "GBA, measured targets", "default": "GBA, default recipe"}
THEIRS = {"jumprelu": "JumpReLU", "batchtopk": "BatchTopK", "topk": "TopK", "matryoshka": "Matryoshka"}
CLASSES = {
    "topk": "TopKTrainingSAE", "batchtopk": "BatchTopKTrainingSAE", "jumprelu": "JumpReLUTrainingSAE",
    "matryoshka": "MatryoshkaBatchTopKTrainingSAE",
}  # fmt: skip
COLUMNS = {  # of `table`: what it is, and how it is shown
    "mcc": ("mean cosine", ".3f"),
    "uniqueness": ("uniqueness", ".3f"),
    "f1": ("F1", ".3f"),
    "l0": ("L0", ".2f"),
    "true_l0": ("true L0", ".2f"),
    "dead": ("dead, %", ".1f"),
    "explained": ("explained variance", ".3f"),
    "seconds": ("CPU seconds", ".0f"),
}


class UnitDictionary(synthetic.FeatureDictionary):
    """SAELens' features, whose rows come at unit norm; a row without a feature stays zeros."""

    def forward(self, activations: Any) -> Any:
        return torch.nn.functional.normalize(super().forward(activations))


class World:
    """Features and rows of a seed: d dimensions, features and frequencies as SAELens makes them."""

    def __init__(self, seed: int, features: int = FEATURES, d: int = D) -> None:
        torch.manual_seed(seed)
        with contextlib.redirect_stderr(io.StringIO()):  # a bar
            self.dictionary = UnitDictionary(features, d, seed=seed).requires_grad_(False)
        frequencies = synthetic.zipfian_firing_probabilities(features, **FREQUENCIES)
        self.generator = synthetic.ActivationGenerator(features, frequencies)
        self.active, self.d, self.seed = float(frequencies.sum()), d, seed

    def minibatches(self, steps: int, batch: int) -> Iterator[Array]:
        """Rows (batch, d) that have a feature, `steps` times."""
        torch.manual_seed(1000 + self.seed)
        rows = synthetic.SyntheticActivationIterator(self.dictionary, self.generator, batch)
        left = np.empty((0, self.d), np.float32)
        for _ in range(steps):
            while len(left) < batch:
                drawn = next(rows).numpy()
                left = np.concatenate([left, drawn[drawn.any(axis=1)]])
            yield left[:batch]
            left = left[batch:]

    def judge(self, folder: Path) -> dict[str, float]:
        """What SAELens reads from a folder, by its own evaluation, always on the same rows."""
        torch.manual_seed(2000 + self.seed)
        network = sae_lens.SAE.load_from_disk(str(folder))
        found = synthetic.eval_sae_on_synthetic_data(network, self.dictionary, self.generator, JUDGED, batch_size=2000)
        return {
            "mcc": found.mcc,
            "uniqueness": found.uniqueness,
            "f1": found.classification.f1_score,
            "precision": found.classification.precision,
            "recall": found.classification.recall,
            "l0": found.sae_l0,
            "true_l0": found.true_l0,
            "dead": 100 * found.dead_latents / network.cfg.d_sae,
            "explained": found.explained_variance,
            "shrinkage": found.shrinkage,
        }


def of_ours(world: World, name: str, steps: int = STEPS, **given: Any) -> dict[str, float]:
    """GBA by a recipe: trained, exported, and judged by SAELens."""
    config = recipe.RECIPES[name](world.d, steps=steps, seed=world.seed, dtype="float32", **given)
    begin = time.process_time()
    engine, state = trained(world.minibatches(steps, config.batch), world.d, config, "numba")
    seconds = time.process_time() - begin
    with tempfile.TemporaryDirectory() as folder:
        export(engine.params(state), config, {}, Path(folder) / "out", "saelens-folded")
        return world.judge(Path(folder) / "out") | {"seconds": seconds}


def of_theirs(world: World, name: str, lr: float, steps: int = STEPS) -> dict[str, float]:
    """A network of SAELens: trained by its loop, saved for use, and judged by it."""
    options: dict[str, Any] = {
        "topk": {"k": round(world.active)},
        "batchtopk": {"k": world.active},
        "matryoshka": {"k": world.active, "matryoshka_widths": LEVELS},
        "jumprelu": {
            "jumprelu_sparsity_loss_mode": "quadratic",
            "target_l0": world.active,
            "l0_coefficient": WEIGHT,
        },
    }[name]
    torch.manual_seed(1000 + world.seed)
    settings = getattr(sae_lens, CLASSES[name] + "Config")(d_in=world.d, d_sae=FEATURES, **options)
    network = getattr(sae_lens, CLASSES[name])(settings)
    begin = time.process_time()
    with contextlib.redirect_stderr(io.StringIO()):
        synthetic.train_toy_sae(
            network, world.dictionary, world.generator, training_samples=steps * BATCH, batch_size=BATCH, lr=lr,
            lr_decay_steps=steps // 2,
        )  # fmt: skip
    seconds = time.process_time() - begin
    with tempfile.TemporaryDirectory() as folder:
        network.save_inference_model(folder)
        return world.judge(Path(folder)) | {"seconds": seconds}


def line(label: str, runs: list[dict[str, float]]) -> str:
    """A line of the table: the mean of each column, and its lowest and highest where there are several seeds."""
    cells = [label]
    for key, (_, form) in COLUMNS.items():
        values = [run[key] for run in runs]
        ends = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 and key != "seconds" else ""
        cells.append(f"{np.mean(values):{form}}{ends}")
    return "| " + " | ".join(cells) + " |"


def heads() -> str:
    """The first lines of the table."""
    names = ["network", *(name for name, _ in COLUMNS.values())]
    return "| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", nargs="+", choices=[*OURS, *THEIRS], default=[*OURS, *THEIRS])
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {
        "command": f"python benchmarks/saelens_worlds.py --seeds {given.seeds} --steps {given.steps}",
        "seeds": given.seeds,
        "world": {"features": FEATURES, "d": D, **FREQUENCIES},
        "rows": given.steps * BATCH,
        "batch": BATCH,
        "judged": JUDGED,
        "rates": RATES,
        "tried_steps": TRIED,
        "environment": environment() | {"sae_lens": sae_lens.__version__, "torch": torch.__version__},
        "tried": {},
        "found": {},
    }
    worlds = [World(seed) for seed in range(given.seeds)]
    result["active"] = worlds[0].active
    of_ours(worlds[0], "default", 5)  # numba compiles on first use
    of_ours(worlds[0], "measured", 5)
    print(heads(), flush=True)
    for name in given.only:
        if name in OURS:
            runs = [of_ours(world, name, given.steps) for world in worlds]
        else:
            other = World(CHOSEN_ON)
            tried = [{"lr": lr, **of_theirs(other, name, lr, min(TRIED, given.steps))} for lr in RATES]
            lr = max(tried, key=lambda attempt: attempt["f1"])["lr"]
            runs = [{"lr": lr, **of_theirs(world, name, lr, given.steps)} for world in worlds]
            result["tried"][name] = tried
        result["found"][name] = runs
        print(line((OURS | THEIRS)[name], runs), flush=True)
        if given.out:
            given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
