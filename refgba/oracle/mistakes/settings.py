"""Settings of AdamW that are not the run's: what frameworks take unless they are told otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from refgba.oracle.mistakes.formulas import Known
from refgba.oracle.stepwise import FORMULAS, THETA, Formula, Step

MOVED = tuple(("moved." if theta.startswith("W") else "") + theta for theta in THETA)
USUAL = {  # values that frameworks and their users choose, and what each of them changes
    "beta1": ((0.0, 0.5, 0.8, 0.95, 0.99), (*(f"m.{theta}" for theta in THETA), *MOVED)),
    "beta2": ((0.9, 0.95, 0.98, 0.99, 0.9999), (*(f"v.{theta}" for theta in THETA), *MOVED)),
    "adam_eps": ((1e-4, 1e-5, 1e-6, 1e-7, 1e-9, 1e-10), MOVED),
    "weight_decay": ((1e-5, 1e-4, 1e-3, 1e-2, 0.05), MOVED),
}


def instead(setting: str, value: float, name: str) -> Formula:
    """A quantity as it is with another value of a setting."""

    def formula(e: Step) -> Any:
        other = Step(
            replace(e.config, **cast(dict[str, Any], {setting: value})),
            e.t,
            e["rows"],
            e.state,
            e.values,
            e.instead,
            e.last,
        )
        return FORMULAS[name](other)

    return formula


def _mistakes() -> Known:
    known: Known = {}
    for setting, (values, names) in USUAL.items():
        for value in values:
            known[f"{setting} is {value:g}, not the trace's"] = {name: instead(setting, value, name) for name in names}
    return known


MISTAKES: Known = _mistakes()
