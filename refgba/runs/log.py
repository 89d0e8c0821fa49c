"""The log of a run, metrics.jsonl: written, cut and read here and nowhere else.

Each line is a `Progress` as one JSON object.  Other processes can read a line as soon as it is written; it is on disk
after `Log.sync`.  A run that goes on first cuts the log at the step from which it goes on: no step is logged twice.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refgba.config import LARGEST
from refgba.data import files
from refgba.errors import InputError
from refgba.runs.folder import METRICS
from refgba.runs.schema import Damaged, Table, number, optional, require, whole


@dataclass(frozen=True)
class Progress:
    """How training stands after a step: a line of the log.

    loss, l0 and fvu are those of the step's batch.  dead (never fired) and within (at or under target) are shares of
    the neurons, over the rows between the last two adaptations; within is None where neurons have no targets.  seconds
    counts from the beginning of the run, pauses left out.
    """

    step: int
    loss: float
    l0: float
    fvu: float
    dead: float
    within: float | None
    seconds: float


LARGEST_LOG = 2**28  # bytes
_LARGE = 1e300  # A loss that is finite may be as large before a run ends as diverged.
LINE: Table = {
    "step": whole(1, LARGEST),
    "loss": optional(number(0, _LARGE)),
    "l0": optional(number(0, LARGEST)),
    "fvu": optional(number(0, _LARGE)),
    "dead": optional(number(0, 1)),
    "within": optional(number(0, 1)),
    "seconds": optional(number(0, 1e15)),
}


class Log:
    """The log of a run, open for appending."""

    def __init__(self, run: Path) -> None:
        """Open the log in the folder of a run, or begin it; OSError when it cannot be written, here and below."""
        self._file = (run / METRICS).open("a", encoding="utf-8")

    def append(self, progress: Progress) -> None:
        """Write a line, which other processes can read at once."""
        self._file.write(json.dumps(asdict(progress), allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class NoLog:
    """The log of a run that writes nothing."""

    def append(self, progress: Progress) -> None:
        """Forget a line."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def cut(run: Path, step: int) -> None:
    """Cut the log of a run, if there is one, after its lines up to `step`: later steps are done again, and log again.

    A last line without its end goes too.  Damaged, naming the line, for one that is no record of a step.
    """
    path, end = run / METRICS, 0
    if not path.exists():
        return
    for place, line in enumerate(_lines(path), 1):
        if _parse(path, place, line)["step"] > step:
            break
        end += len(line) + 1
    os.truncate(path, end)


def read(run: Path) -> list[dict[str, Any]]:
    """The lines of the log of a run, numbers by name, without those that are null; none if there is no log.

    A last line that was cut short when the run was killed is left out.  Damaged, naming the line, for one that is no
    record of a step.
    """
    path = run / METRICS
    if not path.exists():
        return []
    return [_parse(path, place, line) for place, line in enumerate(_lines(path), 1)]


def _lines(path: Path) -> list[bytes]:
    """The lines of a log, but for what no newline ends: it was being written."""
    return files.read_file(path, LARGEST_LOG).split(b"\n")[:-1]


def _parse(path: Path, place: int, line: bytes) -> dict[str, Any]:
    """The numbers of a line of the log, counted from 1, as `read`."""
    try:
        logged = files.parse_json(line, path)
    except InputError as error:
        raise Damaged(f"{path}: line {place}: {str(error).removeprefix(f'{path}: ')}") from None
    require(path, logged, LINE, f"line {place}: ")
    return {name: value for name, value in logged.items() if value is not None}
