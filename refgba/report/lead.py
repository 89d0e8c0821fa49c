"""The first screen of a report: what was run, how well it did, what to look at; or several runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from refgba.report.findings import findings
from refgba.report.page import Html, bars, element, join, table
from refgba.report.run import RunData, Seen
from refgba.report.words import count, dash, duration, percent, rounded, shown
from refgba.runs.judging import THRESHOLDS

NOT_SEEN = "The run was not trained on these rows."
WARNINGS = {
    Seen.ALL: (
        "these are rows that the run was trained on. On other rows it does worse, with real activations often much "
        "worse: FVU, L0 and dead neurons here are not what to expect of new data. `refgba report --data ROWS` judges "
        "on other rows, and `refgba train` holds some out by default."
    ),
    Seen.SOME: (
        "most of these rows are rows that the run was trained on; without --data only those held out are judged."
    ),
}


def judged(runs: Sequence[RunData]) -> Html:
    """Which rows the numbers of the page come from, and a warning where the runs were trained on them."""
    parts: list[Html] = []
    seen = [run for run in runs if run.rows and run.seen in WARNINGS]
    for run in runs:
        if run.rows and (run.data or run.seen in WARNINGS):
            name = f"{run.name}: judged on " if len(runs) > 1 else "Judged on "
            said = " " + NOT_SEEN if run.seen is Seen.NO else ""
            rows = f"{run.data + ': ' if run.data else ''}{run.rows:,} rows."
            parts.append(element("p", element("strong", name, rows), said))
    for kind in dict.fromkeys(run.seen for run in seen):
        who = [run.name for run in seen if run.seen is kind]
        which = "" if len(who) == len(runs) else f"{', '.join(who)}: "
        parts.append(element("p", element("strong", which, "Warning: "), WARNINGS[kind], class_="warning"))
    return element("div", *parts, class_="judged") if parts else Html("")


def facts(runs: Sequence[RunData]) -> Html:
    """What was run: of several runs, what they share."""
    first, *others = (_facts_of(run) for run in runs)
    shared = {name: text for name, text in first.items() if text and all(other[name] == text for other in others)}
    parts = (join(element("dt", name), element("dd", text)) for name, text in shared.items())
    return element("dl", *parts, class_="facts") if shared else Html("")


def _facts_of(run: RunData) -> dict[str, str]:
    config, data = run.config, run.about.get("data", {})
    facts = dict.fromkeys(("Trained on", "Network", "Method", "Training"), "")
    if data:
        shape = f"{count(data.get('rows'))} rows of d = {data.get('d')}, {data.get('dtype')}"
        facts["Trained on"] = f"{data.get('path')}: {shape}"
    facts["Network"] = f"M = {run.neurons:,} neurons{_shape(run)}" if run.neurons else ""
    if config is None:
        return facts
    facts["Method"] = run.description.method
    seen = config.steps * config.batch
    epochs = f" ({seen / data['rows']:.3g} epochs)" if data.get("rows") else ""
    backend = run.about.get("backend")
    took = f", {duration(run.metrics[-1]['seconds'])}" if run.metrics and "seconds" in run.metrics[-1] else ""
    facts["Training"] = (
        f"{config.steps:,} steps of {config.batch:,} rows{epochs}; {f'{backend}, ' if backend else ''}{config.dtype}"
        f"{took}; seed {config.seed}"
    )
    return facts


def _shape(run: RunData) -> str:
    if run.groups is None:
        return ", no groups"
    target = [percent(p) for p in run.groups.target]
    aims = f"targets {target[0]} to {target[-1]}" if len(target) > 1 else f"target {target[0]}"
    return f", K = {len(target)}, {aims}; {run.description.network}"


def tiles(run: RunData) -> Html:
    """How well it did."""
    drawn = [tile for make in (_fvu, _l0, _dead, _within_targets, _recovered) if (tile := make(run)) is not None]
    if not drawn:
        return element("p", "This run has not been evaluated: there are no results to show, only its training.")
    return element("div", *drawn, class_="tiles")


def _fvu(run: RunData) -> Html | None:
    fvu = run.summary.get("fvu")
    return None if fvu is None else _tile("FVU", rounded(fvu), f"explained variance {percent(1 - fvu)}")


def _l0(run: RunData) -> Html | None:
    if "l0" not in run.summary:
        return None
    q = run.summary.get("l0_distribution")
    spread = f"median {q['median']:,}, 90% of rows {q['p5']:,} to {q['p95']:,}" if q else ""
    return _tile("L0, active neurons per row", rounded(run.summary["l0"]), spread, _small_l0(run))


def _dead(run: RunData) -> Html | None:
    dead, M = run.summary.get("dead"), run.neurons
    if dead is None:
        return None
    return _tile("Dead neurons", percent(dead), f"{round(dead * M):,} of {M:,} never fired" if M else "")


def _within_targets(run: RunData) -> Html | None:
    groups = run.summary.get("groups")
    if not groups:
        return None
    within = [g["within"] for g in groups]
    lowest = min(within)
    alt = "Share at or under target by group: " + ", ".join(map(percent, within))
    more = f"lowest: group {within.index(lowest) + 1}, {percent(lowest)}" if lowest < 1 < len(groups) else ""
    return _tile("At or under target", percent(_within(groups)), more, bars(within, alt, 1.0))


def _recovered(run: RunData) -> Html | None:
    if run.truth is None:
        return None
    first, last = (run.truth.frr(tau) for tau in THRESHOLDS)
    more = f"FRR({THRESHOLDS[1]}) {percent(last)}, of {len(run.truth.cosine):,} features"
    return _tile(f"Recovered, FRR({THRESHOLDS[0]})", percent(first), more)


def _tile(name: str, value: str, more: str, drawn: Html | str = "") -> Html:
    return element(
        "div",
        element("div", name, class_="name"),
        element("div", value, class_="value"),
        drawn,
        element("div", more, class_="more"),
        class_="tile",
    )


def _small_l0(run: RunData) -> Html | str:
    h, q = run.evaluation.get("l0_histogram"), run.summary.get("l0_distribution")
    if h is None or not q:
        return ""
    step = max(1, -(-(q["max"] + 1) // 24))
    share = [int(h[i : i + step].sum()) for i in range(0, q["max"] + 1, step)]
    return bars(share, f"Histogram of L0, from {q['min']:,} to {q['max']:,}")


def look(runs: Sequence[RunData], known: dict[str, str]) -> Html:
    """What to look at."""
    parts: list[Html] = []
    for run in runs:
        items = [element("li", text, " ", _link(topic, known)) for text, topic in findings(run)]
        if len(runs) > 1:
            parts.append(element("h3", run.name))
        nothing = (
            "Nothing stands out: the checks for targets, dead neurons, copies, rows without activity, dense neurons, "
            "the end of the loss and recovery found nothing in what is known of this run."
        )
        parts.append(element("ul", *items) if items else element("p", nothing))
    return element("div", element("h2", "What to look at"), *parts, class_="look")


def _link(topic: str, known: dict[str, str]) -> Html | str:
    return element("a", topic, href=f"#{known[topic]}", class_="flag") if topic in known else ""


def overview(runs: Sequence[RunData]) -> Html:
    """Several runs: what they did, side by side."""
    measures: dict[str, Callable[[RunData], str | None]] = {
        "FVU": lambda r: shown(r.summary.get("fvu"), rounded),
        "L0": lambda r: shown(r.summary.get("l0"), rounded),
        "L0, 90% of rows": lambda r: shown(r.summary.get("l0_distribution"), lambda q: f"{q['p5']:,} to {q['p95']:,}"),
        "dead": lambda r: shown(r.summary.get("dead"), percent),
        "at or under target": lambda r: shown(r.summary.get("groups"), lambda g: percent(_within(g))),
        **{f"FRR({tau})": partial(_frr, tau) for tau in THRESHOLDS},
        "M": lambda r: shown(r.neurons, lambda M: f"{M:,}"),
        "K": lambda r: shown(r.groups, lambda g: str(len(g.target))),
        "steps": lambda r: shown(r.config, lambda c: f"{c.steps:,}"),
        "method": lambda r: r.description.method or None,
        "rows judged": lambda r: shown(r.rows or None, lambda N: f"{N:,}"),
    }
    cells = {name: [show(run) for run in runs] for name, show in measures.items()}
    used = [name for name, column in cells.items() if any(cell is not None for cell in column)]
    lines = [[name, *(dash(cell) for cell in cells[name])] for name in used]
    names = [element("bdi", run.name) for run in runs]
    data = {run.data for run in runs if run.rows}
    same = "" if len(data) <= 1 else "The runs were judged on different data."
    side_by_side = table(["", *names], lines, "The runs side by side")
    return join(facts(runs), side_by_side, element("p", same) if same else "")


def _within(groups: list[dict[str, Any]]) -> float:
    """The share of all neurons that are at or under the target of their group."""
    return float(sum(g["within"] * g["neurons"] for g in groups) / sum(g["neurons"] for g in groups))


def _frr(tau: float, run: RunData) -> str | None:
    return None if run.truth is None else percent(run.truth.frr(tau))
