"""One pass over a store: how often and how strongly each neuron fires, and on which contexts that is shown.

Two heaps per neuron hold rows, never text or activations: the highest contexts, and a sample of all contexts on which
it fires.  An entry of a context is its row with the neuron's largest activation.  Two contexts whose last tokens up to
that row are the same (KEYED of them) are one: a licence at the head of a thousand files is shown once.

The sample is drawn by a hash of seed, neuron and these tokens, so it depends neither on the order of the text nor on
how many rows are worked on at once, and every such passage is equally likely to be in it.  Its quantiles are those of
all of them, up to chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from refgba.errors import InputError
from refgba.formats.dictionary import Dictionary
from refgba.llm.dashboard.best import Best, UInt64, changes
from refgba.llm.records import Harvest, Tokens
from refgba.types import Array, Float64, Int64, Mask

ENTRIES = 2**22  # So many entries, neurons times rows, are worked on at once.
KEYED = 8  # Contexts are told apart by this many tokens up to a row.
BINS, LOWEST_OCTAVE, PER_OCTAVE = 128, -16, 4  # Bins of histograms begin at 2^-16, four in each doubling.

Tick = Callable[[int], object]


@dataclass(frozen=True)
class Choice:
    """Which contexts are shown of each neuron.

    top: how many of the highest.  quantiles: into how many equal parts, by activation, the sample of all its contexts
    is cut.  examples: how many of each part.  window: tokens shown of a context.  seed: of the sample.
    """

    top: int = 12
    quantiles: int = 5
    examples: int = 3
    window: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("top", 1, 1000), ("quantiles", 1, 100), ("examples", 0, 100), ("window", 1, 4096), ("seed", 0, 2**63),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}, it should be from {least} to {most}")


class Survey:
    """What a pass over rows finds of M neurons.

    rows: how many were seen.  zeros: how many rows of zeros were left out, where rows are scaled.  count: (M,) int64
    rows on which each fires.  total, squares: (M,) float64 sums of its activations and of their squares.  histogram:
    (M, BINS) uint32 counts of activations, by `edges`.  top, sample: the contexts that are shown.
    """

    def __init__(self, M: int, choice: Choice) -> None:
        """Nothing seen yet."""
        self.choice, self.rows, self.zeros = choice, 0, 0
        self.count = np.zeros(M, np.int64)
        self.total, self.squares = np.zeros(M), np.zeros(M)
        self.histogram = np.zeros((M, BINS), np.uint32)
        self.top = Best(M, choice.top)
        self.sample = Best(M, choice.quantiles * choice.examples)
        self._seeded = mixed(np.arange(M, dtype=np.uint64) + mixed(np.array([choice.seed], np.uint64)))
        self._open = _Entries.none()

    @property
    def peak(self) -> Float64:
        """(M,) the largest activation of each, 0 where it never fires."""
        return self.top.value[:, 0]

    def add(self, neuron: Int64, row: Int64, value: Float64, context: Int64, key: UInt64) -> None:
        """Take in activations above 0, each array (n,).

        row: in the store; they rise from call to call.  context: of the row, in the store.  key: of the row's tokens.
        """
        M = len(self.count)
        self.count += np.bincount(neuron, minlength=M)
        self.total += np.bincount(neuron, value, M)
        self.squares += np.bincount(neuron, value * value, M)
        np.add.at(self.histogram.reshape(-1), neuron * BINS + bins(value), 1)
        entries = _Entries(neuron, row, value, context, key).joined(self._open).highest()
        last = entries.context.max(initial=-1)
        self._keep(entries.where(entries.context < last))
        self._open = entries.where(entries.context == last)

    def finish(self) -> None:
        """The last context has ended."""
        self._keep(self._open)
        self._open = _Entries.none()

    def _keep(self, entries: _Entries) -> None:
        self.top.add(entries.neuron, entries.value, entries.row, entries.key, entries.value)
        chance = (mixed(entries.key ^ self._seeded[entries.neuron]) >> np.uint64(11)).astype(np.float64)
        self.sample.add(entries.neuron, chance, entries.row, entries.key, entries.value)


@dataclass(frozen=True, eq=False)
class _Entries:
    """Activations, or the largest of each neuron in each context."""

    neuron: Int64
    row: Int64
    value: Float64
    context: Int64
    key: UInt64

    @classmethod
    def none(cls) -> _Entries:
        whole = np.zeros(0, np.int64)
        return cls(whole, whole, np.zeros(0), whole, np.zeros(0, np.uint64))

    def where(self, chosen: Int64 | Mask) -> _Entries:
        return _Entries(*(array[chosen] for array in self._arrays()))

    def joined(self, before: _Entries) -> _Entries:
        return _Entries(*(np.concatenate(pair) for pair in zip(before._arrays(), self._arrays(), strict=True)))

    def highest(self) -> _Entries:
        order = np.lexsort((self.row, -self.value, self.neuron, self.context))
        neuron, context = self.neuron[order], self.context[order]
        return self.where(order[changes(neuron) | changes(context)])

    def _arrays(self) -> tuple[Any, ...]:
        return self.neuron, self.row, self.value, self.context, self.key


@dataclass(frozen=True, eq=False)
class Block:
    """Activations above 0 of some consecutive rows of a shard.

    shard: its number.  rows: how many of the store's rows these are.  zeros: how many of them were left out.  place:
    (n,) rows of the shard.  neuron: (n,).  value: (n,) activations.
    """

    shard: int
    rows: int
    zeros: int
    place: Int64
    neuron: Int64
    value: Float64


def activity(dictionary: Dictionary, harvest: Harvest) -> Iterator[Block]:
    """One pass over all rows of a store, in order, as many rows at a time as the network's width allows.

    InputError, naming the place, for rows that are not finite, and for a store whose contexts are not in order.
    """
    size = max(16, ENTRIES // len(dictionary.W_enc))
    for shard, whole in enumerate(harvest.store.shards):
        if (np.diff(harvest.tokens(shard).context) < 0).any():
            raise InputError(f"{harvest.files[shard]}: its rows are not in the order of their contexts")
        for start in range(0, whole.rows, size):
            rows = harvest.rows(shard, start, min(start + size, whole.rows))
            finite = np.isfinite(rows).all(axis=1)
            if not finite.all():
                row = int(harvest.store.starts[shard]) + start + int(np.argmin(finite))
                raise InputError(f"{harvest.store.place(row)}: is not finite")
            there, codes = active(dictionary, rows)
            l, neuron = np.nonzero(codes)
            value = codes[l, neuron].astype(np.float64)
            yield Block(shard, len(rows), len(rows) - len(there), start + there[l], neuron, value)


def survey(dictionary: Dictionary, harvest: Harvest, choice: Choice, tick: Tick = id) -> Survey:
    """What a pass over a store finds; `tick` is called with the number of rows done.  InputError as `activity`."""
    found, shard = Survey(len(dictionary.W_enc), choice), -1
    for block in activity(dictionary, harvest):
        if block.shard != shard:
            shard = block.shard
            tokens, first = harvest.tokens(shard), int(harvest.store.starts[shard])
            context, keys = harvest.context_starts[shard] + tokens.context, token_keys(tokens)[tokens.at]
        found.rows += block.rows - block.zeros
        found.zeros += block.zeros
        found.add(block.neuron, first + block.place, block.value, context[block.place], keys[block.place])
        tick(block.rows)
    found.finish()
    return found


def active(dictionary: Dictionary, rows: Array) -> tuple[Int64, Array]:
    """Which of the rows (n, d) the network can take, and its codes of these, scaled as in training, (those, M).

    It takes all but rows of zeros where rows are scaled to a norm.  Codes are above 0 where a neuron is active, else 0.
    """
    there = np.arange(len(rows))
    if dictionary.input in ("unit", "sqrt_d"):
        there = np.flatnonzero(rows.any(axis=1))
    margin, codes = dictionary.encode(dictionary.prepare(rows[there]))
    codes *= margin > 0
    return there, codes


def token_keys(tokens: Tokens) -> UInt64:
    """(T,) of each token of a shard a hash of the last KEYED tokens of its context up to it."""
    T = len(tokens.ids)
    since = np.arange(T) - np.repeat(tokens.starts[:-1], np.diff(tokens.starts))  # tokens since the context began
    token = mixed(tokens.ids.astype(np.uint64) + np.uint64(1))
    keys = np.zeros(T, np.uint64)
    for back in range(KEYED):
        reach = np.flatnonzero(since >= back)
        keys[reach] += mixed(token[reach - back] + np.uint64(back))
    return keys


def mixed(x: UInt64) -> UInt64:
    """A hash of each number: the finaliser of splitmix64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bins(value: Float64) -> Int64:
    """The histogram's bin of each activation above 0; what is beyond its ends counts in the last there."""
    place = np.floor((np.log2(value) - LOWEST_OCTAVE) * PER_OCTAVE)
    whole: Int64 = np.clip(place, 0, BINS - 1).astype(np.int64)
    return whole


def edges() -> Float64:
    """(BINS + 1,) the limits of the histogram's bins."""
    limits: Float64 = 2.0 ** (LOWEST_OCTAVE + np.arange(BINS + 1) / PER_OCTAVE)
    return limits
