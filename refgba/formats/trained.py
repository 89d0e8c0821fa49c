"""A network trained here as a `Dictionary`, which any format can write."""

from __future__ import annotations

from refgba.backends.base import AnyConfig, AnyParams
from refgba.baselines import METHODS
from refgba.formats.dictionary import Dictionary
from refgba.types import Float64


def from_params(params: AnyParams, config: AnyConfig, centre: Float64 | None = None) -> Dictionary:
    """A trained network as a `Dictionary` of unit rows: the same codes and reconstructions, to the last bit.

    centre: (d,) what rows lose before they are scaled, None if nothing.

    InputError, naming the first neuron, for a network that other libraries cannot express (`Method.exported`).
    """
    exported = METHODS[config.method].exported(params, config)
    return Dictionary(**exported._asdict(), subtract_b_dec=True, input="unit", centre=centre)
