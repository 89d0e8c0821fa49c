"""The paper's claims, measured again: one module an experiment, each ending in a verdict computed from its numbers.

    outcome = run("resonance", "quick", "numpy")
    write(outcome, Path("report"))      # resonance.json, resonance-1.png, ...

`common` has what experiments share and says what an outcome is.  Figures are drawn from `outcome.data`, which is what
the JSON file holds: every number seen in one is in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from refgba.errors import InputError
from refgba.experiments.common import Outcome, Picture, Scale, Tick, require_matplotlib, sketch, write
from refgba.runs.page import Section, element, figure, join, table
from refgba.runs.page import page as html

__all__ = ["NAMES", "Outcome", "Picture", "Scale", "Tick", "page", "run", "write"]

NAMES = {  # name: module
    "imbalanced": "refgba.experiments.imbalanced",
    "resonance": "refgba.experiments.resonance",
    "width": "refgba.experiments.width",
    "cooccurrence": "refgba.experiments.cooccurrence",
    "balance": "refgba.experiments.balance",
    "nongaussian": "refgba.experiments.nongaussian",
    "frontier": "refgba.experiments.frontier",
    "consistency": "refgba.experiments.consistency",
    "histograms": "refgba.experiments.histograms",
    "frequencies": "refgba.experiments.frequencies",
    "ablation": "refgba.experiments.ablation",
    "sensitivity": "refgba.experiments.sensitivity",
}


def load(name: str) -> Any:
    """The module of an experiment; InputError for a name that is not in NAMES."""
    if name not in NAMES:
        raise InputError(f"there is no experiment {name!r}; the experiments are {', '.join(NAMES)}")
    return import_module(NAMES[name])


def run(
    name: str, scale: Scale, backend: str = "numpy", tick: Tick = id, data: tuple[Path, Path] | None = None
) -> Outcome:
    """Run an experiment; tick is told what is being computed, a line at a time.

    data: activations to train on and to judge on, for experiments that take them (`TAKES_DATA`); None for the sample
    that comes along.  InputError, before anything is computed, for an unknown name or a missing matplotlib, and for a
    backend that cannot run here.
    """
    module = load(name)
    require_matplotlib()
    given = {"data": data} if getattr(module, "TAKES_DATA", False) else {}
    outcome: Outcome = module.run(scale, backend, tick, **given)
    return outcome


def page(outcomes: Sequence[Outcome]) -> str:
    """One HTML page: a table of verdicts, then each experiment with its figures."""
    verdicts = table(("experiment", "verdict"), [(outcome.name, outcome.verdict) for outcome in outcomes])
    sections = [Section("What was found", verdicts)]
    for outcome in outcomes:
        drawn = [figure(sketch(picture), picture.alt, picture.title) for picture in outcome.figures]
        sections.append(Section(outcome.name, join(element("p", outcome.verdict), *drawn), outcome.question))
    return html("The paper's claims, measured again", f"{len(outcomes)} experiments", sections)
