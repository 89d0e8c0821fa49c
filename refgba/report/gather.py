"""What `refgba report` shows of runs on disk, gathered: each is read, judged on data, and held against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refgba.data.activations import Activations, reopen
from refgba.errors import InputError
from refgba.report.likeness import likeness
from refgba.report.neurons import BINS, TOP, read_labels
from refgba.report.run import RunData, Seen, Truth, load_run
from refgba.runs import folder
from refgba.runs.judging import SAMPLE, Counting, Judged, judge, load_truth, silent


def gather(
    paths: Sequence[Path],
    data: Path | None = None,
    rows: int = SAMPLE,
    truth: Path | None = None,
    labels: Path | None = None,
    drop_zero_rows: bool = False,
    backend: str | None = None,
    counting: Counting = silent,
    drop_below: float = 0.0,
) -> list[RunData]:
    """Runs or checkpoints, each judged on the first `rows` rows of `data`, or of what was held out of its training.

    A run that held out nothing is judged on what it was trained on.  truth: the file of the true features (n, d).
    labels: as for `read_labels`.  InputError as `load_run` and `judge`, and where it is not known what a run was
    trained on.
    """
    names = {} if labels is None else read_labels(labels)
    runs, features = [], []
    for path in paths:
        run = load_run(path)
        if len({other.name for other in paths}) < len(paths):
            run.name = str(path)
        source, run.seen = _rows_of(path, run, data)
        judged = judge(
            path, source, backend, None, drop_zero_rows, TOP, truth, rows, counting, drop_below, BINS, copied=True
        )
        run.evaluation = judged.arrays()
        run.summary, run.labels, run.copies = judged.result, names, judged.copies
        run.data = _named(run, source, judged)
        if truth is not None:
            run.truth = Truth.of(judged.features, load_truth(truth, judged.features.shape[1]))
        runs.append(run)
        features.append(judged.features)
    for run, mine in zip(runs, features, strict=True):
        others = [(other.name, theirs) for other, theirs in zip(runs, features, strict=True) if other is not run]
        run.likeness = likeness(mine, others)
    return runs


def _rows_of(path: Path, run: RunData, data: Path | None) -> tuple[Path | Activations, Seen]:
    """What a run is judged on, and whether it was trained on these rows."""
    trained_on = Path(str(run.about.get("data", {}).get("path", "")))
    kept = run.about.get(folder.HELD_OUT)
    if data is not None:
        if not trained_on.name:
            return data, Seen.UNKNOWN
        share = kept is not None and kept.get("path") is None  # of the rows trained on; else all of them were
        return data, Seen.NO if data.resolve() != trained_on else Seen.SOME if share else Seen.ALL
    if not trained_on.name:
        raise InputError(f"{path}: does not say what it was trained on; give --data")
    if kept is None:
        return trained_on, Seen.ALL
    if kept.get("path") is not None:
        return Path(kept["path"]), Seen.NO
    record = folder.read_record(path)
    return reopen(record.about["data"], record.dropped, record.crc, None, record.held_out, record.centre), Seen.NO


def _named(run: RunData, source: Path | Activations, judged: Judged) -> str:
    """The rows judged, in words."""
    name = f"rows held out of {run.about['data']['path']}" if isinstance(source, Activations) else str(source)
    for key, what in (("dropped", "left out"), ("faint", "near zero")):
        name += f", {judged.result[key]:,} {what}" if judged.result[key] else ""
    return name
