"""Whole training runs of several backends, side by side: time, and whether they end alike.

    python benchmarks/train.py activations.npy --held-out held-out.npy --backend numba --backend cupy:bfloat16

All take the same steps of the default recipe in one process, SEGMENT steps of one and then of the next, so that
what else the machine does falls on all.  FVU, L0 and dead neurons are on the held-out rows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click

from refgba import gba, recipe
from refgba.backends import load
from refgba.data import feed
from refgba.data.prefetch import prefetched
from refgba.experiments import training
from refgba.runs.judging import evaluate

SEGMENT = 100  # steps
REST = 0.2  # seconds before a segment: OpenBLAS's threads spin for 0.1 s when a product is done


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("data", type=Path)
@click.option("--held-out", type=Path, required=True)
@click.option("--backend", "names", multiple=True, default=["numpy", "numba"], show_default=True, help="NAME[:DTYPE]")
@click.option("--dtype", default="float32", show_default=True, help="where a name has none")
@click.option("--steps", type=click.IntRange(1), default=4000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(data: Path, held_out: Path, names: tuple[str, ...], dtype: str, steps: int, seed: int, as_json: bool) -> None:
    real = training.opened((data, held_out))
    rows = real.train
    settings: dict[str, Any] = {"steps": steps, "seed": seed}
    configs = {name: recipe.default(rows.d, dtype=name.partition(":")[2] or dtype, **settings) for name in names}
    engines = {name: load(name.partition(":")[0], config.dtype) for name, config in configs.items()}
    states: dict[str, Any] = {n: e.init(gba.random_params(configs[n], rows.d), configs[n]) for n, e in engines.items()}

    for name, engine in engines.items():  # numba compiles on first use
        trial = engine.init(gba.random_params(configs[name], rows.d), configs[name])
        float(engine.step(trial, engine.put(trial, next(feed.minibatches(rows, configs[name])))).loss)

    def run(name: str) -> Iterator[gba.Metrics]:
        state, engine = states[name], engines[name]
        batches = prefetched(engine.put(state, x) for x in feed.minibatches(rows, configs[name]))
        return gba.train(state, batches, engine.step, engine.adapt)

    runs, quarters = {name: run(name) for name in names}, {name: [0.0] * 4 for name in names}
    with click.progressbar(range(0, steps, SEGMENT), label="training", file=sys.stderr) as bar:
        for start in bar:
            for name in names:
                time.sleep(REST)
                begin = time.perf_counter()
                for _ in range(min(SEGMENT, steps - start)):
                    metrics = next(runs[name])
                float(metrics.loss)  # all of it is done
                quarters[name][4 * start // steps] += time.perf_counter() - begin
    seconds = {name: sum(times) for name, times in quarters.items()}
    result: dict[str, Any] = {}
    for name in names:
        params, config = engines[name].params(states[name]), configs[name]
        exact = replace(config, dtype=cast(Any, config.master))
        judged = evaluate(params, exact, load("numpy"), real.judged(exact)).summary()  # one judge for all
        result[name] = {"seconds": seconds[name], **{key: judged[key] for key in ("fvu", "l0", "dead")}}
        result[name] |= {"faster": seconds[names[0]] / seconds[name], "quarters": quarters[name]}
        click.echo(
            f"{name:14} {seconds[name]:8.1f} s  {result[name]['faster']:5.2f} times as fast as {names[0]}   "
            f"FVU {judged['fvu']:.4f}  L0 {judged['l0']:.1f}  dead {judged['dead']:.2%}   "
            f"by quarter of the run {', '.join(f'{time:.1f}' for time in quarters[name])} s"
        )
    config = configs[names[0]]
    click.echo(
        f"d {rows.d}, M {config.width}, L {config.batch}, {steps} steps, seed {seed}, {dtype} where a name has no other"
    )
    if as_json:
        click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
