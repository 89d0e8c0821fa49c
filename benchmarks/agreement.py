"""Do seeds agree?  The trend with width, rows and method, on a world with a Zipf tail and on real rows.

    python benchmarks/agreement.py -o benchmarks/results/agreement.json [--store STORE] [--minutes 45]

The world has 4096 features of weight 1 in 128 dimensions, 5 of them active in a row in the mean, their frequencies
falling as i^-2/3 from 0.11 to 0.0004.  There GBA's targets are the default's times 1024 / M, so that L0 is the same at
every width; on real rows, of a STORE, GBA is the default.  TopK has the K that is nearest to GBA's L0 of seed 0; so has
BatchTopK, both at the learning rate of 3e-3 that suits them best (recipe.md), and GBA by the recipe measured, which in
one cell counts by itself.  Two runs differ in their seed alone: in the initial neurons and in the order of the rows.
"true" is the share of neurons within 0.9 of a feature of the world, "distinct" the share that is left when neurons
within 0.9 of a more frequent one are left out.  Each cell is written when it is done; what the file has already is not
measured again.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np

from refgba import gba, recipe
from refgba.backends.base import AnyConfig
from refgba.config import BaselineConfig
from refgba.data import files
from refgba.data.activations import open_activations
from refgba.data.centre import centred
from refgba.data.laws import zipf_frequencies
from refgba.experiments.agreement import LEVELS, agreement, mean, null
from refgba.experiments.training import trained
from refgba.metrics import mcs
from refgba.model import Independent, SyntheticModel
from refgba.runs.copies import copy_sets
from refgba.runs.judging import evaluate
from refgba.sae import unit_rows
from refgba.types import Array

FEATURES, D, ACTIVE = 4096, 128, 5
JUDGED = 8192
LR = 3e-3

# What is measured, in this order: data, rows, width, method, what differs from the default, seeds.
CELLS: list[tuple[str, int, int, str, dict[str, Any], int]] = [
    ("world", 300_000, 1024, "GBA", {}, 3),
    ("world", 300_000, 1024, "TopK", {}, 3),
    ("world", 300_000, 4096, "GBA", {}, 2),
    ("world", 300_000, 4096, "TopK", {}, 2),
    ("world", 300_000, 4096, "BatchTopK", {}, 2),
    ("world", 8_000, 4096, "GBA", {}, 2),
    ("world", 8_000, 4096, "TopK", {}, 2),
    ("world", 300_000, 4096, "GBA", {"hold": 1.0}, 2),
    ("world", 300_000, 4096, "GBA", {"form": 0.0}, 2),
    ("world", 300_000, 16_384, "GBA", {}, 2),
    ("real", 150_000, 2048, "GBA", {}, 2),
    ("real", 150_000, 2048, "TopK", {}, 2),
    ("real", 8_000, 2048, "GBA", {}, 2),
    ("real", 8_000, 2048, "TopK", {}, 2),
    ("real", 150_000, 1024, "GBA", {}, 2),
    ("real", 150_000, 1024, "TopK", {}, 2),
    ("world", 300_000, 4096, "GBA", {"htf": 0.08, "ltf": 1e-3}, 2),
    ("real", 50_000, 2048, "GBA", {}, 2),
    ("real", 150_000, 1024, "GBA", {"steps": 4500}, 2),
    ("world", 300_000, 4096, "measured", {}, 2),
    ("world", 300_000, 4096, "measured", {"l0": 0.0}, 2),
    ("real", 150_000, 2048, "measured", {}, 2),
]

QUICK = [("world", 2000, 1024, method, {"steps": 10}, 2) for method in ("GBA", "TopK")]


def world(rows: int) -> tuple[Array, Array]:
    """At least so many rows of the world, and those to judge on after them; and its features (FEATURES, D)."""
    truth = SyntheticModel(Independent(zipf_frequencies(FEATURES, ACTIVE / FEATURES, 2 / 3)), d=D, seed=0)
    parts = [
        draw.X[draw.support.any(axis=1)]  # some rows hold no feature, and have no direction
        for draw in truth.chunks(rows + rows // 50 + JUDGED, 4096)
    ]
    return unit_rows(np.concatenate(parts)).astype(np.float32), truth.V


def real(store: Path) -> Array:
    """The rows of a store as training sees them, less their centre where the default subtracts it."""
    data, _ = centred(open_activations(store), "auto")
    rows = np.concatenate([np.asarray(data.stored(k), np.float32) for k in range(len(data.counts))])
    order = np.random.default_rng(0).permutation(len(rows))
    return unit_rows(rows[order] - (0 if data.centre is None else data.centre.astype(np.float32)))


def settings(name: str, d: int, width: int, method: str, k: int, given: dict[str, Any], seed: int) -> AnyConfig:
    """Of one network; k: for TopK and BatchTopK."""
    shared: dict[str, Any] = {"width": width, "steps": 3000 if name == "world" else 1500, "seed": seed}
    shared |= {"dtype": "float32"} | given
    if method == "GBA":
        scaled = {"htf": 0.08 * 1024 / width, "ltf": 1e-3 * 1024 / width} if name == "world" else {}
        return recipe.default(d, **scaled | shared)
    if method == "measured":
        return recipe.measured(d, **{"l0": float(k)} | shared)
    chosen: Any = {"method": method.lower(), "k": k}
    return BaselineConfig(lr=LR, **chosen, **shared)


def measured(rows: Array, judged: Array, configs: list[AnyConfig], V: Array | None) -> dict[str, Any]:
    """What networks of these settings, one per seed, agree on."""
    runs, began = [], time.perf_counter()
    for config in configs:
        engine, state = trained(gba.minibatches(rows, config), rows.shape[1], config, "numba")
        params = engine.params(state)
        runs.append((params, evaluate(params, config, engine, np.array_split(judged, 8))))
    seconds = (time.perf_counter() - began) / len(configs)
    directions = [unit_rows(params.V) for params, _ in runs]
    pairs = list(combinations(range(len(runs)), 2))
    firing = [e.frequency > 0 for _, e in runs]
    ways = [*pairs, *(pair[::-1] for pair in pairs)]
    alive = [np.mean(mcs(directions[a], directions[b])[firing[a]] >= LEVELS[1]) for a, b in ways]
    found: dict[str, Any] = {
        name: [round(float(e.summary()[name]), 5) for _, e in runs] for name in ("fvu", "l0", "dead")
    }
    found["agreement"] = asdict(mean([agreement(directions[a], directions[b]) for a, b in pairs]))
    found["alive"] = round(float(np.mean(alive)), 5)
    found["null"] = asdict(null(directions[0]))
    sets = [copy_sets(v, e.frequency) for v, (_, e) in zip(directions, runs, strict=True)]
    found["distinct"] = [round(len(np.unique(s)) / len(s), 5) for s in sets]
    if V is not None:
        found["true"] = [round(float(np.mean(mcs(v, V) >= LEVELS[1])), 5) for v in directions]
        near = np.mean([mcs(V, v) >= LEVELS[1] for v in directions], axis=0)  # (FEATURES,), most frequent first
        found["recovered"] = [round(float(part.mean()), 4) for part in np.split(near, [64, 256, 1024])]
    return found | {"seconds": round(seconds, 1)}


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("-o", "out", type=Path, required=True, help="JSON, continued if it exists")
@click.option("--store", type=Path, help="a store of real activations")
@click.option("--quick", is_flag=True, help="two tiny networks, to see that it runs")
@click.option("--minutes", default=45.0, show_default=True, help="after which no cell is begun")
def main(out: Path, store: Path | None, quick: bool, minutes: float) -> None:
    began = time.perf_counter()
    done: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["cells"] if out.exists() else []
    loaded: dict[str, tuple[Array, Array | None]] = {}
    chosen = QUICK if quick else CELLS
    for name, rows, width, method, given, seeds in chosen:
        if name == "real" and store is None:
            continue
        about = {"data": name, "rows": rows, "width": width, "method": method, "given": given}
        if any(all(cell[key] == value for key, value in about.items()) for cell in done):
            continue
        if time.perf_counter() - began > 60 * minutes:
            break
        if name not in loaded:
            most = max(cell[1] for cell in chosen if cell[0] == name)
            loaded = {name: world(most) if store is None or name == "world" else (real(store), None)}
        X, V = loaded[name]
        like = [
            c for c in done if c["method"] == "GBA" and all(c[key] == about[key] for key in ("data", "rows", "width"))
        ]
        k = round(like[0]["l0"][0]) if like else 1
        configs = [settings(name, X.shape[1], width, method, k, given, seed) for seed in range(seeds)]
        found = measured(X[: min(rows, len(X) - JUDGED)], X[-JUDGED:], configs, V)
        done.append(about | {"seeds": seeds, "k": None if method == "GBA" else k} | found)
        click.echo(json.dumps(done[-1]))
        files.write_output(out, json.dumps({"levels": LEVELS, "cells": done}, indent=1).encode())


if __name__ == "__main__":
    main()
