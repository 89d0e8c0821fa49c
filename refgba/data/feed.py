"""Line 1 of Algorithm 1 for data that memory does not hold: minibatches without replacement, shuffled across shards.

An epoch takes the blocks of the data (`activations`), a MiB each, in random order, about 256 at a time: the rows of
such a window are in memory, and are shuffled among themselves.  So the disk is read a MiB at a time, and the rows of a
minibatch come from 256 places.  The windows of an epoch have equally many blocks, or one more: none is left with too
few to mix.

Which rows a step gets is a pure function of the data, the seed and the step: a run goes on at any step with nothing
but its number.  Where one window holds all rows the minibatches are those of `refgba.gba.minibatches`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from refgba.config import Settings
from refgba.data.activations import Activations
from refgba.data.prefetch import THREADS, prefetched
from refgba.data.store import Raw, stored, values
from refgba.streams import stream
from refgba.types import Array, Int64

PIECE = 2**21  # bytes of rows that a thread scales at a time: more leave its cache, fewer pass Python's lock to and fro


@dataclass(frozen=True)
class Window:
    """Blocks whose rows are shuffled among themselves, in file order; the first `skip` rows of `order` are over."""

    blocks: Int64
    order: Int64  # (rows,) a permutation
    skip: int


def windows(counts: Int64, number: int, seed: int, position: int = 0) -> Iterator[Window]:
    """The windows, `number` an epoch, of blocks with `counts` rows, from a position on in the endless sequence."""
    epoch, skip = divmod(position, int(counts.sum()))
    while True:
        shuffled = stream(seed, "blocks", epoch).permutation(len(counts))
        for index, part in enumerate(np.array_split(shuffled, number)):
            blocks = np.sort(part)
            rows = int(counts[blocks].sum())
            if skip < rows:  # the first window has the stream of the reference's epoch
                key = (epoch, index) if index else (epoch,)
                yield Window(blocks, stream(seed, "order", *key).permutation(rows), skip)
            skip = max(0, skip - rows)
        epoch += 1


def minibatches(data: Activations, config: Settings, start: int = 0) -> Iterator[Array]:
    """The minibatches of steps start + 1..T, (L, d) each, at unit norm in the dtype of the run's parameters.

    The next window is read by a thread of its own while this one is in use.  InputError when rows are not as they were.
    """
    L, left = config.batch, config.steps - start
    coming = windows(data.counts, data.windows, config.seed, start * L)
    x, filled = np.empty((L, data.d), config.master), 0
    share = -(-L // (2 * THREADS))  # rows that a thread takes at a time
    with closing(prefetched(_loaded(data, coming), depth=1)) as loaded, ThreadPoolExecutor(THREADS) as pool:
        while left:
            rows, order = next(loaded)
            at = 0
            while at < len(order) and left:
                here = order[at : at + L - filled]
                parts = [(rows, here[l : l + share], x[filled + l :]) for l in range(0, len(here), share)]
                deque(pool.map(_scale, *zip(*parts, strict=True)), 0)
                at, filled = at + len(here), filled + len(here)
                if filled == L:
                    yield x
                    x, filled, left = np.empty_like(x), 0, left - 1


def _scale(rows: Raw, picked: Int64, into: Array) -> None:
    """The picked rows at unit norm, into the first of `into`."""
    size = max(1, PIECE // (into.shape[1] * into.itemsize))
    for l in range(0, len(picked), size):
        x = into[l : min(l + size, len(picked))]
        x[:] = values(rows[picked[l : l + size]])
        x /= np.linalg.norm(x, axis=1, keepdims=True)  # as `unit_rows`, in place; rows of zeros have been left out


def _loaded(data: Activations, windows: Iterator[Window]) -> Iterator[tuple[Raw, Int64]]:
    """The rows of each window as they are stored, and the order in which they are still to be taken."""
    rooms = [np.empty((0, data.d))] * 2  # by turns: one is in use while the other is filled
    held, rows = np.empty(0, np.int64), rooms[0]
    for window in windows:
        if not np.array_equal(window.blocks, held):  # where one window holds all, it is read once
            room, needed = rooms.pop(0), int(data.counts[window.blocks].sum())
            if len(room) < needed:
                room = np.empty((needed, data.d), stored(data.store.dtype))
            rooms.append(room)
            held, rows = window.blocks, data.read(window.blocks, room)
        yield rows, window.order[window.skip :]
