"""Rows that a run is not trained on, so that it can be judged on them.

Rows that follow each other often come from one text and resemble each other.  So whole runs of rows are held out, at
most RUN rows long, one from each of equally long parts of the data, at a random place in its part.  The places depend
on the number of rows and the share alone: runs with other settings or another seed hold out the same rows and are
judged alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from refgba.data.activations import Activations
from refgba.errors import InputError
from refgba.streams import stream
from refgba.types import Int64

MOST = 65_536  # rows: more make the judgement slower and hardly more certain
RUN = 128  # rows in a row
PLACES = 8  # at least, where so many rows are held out
SEED = 0


def hold_out(data: Activations, share: float) -> Activations:
    """The same data, of whose rows a share is held out, at most MOST of them.

    InputError for a share that is not from 0 to under 1, or so large that nothing is left to train on.
    """
    if not 0 <= share < 1:
        raise InputError(f"the share of the rows that is held out should be from 0 to under 1, not {share}")
    rows = min(round(share * len(data)), MOST)
    picked = np.setdiff1d(places(len(data.store), rows), data.dropped, assume_unique=True) if rows else np.empty(0, int)
    if picked.size >= len(data):
        raise InputError(f"a share of {share:g} of {len(data)} rows leaves none to train on; hold out less")
    return replace(data, dropped=np.union1d(data.dropped, picked), held_out=picked)


def places(rows: int, count: int) -> Int64:
    """The sorted numbers of about `count` of so many rows."""
    run = int(np.clip(count // PLACES, 1, RUN))
    parts = -(-count // run)
    random = stream(SEED, "held out")
    begins, taken = (np.arange(parts + 1) * total // parts for total in (rows, count))
    length = np.minimum(np.diff(begins), np.diff(taken))
    first = begins[:-1] + random.integers(0, np.diff(begins) - length, endpoint=True)
    return np.concatenate([np.arange(start, start + n) for start, n in zip(first, length, strict=True)])
