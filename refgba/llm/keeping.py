"""Which positions count: those that a harvest keeps are those that splicing changes, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refgba.errors import InputError
from refgba.llm.records import WHY
from refgba.types import Array, Mask

IdArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Keeping:
    """Which rows are kept; the others are left out, by the first reason in `records.WHY` that holds.

    drop_first: so many positions of each context, from its first token that is not padding.  special: ids whose rows
    are left out.  largest_norm: None, or the norm beyond which rows are left out.
    """

    drop_first: int = 0
    special: frozenset[int] = frozenset()
    largest_norm: float | None = None

    def up_to(self, largest_norm: float | None) -> Keeping:
        """The same with another limit of the norm."""
        return replace(self, largest_norm=largest_norm)

    def __call__(self, ids: IdArray, mask: IdArray, norm: Array) -> tuple[Mask, dict[str, int]]:
        """Which rows of a batch are kept, and how many others are left out for each reason.

        ids: (contexts, longest).  mask: of that shape, 0 at padding, which is neither kept nor counted.  norm: of the
        rows, of that shape.
        """
        there = mask.astype(bool)
        why = np.zeros(ids.shape, np.int64)  # 0, or one more than the reason's place in WHY
        if self.largest_norm is not None:
            why[~(norm <= self.largest_norm)] = 3
        if self.special:
            why[np.isin(ids, list(self.special))] = 2
        why[mask.cumsum(axis=1) <= self.drop_first] = 1
        counts = {name: int((there & (why == k)).sum()) for k, name in enumerate(WHY, start=1)}
        return there & (why == 0), counts


def norms(activation: Any) -> Array:
    """Norms of a tensor (batch, position, d), (batch, position) on the host."""
    lengths: Array = activation.float().norm(dim=-1).cpu().numpy()
    return lengths


def of_harvest(about: Mapping[str, Any], where: object) -> Keeping:
    """What a harvest kept, by `harvest` of its meta.json; InputError where it does not say so.

    where: what the file is called in a message.
    """
    settings = about["settings"]
    said = settings | {name: about[name] for name in ("largest_norm",) if name in about}
    for name in ("drop_first", "keep_special", "largest_norm"):
        if name not in said or (said[name] is None and name != "largest_norm"):
            raise InputError(f"{where}: harvest: {name} is missing, which says which rows were kept")
    special = frozenset() if settings["keep_special"] else frozenset(int(id) for id in about["tokenizer"]["special"])
    return Keeping(settings["drop_first"], special, about["largest_norm"])
