"""The contexts that a survey chose, with a neuron's activation at every token: a second, partial pass.

Only the chosen contexts are read, and of a network whose neurons do not compete only the neurons that chose them are
computed.  Memory is that of the windows asked for at once (`batches` says how many neurons that is).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refgba.formats.dictionary import Dictionary
from refgba.llm.dashboard.survey import Survey, Tick, active
from refgba.llm.records import Harvest, Tokens
from refgba.types import Array, Float64, Int64, Mask

CELLS = 2**23  # At most this many tokens of windows are held at a time.
BEFORE = 0.75  # This share of a window's tokens comes before the one that it is shown for.

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Examples:
    """Windows of at most W tokens around E rows, in the order of neuron and part, then of activation from the highest.

    neuron: (E,).  part: (E,) 0 for one of the highest contexts, q = 1, 2, .. for the q-th quantile from the highest of
    the sample.  row: (E,) in the store.  value: (E,) the neuron's activation there.  context: (E,) in the store.
    document, position: (E,) of the row; positions count in the context.  begin: (E,) the position of the window's first
    token.  length: (E,) tokens in it.  piece: (E, W) int32 places in `vocabulary` of the tokens' text, -1 after the
    last.  id: (E, W) int32 their ids, -1 there.  activation: (E, W) float32, NaN where the harvest left the row out and
    after the last.  vocabulary: text of tokens; special tokens that the text does not hold have their name.
    """

    neuron: Int64
    part: Int64
    row: Int64
    value: Float64
    context: Int64
    document: Int64
    position: Int64
    begin: Int64
    length: Int64
    piece: Int32
    id: Int32
    activation: npt.NDArray[np.float32]
    vocabulary: list[str]

    def __len__(self) -> int:
        """E."""
        return len(self.neuron)

    def of(self, neuron: int) -> slice:
        """Which of them are a neuron's."""
        low, high = np.searchsorted(self.neuron, [neuron, neuron + 1])
        return slice(int(low), int(high))

    def tokens(self, e: int) -> list[str]:
        """Text of the tokens of one."""
        return [self.vocabulary[i] for i in self.piece[e, : self.length[e]].tolist()]

    def peak(self, e: int) -> int:
        """Which token of the window it is shown for."""
        return int(self.position[e] - self.begin[e])

    def __repr__(self) -> str:
        lines = [f"{len(self)} contexts of {len(set(self.neuron.tolist()))} neurons"]
        for e in range(min(len(self), 40)):
            shown = self.tokens(e)
            shown[self.peak(e)] = f"[{shown[self.peak(e)]}]"
            text = "".join(shown).replace("\n", "⏎")
            part = "top" if self.part[e] == 0 else f"q{self.part[e]}"
            lines.append(f"{self.neuron[e]:>7} {part:>4} {self.value[e]:8.3g}  {text}")
        return "\n".join(lines + (["..."] if len(self) > 40 else []))


def chosen(survey: Survey, neurons: Int64) -> tuple[Int64, Int64, Int64, Float64]:
    """Which contexts are shown of these neurons: neuron, part, row and value, each (E,), in the order of `Examples`.

    A context that is among the highest is not shown again in its quantile.
    """
    choice = survey.choice
    parts = []
    for e, m in enumerate(neurons.tolist()):
        top = np.flatnonzero(survey.top.row[m] >= 0)
        drawn = np.flatnonzero(survey.sample.row[m] >= 0)
        drawn = drawn[np.lexsort((survey.sample.row[m][drawn], -survey.sample.value[m][drawn]))]
        part = 1 + np.arange(len(drawn)) * choice.quantiles // max(1, len(drawn))
        fresh = ~np.isin(survey.sample.key[m][drawn], survey.top.key[m][top])
        drawn, part = drawn[fresh], part[fresh]
        rows = np.concatenate([survey.top.row[m][top], survey.sample.row[m][drawn]])
        values = np.concatenate([survey.top.value[m][top], survey.sample.value[m][drawn]])
        parts.append(
            (np.full(len(rows), neurons[e]), np.concatenate([np.zeros(len(top), np.int64), part]), rows, values)
        )
    neuron, part, row, value = (np.concatenate([p[k] for p in parts]) for k in range(4))
    return neuron.astype(np.int64), part, row, value


def batches(survey: Survey) -> Iterator[Int64]:
    """All neurons, as many at a time as their windows may take memory."""
    each = (survey.top.size + survey.sample.size) * survey.choice.window
    size, M = max(1, CELLS // each), len(survey.count)
    for start in range(0, M, size):
        yield np.arange(start, min(start + size, M))


def examples(
    dictionary: Dictionary, harvest: Harvest, survey: Survey, neurons: Int64, tick: Tick = id
) -> Examples:  # fmt: skip
    """The chosen contexts of neurons, which are in rising order; `tick` is called with the number of contexts done."""
    neuron, part, row, value = chosen(survey, neurons)
    E, W = len(neuron), survey.choice.window
    whole = {name: np.zeros(E, np.int64) for name in ("context", "document", "position", "begin", "length")}
    piece, id = np.full((E, W), -1, np.int32), np.full((E, W), -1, np.int32)
    activation = np.full((E, W), np.nan, np.float32)
    names: dict[str, int] = {}
    shard = np.searchsorted(harvest.store.starts, row, side="right") - 1
    inside = row - harvest.store.starts[shard]
    for k in np.unique(shard).tolist():
        mine = np.flatnonzero(shard == k)
        tokens = harvest.tokens(k)
        context = tokens.context[inside[mine]]
        whole["context"][mine] = harvest.context_starts[k] + context
        whole["document"][mine] = tokens.document[inside[mine]]
        whole["position"][mine] = tokens.position[inside[mine]]
        size = np.diff(tokens.starts)[context]
        latest = np.maximum(size - W, 0)  # where a window that ends with its context begins
        begin = np.clip(whole["position"][mine] - int(BEFORE * (W - 1)), 0, latest)
        whole["begin"][mine], whole["length"][mine] = begin, np.minimum(size - begin, W)
        order = np.argsort(context, kind="stable")
        for group in np.split(mine[order], np.flatnonzero(np.diff(context[order])) + 1):
            c = int(tokens.context[inside[group[0]]])
            codes, positions = _codes(dictionary, harvest, k, c, neuron[group])
            span = whole["begin"][group], whole["length"][group]
            _fill(activation, group, codes, positions, *span)
            text = np.array([names.setdefault(t, len(names)) for t in _texts(harvest, tokens, c)], np.int32)
            ids = tokens.ids[tokens.starts[c] : tokens.starts[c + 1]]
            at = np.arange(W)
            there = at < span[1][:, None]
            place = np.where(there, span[0][:, None] + at, 0)
            piece[group] = np.where(there, text[place], -1)
            id[group] = np.where(there, ids[place], -1)
            tick(1)
    at_peak = whole["position"] - whole["begin"]
    activation[np.arange(E), at_peak] = value  # to the bit what the survey saw
    return Examples(
        neuron, part, row, value, **whole, piece=piece, id=id, activation=activation, vocabulary=list(names)
    )


def _texts(harvest: Harvest, tokens: Tokens, context: int) -> list[str]:
    ids = tokens.ids[tokens.starts[context] : tokens.starts[context + 1]].tolist()
    special = harvest.special
    return [text or special.get(id, "") for text, id in zip(tokens.pieces(context), ids, strict=True)]


def _codes(
    dictionary: Dictionary, harvest: Harvest, shard: int, context: int, neuron: Int64
) -> tuple[Array, Int64]:  # fmt: skip
    """Codes (rows, n) of these neurons (n,) on the rows of a context, and the positions of the rows (rows,)."""
    tokens = harvest.tokens(shard)
    start, stop = np.searchsorted(tokens.context, [context, context + 1]).tolist()
    only, column = np.unique(neuron, return_inverse=True)
    part = dictionary
    if dictionary.k is None and len(only) < len(
        dictionary.W_enc
    ):  # neurons do not compete: the others need not be there
        some: dict[str, Any] = {
            name: getattr(dictionary, name)[only] for name in ("W_enc", "b_enc", "threshold", "W_dec")
        }
        part = replace(dictionary, **some)
    else:
        column = neuron
    step = max(16, 2**22 // len(part.W_enc))
    codes, position = [], []
    for low in range(start, stop, step):
        there, s = active(part, harvest.rows(shard, low, min(low + step, stop)))
        codes.append(s[:, column])
        position.append(tokens.position[low + there])
    return np.concatenate(codes), np.concatenate(position)


def _fill(
    activation: npt.NDArray[np.float32], group: Int64, codes: Array, position: Int64, begin: Int64, length: Int64
) -> None:  # fmt: skip
    """Write codes (rows, n) into the windows of examples (n,)."""
    place = position[:, None] - begin  # (rows, n) in the window
    inside: Mask = (place >= 0) & (place < length)
    l, e = np.nonzero(inside)
    activation[group[e], place[l, e]] = codes[l, e]
