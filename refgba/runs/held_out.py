"""What a run is judged on besides its own rows: a share of its data that it is not trained on, or other data.

`refgba train` holds out SHARE of the rows unless it is told otherwise; calls from Python hold out nothing unless asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refgba.backends.comm import ALONE, Ranks
from refgba.data.activations import Activations, open_activations
from refgba.data.held_out import SEED, hold_out
from refgba.data.survey import survey
from refgba.errors import InputError
from refgba.runs.parallel import surveyed
from refgba.runs.schema import Table, number, optional, text, whole
from refgba.types import Array

SHARE = 0.1
FEWEST = 100  # rows: fewer say too little to be worth it, and are not held out unless a share is asked for

# What about.json says of them: the share and the seed by which they were picked, or the path of other data.
FIELDS: Table = {
    "rows": whole(1),
    "share": optional(number(0, 1)),
    "seed": optional(whole(0)),
    "path": optional(text),
    "dtype": optional(text),  # in which the rows of other data were checked
    "fingerprint": optional(text),
}


@dataclass(frozen=True)
class Choice:
    """What is to be held out: a share of the rows, or all rows of other data; left out, SHARE of rows that are many.

    remedy: what to do where rows are few, for a person.
    """

    share: float | None = None
    data: Path | None = None
    remedy: str = "--held-out DATA names others to judge on, --held-out-share a larger share"


@dataclass(frozen=True)
class HeldOut:
    """Rows that a run is judged on and not trained on.

    data: other data, or those of the run, of which they are a share.  record: what about.json says of them.
    """

    data: Activations
    record: dict[str, Any]

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.record["rows"])

    @property
    def name(self) -> str:
        """What they are, in words."""
        path = self.record.get("path")
        return f"{self.rows:,} rows held out" if path is None else f"rows of {path}"

    def chunks(self, most: int, size: int) -> Iterator[Array]:
        """About `most` of them, (rows, d), at most `size` at a time; of a share all."""
        return self.data.held(size) if self.record.get("path") is None else self.data.sample(most, size)


def keep_back(
    data: Activations, choice: Choice, say: Callable[[str], object] = id
) -> tuple[Activations, HeldOut | None]:
    """The rows to train on, and those of `data` itself that are held out; None where none are.

    InputError for a share that cannot be.  say: told where the data are too small for a share that nobody asked for.
    """
    if choice.data is not None or choice.share == 0:
        return data, None
    share = SHARE if choice.share is None else choice.share
    kept = hold_out(data, share)
    rows = len(kept.held_out)
    if choice.share is None and rows < FEWEST:
        say(f"no rows are held out: {share:g} of {len(data)} rows is fewer than {FEWEST}; {choice.remedy}")
        return data, None
    if not rows:
        raise InputError(f"a share of {share:g} of {len(data)} rows is no row to judge on; choose a larger one, or 0")
    return kept, HeldOut(kept, {"rows": rows, "share": share, "seed": SEED})


def open_other(
    path: Path, d: int, dtype: str, drop_zero_rows: bool, drop_below: float, ranks: Ranks = ALONE
) -> HeldOut:  # fmt: skip
    """All rows of other data to judge on, each read and checked, by rank 0 alone; InputError as `survey`.

    dtype: of the run's arithmetic.
    """
    opened = open_activations(path, d)
    data, _ = surveyed(ranks, opened, lambda: survey(opened, dtype, drop_zero_rows, drop_below=drop_below))
    record = {"rows": len(data), "path": data.record()["path"], "dtype": dtype, "fingerprint": data.fingerprint}
    return HeldOut(data, record)


def reopen_other(record: dict[str, Any], d: int, drop_below: float, ranks: Ranks = ALONE) -> HeldOut:
    """The other data that a run's about.json names; InputError unless they are as they were."""
    # Zeros count in the fingerprint.
    found = open_other(Path(record["path"]), d, record["dtype"], True, drop_below, ranks)
    if found.record != record:
        raise InputError(f"{record['path']}: not the rows held out when the run began; --held-out DATA names others")
    return found
