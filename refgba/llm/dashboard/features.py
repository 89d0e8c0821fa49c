"""All that is known of a network's neurons on a store: for the page, for the formats of others, for a notebook."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refgba import formats
from refgba.baselines import METHODS
from refgba.errors import InputError
from refgba.formats.dictionary import Dictionary
from refgba.formats.trained import from_params
from refgba.llm.dashboard.examples import Examples, batches, examples
from refgba.llm.dashboard.survey import Choice, Survey, survey
from refgba.llm.matching import origin_of, refuse_other_site
from refgba.llm.records import Harvest, open_harvest
from refgba.runs import folder
from refgba.runs.judging import Counting, silent
from refgba.types import Float64, Int64


@dataclass(frozen=True, eq=False)
class Features:
    """M neurons ("latents" elsewhere) on N rows of a harvest.

    path: of the network.  dictionary: what it computes.  harvest: the store.  target: (M,) the frequency that each
    neuron's group aims at, None where the network has no groups.  survey: what a pass over the store found.
    """

    path: Path
    dictionary: Dictionary
    harvest: Harvest
    target: Float64 | None
    survey: Survey

    @property
    def M(self) -> int:
        """Neurons."""
        return len(self.survey.count)

    @property
    def rows(self) -> int:
        """N, the rows of the store that the network was run on."""
        return self.survey.rows

    @property
    def frequency(self) -> Float64:
        """(M,) the share of the rows on which each neuron fires."""
        share: Float64 = self.survey.count / max(1, self.rows)
        return share

    @property
    def peak(self) -> Float64:
        """(M,) the largest activation of each, 0 where it never fires."""
        return self.survey.peak

    @property
    def mean(self) -> Float64:
        """(M,) the mean activation of each over the rows on which it fires, 0 where it never does."""
        mean: Float64 = self.survey.total / np.maximum(1, self.survey.count)
        return mean

    def examples(self, neuron: int | Int64 | list[int]) -> Examples:
        """The contexts that are shown of a neuron, or of several; InputError for one that is not there."""
        neurons = np.unique(np.atleast_1d(np.asarray(neuron, np.int64)))
        for m in neurons.tolist():
            if not 0 <= m < self.M:
                raise InputError(f"{self.path}: there is no neuron {m}; they are numbered from 0 to {self.M - 1}")
        return examples(self.dictionary, self.harvest, self.survey, neurons)

    def batches(self, counting: Counting = silent) -> Iterator[tuple[Int64, Examples]]:
        """All neurons in order, some at a time, and the contexts that are shown of these."""
        with counting("reading contexts", self.M) as tick:
            for neurons in batches(self.survey):
                yield neurons, examples(self.dictionary, self.harvest, self.survey, neurons)
                tick(len(neurons))

    def __repr__(self) -> str:
        alive = float(np.mean(self.survey.count > 0)) if self.M else 0.0
        return (
            f"Features({str(self.path)!r} on {str(self.harvest.store.path)!r}): {self.M} neurons, {self.rows} rows, "
            f"L0 {self.survey.count.sum() / max(1, self.rows):.1f}, {1 - alive:.1%} never fired"
        )


def open_dictionary(path: Path) -> tuple[Dictionary, Float64 | None]:
    """A run, a checkpoint or the folder of a dictionary of any library, and the target of each neuron (M,) or None."""
    if formats.is_dictionary(path):
        return formats.read(path), None
    opened = folder.open_network(path)
    groups = METHODS[opened.config.method].groups(opened.config)
    target = None if groups is None else np.asarray(groups.target, np.float64)[groups.group]
    return from_params(opened.params, opened.config, opened.centre), target


def fingerprint(dictionary: Dictionary, harvest: Harvest) -> str:
    """What tells a network on a store from any others: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, array in sorted(dictionary.arrays().items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    if dictionary.centre is not None:
        digest.update(np.ascontiguousarray(dictionary.centre).tobytes())
    digest.update(f"{dictionary.subtract_b_dec} {dictionary.input} {dictionary.k} ".encode())
    sums = [(shard.rows, shard.sha256) for shard in harvest.store.shards]
    digest.update(repr((sums, harvest.sums)).encode())
    return digest.hexdigest()


def open_fitting(network: Path, dictionary: Dictionary, store: Path) -> Harvest:
    """The store, if it can be what the network was trained on: of its d and, where that is known, of its site."""
    harvest = open_harvest(store, dictionary.W_enc.shape[1])
    refuse_other_site(origin_of(network), harvest, network)
    return harvest


def survey_features(
    network: Path | str, store: Path | str, choice: Choice | None = None, counting: Counting = silent, **named: Any
) -> Features:
    """Run a network over a store that `refgba harvest` wrote.

    network: a run, one of its checkpoints, or the folder of a dictionary of any library that refgba reads.  choice:
    which contexts are shown, or as `named` fields of `Choice`, such as top=20.  Memory is bounded by the width, not by
    the store's size.  InputError for what cannot be read or does not fit, and for a run that was trained on another
    site than the store's.

        features = survey_features("runs/mine", "stores/mlp15", top=20)
        features.frequency, features.examples(17)
    """
    chosen, network = choice or Choice(**named), Path(network)
    dictionary, target = open_dictionary(network)
    harvest = open_fitting(network, dictionary, Path(store))
    with counting("reading rows", len(harvest)) as tick:
        found = survey(dictionary, harvest, chosen, tick)
    return Features(network, dictionary, harvest, target, found)
