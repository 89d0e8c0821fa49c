"""The sections of a report, each under its own heading, of one run or of several side by side.

`SECTIONS` makes them, in their order; each gives None where the runs have nothing to show in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

import refgba.report.charts as charts
from refgba.data.remarks import statistics
from refgba.report.copies import copies
from refgba.report.neurons import neuron_table
from refgba.report.page import Html, Section, element, grid, join, legend, table
from refgba.report.run import RunData
from refgba.report.words import dash, percent, rounded, setting, shown
from refgba.runs.accumulate import QUANTILES
from refgba.runs.judging import THRESHOLDS

CURVES = {
    "loss": "Loss",
    "fvu": "FVU of the batch",
    "l0": "L0 of the batch",
    "dead": "Dead neurons",
    "within": "Neurons at or under target",
}
SHARES = ("dead", "within")


def _compared(runs: Sequence[RunData]) -> Section | None:
    """The settings in which several runs differ."""
    if len(runs) == 1:
        return None
    settings = [asdict(run.config) if run.config is not None else {} for run in runs]
    differ = [name for name in _names(settings) if len({json.dumps(s.get(name)) for s in settings}) > 1]
    if not differ:
        return Section("Differences", "The runs have the same settings.")
    lines = [[name, *(setting(s.get(name)) for s in settings)] for name in differ]
    return Section("Differences", table(["setting", *(run.name for run in runs)], lines, "Settings that differ"))


def _names(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the settings of all runs, in order."""
    return list(dict.fromkeys(name for values in settings for name in values))


def _data(runs: Sequence[RunData]) -> Section | None:
    """What the rows are like that runs were trained on, as far as their survey measured it."""
    measured = [(run, dict(statistics(run.about.get("data", {})))) for run in runs]
    measured = [(run, found) for run, found in measured if found]
    if not measured:
        return None
    lines = [[name, *(dash(found.get(name)) for _, found in measured)] for name in _names([f for _, f in measured])]
    lead = "What the survey found before training, of rows as they come unless it says that they are unit rows."
    columns = ["", *(element("bdi", run.name) for run, _ in measured)] if len(measured) > 1 else ["", "rows"]
    return Section("Data", table(columns, lines, "The rows trained on"), lead)


def _training(runs: Sequence[RunData]) -> Section | None:
    logged = [run for run in runs if run.metrics]
    if not logged:
        return None
    drawn = []
    for name, title in CURVES.items():
        lines = [
            (
                run.name,
                tuple(np.array([line[key] for line in run.metrics if name in line]) for key in ("step", name)),
            )
            for run in logged
        ]
        lines = [(who, line) for who, line in lines if len(line[0])]
        if lines:
            drawn.append(charts.curve(lines, title, name in SHARES, _formed(logged)))
    lead = "Loss, FVU and L0 are those of single batches; dead and within target count since the last adaptation."
    return Section("Training", join(_legend(logged), grid(*drawn)), lead)


def _formed(runs: Sequence[RunData]) -> tuple[float, str] | None:
    config, formed = runs[0].config, runs[0].description.formed
    if len(runs) > 1 or config is None or not 0 < formed < config.steps:
        return None
    return formed, "features formed"


def _legend(runs: Sequence[RunData]) -> Html | str:
    return legend([run.name for run in runs]) if len(runs) > 1 else ""


def _frequencies(runs: Sequence[RunData]) -> Section | None:
    judged = [run for run in runs if run.evaluation]
    if not judged:
        return None
    targets = [None if run.groups is None else run.groups.target for run in judged]
    alike = len({None if target is None else target.tobytes() for target in targets}) == 1
    target = targets[0] if alike else None
    drawn = [charts.frequencies([(run.name, run.evaluation["frequency"]) for run in judged], target)]
    lines = [
        (run.name, charts.quartiles(run.evaluation["frequency"], run.groups))
        for run in judged
        if run.groups is not None
    ]
    if lines:
        drawn.append(charts.targets(lines))
    tables = [_group_table(run, len(judged) > 1) for run in judged if run.summary.get("groups")]
    return Section("Frequencies", join(_legend(judged), grid(*drawn), grid(*tables)))


def _group_table(run: RunData, named: bool) -> Html:
    lines = [
        [k, percent(g["target"]), percent(g["median"]), percent(g["mean"]), percent(g["within"]), f"{g['neurons']:,}"]
        for k, g in enumerate(run.summary["groups"], 1)
    ]
    columns = ["group", "target", "median", "mean", "at or under target", "neurons"]
    return table(columns, lines, f"Groups of {run.name}" if named else "Groups", sortable=True)


def _rows(runs: Sequence[RunData]) -> Section | None:
    judged = [run for run in runs if run.evaluation]
    if not judged:
        return None
    drawn = charts.rows([(run.name, run.evaluation["l0_histogram"]) for run in judged])
    spread = [run for run in judged if run.summary.get("l0_distribution")]
    lines = [
        [element("bdi", run.name), *(f"{run.summary['l0_distribution'][name]:,}" for name in QUANTILES)]
        for run in spread
    ]
    columns = ["run", *(name if name in ("min", "median", "max") else f"{q}%" for name, q in QUANTILES.items())]
    body = join(_legend(judged), grid(drawn, table(columns, lines, "Quantiles of L0") if lines else ""))
    return Section("Rows", body, "How many neurons are active on a row.")


def _recovery(runs: Sequence[RunData]) -> Section | None:
    known = [run for run in runs if run.truth is not None]
    if not known:
        return None
    drawn = charts.recovered([(r.name, (r.truth.cosine, r.truth.frequency)) for r in known if r.truth], THRESHOLDS)
    single = [run.summary.get("one_to_one", {}) for run in known]
    lines = []
    for run, ones in zip(known, single, strict=True):
        assert run.truth is not None
        shares = [percent(run.truth.frr(tau)) for tau in THRESHOLDS]
        if any(single):
            shares += [dash(shown(ones.get(str(tau)), percent)) for tau in THRESHOLDS]
        lines.append([element("bdi", run.name), *shares, rounded(float(run.truth.cosine.min()))])
    one_to_one = [f"one-to-one({tau})" for tau in THRESHOLDS] if any(single) else []
    columns = ["run", *(f"FRR({tau})" for tau in THRESHOLDS), *one_to_one, "lowest cosine"]
    body = join(_legend(known), grid(drawn, table(columns, lines, "Feature recovery")))
    return Section("Recovery", body, "The true features are known: FRR is the share with a neuron that near.")


def _neurons(runs: Sequence[RunData]) -> Section | None:
    judged = [run for run in runs if run.evaluation]
    if not judged:
        return None
    parts = []
    for i, run in enumerate(judged):
        p = run.evaluation["frequency"]
        drawn = grid(
            charts.against_frequency(p, run.evaluation["peak"], "Peak pre-activation", "peak", i),
            charts.against_frequency(p, run.evaluation["z_score"], "Z-score of the peak", "Z-score", i),
        )
        parts.append(join(element("h3", run.name) if len(judged) > 1 else "", drawn))
    return Section("Neurons", join(*parts), "Z-score: (peak - mean) / std of a neuron's pre-activations.")


def _settings(runs: Sequence[RunData]) -> Section | None:
    known = [(run, run.config) for run in runs if run.config is not None]
    if not known:
        return None
    settings = [asdict(config) for _, config in known]
    meaning = {f.name: f.metadata.get("help", "") for _, config in known for f in fields(config)}
    lines = [[name, *(setting(values.get(name)) for values in settings), meaning[name]] for name in _names(settings)]
    version = sorted({str(run.about["refgba"]) for run, _ in known if "refgba" in run.about})
    lead = f"Trained with refgba {' and '.join(version)}." if version else ""
    body = table(["setting", *(run.name for run, _ in known), "what it is"], lines)
    return Section("Settings", element("details", element("summary", "All settings"), body), lead)


SECTIONS: tuple[Callable[[Sequence[RunData]], Section | None], ...] = (
    _compared, _data, _training, _frequencies, _rows, _recovery, _neurons, copies, neuron_table, _settings,
)  # fmt: skip
