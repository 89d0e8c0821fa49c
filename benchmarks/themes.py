"""How many neurons stand for a token, counted without a reader: does what the highest contexts share recur in the rest?

    python benchmarks/themes.py STORE RUN RUN ...

STORE is what `refgba harvest` wrote.  Of each neuron that fires on FEWEST rows or more, the most common token of its
eight highest rows is compared with that of ten rows taken evenly over all of its rows, from the highest to the lowest;
likewise the token before and the token after, and the best of the three counts.  A neuron is plain where six of the ten
agree.  This counts only themes that show in one token, so it is lower than what a reader finds (`blind.py`), but it
compares networks, and costs a minute.  Rare neurons are plainer, by chance too: compare networks at equal L0 and width.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np

from refgba.llm.dashboard.features import open_dictionary
from refgba.llm.dashboard.survey import active
from refgba.llm.records import open_harvest
from refgba.types import Array, Int64

FEWEST = 20
HIGHEST, EVENLY, AGREE = 8, 10, 6
CHUNK = 4096


def tokens(store: Path, d: int) -> tuple[Array, list[Int64]]:
    """The rows of a store, and the tokens before, at and after each."""
    harvest = open_harvest(store, d)
    rows, found = [], []
    for shard in range(len(harvest.store.shards)):
        of = harvest.tokens(shard)
        ids = np.concatenate([of.ids, [-1]])  # after the last token of a shard comes none
        rows.append(harvest.rows(shard))
        found.append(np.stack([ids[of.at - 1], ids[of.at], ids[of.at + 1]]))
    return np.concatenate(rows), list(np.concatenate(found, axis=1))


def plain(order: Int64, near: list[Int64]) -> bool:
    """Whether rows of a neuron, in the order of its activation from the highest, agree on a token."""
    evenly = order[((np.arange(EVENLY) + 0.5) / EVENLY * len(order)).astype(int)]
    for ids in near:
        values, counts = np.unique(ids[order[:HIGHEST]], return_counts=True)
        if np.count_nonzero(ids[evenly] == values[counts.argmax()]) >= AGREE:
            return True
    return False


def main() -> None:
    """Count, and print a line of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    given = parser.parse_args()
    for run in given.runs:
        dictionary, _ = open_dictionary(run)
        M, d = dictionary.W_enc.shape
        x, near = tokens(given.store, d)
        parts = []
        for start in range(0, len(x), CHUNK):
            there, codes = active(dictionary, x[start : start + CHUNK])
            row, neuron = np.nonzero(codes)
            parts.append((there[row] + start, neuron, codes[row, neuron]))
        rows, neurons, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((-values, neurons))
        ends = np.searchsorted(neurons[order], np.arange(M + 1))
        sets = [rows[order[low:high]] for low, high in pairwise(ends)]
        often = [its for its in sets if len(its) >= FEWEST]
        n = sum(plain(its, near) for its in often)
        print(
            f"{run.name}: L0 {len(rows) / len(x):.1f}, {sum(len(its) > 0 for its in sets)} of {M} neurons fire, "
            f"{len(often)} on {FEWEST} rows or more, of these {n} plain, {n / max(1, len(often)):.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
