"""What a run did, on one page: what was run, how well, what to look at, and every neuron in a table.

    run = load_run(Path("runs/mine"))
    run.evaluation, run.summary, run.data = load_evaluation(Path("evaluation.safetensors"), run.config)
    Path("report.html").write_text(report([run]), encoding="utf-8")

The figures are `charts`, the sentences `findings`, the file `page`.  Nothing here evaluates a network: the caller does,
or reads what `refgba evaluate -o` wrote.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from refgba.config import GBAConfig, Settings, config_from_json
from refgba.data import files
from refgba.errors import InputError, brief
from refgba.metrics import mcs, per_group
from refgba.recipe import forming_steps
from refgba.report import charts, page
from refgba.report.charts import percent, rounded
from refgba.report.findings import findings
from refgba.report.page import Html, Section, bars, element, grid, join, legend, table
from refgba.runs import folder
from refgba.runs.accumulate import QUANTILES
from refgba.runs.judging import ARRAYS, THRESHOLDS
from refgba.types import Array

CURVES = {
    "loss": "Loss",
    "fvu": "FVU of the batch",
    "l0": "L0 of the batch",
    "dead": "Dead neurons",
    "within": "Neurons at or under target",
}
SHARES = ("dead", "within")
SMALL = 200_000  # neurons, up to which the table has every number as a float32
BITS = 12  # of the fraction of a float of more neurons: a relative error of 2^-13
TOP = 1_000_000  # top rows kept in the table in all, but one a neuron
FIRST = 25  # rows of the table that need no script


VECTORS = {"b": "bias b", "a": "scale a", "theta": "threshold θ"}


@dataclass(frozen=True)
class Truth:
    """How near neurons come to the true features: cosine (n,), the highest of any neuron; frequency (n,) or None."""

    cosine: Array
    frequency: Array | None = None

    @classmethod
    def of(cls, W: Array, V: Array, frequency: Array | None = None) -> Truth:
        """That of the neurons W (M, d) and the true features V (n, d), which occur in these shares of the rows."""
        return cls(mcs(V, W), frequency)


class Parameters(Protocol):
    """The parameters of a network of any method: those of `refgba.sae` or `refgba.baselines`."""

    def arrays(self) -> dict[str, Array]:
        """The arrays that exist, by name."""


@dataclass
class RunData:
    """What a report knows of a run.  Everything but the name may be missing, and is then left out.

    config: that of GBA or of a baseline, which has no groups; None for a network of others.  about, metrics: about.json
    and the lines of metrics.jsonl.  evaluation: the arrays of `refgba.runs.judging.save`, by name.  summary: the
    object of `evaluation.result`.  data: what these were measured on.  labels: names of neurons, from anywhere.
    """

    name: str
    config: Settings | None = None
    about: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    params: Parameters | None = None
    evaluation: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    truth: Truth | None = None
    labels: dict[int, str] = field(default_factory=dict)
    data: str = ""

    @property
    def gba(self) -> GBAConfig | None:
        """The config, where it is GBA's: then there are groups."""
        return self.config if isinstance(self.config, GBAConfig) else None

    def vectors(self) -> dict[str, Array]:
        """The parameters that are a number for each neuron, (M,), by the names of VECTORS."""
        arrays = {} if self.params is None else self.params.arrays()
        return {name: arrays[name] for name in VECTORS if name in arrays}

    @property
    def rows(self) -> int:
        """The number of rows evaluated, 0 if none."""
        h = self.evaluation.get("l0_histogram")
        return 0 if h is None else int(h.sum())

    @property
    def neurons(self) -> int | None:
        """M, where anything tells."""
        if "frequency" in self.evaluation:
            return len(self.evaluation["frequency"])
        return self.config.width if self.config is not None else None


# ---- reading ---------------------------------------------------------------------------------------------------------


def load_run(path: Path) -> RunData:
    """Read the folder of a run, finished or not, or of a network without its run: all but the evaluation.

    Raises InputError, naming the file, for what is neither or is damaged.  A last line of the log that was cut short
    when the run was killed is left out.
    """
    if not (path / folder.CONFIG).is_file():
        network = folder.open_network(path)
        return RunData(_name(path), network.config, params=network.params)
    try:
        config = config_from_json((path / folder.CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path / folder.CONFIG}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # an InputError, or no text
        raise InputError(f"{path / folder.CONFIG}: {error}") from None
    about = files.read_json(path / folder.ABOUT, 2**28) if (path / folder.ABOUT).exists() else {}
    params = folder.open_network(path).params if (path / folder.FINAL).is_dir() else None
    return RunData(_name(path), config, about, load_metrics(path / folder.METRICS), params)


def _name(path: Path) -> str:
    return path.name or path.resolve().name or str(path)


def load_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, none if there is no such file; InputError, naming the line, for a damaged one."""
    if not path.exists():
        return []
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    found = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):  # what no newline ends was being written
        try:
            logged = files.parse_json(line, path)
        except InputError as error:
            raise InputError(f"{path}: line {number}: {str(error).removeprefix(f'{path}: ')}") from None
        if type(logged.get("step")) is not int:
            raise InputError(f"{path}: line {number}: damaged: it has no step")
        for name in (*CURVES, "seconds"):
            value = logged.get(name)
            if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
                raise InputError(f"{path}: line {number}: damaged: {name} should be a finite number")
        found.append({name: value for name, value in logged.items() if value is not None})
    return found


def load_evaluation(
    path: Path, config: Settings | None = None
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any], str]:
    """Read a file of `refgba evaluate -o`: its arrays, the summary that follows from them, and its data's name.

    The summary is `evaluation.result` without loss and FVU, which the file does not hold.  Raises InputError, naming
    the file, for one that is damaged or of another network than that of the config.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            names, about = set(file.keys()), file.metadata() or {}
            wanted = (*ARRAYS, *(name for name in ("top_rows", "top_values") if name in names))
            arrays = {name: file.get_tensor(name) for name in wanted}
    except Exception as error:  # SafetensorError, and what NumPy makes of dtypes it has not
        raise InputError(f"{path}: not a file of `refgba evaluate -o`, or damaged ({brief(error)})") from None
    _check_arrays(str(path), arrays, config)
    return arrays, summarise(arrays, config), about.get("data", "")


def summarise(arrays: Mapping[str, npt.NDArray[Any]], config: Settings | None) -> dict[str, Any]:
    """What `evaluation.result` tells that follows from the arrays alone."""
    p, h = arrays["frequency"], arrays["l0_histogram"]
    up_to, N = np.cumsum(h), int(h.sum())
    found: dict[str, Any] = {
        "l0": float(p.sum()),
        "activation_fraction": float(p.mean()),
        "dead": float(np.mean(p == 0)),
        "rows": N,
        "l0_distribution": {
            name: int(np.searchsorted(up_to, max(1, -(-share * N // 100)))) for name, share in QUANTILES.items()
        },
    }
    if isinstance(config, GBAConfig):
        found["groups"] = [asdict(g) for g in per_group(p, config.group(), config.target())]
    return found


def _check_arrays(name: str, arrays: Mapping[str, npt.NDArray[Any]], config: Settings | None) -> None:
    """InputError unless the arrays of an evaluation are there, fit each other and the config, and are finite."""
    missing = [array for array in ARRAYS if array not in arrays]
    if missing:
        raise InputError(f"{name}: the evaluation has no {missing[0]}")
    M = arrays["frequency"].size
    shapes: dict[str, tuple[int, ...]] = {**dict.fromkeys(ARRAYS, (M,)), "l0_histogram": (M + 1,)}
    if "top_rows" in arrays:
        shapes["top_rows"] = (M, arrays["top_rows"].shape[-1] if arrays["top_rows"].ndim else 0)
    for array, shape in shapes.items():
        if arrays[array].shape != shape or not M:
            raise InputError(f"{name}: {array} has shape {arrays[array].shape}, it should be {shape}")
        if not np.isfinite(arrays[array]).all():
            raise InputError(f"{name}: {array} holds values that are not finite")
    if arrays["l0_histogram"].min() < 0 or not 0 < arrays["l0_histogram"].sum() < 2**32:
        raise InputError(f"{name}: l0_histogram should count at least one row")
    if arrays["frequency"].min() < 0 or arrays["frequency"].max() > 1:
        raise InputError(f"{name}: frequency should lie in [0, 1]")
    if config is not None and config.width != M:
        raise InputError(f"{name}: the evaluation has {M} neurons, the run {config.width}: it is of another network")


# ---- the page --------------------------------------------------------------------------------------------------------


def report(runs: Sequence[RunData]) -> str:
    """The page of one run, or of several side by side; InputError for none, or arrays that do not fit each other."""
    if not runs:
        raise InputError("a report needs at least one run")
    for run in runs:
        if run.evaluation:
            _check_arrays(run.name, run.evaluation, run.config)
        for name, vector in run.vectors().items():
            if vector.shape != (run.neurons,):
                raise InputError(f"{run.name}: has {run.neurons} neurons, but {name} of shape {vector.shape}")
    with page.drawing():  # says at once, before any work, where matplotlib is missing
        sections = [
            section
            for make in (_compared, _training, _frequencies, _rows, _recovery, _neurons, _table, _settings)
            if (section := make(runs)) is not None
        ]
    known = {section.title: section.anchor for section in sections}
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    lead = join(_facts(runs), _tiles(runs[0])) if len(runs) == 1 else _overview(runs)
    script = page.resource("report.js") if "Table of neurons" in known else ""
    return page.page(title, join(lead, _look(runs, known)), sections, script)


# ---- the first screen ------------------------------------------------------------------------------------------------


def _facts(runs: Sequence[RunData]) -> Html:
    """What was run: of several runs, what they share."""
    first, *others = (_told(run) for run in runs)
    shared = {name: text for name, text in first.items() if text and all(other[name] == text for other in others)}
    parts = (join(element("dt", name), element("dd", text)) for name, text in shared.items())
    return element("dl", *parts, class_="facts") if shared else Html("")


def _told(run: RunData) -> dict[str, str]:
    config, data = run.config, _object(run.about.get("data"))
    shown = dict.fromkeys(("Trained on", "Judged on", "Network", "Method", "Training"), "")
    if data:
        shape = f"{_count(data.get('rows'))} rows of d = {data.get('d')}, {data.get('dtype')}"
        shown["Trained on"] = f"{data.get('path')}: {shape}"
    if run.rows:
        shown["Judged on"] = f"{run.data + ': ' if run.data else ''}{run.rows:,} rows"
    shown["Network"] = f"M = {run.neurons:,} neurons{_shape(run.gba)}" if run.neurons else ""
    if config is None:
        return shown
    shown["Method"] = _method(config, run.about)
    seen = config.steps * config.batch
    epochs = f" ({seen / data['rows']:.3g} epochs)" if _positive(data.get("rows")) else ""
    backend = run.about.get("backend")
    took = f", {_duration(run.metrics[-1]['seconds'])}" if run.metrics and "seconds" in run.metrics[-1] else ""
    shown["Training"] = (
        f"{config.steps:,} steps of {config.batch:,} rows{epochs}; {f'{backend}, ' if backend else ''}{config.dtype}"
        f"{took}; seed {config.seed}"
    )
    return shown


def _shape(config: GBAConfig | None) -> str:
    if config is None:
        return ", no groups"
    target = [percent(p) for p in config.target()]
    aims = f"targets {target[0]} to {target[-1]}" if len(target) > 1 else f"target {target[0]}"
    return (
        f", K = {config.groups}, {aims}; {config.activation}, {'untied decoder' if config.untied else 'tied weights'}"
    )


def _method(config: Settings, about: dict[str, Any]) -> str:
    recipe = f", recipe {about['recipe']}" if "recipe" in about else ""
    if isinstance(config, GBAConfig):
        phases = f"; features form until step {forming_steps(config):,}" if config.form else ""
        return f"{'GBA' if config.groups > 1 else 'BA (one group)'}{recipe}{phases}"
    settings = asdict(config)
    name = str(settings.get("method", "another method"))
    strength = "k" if name in ("topk", "batchtopk") else "sparsity"
    return f"{name}, {strength} {_setting(settings[strength])}" if strength in settings else name


def _tiles(run: RunData) -> Html:
    """How well it did."""
    found, tiles = run.summary, []
    if "fvu" in found:
        tiles.append(_tile("FVU", rounded(found["fvu"]), f"explained variance {percent(1 - found['fvu'])}"))
    if "l0" in found:
        q = found.get("l0_distribution")
        spread = f"median {q['median']:,}, 90% of rows {q['p5']:,} to {q['p95']:,}" if q else ""
        tiles.append(_tile("L0, active neurons a row", rounded(found["l0"]), spread, _small_l0(run)))
    if "dead" in found:
        M = run.neurons
        tiles.append(
            _tile(
                "Dead neurons",
                percent(found["dead"]),
                f"{round(found['dead'] * M):,} of {M:,} fired never" if M else "",
            )
        )
    groups = found.get("groups")
    if groups:
        within = sum(g["within"] * g["neurons"] for g in groups) / sum(g["neurons"] for g in groups)
        k = min(range(len(groups)), key=lambda k: groups[k]["within"])
        alt = "Share at or under target by group: " + ", ".join(percent(g["within"]) for g in groups)
        more = f"lowest: group {k + 1}, {percent(groups[k]['within'])}" if groups[k]["within"] < 1 < len(groups) else ""
        tiles.append(_tile("At or under target", percent(within), more, bars([g["within"] for g in groups], alt, 1.0)))
    if run.truth is not None:
        first, last = (_frr(run.truth, tau) for tau in THRESHOLDS)
        more = f"FRR({THRESHOLDS[1]}) {percent(last)}, of {len(run.truth.cosine):,} features"
        tiles.append(_tile(f"Recovered, FRR({THRESHOLDS[0]})", percent(first), more))
    if not tiles:
        return element("p", "This run has not been evaluated: there are no results to show, only its training.")
    return element("div", *tiles, class_="tiles")


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


def _look(runs: Sequence[RunData], known: dict[str, str]) -> Html:
    """What to look at."""
    parts: list[Html] = []
    for run in runs:
        found = findings(run)
        items = [element("li", text, " ", _link(topic, known)) for text, topic in found]
        if len(runs) > 1:
            parts.append(element("h3", run.name))
        nothing = (
            "Nothing stands out: the checks for targets, dead neurons, rows without activity, dense neurons, "
            "the end of the loss and recovery found nothing in what is known of this run."
        )
        parts.append(element("ul", *items) if items else element("p", nothing))
    return element("div", element("h2", "What to look at"), *parts, class_="look")


def _link(topic: str, known: dict[str, str]) -> Html | str:
    return element("a", topic, href=f"#{known[topic]}", class_="flag") if topic in known else ""


def _overview(runs: Sequence[RunData]) -> Html:
    """Several runs: what they did, side by side."""
    measures: dict[str, Callable[[RunData], str | None]] = {
        "FVU": lambda r: _if(r.summary.get("fvu"), rounded),
        "L0": lambda r: _if(r.summary.get("l0"), rounded),
        "L0, 90% of rows": lambda r: _if(r.summary.get("l0_distribution"), lambda q: f"{q['p5']:,} to {q['p95']:,}"),
        "dead": lambda r: _if(r.summary.get("dead"), percent),
        "at or under target": lambda r: _if(r.summary.get("groups"), _within),
        **{f"FRR({tau})": partial(_shown_frr, tau) for tau in THRESHOLDS},
        "M": lambda r: _if(r.neurons, lambda M: f"{M:,}"),
        "K": lambda r: _if(r.gba, lambda c: str(c.groups)),
        "steps": lambda r: _if(r.config, lambda c: f"{c.steps:,}"),
        "method": lambda r: _if(r.config, lambda c: _method(c, r.about)),
        "rows judged": lambda r: _if(r.rows or None, lambda N: f"{N:,}"),
    }
    cells = {name: [show(run) for run in runs] for name, show in measures.items()}
    used = [name for name, column in cells.items() if any(cell is not None for cell in column)]
    lines = [[element("bdi", run.name), *(_dash(cells[name][i]) for name in used)] for i, run in enumerate(runs)]
    judged = {run.data for run in runs if run.rows}
    same = "" if len(judged) <= 1 else "The runs were judged on different data."
    return join(_facts(runs), table(["run", *used], lines, "The runs side by side"), element("p", same) if same else "")


def _if(value: Any, show: Callable[[Any], str]) -> str | None:
    return None if value is None else show(value)


def _dash(value: str | None) -> str:
    return "–" if value is None else value


def _within(groups: list[dict[str, Any]]) -> str:
    return percent(sum(g["within"] * g["neurons"] for g in groups) / sum(g["neurons"] for g in groups))


def _shown_frr(tau: float, run: RunData) -> str | None:
    return None if run.truth is None else percent(_frr(run.truth, tau))


def _frr(truth: Truth, tau: float) -> float:
    return float(np.mean(truth.cosine >= tau))


# ---- the sections ----------------------------------------------------------------------------------------------------


def _compared(runs: Sequence[RunData]) -> Section | None:
    """The settings in which several runs differ."""
    if len(runs) == 1:
        return None
    settings = [asdict(run.config) if run.config is not None else {} for run in runs]
    differ = [name for name in _names(settings) if len({json.dumps(s.get(name)) for s in settings}) > 1]
    if not differ:
        return Section("Differences", "The runs have the same settings.")
    lines = [[name, *(_setting(s.get(name)) for s in settings)] for name in differ]
    return Section("Differences", table(["setting", *(run.name for run in runs)], lines, "Settings that differ"))


def _names(settings: list[dict[str, Any]]) -> list[str]:
    """The names of the settings of all runs, in order."""
    return list(dict.fromkeys(name for given in settings for name in given))


def _setting(value: Any) -> str:
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


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
    config = runs[0].gba
    if len(runs) > 1 or config is None or not 0 < forming_steps(config) < config.steps:
        return None
    return forming_steps(config), "features formed"


def _legend(runs: Sequence[RunData]) -> Html | str:
    return legend([run.name for run in runs]) if len(runs) > 1 else ""


def _frequencies(runs: Sequence[RunData]) -> Section | None:
    judged = [run for run in runs if run.evaluation]
    if not judged:
        return None
    aims = {run.gba and (run.gba.groups, run.gba.htf, run.gba.ltf) for run in judged}
    config = judged[0].gba
    target = config.target() if config is not None and len(aims) == 1 else None
    drawn = [charts.frequencies([(run.name, run.evaluation["frequency"]) for run in judged], target)]
    lines = [(run.name, _quartiles(run, run.gba)) for run in judged if run.gba is not None]
    if lines:
        drawn.append(charts.targets(lines))
    tables = [_group_table(run, len(judged) > 1) for run in judged if run.summary.get("groups")]
    return Section("Frequencies", join(_legend(judged), grid(*drawn), grid(*tables)))


def _quartiles(run: RunData, config: GBAConfig) -> tuple[Array, Array]:
    p, group = run.evaluation["frequency"], config.group()
    found = [np.quantile(p[group == k], (0.25, 0.5, 0.75)) for k in range(config.groups)]
    return config.target(), np.stack(found, axis=1)  # (3, K)


def _group_table(run: RunData, named: bool) -> Html:
    lines = [
        [k, percent(g["target"]), percent(g["median"]), percent(g["mean"]), percent(g["within"]), f"{g['neurons']:,}"]
        for k, g in enumerate(run.summary["groups"], 1)
    ]
    columns = ["group", "target", "median", "mean", "at or under target", "neurons"]
    return table(columns, lines, f"Groups of {run.name}" if named else "Groups")


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
    single = [_object(run.summary.get("one_to_one")) for run in known]
    lines = []
    for run, ones in zip(known, single, strict=True):
        assert run.truth is not None
        shares = [percent(_frr(run.truth, tau)) for tau in THRESHOLDS]
        if any(single):
            shares += [_dash(_if(ones.get(str(tau)), percent)) for tau in THRESHOLDS]
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
    known = [run for run in runs if run.config is not None]
    if not known:
        return None
    settings = [asdict(run.config) for run in known if run.config is not None]
    said = {f.name: f.metadata.get("help", "") for run in known if run.config is not None for f in fields(run.config)}
    lines = [[name, *(_setting(given.get(name)) for given in settings), said[name]] for name in _names(settings)]
    version = sorted({str(run.about["refgba"]) for run in known if "refgba" in run.about})
    lead = f"Trained with refgba {' and '.join(version)}." if version else ""
    body = table(["setting", *(run.name for run in known), "what it is"], lines)
    return Section("Settings", element("details", element("summary", "All settings"), body), lead)


# ---- the table of neurons --------------------------------------------------------------------------------------------

WHICH = {"": "all", "over": "over target", "alive": "that fired", "dead": "dead", "half": "on over half of the rows"}


def _table(runs: Sequence[RunData]) -> Section | None:
    judged = [run for run in runs if run.evaluation]
    if not judged:
        return None
    choice = [element("option", run.name, value=f"neurons-{i}") for i, run in enumerate(judged)]
    which = [element("option", text, value=value) for value, text in (WHICH | {"labelled": "labelled"}).items()]
    find = "find (label or number)"
    controls = element(
        "div",
        element("label", "run", element("select", *choice, name="run")) if len(judged) > 1 else "",
        element("label", find, element("input", type="search", name="find", autocomplete="off", spellcheck="false")),
        element("label", "group", element("select", name="group")),
        element("label", "show", element("select", *which, name="which")),
        class_="controls",
        hidden=True,
    )
    pages = {"begin": "First", "back": "Previous", "on": "Next", "end": "Last"}
    pager = element(
        "div",
        *(element("button", text, type="button", name=name) for name, text in pages.items()),
        class_="pager",
        hidden=True,
    )
    status = element(
        "p", f"The first {FIRST} neurons; sorting and filtering need JavaScript.", class_="status", role="status"
    )
    body = element("div", controls, status, _first_rows(judged[0]), pager, class_="neurons", id="neurons")
    lead = "Sort by the heading of a column.  “over”: fires more often than its group's target."
    packed = (block for i, run in enumerate(judged) for block in pack(run, f"neurons-{i}"))
    return Section("Table of neurons", join(body, *packed), lead)


def _first_rows(run: RunData) -> Html:
    """The first neurons, for browsers that run no script."""
    e, config = run.evaluation, run.gba
    group, target = (config.group(), config.target()) if config is not None else (None, None)
    top = e.get("top_rows")
    lines = []
    for m in range(min(FIRST, len(e["frequency"]))):
        line: dict[str, object] = {"neuron": m}
        if run.labels:
            line["label"] = run.labels.get(m, "")
        if group is not None and target is not None:
            line |= {"group": int(group[m]) + 1, "target": percent(target[group[m]])}
        line["frequency"] = percent(e["frequency"][m])
        line |= {name: rounded(e[key][m]) for name, key in _STATISTICS.items()}
        line |= {VECTORS[name]: rounded(vector[m]) for name, vector in run.vectors().items()}
        if top is not None and top.shape[1]:
            line["top rows"] = ", ".join(str(row) for row in top[m] if row >= 0)
        lines.append(line)
    return table(list(lines[0]), [list(line.values()) for line in lines], "Neurons")


_STATISTICS = {"peak": "peak", "mean": "mean", "std": "std", "Z-score": "z_score"}


def pack(run: RunData, name: str) -> list[Html]:
    """All neurons of a run for the page's script: what the columns are, and their numbers.

    A column is four planes of bytes, the lowest first, so that those which hold little shrink; then all is deflated and
    written in base64.  Counts of rows are exact.  Of more than SMALL neurons floats keep BITS bits of their fraction,
    and one in TOP top rows is kept; the Z-score follows from peak, mean and standard deviation.
    """
    e, M = run.evaluation, len(run.evaluation["frequency"])
    floats = {key: e[key] for key in ("peak", "mean", "std")}
    floats |= run.vectors()
    columns: list[dict[str, Any]] = [{"name": "count", "kind": "whole"}]
    words = [np.rint(e["frequency"] * run.rows).astype(np.uint32)]
    for key, values in floats.items():
        columns.append({"name": key, "kind": "float"})
        words.append(_float_words(values, 23 if M <= SMALL else BITS))
    top = e.get("top_rows")
    kept = 0 if top is None else min(top.shape[1], max(1, TOP // M))
    if top is not None and kept:
        columns.append({"name": "top", "kind": "whole", "width": kept})
        words.append(np.where(top[:, :kept] < 0, 2**32 - 1, top[:, :kept]).astype(np.uint32).ravel())
    about = {
        "neurons": M,
        "rows": run.rows,
        "targets": [] if run.gba is None else run.gba.target().tolist(),
        "columns": columns,
        "top": kept,
        "labels": [[m, str(label)] for m, label in sorted(run.labels.items()) if 0 <= m < M],
    }
    deflate = zlib.compressobj(6, wbits=-15)
    planes = b"".join(deflate.compress(word.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes()) for word in words)
    return [
        page.data_script(f"{name}-about", page.json_text(json.dumps(about))),
        page.data_script(name, base64.b64encode(planes + deflate.flush()).decode()),
    ]


def _float_words(values: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint32]:
    """float32 values as words, rounded to so many bits of their fraction."""
    words: npt.NDArray[np.uint32] = np.clip(values, -3e38, 3e38).astype(np.float32).view(np.uint32)
    if bits < 23:
        words = (words + np.uint32(1 << (22 - bits))) & np.uint32(2**32 - (1 << (23 - bits)))
    return words


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _count(value: Any) -> str:
    return f"{value:,}" if type(value) is int else str(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
