"""What `refgba report` shows of runs on disk, gathered: each is read, judged on data, and held against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refgba.errors import InputError
from refgba.report.neurons import read_labels
from refgba.report.page import drawing
from refgba.report.run import RunData, Truth, load_run
from refgba.runs.judging import SAMPLE, Counting, judge, load_truth, silent

TOP = 10  # rows shown of each neuron, on which it is highest


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
    """Runs or checkpoints, each judged on the first `rows` rows of `data`, or of what it was trained on.

    truth: the file of the true features (n, d).  labels: as for `read_labels`.  InputError as `load_run` and `judge`,
    and where it is not known what a run was trained on; and where nothing could be drawn, before anything is judged.
    """
    with drawing():
        pass
    names = {} if labels is None else read_labels(labels)
    runs = []
    for path in paths:
        run = load_run(path)
        if len({other.name for other in paths}) < len(paths):
            run.name = str(path)
        source = data or Path(str(run.about.get("data", {}).get("path", "")))
        if data is None and not source.name:
            raise InputError(f"{path}: does not say what it was trained on; give --data")
        judged = judge(path, source, backend, None, drop_zero_rows, TOP, truth, rows, counting, drop_below)
        run.evaluation = judged.arrays()
        run.summary, run.labels = judged.result, names
        run.data = f"{source}, {judged.evaluation.rows} rows{'' if data else ', on which it was trained'}"
        for count, what in (("dropped", "left out"), ("faint", "near zero")):
            run.data += f", {judged.result[count]} {what}" if judged.result[count] else ""
        if truth is not None:
            run.truth = Truth.of(judged.features, load_truth(truth, judged.features.shape[1]))
        runs.append(run)
    return runs
