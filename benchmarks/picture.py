"""Draw docs/recovery.png, the picture of README: features being found, step by step.

    python benchmarks/picture.py [-o docs/recovery.png] [--steps 3000] [--width 1024]

The default recipe on the imbalanced set of `refgba demo`: 128 known features in 42 dimensions, seed 0.  On the left,
for every feature, the cosine of the neuron nearest to it; on the right, the share of the features found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from refgba import gba, model, recipe
from refgba.backends import begin, load
from refgba.metrics import mcs

ROOT = Path(__file__).parent.parent
LEVELS = {0.8: "#D55E00", 0.9: "#0072B2"}  # FRR is drawn at these cosines
LOOKS = 60  # times that the neurons are looked at


def follow(steps: int, width: int, backend: str) -> tuple[list[int], np.ndarray, int]:
    """The steps looked at, the cosine of every feature's nearest neuron there, (looks, n), and the forming steps."""
    truth = model.imbalanced(0)
    config = recipe.default(truth.d, width=width, steps=steps, dtype="float32")
    engine = load(backend, config.dtype)
    state = begin(engine, config, truth.d)
    cosines, looked = [mcs(truth.V, engine.params(state).V)], [0]
    batches = (engine.put(state, x) for x in gba.minibatches(truth.draw(0, 50_000).X, config))
    for t, _ in enumerate(gba.train(state, batches, engine.step, engine.adapt), start=1):
        if t % max(1, steps // LOOKS) == 0 or t == steps:
            looked.append(t)
            cosines.append(mcs(truth.V, engine.params(state).V))
    return looked, np.array(cosines), recipe.forming_steps(config)


def draw(looked: list[int], cosines: np.ndarray, forming: int) -> Figure:
    figure = Figure(figsize=(9, 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(looked, cosines, color="0.35", linewidth=0.6, alpha=0.35)
    left.set(ylim=(0.3, 1.01), ylabel="cosine of the nearest neuron", title="each line is one of the 128 features")
    for level, colour in LEVELS.items():
        left.axhline(level, color=colour, linewidth=1, linestyle=":")
        right.plot(looked, (cosines >= level).mean(axis=1), color=colour, linewidth=2, label=f"cosine {level} or more")
    right.set(ylim=(-0.02, 1.03), ylabel="features found", title="recovery without a sparsity setting")
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.legend(loc="lower right", frameon=False)
    for axes in (left, right):
        axes.axvline(forming, color="0.6", linewidth=1)
        axes.set(xlabel="training step", xlim=(0, looked[-1]))
        axes.grid(alpha=0.25)
    left.annotate("features form  ", (forming, 0.32), ha="right", fontsize=8, color="0.35")
    left.annotate("  the network reconstructs", (forming, 0.32), ha="left", fontsize=8, color="0.35")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "recovery.png")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--backend", default="numba")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(exist_ok=True)
    looked, cosines, forming = follow(arguments.steps, arguments.width, arguments.backend)
    draw(looked, cosines, forming).savefig(arguments.out)
    found = ", ".join(f"{(cosines[-1] >= level).mean():.1%} at cosine {level}" for level in LEVELS)
    print(f"wrote {arguments.out}: {found}")
