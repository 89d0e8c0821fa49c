"""What each rank of tests/test_parallel.py runs: trains a network twice and writes the arrays of all ranks.

mpiexec -n P python tests/ranks_worker.py BACKEND OUT.npz
"""

from __future__ import annotations

import sys

import numpy as np

from refgba import backends, gba
from refgba.backends import comm
from refgba.config import GBAConfig
from refgba.model import imbalanced

STEPS, EVERY, L, K = 50, 10, 64, 5
SETTINGS = {
    "groups": K, "steps": STEPS, "batch": L, "adapt_every": EVERY, "form": 0.4, "hold": 0.47, "floor": 0.5, "lr": 5e-3,
    "a_init": 0.1, "b_init": -0.2, "gamma_minus": 0.1, "gamma_plus": 0.1, "htf": 0.1, "ltf": 0.01,
}  # fmt: skip
KINDS = {
    "jumprelu-untied": {"untied": True},
    "relu-tied": {"activation": "relu"},
    "measured-targets": {"untied": True, "targets_from": "data", "l0": 6.0},
    "relative-thresholds": {"untied": True, "targets_from": "data", "l0": 6.0, "relative": 1.0},
}


def rows():
    return imbalanced().draw(0, 400).X


def config(width=103, **more):
    return GBAConfig(width=width, **SETTINGS, **more)


def trained(backend, config, X, ranks):
    """The state after all steps, and loss and L0 of each."""
    state = backends.begin(backend, config, X.shape[1], ranks)
    steps = gba.train(state, gba.minibatches(X, config), backend.step, backend.adapt)
    return state, [(float(m.loss), float(m.l0)) for m in steps]


def main(name, out):
    ranks, backend, X, results = comm.world(), backends.load(name), rows(), {}
    for kind, more in KINDS.items():
        for repetition in range(2):
            state, metrics = trained(backend, config(**more), X, ranks)
            for array, value in {**backend.params(state).arrays(), "held": state.held}.items():
                if array != "b_pre":
                    value = np.concatenate(list(ranks.gathered(value, 7)))
                results[f"{kind}/{repetition}/{array}"] = value
            results[f"{kind}/{repetition}/metrics"] = np.array(metrics)
            same = ranks.everyone(backend.params(state).b_pre.tolist())
            assert all(other == same[0] for other in same), "b_pre is every rank's, and not the same on all"
    for width in (60, 240):  # what is shared in a run, whatever the width
        before = ranks.traffic.copy()
        trained(backend, config(width, untied=True), X, ranks)
        now = ranks.traffic - before
        results[f"traffic/{width}"] = np.array([now["sum"], now["totals"]])
    if ranks.rank == 0:
        np.savez(out, **results)
    ranks.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
