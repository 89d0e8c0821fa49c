"""Line 1 of Algorithm 1 for data that memory does not hold: minibatches without replacement, shuffled across shards.

An epoch takes the blocks of the data (`activations`), a MiB each, in random order, about 256 at a time.  The rows of
such a window are in memory and are shuffled among themselves: the disk is read a MiB at a time, and the rows of a
minibatch come from 256 places.  The windows of an epoch have equally many blocks, or one more, so that none is left
with too few to mix.

Which rows a step gets is a pure function of the data, the seed and the step: a run can go on at any step, knowing only
its number.  Where one window holds all rows, the minibatches are those of `refgba.gba.minibatches`.
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
from refgba.data.store import Raw, stored
from refgba.data.unit_rows import write_unit_rows
from refgba.streams import stream
from refgba.types import Array, Int64


@dataclass(frozen=True)
class Window:
    """Blocks whose rows are shuffled among themselves.

    blocks: their numbers, sorted.  order: (rows,) a permutation of their rows.  skip: how many of `order` are over.
    """

    blocks: Int64
    order: Int64
    skip: int


def windows(counts: Int64, per_epoch: int, seed: int, position: int = 0) -> Iterator[Window]:
    """The endless sequence of windows over blocks with `counts` (blocks,) rows, from a position in rows on."""
    epoch, skip = divmod(position, int(counts.sum()))
    while True:
        shuffled = stream(seed, "blocks", epoch).permutation(len(counts))
        for index, part in enumerate(np.array_split(shuffled, per_epoch)):
            blocks = np.sort(part)
            rows = int(counts[blocks].sum())
            if skip < rows:
                key = (epoch, index) if index else (epoch,)  # the first window has the stream of the reference's epoch
                yield Window(blocks, stream(seed, "order", *key).permutation(rows), skip)
            skip = max(0, skip - rows)
        epoch += 1


def minibatches(data: Activations, config: Settings, start: int = 0) -> Iterator[Array]:
    """The minibatches of steps start + 1..T, (L, d) each, at unit norm in the dtype of the run's parameters.

    A thread reads the next window while this one is in use.  InputError when rows are not as they were.
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
                parts = [(rows, here[l : l + share], x[filled + l :], data.centre) for l in range(0, len(here), share)]
                deque(pool.map(write_unit_rows, *zip(*parts, strict=True)), 0)
                at, filled = at + len(here), filled + len(here)
                if filled == L:
                    yield x
                    x, filled, left = np.empty_like(x), 0, left - 1


def _loaded(data: Activations, windows: Iterator[Window]) -> Iterator[tuple[Raw, Int64]]:
    """The rows of each window as they are stored, and the order in which they are still to be taken."""
    buffers = [np.empty((0, data.d))] * 2  # used by turns: one is read from while the other is filled
    held, rows = np.empty(0, np.int64), buffers[0]
    for window in windows:
        if not np.array_equal(window.blocks, held):  # where one window holds all, it is read once
            buffer, needed = buffers.pop(0), int(data.counts[window.blocks].sum())
            if len(buffer) < needed:
                buffer = np.empty((needed, data.d), stored(data.store.dtype))
            buffers.append(buffer)
            held, rows = window.blocks, data.read(window.blocks, buffer)
        yield rows, window.order[window.skip :]
