"""The neurons, in a table and one by one: all of them for the page's script, report.js, and the first in HTML."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refgba.data import files
from refgba.errors import InputError, brief
from refgba.report.page import Html, Section, data_script, element, join, json_text, pager, table
from refgba.report.run import VECTORS, RunData
from refgba.report.words import percent, rounded

SMALL = 200_000  # A table of up to this many neurons has every number as a float32.
BITS = 12  # Of more neurons, floats keep this many bits of their fraction: a relative error of 2^-13.
TOP = 10  # A neuron's view lists this many rows, on which it is highest.
MOST_TOP = 1_000_000  # The page holds about this many top rows in all, and at least one per neuron.
BINS = 32  # of the histogram of a neuron's activations, in its view
DIGITS = 10  # The number of any neuron has fewer.
FIRST = 25  # The page shows this many neurons without its script.
WHICH = {"": "all", "over": "over target", "alive": "that fired", "dead": "dead", "half": "on over half of the rows"}


def neuron_table(runs: Sequence[RunData]) -> Section | None:
    """The section with the table, None where no run was judged."""
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
    status = element(
        "p", f"The first {FIRST} neurons; sorting, filtering and views of single neurons need JavaScript.",
        class_="status", role="status",
    )  # fmt: skip
    view = element("div", class_="view", hidden=True, tabindex="-1", role="region", aria_label="One neuron")
    body = element("div", controls, view, status, _first_rows(judged[0]), pager(), class_="neurons", id="neurons")
    lead = (
        "Click the number of a neuron, or type it under “find” and press Enter, to see that neuron alone: its "
        "activations, its rows, its neighbours.  Sort by the heading of a column.  “over”: fires more often than its "
        "group's target."
    )
    packed = (block for i, run in enumerate(judged) for block in data_blocks(run, f"neurons-{i}", _numbers(judged)))
    return Section("Table of neurons", join(body, *packed), lead)


def _numbers(runs: Sequence[RunData]) -> dict[str, int]:
    """The number of each run's block of data, by its name."""
    return {run.name: i for i, run in enumerate(runs)}


def _first_rows(run: RunData) -> Html:
    """The first neurons, for browsers that run no script."""
    e, groups = run.evaluation, run.groups
    lines = []
    for m in range(min(FIRST, len(e["frequency"]))):
        line: dict[str, object] = {"neuron": m}
        if run.labels:
            line["label"] = run.labels.get(m, "")
        if groups is not None:
            group = int(groups.group[m])
            line |= {"group": group + 1, "target": percent(groups.target[group])}
        line["frequency"] = percent(e["frequency"][m])
        line |= {name: rounded(e[key][m]) for name, key in _STATISTICS.items()}
        line |= {VECTORS[name]: rounded(vector[m]) for name, vector in run.vectors().items()}
        lines.append(line)
    return table(list(lines[0]), [list(line.values()) for line in lines], "Neurons")


_STATISTICS = {"peak": "peak", "mean": "mean", "std": "std", "Z-score": "z_score"}


def data_blocks(run: RunData, name: str, runs: Mapping[str, int]) -> list[Html]:
    """All neurons of a run for the page's script: a block that describes the columns, and a block of their numbers.

    runs: the numbers of the blocks of runs, by name.  A column of words is four planes of bytes, the lowest first, so
    that planes which hold little compress well; one of bytes is one plane.  Then all is deflated and written in base64.
    Counts of rows are exact.  Of more than SMALL neurons, floats keep BITS bits of their fraction, and there are no
    histograms; top rows are kept up to MOST_TOP in all.  The Z-score follows from peak, mean and standard deviation.
    """
    e, M = run.evaluation, len(run.evaluation["frequency"])
    packed = _Columns(23 if M <= SMALL else BITS)
    packed.whole("count", np.rint(e["frequency"] * run.rows))
    for key, values in ({key: e[key] for key in ("peak", "mean", "std")} | run.vectors()).items():
        packed.floats(key, values)
    top = e.get("top_rows")
    kept = 0 if top is None else min(top.shape[1], max(1, MOST_TOP // M))
    if top is not None and kept:
        packed.whole("top", top[:, :kept], kept)
        packed.floats("value", e["top_values"][:, :kept] if "top_values" in e else np.zeros((M, kept)), kept)
    counts = e.get("activation_counts")
    bins = 0 if counts is None or M > SMALL else counts.shape[1]
    if counts is not None and bins:
        most = counts.max(axis=1, keepdims=True)
        packed.small("bins", np.ceil(255 * (counts / np.maximum(most, 1))), bins)
        packed.whole("most", most)
        packed.floats("end", e["activation_end"])
    near = [(i, like) for i, like in enumerate(run.likeness) if not like.run or like.run in runs]
    for i, like in near:
        packed.whole(f"near{i}", like.nearest, like.nearest.shape[1])
        packed.floats(f"cosine{i}", like.cosine, like.cosine.shape[1])
    about = {
        "neurons": M,
        "rows": run.rows,
        "targets": [] if run.groups is None else run.groups.target.tolist(),
        "columns": packed.columns,
        "top": kept,
        "bins": bins,
        "near": [
            {"run": like.run, "data": runs.get(like.run), "column": i, "width": like.nearest.shape[1]}
            for i, like in near
        ],
        "labels": [[m, str(label)] for m, label in sorted(run.labels.items()) if 0 <= m < M],
    }
    return [
        data_script(f"{name}-about", json_text(json.dumps(about))),
        data_script(name, base64.b64encode(packed.data()).decode()),
    ]


class _Columns:
    """Columns of numbers as the page's script takes them."""

    def __init__(self, bits: int) -> None:
        """bits: how many of a float's fraction are kept."""
        self.columns: list[dict[str, Any]] = []
        self._bits, self._planes, self._deflate = bits, [b""], zlib.compressobj(6, wbits=-15)

    def whole(self, name: str, values: npt.NDArray[Any], width: int = 1) -> None:
        """Whole numbers below 2^32 - 1, `width` per neuron; negative ones stand for none, and become 2^32 - 1."""
        self._add(name, "whole", width, np.where(values < 0, 2**32 - 1, values).astype(np.uint32))

    def floats(self, name: str, values: npt.NDArray[Any], width: int = 1) -> None:
        """Numbers, `width` per neuron, as float32."""
        self._add(name, "float", width, float_words(np.ascontiguousarray(values), self._bits))

    def small(self, name: str, values: npt.NDArray[Any], width: int = 1) -> None:
        """Whole numbers below 256, `width` per neuron."""
        self.columns.append({"name": name, "kind": "byte", "width": width})
        self._planes.append(self._deflate.compress(values.astype(np.uint8).tobytes()))

    def _add(self, name: str, kind: str, width: int, words: npt.NDArray[np.uint32]) -> None:
        self.columns.append({"name": name, "kind": kind, "width": width})
        planes = words.astype("<u4").ravel().view(np.uint8).reshape(-1, 4).T
        self._planes.append(self._deflate.compress(planes.tobytes()))

    def data(self) -> bytes:
        """All that was added, deflated."""
        return b"".join(self._planes) + self._deflate.flush()


def packed(columns: Iterable[npt.NDArray[np.uint32]]) -> str:
    """Columns of words for the page's script, `shared.columns`: planes of bytes, the lowest first; deflated, base64."""
    return deflated(word.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes() for word in columns)


def deflated(parts: Iterable[bytes]) -> str:
    """Bytes for the page's script, `shared.inflate`: deflated, in base64."""
    deflate = zlib.compressobj(6, wbits=-15)
    return base64.b64encode(b"".join(map(deflate.compress, parts)) + deflate.flush()).decode()


def float_words(values: npt.NDArray[Any], bits: int = 23) -> npt.NDArray[np.uint32]:
    """float32 values as words, rounded to so many bits of their fraction."""
    words: npt.NDArray[np.uint32] = np.clip(values, -3e38, 3e38).astype(np.float32).view(np.uint32)
    if bits < 23:
        words = (words + np.uint32(1 << (22 - bits))) & np.uint32(2**32 - (1 << (23 - bits)))
    return words


def read_labels(path: Path) -> dict[int, str]:
    """Names of neurons by their number, from a JSON object like {"17": "a name"}; InputError for anything else."""
    labels = files.read_json(path, 2**28)
    for number, label in labels.items():
        if not (number.isascii() and number.isdigit() and len(number) < DIGITS and isinstance(label, str)):
            raise InputError(f'{path}: names are to be like {{"17": "a name"}}, not {brief(number)!r}')
    return {int(number): label for number, label in labels.items()}
