"""Weak scaling of neuron-parallel training: measured here with numba, simulated for GPUs by `refgba plan`'s model.

    python benchmarks/scaling.py [-o scaling.json]

Each rank has `--width` neurons and one thread, whatever the number of ranks: efficiency is the step of one rank divided
by that of P.  Other programs only ever slow a step down, so the quickest step counts; the median is beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from refgba import backends
from refgba.backends import comm
from refgba.baselines import METHODS
from refgba.planning import costs
from refgba.planning.devices import NETWORKS, device
from refgba.sae import unit_rows

GPU = {"device": "h200", "network": "infiniband", "d": 1536, "width": 65536, "batch": 4096, "dtype": "bfloat16"}
SIMULATED = (1, 8, 64, 512)


def steps(d: int, width: int, batch: int, count: int) -> None:
    """What each rank runs; rank 0 prints the milliseconds of a step."""
    ranks, backend = comm.world(), backends.load("numba")
    config = METHODS["gba"].configure(
        d, "default", width=width * ranks.size, batch=batch, steps=10**6, dtype="float32", b_init=-2 / d**0.5
    )
    state = backends.begin(backend, config, d, ranks)
    x = unit_rows(np.random.default_rng(0).standard_normal((batch, d))).astype("float32")
    float(backend.step(state, x).loss)
    taken = []
    for _ in range(count):
        began = perf_counter()
        float(backend.step(state, x).loss)
        taken.append(perf_counter() - began)
    if ranks.rank == 0:
        print(json.dumps({"ranks": ranks.size, "ms": 1e3 * min(taken), "median_ms": 1e3 * median(taken)}))
    ranks.wait()


def simulated() -> list[dict[str, float]]:
    """The step of P GPUs by their peak numbers, nothing overlapped."""
    gpu, network, d, m, L = device(GPU["device"]), NETWORKS[GPU["network"]], GPU["d"], GPU["width"], GPU["batch"]
    found = []
    for P in SIMULATED:
        step = costs.gpu_step(d, m * P, L, 1, GPU["dtype"], P, gpu, network)
        found.append({"ranks": P, "ms": 1e3 * step.seconds, "network_ms": 1e3 * step.network})
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", dest="out", type=Path)
    for name, value in (("--d", 256), ("--width", 4096), ("--batch", 256), ("--steps", 400)):
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = given.d, given.width, given.batch, given.steps
    if given.rank:
        return steps(*size)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    flags = [str(part) for pair in zip(("--d", "--width", "--batch", "--steps"), size, strict=True) for part in pair]
    load, mpiexec, measured = os.getloadavg()[0], Path(sys.executable).parent / "mpiexec", []
    for P in given.ranks:
        command = [str(mpiexec), "-n", str(P), sys.executable, __file__, "--rank", *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        measured.append(json.loads(done.stdout.splitlines()[-1]))
    result = {
        "measured": {
            "setting": dict(zip(("d", "width_per_rank", "batch", "steps"), size, strict=True)),
            "ranks": measured,
        },
        "simulated": {"setting": GPU, "ranks": simulated()},
        "load": load,  # of the machine, by other programs, before
    }
    for part in ("measured", "simulated"):
        first = result[part]["ranks"][0]["ms"]
        for row in result[part]["ranks"]:
            row["efficiency"] = first / row["ms"]
            print(f"{part:10} P = {row['ranks']:4}  {row['ms']:8.3f} ms per step, {row['efficiency']:.1%}")
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
