"""What each rank of a test runs: judges a run together with the others and writes what rank 0 gets.

mpiexec -n P python tests/ranks_judge.py RUN DATA.npy OUT.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from refgba import backends
from refgba.backends import comm
from refgba.data.activations import open_activations
from refgba.runs import folder, judging


def main(run, data, out):
    ranks = comm.world(broadcasts=True)
    network = folder.open_network(Path(run), ranks)
    rows = open_activations(Path(data)).sample(10**6, 100) if ranks.rank == 0 else iter(())
    evaluation = judging.evaluate(
        network.params, network.config, backends.load("numpy"), rows, top=3, bins=4, ranks=ranks
    )
    neurons = ranks.everyone(len(network.params.W))
    if ranks.rank == 0:
        np.savez(out, fvu=evaluation.fvu, neurons=neurons, **judging.arrays(evaluation))
    ranks.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
