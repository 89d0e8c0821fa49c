"""How well our baselines reconstruct beside dictionary_learning's, at equal budget.

    python benchmarks/peers_quality.py minilm-l3-mlp.npy minilm-l3-mlp.heldout.npy

Each pair of runs gets the same minibatches of rows at unit norm, width, learning rate and schedule, and is judged by
the same `Evaluation` on the held-out rows.  The networks of dictionary_learning are trained by its own trainers.  Of
its defaults these are replaced, since ours have nothing like them or runs are too short for them:

- 1000 steps of warm-up: none.  A constant learning rate: it falls as ours does, to zero over the last `lr_decay`.
- AuxK takes a neuron for dead after 10 million rows: after `dead_after`.
- JumpReLU's bandwidth of 0.001 and its warm-up of the sparsity loss: our bandwidth, no warm-up.

What is left is theirs: b_dec starts at the geometric median of the first batch (ours at 0), weights are uniform before
they are normalised (ours normal), gradients are clipped at norm 1 (ours are not), BatchTopK's threshold is averaged
over 1000 steps, from step 1000 or the middle of a shorter run.  JumpReLU has another sparsity loss, the squared
distance to a target L0, which is set to what our run came to; another Adam, beta1 = 0; and no b_dec on its input.

Needs `pip install '.[cpu,interop]'` in a checkout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import click
import torch
from peers import trainer_class

from refgba.config import Baseline, BaselineConfig
from refgba.data import feed
from refgba.experiments.training import Real, evaluated, opened
from refgba.runs.judging import evaluate_dictionary
from refgba.sae import unit_rows
from refgba.types import Array

TRAINERS = {
    "topk": "top_k.TopKTrainer",
    "batchtopk": "batch_top_k.BatchTopKTrainer",
    "jumprelu": "jumprelu.JumpReluTrainer",
}


class Network:
    """A network of dictionary_learning, as `evaluate_dictionary` takes it."""

    def __init__(self, ae: Any) -> None:
        self.ae = ae.eval().requires_grad_(False)
        self.W_enc = (ae.W_enc.T if hasattr(ae, "W_enc") else ae.encoder.weight).numpy()

    def prepare(self, x: Array) -> Array:
        return unit_rows(x.astype("float32"))

    def encode(self, x: Array) -> tuple[Array, Array]:
        s = self.ae.encode(torch.from_numpy(x)).numpy()
        return s, s  # no code is negative

    def decode(self, s: Array) -> Array:
        return self.ae.decode(torch.from_numpy(s)).numpy()


def compared(real: Real, config: BaselineConfig) -> dict[str, Any]:
    """FVU, L0 and dead of `ours` and of `theirs` on the held-out rows, and the `ratio` of the FVUs."""
    ours = evaluated(real, config, "numba")[1]
    torch.manual_seed(config.seed)  # its JumpReLU takes a seed and does not use it
    trainer = trainer_of(config, real.train.d, ours.l0)
    for step, x in enumerate(feed.minibatches(real.train, config)):
        trainer.update(step, torch.from_numpy(x))
    theirs = evaluate_dictionary(Network(trainer.ae), real.judged(config))
    found = {name: {"fvu": e.fvu, "l0": e.l0, "dead": e.dead} for name, e in (("ours", ours), ("theirs", theirs))}
    return found | {"ratio": ours.fvu / theirs.fvu}


def trainer_of(config: BaselineConfig, d: int, l0: float) -> Any:
    """The trainer of dictionary_learning for settings of ours."""
    options: dict[str, Any] = {"k": config.k, "auxk_alpha": config.aux}
    if config.method == "batchtopk":
        options["threshold_start_step"] = min(1000, config.steps // 2)
    if config.method == "jumprelu":
        options = {"target_l0": l0, "bandwidth": config.bandwidth, "sparsity_warmup_steps": None}
    trainer = trainer_class(TRAINERS[config.method])(
        steps=config.steps,
        activation_dim=d,
        dict_size=config.width,
        layer=0,
        lm_name="",
        lr=config.lr,
        warmup_steps=0,
        decay_start=round((1 - config.lr_decay) * config.steps) if config.lr_decay else None,
        seed=config.seed,
        device="cpu",
        **options,
    )
    trainer.dead_feature_threshold = config.dead_after
    return trainer


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("train", type=Path)
@click.argument("held_out", type=Path)
@click.option("--method", "methods", multiple=True, type=click.Choice(list(TRAINERS)), default=list(TRAINERS))
@click.option("--k", "ks", multiple=True, type=int, default=[32], show_default=True, help="topk and batchtopk")
@click.option("--sparsity", type=float, default=0.002, show_default=True, help="jumprelu, ours")
@click.option("--lr", "rates", multiple=True, type=float, default=[1e-3, 3e-3, 1e-2], show_default=True)
@click.option("--width", type=int, default=1024, show_default=True)
@click.option("--steps", type=int, default=2000, show_default=True)
@click.option("--batch", type=int, default=512, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    train: Path, held_out: Path, methods: tuple[str, ...], ks: tuple[int, ...], sparsity: float,
    rates: tuple[float, ...], width: int, steps: int, batch: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    real = opened((train, held_out))
    click.echo(f"d {real.train.d}, M {width}, L {batch}, {steps} steps, seed {seed}; ratio: our FVU over theirs")
    click.echo(f"{'':25}   {'refgba':22}   dictionary_learning")
    click.echo(f"{'method':9} {'setting':>7} {'lr':>7}" + 2 * f"   {'FVU':>6} {'L0':>7} {'dead':>7}" + "   ratio")
    table = []
    for method in methods:
        for setting in [sparsity] if method == "jumprelu" else ks:
            for lr in rates:
                chosen: dict[str, Any] = {"sparsity" if method == "jumprelu" else "k": setting}
                config = BaselineConfig(
                    method=cast(Baseline, method), width=width, steps=steps, batch=batch, lr=lr, seed=seed,
                    dtype="float32", **chosen,
                )  # fmt: skip
                pair = compared(real, config)
                table.append({"method": method, "setting": setting, "lr": lr, **pair})
                cells = "".join(
                    f"   {r['fvu']:6.4f} {r['l0']:7.2f} {r['dead']:7.2%}" for r in (pair["ours"], pair["theirs"])
                )
                click.echo(f"{method:9} {setting:7g} {lr:7g}{cells}   {pair['ratio']:.4f}")
    if as_json:
        click.echo(json.dumps(table))


if __name__ == "__main__":
    main()
