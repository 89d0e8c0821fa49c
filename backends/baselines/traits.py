"""What tells the baselines from one another where one piece of code trains them all: in numba.py and cupy.py."""

from __future__ import annotations

from typing import NamedTuple


class Traits(NamedTuple):
    """What tells a method from the others.

    per_row, per_batch: the k largest of a row, or the k L largest of a batch, are active.  auxk: dead neurons learn
    from the residual.  thresholds: trained, with a bandwidth.  penalised: active codes pay `sparsity` each.  nested:
    prefixes of the dictionary reconstruct alone.  gated: pre-activations are gates, and codes have a scale and a bias
    of their own.
    """

    per_row: bool = False
    per_batch: bool = False
    auxk: bool = False
    thresholds: bool = False
    penalised: bool = False
    nested: bool = False
    gated: bool = False

    @property
    def chooses(self) -> bool:
        """Whether codes are chosen among others, in training."""
        return self.per_row or self.per_batch


TRAITS = {
    "l1": Traits(penalised=True),
    "topk": Traits(per_row=True, auxk=True),
    "batchtopk": Traits(per_batch=True, auxk=True),
    "jumprelu": Traits(thresholds=True),
    "matryoshka": Traits(per_batch=True, auxk=True, nested=True),
    "gated": Traits(penalised=True, gated=True),
}
LACKING: dict[str, tuple[str, ...]] = {"cupy": ("matryoshka", "gated")}  # the methods that a backend does not have
