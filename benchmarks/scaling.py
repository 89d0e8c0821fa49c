"""Weak scaling of neuron-parallel training: measured here with numba, simulated for GPUs by `refgba plan`'s model.

    python benchmarks/scaling.py [-o scaling.json]

Each rank has `--width` neurons and one thread, whatever the number of ranks.  Machines seldom have P cores to spare,
and some have fewer than they say, so that P processes slow each other down even if they share nothing.  So P ranks are
compared with P processes of as many neurons that train networks of their own at the same time: efficiency is the step
of these divided by that of the ranks.  The two take turns, and of each the quickest round counts.

The sum over ranks of a step's reconstructions, with nothing else to do, is measured besides: if steps went on
meanwhile, no more than that would be won.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from refgba import backends
from refgba.backends import comm
from refgba.baselines import METHODS
from refgba.planning import costs
from refgba.planning.devices import NETWORKS, device
from refgba.sae import unit_rows

GPU = {"device": "h200", "network": "infiniband", "d": 1536, "width": 65536, "batch": 4096, "dtype": "bfloat16"}
SIMULATED = (1, 8, 64, 512)
ROUNDS = 20


def steps(d: int, width: int, batch: int, count: int) -> None:
    """What each rank runs; rank 0 prints the milliseconds of a step, and of its sum over the ranks."""
    ranks, backend = comm.world(), backends.load("numba")
    x = unit_rows(np.random.default_rng(0).standard_normal((batch, d))).astype("float32")

    config = METHODS["gba"].configure(
        d, "default", width=width * ranks.size, batch=batch, steps=10**6, dtype="float32", b_init=-2 / d**0.5
    )
    state = backends.begin(backend, config, d, ranks)

    def step(shared: comm.Ranks) -> float:
        state.ranks = shared  # the same memory for both: where it lies makes a difference of some percent
        return float(backend.step(state, x).loss)

    def mean_ms(work: Callable[[], Any]) -> float:
        work()
        ranks.totals(0)  # so that all begin at the same time, and end so
        began = perf_counter()
        for _ in range(count):
            work()
        ranks.totals(0)
        return 1e3 * (perf_counter() - began) / count

    work = {
        "ms": partial(step, ranks),
        "apart_ms": partial(step, comm.ALONE),
        "sum_ms": lambda: ranks.sum(np.zeros_like(x)),
    }
    rounds = [{name: mean_ms(what) for name, what in work.items()} for _ in range(ROUNDS)]
    if ranks.rank == 0:
        print(json.dumps({"ranks": ranks.size} | {name: min(r[name] for r in rounds) for name in work}))
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
    for name, value in (("--d", 768), ("--width", 8192), ("--batch", 512), ("--steps", 5)):
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
        rows = result[part]["ranks"]
        for row in rows:
            row["efficiency"] = row.get("apart_ms", rows[0]["ms"]) / row["ms"]
            print(f"{part:10} P = {row['ranks']:4}  {row['ms']:8.3f} ms per step, {row['efficiency']:.1%}")
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
