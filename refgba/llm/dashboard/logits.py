"""What each neuron adds to the logits directly: its decoder row through the final norm and the unembedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refgba.errors import InputError
from refgba.llm import sites
from refgba.llm.dashboard.features import Features
from refgba.llm.models import Model, open_model
from refgba.llm.records import Harvest
from refgba.llm.unembedding import Unembedding
from refgba.runs.judging import Counting, silent
from refgba.types import Float64, Int64

COUNT = 10  # So many tokens are shown at either end.
BINS = 40  # The histogram of a neuron's effects on all tokens has this many bins.
ENTRIES = 2**23  # So many effects are worked on at once.


@dataclass(frozen=True, eq=False)
class Effects:
    """Direct effects of M neurons, per unit of activation, each less its mean over all tokens.

    high, low: (M, COUNT) ids of the tokens most promoted and most suppressed, the strongest first; high_value,
    low_value: their effects.  histogram: (M, BINS) how many tokens have an effect between the lowest and the highest.
    names: text of these tokens by id.
    """

    high: Int64
    high_value: Float64
    low: Int64
    low_value: Float64
    histogram: Int64
    names: dict[int, str]

    def promoted(self, neuron: int) -> list[tuple[int, float]]:
        """Ids and effects of the tokens most promoted."""
        return list(zip(self.high[neuron].tolist(), self.high_value[neuron].tolist(), strict=True))

    def suppressed(self, neuron: int) -> list[tuple[int, float]]:
        """Ids and effects of the tokens most suppressed."""
        return list(zip(self.low[neuron].tolist(), self.low_value[neuron].tolist(), strict=True))

    def __repr__(self) -> str:
        lines = [f"direct effects of {len(self.high)} neurons on logits"]
        for m in range(min(len(self.high), 20)):
            lines.append(f"{m:>7}  " + " ".join(repr(self.names[i]) for i in self.high[m, :6].tolist()))
        return "\n".join(lines)


def acting(model: Model, harvest: Harvest) -> Unembedding:
    """What directions at a harvest's site do to a model's logits directly; InputError where they do nothing so."""
    site, of = harvest.settings["site"], harvest.settings["of"]
    sites.find(model.module, (site,), model.name)
    unembedding = Unembedding(model, site, of, harvest.store.d)
    if unembedding.why_not is not None:
        raise InputError(f"{model.name}: no direct effects on logits: {unembedding.why_not}; leave MODEL out")
    return unembedding


def direct_effects(
    features: Features, model: str | Model, device: str = "auto", count: int = COUNT, counting: Counting = silent,
    say: Callable[[str], object] = id,
) -> Effects:  # fmt: skip
    """The direct effects of all neurons in the model that was harvested.

    model: a folder, a .gguf file or a hub's name, as for `refgba harvest`, or a model that is open.  say: called with a
    line if it is another model than the one that was harvested.  InputError for a model without a head, and where what
    the site puts out is not added to the residual stream as it is.
    """
    import torch

    V = features.dictionary.W_dec
    opened = open_model(model, "float32", device) if isinstance(model, str) else model
    unembedding = acting(opened, features.harvest)
    if (differs := opened.differs_from(features.harvest.about)) is not None:
        say(differs)
    # They are linear in the direction: those of the axes give those of all.
    axes = torch.stack([unembedding.effects(axis) for axis in np.eye(V.shape[1], dtype=np.float32)])  # (d, vocabulary)
    known = min(len(opened.tokenizer.tokenizer), axes.shape[1])  # an unembedding may be padded beyond that
    count, step = min(count, known), max(1, ENTRIES // axes.shape[1])
    parts: list[list[Any]] = [[], [], [], [], []]
    with counting("effects on logits", len(V)) as tick, torch.inference_mode():
        for start in range(0, len(V), step):
            rows = torch.from_numpy(np.array(V[start : start + step], np.float32)).to(axes.device)
            logits = (rows @ axes)[:, :known]  # (n, known)
            high, low = logits.topk(count, dim=1), logits.topk(count, dim=1, largest=False)
            bars = torch.stack([torch.histc(row, BINS) for row in logits.cpu()])
            for part, values in zip(parts, (high.indices, high.values, low.indices, low.values, bars), strict=True):
                part.append(values.cpu().numpy())
            tick(len(rows))
    high_id, high_value, low_id, low_value, histogram = (np.concatenate(part) for part in parts)
    decode = opened.tokenizer.tokenizer.decode
    names = {i: str(decode([i])) for i in np.unique(np.concatenate([high_id, low_id])).tolist()}
    return Effects(
        high_id, high_value.astype(np.float64), low_id, low_value.astype(np.float64), histogram.astype(np.int64), names
    )
