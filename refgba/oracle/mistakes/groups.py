"""Mistakes in the groups and their targets."""

from __future__ import annotations

from typing import Any

import numpy as np

from refgba.oracle.mistakes.formulas import K, Known, M
from refgba.oracle.stepwise import FORMULAS, Step


def last(e: Step) -> int:
    """K - 1, the last group counted from 0; at least 1."""
    return max(K(e) - 1, 1)


def geometric(e: Step, share: Any) -> Any:
    """Targets (K,) from HTF on, by powers of LTF / HTF."""
    return e.config.htf * (e.config.ltf / e.config.htf) ** share


MISTAKES: Known = {
    "targets fall with (k - 1) / K, not (k - 1) / (K - 1)": {"target": lambda e: geometric(e, np.arange(K(e)) / K(e))},
    "targets fall with k / K, not (k - 1) / (K - 1)": {"target": lambda e: geometric(e, np.arange(1, K(e) + 1) / K(e))},
    "targets fall with k / (K - 1), not (k - 1) / (K - 1)": {
        "target": lambda e: geometric(e, np.arange(1, K(e) + 1) / last(e))
    },
    "targets are linear in k, not geometric": {"target": lambda e: np.linspace(e.config.htf, e.config.ltf, K(e))},
    "HTF and LTF are swapped": {"target": lambda e: FORMULAS["target"](e)[::-1]},
    "all groups have the highest target": {"target": lambda e: np.full(K(e), e.config.htf)},
    "all groups have the lowest target": {"target": lambda e: np.full(K(e), e.config.ltf)},
    "the ratio of the targets is HTF / LTF, not LTF / HTF": {
        "target": lambda e: e.config.htf * (e.config.htf / e.config.ltf) ** (np.arange(K(e)) / last(e))
    },
    "groups are interleaved, m mod K, not consecutive": {"group": lambda e: np.arange(M(e)) % K(e)},
    "the first groups are the larger ones where K does not divide M": {
        "group": lambda e: np.repeat(np.arange(K(e)), [len(part) for part in np.array_split(np.arange(M(e)), K(e))])
    },
    "all groups but the last have M / K neurons, rounded up": {"group": lambda e: np.arange(M(e)) // -(-M(e) // K(e))},
    "all groups but the last have M / K neurons, rounded down": {
        "group": lambda e: np.minimum(np.arange(M(e)) // max(M(e) // K(e), 1), K(e) - 1)
    },
    "groups are in reverse": {"group": lambda e: K(e) - 1 - FORMULAS["group"](e)},
}
