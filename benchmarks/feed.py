"""Feed training from a store larger than one wants in memory: rows per second, memory, and whether training waits.

    python benchmarks/feed.py --gb 20

Makes a store of that size in a temporary folder (of random rows: only their number matters) and trains on it.  A
round times some windows of rows without a pause: once on READY batches that are on the device from the start, once
on the store, with its shards in the page cache or, in other rounds, dropped from it.  A step on the store takes longer
by as much as training waits for rows: they are read, brought to unit norm and copied while earlier steps run.  The
first window of a round is not timed, and nothing of the store is open while ready batches are trained on: each window
that is timed was read while steps on the store ran, as in a run.  Memory is what the process holds (resident) beyond
what it did with the model and its first step; page cache is not counted, since it is given up when something else
needs it.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
from setting import LR

from refgba import gba, recipe
from refgba.backends import load
from refgba.data import feed
from refgba.data.activations import open_activations
from refgba.data.prefetch import prefetched
from refgba.data.survey import survey
from refgba.data.writer import Writer
from refgba.types import Array

ROWS = 65536  # different ones in the store
READY = 4  # batches


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--gb", default=20.0, show_default=True, help="size of the store")
@click.option("--d", default=768, show_default=True)
@click.option("--width", default=8192, show_default=True)
@click.option("--batch", default=512, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--windows", type=click.IntRange(1), default=3, show_default=True, help="that a round times")
@click.option("--backend", default="numba", show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--in-turn", is_flag=True, help="on a GPU: a batch is copied only when all earlier steps are done")
@click.option("--seed", default=0, show_default=True)
@click.option("--place", type=Path, default=Path(tempfile.gettempdir()), show_default=True, help="where the store goes")
@click.option("--json", "as_json", is_flag=True)
def main(
    gb: float, d: int, width: int, batch: int, rounds: int, windows: int, backend: str, dtype: str, in_turn: bool,
    seed: int, place: Path, as_json: bool,
) -> None:  # fmt: skip
    engine = load(backend, dtype)
    config = recipe.default(
        d, width=width, batch=batch, dtype=cast(Any, dtype), steps=10**6, form=0.0, seed=seed, lr=LR
    )
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((ROWS, d)).astype(np.float16)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        store = Path(folder) / "store"
        with Writer(store, d, "float16") as writer:
            for _ in range(round(gb * 1e9 / X.nbytes)):
                writer.append(X[rng.permutation(ROWS)])
        data = open_activations(store)
        begin = time.perf_counter()
        data, _ = survey(data, config.master)
        result: dict[str, Any] = {"rows": len(data), "survey_gb_s": gb / (time.perf_counter() - begin)}
        result |= _alone(data, config) | _training(engine, data, X, config, rounds, windows, in_turn)
    click.echo(
        f"{gb:g} GB, {result['rows']} rows of d {d} in float16; M {width}, L {batch}, {backend}, {dtype}, "
        f"{'copied in turn, ' if in_turn else ''}"
        f"{'untied' if config.untied else 'tied'}, windows of {len(data.counts) // data.windows} MiB, "
        f"{result['window_steps']} steps\n"
        f"survey            {result['survey_gb_s']:8.2f} GB per second\n"
        f"feeding alone     {result['warm_rows_s']:8.0f} rows per second, warm; {result['cold_rows_s']:.0f} cold\n"
        f"step, warm store  {result['warm_ms']:8.2f} ms, {result['warm_ready_ms']:.2f} on ready batches: "
        f"{result['warm_ratio'] - 1:+.1%}\n"
        f"step, cold store  {result['cold_ms']:8.2f} ms, {result['cold_ready_ms']:.2f} on ready batches: "
        f"{result['cold_ratio'] - 1:+.1%}\n"
        f"memory            {result['extra_gb']:8.2f} GB beyond the model's {result['model_gb']:.2f}, at its peak"
    )
    if as_json:
        click.echo(json.dumps(result))


def _resident() -> float:
    """The memory that the process holds, in GB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e9


def _drop(data: Any) -> None:
    """Drop the shards from the page cache."""
    for shard in data.store.shards:
        handle = os.open(shard.path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _alone(data: Any, config: Any) -> dict[str, float]:
    """Rows per second of nothing but feeding, over three windows."""
    steps, speeds = 3 * len(data) // data.windows // config.batch, {}
    for name in ("warm", "cold"):
        if name == "cold":
            _drop(data)
        rows = feed.minibatches(data, config)
        begin = time.perf_counter()
        for _ in range(steps):
            next(rows)
        speeds[f"{name}_rows_s"] = steps * config.batch / (time.perf_counter() - begin)
        rows.close()
    return speeds


def _training(
    engine: Any, data: Any, X: Array, config: Any, rounds: int, windows: int, in_turn: bool
) -> dict[str, float]:
    """Steps on ready batches and on the store, in turns.  in_turn: copies to the device wait for all steps before."""
    result: dict[str, float] = {}
    params = gba.random_params(config, data.d)
    # Gates as after adaptation, 2% of them open, and nothing is learned: which rows come is all that differs.
    params.b[:] = -2.05 / np.sqrt(data.d)
    state = engine.init(params, config)

    def put(x: Array) -> Any:
        if in_turn:
            state.feed.copies.wait_event(state.feed.steps.record())
        return engine.put(state, x)

    def steps(batches: Iterator[Any]) -> Iterator[gba.Metrics]:
        return gba.train(state, batches, engine.step, lambda *_: None)

    def timed(run: Iterator[gba.Metrics], count: int) -> float:
        nonlocal peak
        begin = time.perf_counter()
        for _ in range(count):
            metrics = next(run)
            peak = max(peak, _resident())
        float(metrics.loss)  # all of them are done
        return (time.perf_counter() - begin) / count * 1e3

    window = -(-len(data) // data.windows // config.batch)  # steps
    ready = steps(cycle([engine.put(state, x) for x in islice(gba.minibatches(X, config), READY)]))
    float(next(ready).loss)
    result["model_gb"] = peak = _resident()
    for name in ("warm", "cold"):
        times: tuple[list[float], list[float]] = ([], [])
        with click.progressbar(range(rounds), label=name, file=sys.stderr) as bar:
            for _ in bar:
                times[0].append(timed(ready, windows * window))
                if name == "cold":
                    _drop(data)
                batches = prefetched(map(put, feed.minibatches(data, config)))
                store = steps(batches)
                timed(store, window)
                times[1].append(timed(store, windows * window))
                batches.close()
        result[f"{name}_ready_ms"], result[f"{name}_ms"] = map(statistics.median, times)
        result[f"{name}_ratio"] = statistics.median(b / a for a, b in zip(*times, strict=True))
    return result | {"extra_gb": peak - result["model_gb"], "window_steps": window}


if __name__ == "__main__":
    main()
