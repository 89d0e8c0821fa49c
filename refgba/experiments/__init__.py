"""The paper's claims, measured again: one module an experiment, each ending in a verdict computed from its numbers.

    outcome = run("resonance", "quick", "numpy")
    write(outcome, Path("report"))      # resonance.json, resonance-1.png, ...
    text = page(list(stored(Path("report")).values()))

`common` has what experiments share and says what an outcome is.  Verdicts and figures are made from `outcome.data`,
which is what the JSON file holds: every number seen in one is in the other, and `read` has the outcome back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from refgba import __version__
from refgba.data import files
from refgba.errors import InputError, brief
from refgba.experiments.common import (
    Outcome,
    Picture,
    Scale,
    Tick,
    Verdict,
    make_folder,
    require_matplotlib,
    sketch,
    write,
)
from refgba.report.page import Html, Section, element, figure, join, table
from refgba.report.page import page as html

__all__ = [
    "NAMES",
    "Outcome",
    "Picture",
    "Scale",
    "Tick",
    "Verdict",
    "make_folder",
    "page",
    "read",
    "run",
    "stored",
    "write",
]

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


def read(path: Path) -> Outcome:
    """What `write` wrote to NAME.json, judged and drawn anew.

    InputError for a file that is none, or whose numbers are not what this version draws; and without matplotlib.
    """
    module, told = load(path.stem), files.read_json(path)
    try:
        data = told["data"]
        outcome = Outcome(path.stem, module.QUESTION, module.verdict(data), data, tuple(module.pictures(data)))
        for picture in outcome.figures:
            sketch(picture)
        _how(outcome)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not what refgba {__version__} writes for {path.stem} ({brief(repr(error))}); move it away, "
            "or take another folder"
        ) from None
    return outcome


def stored(folder: Path, but: Collection[str] = ()) -> dict[str, Outcome]:
    """The outcomes in a folder, by name, without some; InputError as `read`."""
    there = [name for name in NAMES if name not in but and (folder / f"{name}.json").exists()]
    return {name: read(folder / f"{name}.json") for name in there}


def page(outcomes: Sequence[Outcome]) -> str:
    """One HTML page: a table of verdicts, then each experiment with its claims and figures."""
    told = [(join(o.name, element("div", o.data["scale"], class_="note")), _told(o.verdict)) for o in outcomes]
    sections = [Section("What was found", table(("experiment", "verdict"), told))]
    for outcome in outcomes:
        drawn = [figure(sketch(picture), picture.alt, picture.title) for picture in outcome.figures]
        body = join(element("p", _told(outcome.verdict)), _claims(outcome.verdict), _how(outcome), *drawn)
        sections.append(Section(outcome.name, body, outcome.question))
    return html("The paper's claims, measured again", f"{len(outcomes)} experiments", sections)


def _told(verdict: Verdict) -> Html:
    """A verdict with its grade to be seen at once."""
    grade, _, said = verdict.partition(":")
    held = f", {sum(verdict.claims.values())} of {len(verdict.claims)}:"
    return join(element("strong", grade, held), said)


def _claims(verdict: Verdict) -> Html:
    """What the grade counts, and what of it is so."""
    marks = {True: "yes", False: "no"}
    return table(
        ("the claim", "so here"), [(claim, marks[held]) for claim, held in verdict.claims.items()], heads=False
    )


def _how(outcome: Outcome) -> Html:
    """What it takes to measure this again, and what it was measured with."""
    data, n = outcome.data, len(outcome.data["seeds"])
    rows = f"{data['data']['rows']:,} rows of {data['data']['name']}" if "data" in data else "known features"
    took = f", {data['seconds']:,.0f} s" if "seconds" in data else ""
    made = ", ".join(f"{package} {version}" for package, version in data["versions"].items())
    command = element("code", f"refgba reproduce {outcome.name} --{data['scale']} --backend {data['backend']}")
    return element("p", command, f" on {rows}, {n} seed{'s' * (n > 1)}{took}; {made}", class_="note")
