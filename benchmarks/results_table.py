"""Write benchmarks/results/README.md from the JSON files beside it, most of them of `refgba reproduce --full`.

    python benchmarks/results_table.py

One measurement per row: what was measured, of which network, its mean and range over the seeds, and its unit.  Numbers
that no JSON file holds are in `ELSEWHERE`, each with the page that has them and the command that measures them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results_agreement
import results_curve
import results_llm
import results_opponents
import results_parallel
import results_worlds

from refgba.experiments import (
    NAMES,
    ablation,
    balance,
    command,
    consistency,
    cooccurrence,
    frequencies,
    frontier,
    histograms,
    load,
    nongaussian,
    resonance,
    sensitivity,
    width,
)

RESULTS = Path(__file__).parent / "results"
PAGE = "README.md"
DIGITS = {  # after the decimal point, by unit
    "%": 1,
    "fraction": 4,
    "neurons per row": 1,
    "neurons": 0,
    "directions": 0,
    "decades": 2,
    "cosine": 2,
    "ρ₂": 2,
    "exponent of n": 2,
    "times": 2,
    "rank correlation": 2,
}
HEADS = ("measurement", "network or setting", "mean", "lowest", "highest", "unit", "seeds")


@dataclass(frozen=True)
class Row:
    """One measurement.

    values: one per seed, or a single one that is computed from all seeds together and has no range; None stands for a
    value that was not reached.  seeds: None for what is not measured here.  geometric: the mean is the geometric one.
    """

    measurement: str
    network: str
    values: Sequence[float | None]
    unit: str
    seeds: int | None
    geometric: bool = False

    def cells(self) -> list[str]:
        """The row as it stands in the table."""
        digits = DIGITS[self.unit]
        if None in self.values:
            numbers = ["not reached", "", ""]
        else:
            values = np.array(self.values, np.float64)
            mean = np.exp(np.log(values).mean()) if self.geometric else values.mean()
            ends = [values.min(), values.max()] if len(values) > 1 else []
            numbers = [f"{value:z.{digits}f}" for value in (mean, *ends)]
            numbers += [""] * (3 - len(numbers))
        return [self.measurement, self.network, *numbers, self.unit, "" if self.seeds is None else str(self.seeds)]


def percent(values: Sequence[float]) -> list[float]:
    """Shares in percent."""
    return [100 * float(value) for value in values]


# ---- the rows of each experiment, from the `data` of its file --------------------------------------------------------


def of_imbalanced(data: dict[str, Any]) -> Iterator[Row]:
    for k, level in enumerate((0.8, 0.9)):
        for name, seeds in data["frr"].items():
            yield Row(f"FRR({level})", name, percent([seed[k] for seed in seeds]), "%", len(seeds))
        for name, levels in data["paper"].items():
            yield Row(f"FRR({level}), as the paper reports it", name, percent([levels[k]]), "%", None)


def of_resonance(data: dict[str, Any]) -> Iterator[Row]:
    seeds = len(data["seeds"])
    for name, key in (("Modified BA", "modified d"), ("BA", "ba d")):
        for d, decades in zip(data[key]["d"], resonance.widths(data[key]), strict=True):
            where = f"{name}, n = {data['settings']['n']}, d = {d}"
            yield Row("width of the band of p in which FRR(0.9) is at least 90%", where, [decades], "decades", seeds)
    measured = data["modified n"][1]
    for edge, ours, theorem in zip(
        ("lower", "upper"), resonance.exponents(measured), resonance.theorem_exponents(measured), strict=True
    ):
        what = f"how the {edge} edge of the band moves with n, at d = n / 2"
        yield Row(what, "Modified BA", [ours], "exponent of n", seeds)
        yield Row(what, "Theorem 6.1", [theorem], "exponent of n", None)


def of_width(data: dict[str, Any]) -> Iterator[Row]:
    settings, last = data["settings"], len(data["settings"]["after"]) - 1
    for k, p in enumerate(settings["p"]):
        for s, at_s in zip(settings["s"], data["needed"], strict=True):
            what = f"neurons that reach FRR(0.9) of 90%, {settings['M']} at most, geometric mean"
            where = f"Modified BA, p = {p}, s = {s}"
            yield Row(what, where, at_s[k][last], "neurons", settings["seeds"], geometric=True)
    for k, p in enumerate(settings["p"]):
        what = "factor in that number per further feature in a row"
        factor = width.growth(data, k, last)
        yield Row(what, f"Modified BA, p = {p}", [factor], "times", settings["seeds"])
        yield Row(what, f"Theorem 6.1's bound, p = {p}", [1 / p], "times", None)


def of_cooccurrence(data: dict[str, Any]) -> Iterator[Row]:
    for name in data["frr"]:
        what = "co-occurrence up to which FRR(0.9) stays at 90% or above"
        yield Row(what, name, [cooccurrence.limit(data, name)], "ρ₂", len(data["seeds"]))
    for name, seeds in data["frr"].items():
        for k, rho_2 in enumerate(data["rho_2"]):
            yield Row("FRR(0.9)", f"{name}, ρ₂ = {rho_2:g}", percent([seed[k] for seed in seeds]), "%", len(seeds))


def of_balance(data: dict[str, Any]) -> Iterator[Row]:
    quarter = len(data["f"]) // 4
    parts = {
        "all features": slice(None),
        "the most frequent quarter": slice(quarter),
        "the rarest quarter": slice(-quarter, None),
    }
    for part, where in parts.items():
        for name in data["cosine"]:
            shares = balance.recovered(data, name)[:, where].mean(axis=1)
            yield Row(f"FRR(0.9) of {part}", name, percent(shares), "%", len(shares))


def of_nongaussian(data: dict[str, Any]) -> Iterator[Row]:
    for law, measured in data["laws"].items():
        values = np.max(measured["coherence"], axis=1)
        yield Row("largest |cosine| of two features", law, values, "cosine", len(values))
    for method in nongaussian.METHODS:
        for law in data["laws"]:
            shares = nongaussian.frr(data, law, method)
            yield Row("FRR(0.9)", f"{method}: {law}", percent(shares), "%", len(shares))


def of_frontier(data: dict[str, Any]) -> Iterator[Row]:
    methods = list(dict.fromkeys(point["method"] for point in data["points"]))
    networks = {
        named(points[0]): points  # each at the learning rate and batch that the method keeps
        for method in methods
        for _, points in sorted(frontier.kept(data, method).items(), key=lambda found: found[0] or 0)
    }
    for key, (measurement, unit) in QUALITY.items():
        for name, points in networks.items():
            values = [point[key] for point in points]
            yield Row(measurement, name, percent(values) if unit == "%" else values, unit, len(values))
    for method in frontier.GBA:
        what = "FVU relative to the lower of the lines of TopK and BatchTopK at the same L0"
        excess = frontier.against(data, method, ("topk", "batchtopk")) - 1
        yield Row(what, method, percent([excess]), "%", len(data["seeds"]))


def of_consistency(data: dict[str, Any]) -> Iterator[Row]:
    level = data["thresholds"].index(data["tau"])
    for network in data["networks"]:
        shares = [seed[0][-1][level] for seed in network["share"]]  # all neurons, whatever they are selected by
        yield Row("neurons that another seed finds (MCS above 0.9)", named(network), percent(shares), "%", len(shares))
    for key in ("l0", "fvu"):
        for network in data["networks"]:
            measurement, unit = QUALITY[key]
            yield Row(measurement, named(network), network[key], unit, len(network[key]))
    gba, top = (network for network in consistency.comparable(data) if network["method"] in ("GBA", "TopK"))
    for network in (gba, top):
        what = "neurons that another seed finds, by encoder rows"
        shares = [seed[level] for seed in network["encoder"]]
        yield Row(what, named(network), percent(shares), "%", len(shares))


def of_histograms(data: dict[str, Any]) -> Iterator[Row]:
    measurements = {
        "fire between half of their target and it": "within",
        "fire more often than their target": "above",
        "fire less often than half of their target": "below",
        "never fire": "never",
    }
    for what, name in measurements.items():
        shares = histograms.by_group(data, "end", "train", name).mean(axis=1)
        yield Row(f"neurons that {what}", "rows trained on", percent(shares), "%", len(shares))
    what = "neurons that fire between half of their target and it"
    shares = histograms.by_group(data, "end", "held_out", "within").mean(axis=1)
    yield Row(what, "held-out rows", percent(shares), "%", len(shares))
    chance = np.ravel(data["by_chance"])
    yield Row(what, "held-out rows, if nothing but counting noise were added", percent(chance), "%", len(chance))


def of_frequencies(data: dict[str, Any]) -> Iterator[Row]:
    seeds = len(data["seeds"])
    estimates = {name: frequencies.at_level(found["estimates"]) for name, found in data["real"].items()}
    for name, estimate in estimates.items():
        yield Row("features that seeds agree on", name, [len(estimate)], "directions", seeds)
    for name, estimate in estimates.items():
        yield Row("rows in which the median one of them occurs", name, percent([np.median(estimate)]), "%", seeds)
    parts = (
        f"of them, more frequent than the highest target, {data['range']['htf']:g}",
        f"of them, rarer than the lowest target, {data['range']['ltf']:g}",
        "of them, outside the theoretical band of every target",
    )
    for k, what in enumerate(parts):
        for name in estimates:
            yield Row(what, name, percent([frequencies.outside(data, name)[k]]), "%", seeds)
    for weights in data["known"]:
        ratio, correlation = frequencies.accuracy(data, weights)
        known = f"known features of {weights} strengths"
        yield Row("median ratio of estimate to truth", known, [ratio], "times", seeds)
        yield Row("estimate against truth", known, [correlation], "rank correlation", seeds)


def of_ablation(data: dict[str, Any]) -> Iterator[Row]:
    line = ablation.htf_line(data)
    for name, found in data["found"].items():
        what = "FVU relative to GBA at the HTF that has the same L0"
        yield Row(what, name, percent(ablation.excess(found, line)), "%", len(found["fvu"]))
    for key in ("fvu", "l0"):
        measurement, unit = QUALITY[key]
        for name, found in data["found"].items():
            yield Row(measurement, name, found[key], unit, len(found[key]))
    for name, found in data["found"].items():
        shares = percent([seed[1] for seed in found["frr"]])
        yield Row("FRR(0.9) on the imbalanced set", name, shares, "%", len(shares))


def of_sensitivity(data: dict[str, Any]) -> Iterator[Row]:
    measurements = {
        "fvu": ("FVU on held-out rows", "fraction"),
        "alive": ("neurons alive", "%"),
        "frr": ("FRR(0.9) on the imbalanced set", "%"),
    }
    labels = {"GBA": "lr", "TopK": "lr", sensitivity.LOWERED: "biases begin at -c/√d, c"}
    for key, (measurement, unit) in measurements.items():
        for method, label in labels.items():
            settings, values = sensitivity.curve(data, method, key)
            for k, setting in enumerate(settings):
                column = percent(values[:, k]) if unit == "%" else values[:, k]
                name = "GBA" if method == sensitivity.LOWERED else method
                yield Row(measurement, f"{name}, {label} = {setting:g}", column, unit, len(column))
    for method in sensitivity.METHODS:
        moved, alive, _ = sensitivity.over_rates(data, method)
        where, seeds = f"{method}, 30-fold range of learning rates", len(data["seeds"])
        yield Row("highest FVU over lowest, less 1", where, percent([moved]), "%", seeds)
        yield Row("fewest neurons alive", where, percent([alive]), "%", seeds)


QUALITY = {
    "fvu": ("FVU on held-out rows", "fraction"),
    "l0": ("L0 on held-out rows", "neurons per row"),
    "dead": ("dead neurons", "%"),
}
TITLES = {
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "l1": "L1",
    "matryoshka": "Matryoshka",
    "gated": "Gated",
    "measured": "GBA, measured targets",
}
SETTINGS = {
    "TopK": "K", "BatchTopK": "K", "BA": "p", "JumpReLU": "sparsity", "L1": "λ", "Matryoshka": "K", "Gated": "λ",
    "GBA, measured targets": "l0",
    "random rows": "K", "random units": "K",
}  # fmt: skip


def named(network: dict[str, Any]) -> str:
    """A network's method and its setting, if it has one."""
    method = TITLES.get(network["method"], network["method"])
    return method if network["setting"] is None else f"{method}, {SETTINGS[method]} = {network['setting']:g}"


ROWS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "imbalanced": of_imbalanced,
    "resonance": of_resonance,
    "width": of_width,
    "cooccurrence": of_cooccurrence,
    "balance": of_balance,
    "nongaussian": of_nongaussian,
    "frontier": of_frontier,
    "consistency": of_consistency,
    "histograms": of_histograms,
    "frequencies": of_frequencies,
    "ablation": of_ablation,
    "sensitivity": of_sensitivity,
}

# ---- numbers of other origin -----------------------------------------------------------------------------------------

CPU, FEED = "[cpu-2026-11-22.md](cpu-2026-11-22.md)", "[feed-2026-11-23.md](feed-2026-11-23.md)"
GPU, ON_GPU = "[gpu-2026-11-26.md](gpu-2026-11-26.md)", "`make gpu-step`"
RECIPE, THEORY = "[recipe.md](../recipe.md)", "[theory.py](../../refgba/theory.py)"
STEP, STORE = "`python benchmarks/step.py --rounds 20`", "`python benchmarks/feed.py --gb 20`"
RUN = "`python benchmarks/train.py D/X.npy --held-out D/Y.npy`"
BAND = "`refgba theory --n 128 --d 42 --s 3 --simulate --p {}`"
DEFAULT = "`python benchmarks/seeds.py --dtype float32 --backend numba`"
PAPER = "`python benchmarks/seeds.py --seeds 3 --dtype float32 --recipe paper`"
STEER, STEERING = (
    '`refgba llm steer RUN MODEL --neuron 2103 --by 4 "${CODE[@]}" --random 2`',
    "[steering.md](steering.md)",
)
ELSEWHERE = (  # measurement, network or setting, value, unit, command, source
    ("one training step", "refgba `numba`", "45.7", "ms", STEP, CPU),
    ("one training step", "refgba `numpy`", "233.5", "ms", STEP, CPU),
    ("one training step", "the same step in torch: autograd, fused AdamW", "159.0", "ms", STEP, CPU),
    ("one training step", "dictionary_learning 0.1.0, JumpReLU", "211.2", "ms", STEP, CPU),
    ("one training step", "dictionary_learning 0.1.0, standard (L1)", "227.3", "ms", STEP, CPU),
    ("one training step", "dictionary_learning 0.1.0, TopK", "396.7", "ms", STEP, CPU),
    ("one encode product and one pass over AdamW's arrays", "NumPy", "26.7", "ms", STEP, CPU),
    ("a whole run on real activations", "refgba `numba`", "47.3", "s", RUN, CPU),
    ("a whole run on real activations", "refgba `numpy`", "245.5", "s", RUN, CPU),
    ("a step on an H100, L 4096, sustained", "refgba `cupy`, bfloat16", "7.70", "ms", ON_GPU, GPU),
    ("a step on an H100, L 4096, sustained", "the same step in torch, compiled", "9.16", "ms", ON_GPU, GPU),
    ("a step on an H100, L 4096, sustained", "its five products alone", "5.81", "ms", ON_GPU, GPU),
    ("a step on an H100, L 512, sustained", "refgba `cupy`, bfloat16", "2.13", "ms", ON_GPU, GPU),
    ("a step on an H100, L 512, sustained", "the same step in torch, compiled", "2.94", "ms", ON_GPU, GPU),
    ("survey of a store before training", "20 GB in 75 shards", "0.78", "GB/s", STORE, FEED),
    ("feeding alone, shards not in the page cache", "20 GB in 75 shards", "280000", "rows/s", STORE, FEED),
    ("FRR(0.8), lowest of seeds 0 to 9", "GBA, the default recipe", "100.0", "%", DEFAULT, RECIPE),
    ("FRR(0.9), lowest of seeds 0 to 9", "GBA, the default recipe", "100.0", "%", DEFAULT, RECIPE),
    ("FRR(0.8), mean of seeds 0 to 2", "the paper's algorithm from a = 1, trainable", "0.0", "%", PAPER, RECIPE),
    ("FRR(0.9), mean of seeds 0 to 2", "the paper's algorithm from a = 1, trainable", "0.0", "%", PAPER, RECIPE),
    ("FRR(0.9) after 3 steps", "Modified BA, p = 0.01, in the resonance band", "100", "%", BAND.format(0.01), THEORY),
    ("FRR(0.9) after 3 steps", "Modified BA, p = 0.1, outside the band", "0", "%", BAND.format(0.1), THEORY),
    (
        "neurons whose steering shows in the text",
        "the seven plainest of GBA, layer 15 of SmolLM2",
        "5",
        "",
        STEER,
        STEERING,
    ),
)

# ---- the page --------------------------------------------------------------------------------------------------------

BEGINNING = """\
# Results

`python benchmarks/results_table.py` writes this page from the JSON files beside it; edit neither by hand.
[README](../../README.md) shows a few of these numbers, and `refgba reproduce -o benchmarks/results` draws all of them
as figures on one HTML page.

Each row is one measurement: its mean over the seeds, with the lowest and the highest seed beside it.  A number without
a range is computed from all seeds together, or is the paper's, where the row says so.  FRR(τ), the feature recovery
rate, is the share of the known features that have a neuron with a cosine of at least τ.  FVU is the fraction of
variance unexplained, 0 for a perfect reconstruction.  L0 counts the neurons that are active in a row.  A dead neuron is
active in no row.

Real activations are 65536 rows of a small language model, d = 384; networks are judged on 8192 others.  The
[sample](../../refgba/experiments/data/README.md) that comes along is an eighth of them.  Commands with a folder D
therefore take your own files: one to train on, one to judge on.

"""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    head, *body = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (heads, *rows)]
    rule = "---|" * len(heads)
    return f"| {head} |\n|{rule}\n" + "".join(f"| {line} |\n" for line in body)


def settings_of_an_earlier_version(name: str, data: dict[str, Any]) -> str:
    """A sentence on how the settings of stored numbers differ from those of the experiment as it is, or nothing."""
    today = json.loads(json.dumps(asdict(load(name).SIZES[data["scale"]])))
    stored = data["settings"]
    differing = [key for key in today if stored.get(key) != today[key]]
    was = [f"{key} {stored[key]}" for key in differing if key in stored]
    lacked = f" and no setting {' or '.join(key for key in differing if key not in stored)}"
    had = ", ".join(was) + lacked * (len(was) < len(differing))
    return f"The numbers here are of an earlier version of the experiment, which had {had}." if differing else ""


def section(name: str, outcome: dict[str, Any]) -> str:
    """One experiment: what the paper claims, how the measurement compares, the command, and the rows."""
    data = outcome["data"]
    took = f"which took {data['seconds']:.0f} s" if "seconds" in data else "which takes minutes"
    versions = ", ".join(f"{package} {version}" for package, version in data["versions"].items())
    claims = table(("claim", "holds"), [(claim, "yes" if held else "no") for claim, held in outcome["claims"].items()])
    if earlier := settings_of_an_earlier_version(name, data):
        again = f"runs the experiment as it is now, which takes longer.  {earlier}\n\n"
    else:
        again = f"measures them again, {took} on two cores ({versions}).\n\n"
    return (
        f"## {name}\n\nThe claim: {outcome['question']}\n\n{outcome['verdict']}\n\n"
        f"{claims}\n"
        f"[{name}.json]({name}.json) has every number.  `{command(name, data)}` {again}"
        f"{table(HEADS, [row.cells() for row in ROWS[name](data)])}"
    )


def page(folder: Path = RESULTS) -> str:
    """The whole page, from the JSON files of a folder."""
    outcomes = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES}
    overview = table(
        ("experiment", "verdict", "claims that hold", "claims"),
        [
            (f"[{name}](#{name})", outcome["verdict"].split(":")[0], str(sum(claims.values())), str(len(claims)))
            for name, outcome in outcomes.items()
            if (claims := outcome["claims"])
        ],
    )
    elsewhere = (
        "## Measured by other commands\n\n"
        "The source named has the conditions.  Times but those on an H100 are of one machine with two cores.\n\n"
        + table(("measurement", "network or setting", "value", "unit", "command", "source"), ELSEWHERE)
    )
    sections = (section(*item) for item in outcomes.items())
    opponents = results_opponents.section(folder, table)
    curves = results_curve.sections(folder, table)
    worlds = results_worlds.sections(folder, table)
    seeds = results_agreement.sections(folder, table)
    models = results_llm.sections(folder, table)
    ranks = results_parallel.sections(folder, table)
    return "\n".join([BEGINNING + overview, *sections, opponents, *curves, *worlds, *seeds, *models, *ranks, elsewhere])


if __name__ == "__main__":
    (RESULTS / PAGE).write_text(page(), encoding="utf-8")
    print(f"wrote {RESULTS / PAGE}")
