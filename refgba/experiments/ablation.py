"""One setting of the default recipe at a time: how well real activations are reconstructed and known features found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refgba import model, recipe
from refgba.config import BaselineConfig, GBAConfig
from refgba.experiments import drawing, frontier, training, workers
from refgba.experiments.drawing import Picture
from refgba.experiments.experiment import Tick
from refgba.experiments.imbalanced import LEVELS, rates
from refgba.experiments.outcome import Verdict, resolved
from refgba.types import Float64

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = (
    "K of 10 or more groups are stable, K = 3 is denser, HTF 0.05 reconstructs worse, and BA is worse than GBA "
    "everywhere; what this project adds to the paper is left out a piece at a time."
)
TAKES_DATA = True

DEFAULT = "default"
FEW: dict[str, dict[str, Any]] = {"K = 3": {"groups": 3}}
MANY: dict[str, dict[str, Any]] = {f"K = {K}": {"groups": K} for K in (20, 40)}
HTF: dict[str, dict[str, Any]] = {f"HTF {p:g}": {"htf": p} for p in (0.02, 0.05, 0.2, 0.5)}
LTF: dict[str, dict[str, Any]] = {f"LTF {p:g}": {"ltf": p} for p in (1e-4, 1e-2)}
BA: dict[str, dict[str, Any]] = {f"BA, p = {p:g}": {"groups": 1, "htf": p} for p in (0.01, 0.02, 0.05, 0.1)}
PIECES: dict[str, dict[str, Any]] = {  # Each leaves out one piece of `recipe`.
    "no form": {"form": 0.0},
    "no hold": {"hold": 1.0},
    "no floor": {"floor": 0.0},
    "no lr_decay": {"lr_decay": 0.0},
    "a_init 1": {"a_init": 1.0},
    "b_init 0": {"b_init": 0.0},
}
GIVEN: dict[str, dict[str, Any]] = {  # These settings replace those of the default recipe.
    DEFAULT: {}, **FEW, **MANY, **BA, **HTF, **LTF, "ReLU": {"activation": "relu"}, "tied": {"untied": False},
    **PIECES,
}  # fmt: skip
TIMES: dict[str, dict[str, float]] = {  # These settings are multiplied by a factor.
    "a_init / 10": {"a_init": 1 / 10},
    "gamma / 3": {"gamma_minus": 1 / 3, "gamma_plus": 1 / 3},
    "gamma x 3": {"gamma_minus": 3, "gamma_plus": 3},
    "interval / 3": {"adapt_every": 1 / 3},  # Since gamma follows (`recipe.derive`), biases get as far, in finer steps.
    "interval x 10": {"adapt_every": 10},
}
VARIANTS = (*GIVEN, *TIMES)
STEADY = {"fvu": 0.05, "l0": 0.15, "frr": 0.05}  # Changes up to these count as stable: relative, relative, difference.
BA_WORSE = "BA reconstructs worse at the same L0, whatever its target"
BEYOND_QUICK = (BA_WORSE,)  # The quick run has fewer neurons and steps, where one group does as well as ten.


@dataclass(frozen=True)
class Sizes:
    """Settings: width and steps on real activations, with TopK at each k; M and known_steps on the imbalanced set."""

    width: int
    steps: int
    k: tuple[int, ...]
    topk_lr: float
    rows: int
    M: int
    known_steps: int
    batch: int
    seeds: int


SIZES = {
    "quick": Sizes(
        width=512, steps=300, k=(4, 8, 16, 32), topk_lr=3e-3, rows=20_000, M=512, known_steps=1200, batch=256, seeds=1
    ),
    "full": Sizes(
        width=1536, steps=2000, k=(8, 16, 32, 64), topk_lr=3e-3, rows=50_000, M=1024, known_steps=3000, batch=512,
        seeds=2,
    ),
}  # fmt: skip


def measure(sizes: Sizes, backend: str, tick: Tick, data: tuple[Path, Path] | None) -> dict[str, Any]:
    """By variant FVU, L0 and dead on the held-out rows, [seed], and FRR on the imbalanced set, [seed][level]."""
    runs: list[tuple[str | int, int]] = list(product((*VARIANTS, *sizes.k), range(sizes.seeds)))
    found = workers.at_once(partial(network, sizes=sizes, backend=backend, data=data), runs, backend, tick)
    by_name: dict[str, dict[str, list[Any]]] = {}
    for (name, _), judged in zip(runs, found, strict=True):
        for measurement, value in judged.items():
            by_name.setdefault(str(name), {}).setdefault(measurement, []).append(value)
    return {
        "data": training.opened_once(data).about(),
        "found": {name: by_name[name] for name in VARIANTS},
        "topk": {str(k): by_name[str(k)] for k in sizes.k},
    }


def network(
    run: tuple[str | int, int], sizes: Sizes, backend: str, data: tuple[Path, Path] | None
) -> dict[str, float | list[float]]:  # fmt: skip
    """Of a variant, or of TopK by its K, and a seed: FVU, L0 and dead on the held-out rows, and a variant's FRR."""
    name, seed = run
    real = training.opened_once(data)
    given: dict[str, Any] = {"batch": sizes.batch, "dtype": "float32", "seed": seed}
    on_real = given | {"width": sizes.width, "steps": sizes.steps}
    if name not in VARIANTS:
        baseline = BaselineConfig(method="topk", k=int(name), lr=sizes.topk_lr, **on_real)
        return {**frontier.judged(training.evaluated(real, baseline, backend)[1])}
    judged = frontier.judged(training.evaluated(real, settings(str(name), real.train.d, **on_real), backend)[1])
    truth = model.imbalanced(seed)
    known = settings(str(name), truth.d, **given, width=sizes.M, steps=sizes.known_steps)
    return judged | {"frr": rates(training.train(truth.draw(0, sizes.rows).X, known, backend).neurons, truth.V)}


def settings(variant: str, d: int, **given: Any) -> GBAConfig:
    """The default recipe for data of d dimensions with one thing changed."""
    base = recipe.default(d, **given)
    scaled = {name: getattr(base, name) * factor for name, factor in TIMES.get(variant, {}).items()}
    if "adapt_every" in scaled:
        scaled["adapt_every"] = max(1, round(scaled["adapt_every"]))
    return recipe.default(d, **given | GIVEN.get(variant, {}) | scaled)


# ---- what the numbers say --------------------------------------------------------------------------------------------


def points(variants: dict[str, Any]) -> list[tuple[float, float]]:
    """(L0, FVU) of each entry, means over the seeds, by L0."""
    return sorted((float(np.mean(entry["l0"])), float(np.mean(entry["fvu"]))) for entry in variants.values())


def htf_line(data: dict[str, Any]) -> list[tuple[float, float]]:
    """(L0, FVU) of GBA over HTF, all else as in the default recipe: what a change of L0 alone does to FVU."""
    return points({name: data["found"][name] for name in (DEFAULT, *HTF)})


def excess(entry: dict[str, Any], line: list[tuple[float, float]]) -> Float64:
    """FVU of each seed over that of a line at the same L0, less 1.

    The line is not drawn on: beyond an end it is the end that counts, which flatters what is denser and wrongs what is
    sparser.
    """
    l0 = np.clip(entry["l0"], line[0][0], line[-1][0])
    return np.array([fvu / frontier.line(line, at) - 1 for at, fvu in zip(l0, entry["fvu"], strict=True)])


def verdict(data: dict[str, Any]) -> Verdict:
    """The paper's claims; FVU at the same L0 is judged by GBA's own line over HTF, and that of HTF itself by TopK's."""
    variants, line, topk = data["found"], htf_line(data), points(data["topk"])
    over = {name: float(excess(variants[name], line).mean()) for name in VARIANTS}
    l0 = {name: float(np.mean(variants[name]["l0"])) for name in VARIANTS}
    fvu = {name: float(np.mean(variants[name]["fvu"])) for name in VARIANTS}
    frr = {name: float(np.mean(variants[name]["frr"], axis=0)[1]) for name in VARIANTS}
    beyond = {name: float(excess(variants[name], topk).mean()) for name in (DEFAULT, "HTF 0.05")}
    denser = {name: l0[name] / l0[DEFAULT] for name in (*FEW, *MANY)}
    claims = {
        f"{' and '.join(MANY)} change FVU at the same L0 by {STEADY['fvu']:.0%} at most": all(
            abs(over[name]) <= STEADY["fvu"] for name in MANY
        ),
        f"{' and '.join(MANY)} change L0 by {STEADY['l0']:.0%} at most": all(
            abs(denser[name] - 1) <= STEADY["l0"] for name in MANY
        ),
        f"{' and '.join(MANY)} change the features recovered by {STEADY['frr']:.0%} at most": all(
            abs(frr[name] - frr[DEFAULT]) <= STEADY["frr"] for name in MANY
        ),
        "K = 3 leaves more neurons active": denser["K = 3"] > 1 + STEADY["l0"],
        "HTF 0.05 reconstructs worse": fvu["HTF 0.05"] > fvu[DEFAULT],
        "HTF 0.05 reconstructs worse at the same L0": beyond["HTF 0.05"] > beyond[DEFAULT],
        BA_WORSE: all(over[name] > 0 for name in BA),
        "BA recovers fewer features, whatever its target": all(frr[name] < frr[DEFAULT] for name in BA),
    }
    lost = min(PIECES, key=lambda name: frr[name])
    worse = max(PIECES, key=lambda name: over[name])
    return Verdict(
        resolved(claims, data, BEYOND_QUICK),
        f"at equal L0 {' and '.join(MANY)} move FVU by {_range(over, MANY)}, K = 3 has "
        f"{denser['K = 3']:.2f} times the L0; HTF 0.05 has FVU {fvu['HTF 0.05']:.3f} for {fvu[DEFAULT]:.3f}, "
        f"{(1 + beyond['HTF 0.05']) / (1 + beyond[DEFAULT]) - 1:+.1%} at equal L0; BA {_range(over, BA)} at equal L0, "
        f"FRR(0.9) {min(frr[name] for name in BA):.0%} to {max(frr[name] for name in BA):.0%} for {frr[DEFAULT]:.0%}; "
        f"of what is ours {lost} costs recovery most ({frr[lost]:.0%}), {worse} FVU ({over[worse]:+.1%}).",
    )


def _range(values: dict[str, float], names: dict[str, Any]) -> str:
    low, high = min(values[name] for name in names), max(values[name] for name in names)
    return f"{low:+.1%} to {high:+.1%}"


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(data: dict[str, Any]) -> list[Picture]:
    """Families of settings in the plane of FVU and L0, and every variant by itself."""
    about, settings = data["data"], data["settings"]
    return [
        Picture(
            f"What moves along the line, and what off it: {about['name']}, M = {settings['width']}",
            "FVU on held-out rows against L0, both logarithmic: lines through GBA over HTF, over K, over LTF and over "
            "gamma, which meet at the default, and through BA over its target and TopK over K.",
            lambda figure: _plane(figure, data),
            (8.0, 5.5),
        ),
        Picture(
            f"One setting at a time: {about['name']} and the imbalanced set",
            "For each variant a row in four dot plots, one dot per seed: by how much FVU exceeds that of GBA's line "
            "over HTF at the same L0, L0, share of dead neurons, and FRR at cosine 0.8 and 0.9; dotted: the default.",
            lambda figure: _rows(figure, data),
            (10.0, 7.5),
        ),
    ]


def _plane(figure: Figure, data: dict[str, Any]) -> None:
    axes = figure.subplots()
    families = {
        "GBA over HTF": (DEFAULT, *HTF), "GBA over K": (DEFAULT, *FEW, *MANY), "GBA over LTF": (DEFAULT, *LTF),
        "GBA over gamma": (DEFAULT, "gamma / 3", "gamma x 3"), "BA over p": tuple(BA),
    }  # fmt: skip
    lines = {label: {name: data["found"][name] for name in names} for label, names in families.items()}
    for (label, variants), style in zip((lines | {"TopK over K": data["topk"]}).items(), drawing.STYLES, strict=True):
        x, y = np.array(points(variants)).T
        axes.plot(x, y, label=label, markersize=6, linewidth=1.6, **style)
    [(x, y)] = points({DEFAULT: data["found"][DEFAULT]})
    axes.plot(x, y, "*", color="white", markeredgecolor="black", markersize=16, label="default", zorder=5)
    axes.set(xscale="log", yscale="log", xlabel="L0, active neurons per row", ylabel="FVU on held-out rows")
    drawing.log_ticks(axes.xaxis, (1, 2, 5))
    drawing.log_ticks(axes.yaxis, (1, 1.5, 2, 3, 4, 5, 7))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)


def _rows(figure: Figure, data: dict[str, Any]) -> None:
    from matplotlib.ticker import PercentFormatter

    variants, line = data["found"], htf_line(data)
    at = np.arange(len(VARIANTS))
    values = {
        "FVU above the line": [excess(variants[name], line) for name in VARIANTS],
        "L0": [variants[name]["l0"] for name in VARIANTS],
        "dead": [variants[name]["dead"] for name in VARIANTS],
    }
    panels = figure.subplots(1, 4, sharey=True)
    for axes, (label, seeds), style in zip(panels, values.items(), drawing.STYLES, strict=False):
        axes.plot(np.array(seeds), at, style["marker"], color=style["color"], markersize=5, alpha=0.8)
        axes.axvline(np.mean(seeds[0]), color="black", linestyle=":", linewidth=1)
        axes.set_xlabel(label)
    for k, style in enumerate(drawing.STYLES[: len(LEVELS)]):
        frr = np.array([[seed[k] for seed in variants[name]["frr"]] for name in VARIANTS])
        panels[3].plot(frr, at, style["marker"], color=style["color"], markersize=5, alpha=0.8)
        panels[3].plot([], [], style["marker"], color=style["color"], label=f"FRR({LEVELS[k]})")
        panels[3].axvline(frr[0].mean(), color=style["color"], linestyle=":", linewidth=1)
    panels[3].set_xlabel("share of features")
    panels[3].legend(fontsize=8, loc="lower left")
    panels[0].set_xscale("symlog", linthresh=0.1)
    panels[0].set_xlim(right=1.5 * panels[0].get_xlim()[1])  # its margin is none
    panels[1].set_xscale("log")
    drawing.log_ticks(panels[1].xaxis, (1, 3))
    for axes in (panels[0], panels[2], panels[3]):
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in panels:
        axes.grid(alpha=0.25)
    panels[0].set_yticks(at, VARIANTS, fontsize=9)
    panels[0].invert_yaxis()
