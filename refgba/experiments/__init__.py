"""The paper's claims, measured again: one module per experiment, each ending in a verdict computed from its numbers.

    outcome = run("resonance", "quick", "numpy")
    write(outcome, Path("report"))      # resonance.json, resonance-1.png, ...
    text = page(list(stored(Path("report")).values()))

`experiment` says what such a module has to provide, `outcome` what it ends in.  Experiments share `training` (data and
the two algorithms), `measures`, `workers` and `drawing`.  Verdicts and figures are made from `outcome.data`, which is
what the JSON file holds: every number seen in one is in the other, and `read` has the outcome back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from refgba import __version__
from refgba.data import files
from refgba.errors import InputError, brief
from refgba.experiments import training
from refgba.experiments.drawing import Picture, require_matplotlib, sketch
from refgba.experiments.experiment import Experiment, Scale, Tick, conduct, judged
from refgba.experiments.outcome import Outcome, Verdict, made, write, written
from refgba.report.page import Html, Section, element, figure, join, table
from refgba.report.page import page as html
from refgba.report.pages import CLAIMS, CLAIMS_PAGE

__all__ = [
    "NAMES",
    "PAGE",
    "Experiment",
    "Outcome",
    "Picture",
    "Scale",
    "Tick",
    "Verdict",
    "command",
    "load",
    "page",
    "read",
    "reproduce",
    "run",
    "stored",
    "write",
]

NAMES = (  # each the name of a module of this package, in the order of the page
    "imbalanced",
    "resonance",
    "width",
    "cooccurrence",
    "balance",
    "nongaussian",
    "frontier",
    "consistency",
    "histograms",
    "frequencies",
    "ablation",
    "sensitivity",
)
PAGE = "report.html"


def load(name: str) -> Experiment:
    """The module of an experiment; InputError for a name that is not in NAMES."""
    if name not in NAMES:
        raise InputError(f"there is no experiment {name!r}; the experiments are {', '.join(NAMES)}")
    return cast(Experiment, import_module(f"refgba.experiments.{name}"))


def run(
    name: str, scale: Scale, backend: str = "numpy", tick: Tick = id, data: tuple[Path, Path] | None = None
) -> Outcome:
    """Run an experiment; tick is told what is being computed, one line at a time.

    data: activations to train on and to judge on, for experiments that take them (`TAKES_DATA`); None for the sample
    that comes along.  InputError, before anything is computed, for an unknown name or a missing matplotlib, and for a
    backend that cannot run here.
    """
    experiment = load(name)
    require_matplotlib()
    return conduct(name, experiment, scale, backend, tick, data)


def reproduce(
    names: Iterable[str],
    out: Path,
    scale: Scale,
    backend: str = "numpy",
    data: tuple[Path, Path] | None = None,
    tick: Tick = id,
    done: Callable[[Outcome], object] = id,
) -> list[Outcome]:
    """Run experiments by name, or those that "all" stands for, write each into the folder `out`, and PAGE of them all.

    PAGE also shows what else was written to the folder before; without names only that page is made anew.  `done` is
    called with each outcome once it is written.  Returns the outcomes of the run, or without names those in the folder.
    InputError as `run` and `read`, before anything is computed, also where there is nothing to show, for data that
    cannot be trained and judged on, and for data that none of the experiments takes.
    """
    chosen = list(NAMES) if "all" in names else list(dict.fromkeys(names))
    without = [name for name in chosen if not load(name).TAKES_DATA]
    for name in chosen:
        written(name).refuse(out / f"{name}.json")
    CLAIMS_PAGE.refuse(out / PAGE)
    earlier = stored(out, but=chosen)
    if not (chosen or earlier):
        raise InputError(f"{out} holds no results: name an experiment ({', '.join(NAMES)}), or `all`")
    if data is not None:
        if without == chosen:
            takers = ", ".join(name for name in NAMES if load(name).TAKES_DATA)
            raise InputError(f"no experiment named takes data; these do: {takers}; leave out --data and --held-out")
        training.require(data)
        if without:
            tick(f"--data and --held-out are not for {', '.join(without)}: known features are drawn for them")
    outcomes = {}
    with made(out):  # before anything is computed
        for name in chosen:
            outcomes[name] = run(name, scale, backend, tick, data)
            write(outcomes[name], out)
            done(outcomes[name])
            tick(f"{name} took {outcomes[name].data['seconds']:.0f} s")
        shown = outcomes | earlier
        html_text = page([shown[name] for name in NAMES if name in shown])
        CLAIMS_PAGE.write(out / PAGE, html_text.encode(errors="backslashreplace"))
    return list((outcomes or earlier).values())


def read(path: Path) -> Outcome:
    """What `write` wrote to NAME.json, judged and drawn anew.

    InputError for a file that is none, or whose numbers are not what this version draws; and without matplotlib.
    """
    experiment, record = load(path.stem), files.read_json(path)
    try:
        outcome = judged(path.stem, experiment, record["data"])
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
    rows = [(join(o.name, element("div", o.data["scale"], class_="note")), _graded(o.verdict)) for o in outcomes]
    sections = [Section("What was found", table(("experiment", "verdict"), rows))]
    for outcome in outcomes:
        drawn = [figure(sketch(picture), picture.alt, picture.title) for picture in outcome.figures]
        body = join(element("p", _graded(outcome.verdict)), _claims(outcome.verdict), _how(outcome), *drawn)
        sections.append(Section(outcome.name, body, outcome.question))
    return html(CLAIMS, f"{len(outcomes)} experiments", sections)


def _graded(verdict: Verdict) -> Html:
    """A verdict, its grade in bold."""
    grade, _, sentence = verdict.partition(":")
    told = list(verdict.claims.values())
    open_ = f", {told.count(None)} not resolved" * (None in told)
    count = f", {told.count(True)} of {len(told)}{open_}:"
    return join(element("strong", grade, count), sentence)


def _claims(verdict: Verdict) -> Html:
    """The claims that the grade counts, and which of them hold."""
    marks = {True: "yes", False: "no", None: "not resolved"}
    return table(
        ("the claim", "so here"), [(claim, marks[holds]) for claim, holds in verdict.claims.items()], heads=False
    )


def command(name: str, data: dict[str, Any]) -> str:
    """The command that measures an experiment again; data: its numbers.  D stands for a folder of one's own rows."""
    own = data.get("data") not in (None, training.about_sample())
    rows = " --data D/X.npy --held-out D/Y.npy" if own else ""
    return f"refgba reproduce {name} --{data['scale']} --backend {data['backend']}{rows}"


def _how(outcome: Outcome) -> Html:
    """The command that measures this again, and what it was measured with."""
    data, n = outcome.data, len(outcome.data["seeds"])
    rows = f"{data['data']['rows']:,} rows of {data['data']['name']}" if "data" in data else "known features"
    took = f", {data['seconds']:,.0f} s" if "seconds" in data else ""
    made = ", ".join(f"{package} {version}" for package, version in data["versions"].items())
    again = element("code", command(outcome.name, data))
    return element("p", again, f" on {rows}, {n} seed{'s' * (n > 1)}{took}; {made}", class_="note")
