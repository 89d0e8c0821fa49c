"""Time to quality: seconds until a network reconstructs held-out rows as well as TopK does at the end of its run.

    python benchmarks/time_to_quality.py X.npy --held-out Y.npy [-o benchmarks/results/time-to-quality.json]

TopK is that of dictionary_learning, by its own trainer, and that of SAELens, by its own loop, each at the better of
RATES by its last FVU.  GBA is `--recipe measured` with `numba`, asked for an L0 of K, in runs of as many steps and of a
half and a quarter of them: nothing else is set, and the learning rate is its default.  All see rows of unit norm in the
same order, in batches of 512; the learning rate of TopK falls to zero over the last fifth of a run.

Every LOOK steps the network is judged on the held-out rows, with the clock stopped, in three ways:

    matched   with the K largest codes per row in the mean, over all held-out rows: one threshold for a_m s_m
    capped    with the K largest codes of each row, which is what TopK has but not what GBA is trained for
    whole     as it is; GBA is asked for an L0 of K, and comes to somewhat more on rows held out

For TopK the three are one.  A network is there when its FVU, matched, is at most TopK's last one; times by capped FVU
stand beside that.  Each program is in turn for LOOK steps, so what else the
machine does falls on all alike; the clock is the processor's, of one thread:

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/time_to_quality.py ...
"""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import sae_lens
import torch
from peers_quality import trainer_of
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from setting import environment

from refgba import backends, gba, recipe, sae
from refgba.config import BaselineConfig
from refgba.sae import unit_rows
from refgba.types import Array, Mask

RATES = (1e-3, 3e-3)  # at 1e-2 both end worse than at 3e-3 with 2048 neurons and 800 steps
LOOK = 100  # steps
WAYS = ("matched", "capped", "whole")
PARTS = (1, 2, 4)  # GBA's runs have 1 / part of the steps

Pair = tuple[Array, Array]  # reconstructions (L, d), and how many neurons are active (L,)
Network = Callable[[Array], tuple[Pair, Pair, Pair]]  # of rows x (L, d), in each of the ways WAYS


class Clock:
    """What a run took and how well it did: every LOOK steps, while its program is in turn."""

    def __init__(self, held_out: Array, turn: threading.Semaphore) -> None:
        self.held_out, self.turn, self.done = held_out, turn, threading.Semaphore(0)
        self.seconds, self.since, self.ended = 0.0, 0.0, False
        self.looks: list[dict[str, float]] = []
        self.failure: BaseException | None = None

    def look(self, step: int, network: Network) -> None:
        """Stop the clock, judge, and let the others have their turns."""
        self.seconds += time.process_time() - self.since
        x, found = self.held_out, {"step": float(step), "seconds": self.seconds}
        for way, (f, active) in zip(WAYS, network(x), strict=True):
            fvu = float(((f - x) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum())
            found |= {f"{way} fvu": fvu, f"{way} l0": float(active.mean())}
        self.looks.append(found)
        self.done.release()
        self.turn.acquire()
        self.since = time.process_time()

    def watched(self, batches: Iterator[Array], network: Network) -> Iterator[Array]:
        """The minibatches, with a look after every LOOK of them and after the last."""
        step = 0
        for step, x in enumerate(batches, 1):
            yield x
            if step % LOOK == 0:
                self.look(step, network)

    def run(self, program: Callable[[Clock], None]) -> None:
        """The body of a thread: a program from its first turn to its end."""
        self.turn.acquire()
        self.since = time.process_time()
        try:
            program(self)
        except BaseException as failure:
            self.failure = failure
        self.ended = True
        self.done.release()


def in_turns(programs: dict[str, Callable[[Clock], None]], held_out: Array) -> dict[str, list[dict[str, float]]]:
    """The looks of each program; all of them run in turns of LOOK steps."""
    clocks = {name: Clock(held_out, threading.Semaphore(0)) for name in programs}
    for name, program in programs.items():
        threading.Thread(target=clocks[name].run, args=(program,), daemon=True).start()
    left = list(programs)
    while left:
        for name in list(left):
            clock = clocks[name]
            clock.turn.release()
            clock.done.acquire()
            if clock.failure is not None:
                raise clock.failure
            if clock.ended:
                left.remove(name)
            else:
                last = clock.looks[-1]
                cells = f"{last['step']:6} {last['seconds']:8.1f} s  {last['matched fvu']:.4f} {last['whole l0']:.1f}"
                click.echo(f"{name:32} {cells}", err=True)
    return {name: clock.looks for name, clock in clocks.items()}


def largest(codes: Array, k: int) -> Mask:
    """Where the k largest codes of each row are, of those above zero: (L, M) for codes (L, M)."""
    least = np.partition(codes, -k, axis=1)[:, -k]  # (L,)
    kept: Mask = (codes >= least[:, None]) & (codes > 0)
    return kept


def of_ours(X: Array, width: int, steps: int, k: int, seed: int) -> Callable[[Clock], None]:
    """GBA with measured targets."""
    config = recipe.measured(X.shape[1], width=width, steps=steps, l0=float(k), seed=seed, dtype="float32")

    def program(clock: Clock) -> None:
        engine = backends.load("numba")
        state = backends.begin(engine, config, X.shape[1])

        def network(x: Array) -> tuple[Pair, Pair, Pair]:
            params = engine.params(state)
            whole = sae.forward(params, x, config.activation)
            codes = params.a * whole.s  # (L, M)
            matched = largest(codes.reshape(1, -1), k * len(x)).reshape(codes.shape)
            some = ((sae.decode(params, whole.s * on), on.sum(axis=1)) for on in (matched, largest(codes, k)))
            return *some, (whole.f, whole.on.sum(axis=1))

        batches = clock.watched(gba.minibatches(X, config), network)
        for _ in gba.train(state, (engine.put(state, x) for x in batches), engine.step, engine.adapt):
            pass

    return program


def with_torch(encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> Network:
    """A network of torch as one of NumPy arrays."""

    def network(x: Array) -> tuple[Pair, Pair, Pair]:
        with torch.no_grad():
            codes = encode(torch.from_numpy(x))
            pair = decode(codes).numpy(), (codes != 0).sum(dim=1).numpy()
        return pair, pair, pair

    return network


def of_dictionary_learning(X: Array, config: BaselineConfig) -> Callable[[Clock], None]:
    """TopK of dictionary_learning, by its trainer."""

    def program(clock: Clock) -> None:
        trainer = trainer_of(config, X.shape[1], float(config.k))
        batches = clock.watched(gba.minibatches(X, config), with_torch(trainer.ae.encode, trainer.ae.decode))
        for step, x in enumerate(batches):
            trainer.update(step, torch.from_numpy(x))

    return program


def of_saelens(X: Array, config: BaselineConfig) -> Callable[[Clock], None]:
    """TopK of SAELens, by its loop."""

    def program(clock: Clock) -> None:
        torch.manual_seed(config.seed)
        settings = sae_lens.TopKTrainingSAEConfig(d_in=X.shape[1], d_sae=config.width, k=config.k)
        network = sae_lens.TopKTrainingSAE(settings)
        run = SAETrainerConfig(
            total_training_samples=config.steps * config.batch,
            train_batch_size_samples=config.batch,
            lr=config.lr,
            lr_end=config.lr,  # where its decay begins
            lr_decay_steps=round(config.lr_decay * config.steps),
            logger=LoggingConfig(log_to_wandb=False),
        )
        batches = clock.watched(gba.minibatches(X, config), with_torch(network.encode, network.decode))
        rows = (torch.from_numpy(x) for x in batches)
        SAETrainer(cfg=run, sae=network, data_provider=rows).fit()
        next(rows, None)  # the look after the last step

    return program


def reached(looks: list[dict[str, float]], fvu: float, way: str) -> float | None:
    """Seconds to the first look with an FVU as low as this one, in one of the WAYS, or None."""
    return next((look["seconds"] for look in looks if look[f"{way} fvu"] <= fvu), None)


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """The better rate of each library, and how long each run took to its last FVU."""
    best = {
        library: min((n for n in found if n.startswith(library)), key=lambda name: found[name][-1]["whole fvu"])
        for library in ("dictionary_learning", "SAELens")
    }
    runs = [*best.values(), *(name for name in found if name.startswith("GBA"))]
    times = {
        way: {
            library: {name: reached(found[name], found[theirs][-1]["whole fvu"], way) for name in runs}
            for library, theirs in best.items()
        }
        for way in WAYS[:2]
    }
    return {"best": best, "reached": times}


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("data", type=Path)
@click.option("--held-out", type=Path, required=True)
@click.option("--width", type=int, default=1024, show_default=True)
@click.option("--steps", type=int, default=800, show_default=True)
@click.option("--k", type=int, default=32, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--out", type=Path, help="a JSON file")
def main(data: Path, held_out: Path, width: int, steps: int, k: int, seed: int, out: Path | None) -> None:
    if steps % (LOOK * max(PARTS)):
        raise click.UsageError(f"--steps must be a multiple of {LOOK * max(PARTS)}, not {steps}")
    warnings.simplefilter("ignore")
    X, Y = (unit_rows(np.load(path).astype("float32")) for path in (data, held_out))
    programs: dict[str, Callable[[Clock], None]] = {}
    for lr in RATES:
        config = BaselineConfig(method="topk", k=k, width=width, steps=steps, lr=lr, seed=seed, dtype="float32")
        programs[f"dictionary_learning, lr {lr:g}"] = of_dictionary_learning(X, config)
        programs[f"SAELens, lr {lr:g}"] = of_saelens(X, config)
    for part in PARTS:
        programs[f"GBA, {steps // part} steps"] = of_ours(X, width, steps // part, k, seed)
    in_turns({"numba compiles": of_ours(X, width, LOOK, k, seed)}, Y)
    with contextlib.redirect_stdout(io.StringIO()):
        found = in_turns(programs, Y)
    times = summary(found)
    heads = ["network", "CPU seconds of the run", *(f"{what}, {way}" for way in WAYS for what in ("FVU", "L0"))]
    heads += [f"to {library}'s FVU, {way}" for way, by in times["reached"].items() for library in by]
    click.echo(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    for name, looks in found.items():
        last = looks[-1]
        cells = [f"{last['seconds']:.1f}"]
        for way in WAYS:
            cells += [f"{last[f'{way} fvu']:.4f}", f"{last[f'{way} l0']:.1f}"]
        seconds = [of.get(name) for by in times["reached"].values() for of in by.values()]
        cells += ["" if s is None else f"{s:.1f}" for s in seconds]
        click.echo(f"| {' | '.join([name, *cells])} |")
    if out:
        flags = f"--width {width} --steps {steps} --k {k} --seed {seed}"
        result = {
            "command": f"python benchmarks/time_to_quality.py D/X.npy --held-out D/Y.npy {flags}",
            "setting": {
                "data": data.name, "rows": len(X), "held_out": len(Y), "d": X.shape[1], "width": width, "steps": steps,
                "k": k, "seed": seed, "look": LOOK, "rates": RATES,
            },
            "environment": environment() | {"sae_lens": sae_lens.__version__, "torch": torch.__version__},
            **times,
            "looks": found,
        }  # fmt: skip
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
