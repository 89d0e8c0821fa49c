"""Why a quantity deviates: which of the known mistakes give the numbers that a candidate holds."""

from __future__ import annotations

import numpy as np

from refgba.config import GBAConfig
from refgba.oracle.mistakes import MISTAKES
from refgba.oracle.mistakes.recipe import TRUNCATED
from refgba.oracle.place import Place, Starts, Steps, first_place, places, share_of
from refgba.oracle.recording import Trace
from refgba.oracle.stepwise import ADAPTATION, ORDER, of_decoder

EARLY_DECODER = "the decoder of its own begins before forming is over"
OTHER_ROWS = "the rows are not the trace's: is this the dump of another trace?"
BEGINNING = "the port does not begin with the trace's state"
ALIKE = 0.5  # mean cosine of rows above which they are taken for the trace's, changed by something
OTHER_STATE: dict[Starts, str] = {
    "trace": "the step starts from the port's own state, not from the trace's",
    "own": "the step starts from the trace's state, not from the port's own",
}


def causes(place: Place, name: str, trace: Trace, candidate: Steps, starts: Starts) -> list[str]:
    """The known mistakes that give all that the candidate holds of this step up to quantity `name`.

    None that the rest of the step contradicts, by being right where the mistake would make it wrong.  Of several, those
    that fit most of what the candidate holds of this step, and of these, of all steps.
    """
    if name == "rows":
        return [OTHER_ROWS]
    early = [part for part in place.ordered if of_decoder(part) and part not in place.there]
    if early and ORDER[name] > ORDER["f"]:
        return [why_nothing(early[0], place.t, trace.config)]
    upto = place.ordered[: place.ordered.index(name) + 1]
    other = [OTHER_STATE[starts]] if place.other is not None else []
    likely = [text for text in (*MISTAKES, *other) if explains(place, text, name, upto)]
    if name == "x" and not likely and _others(place):
        return [OTHER_ROWS]
    right = [part for part in place.ordered[len(upto) :] if place.share(part) <= 1]
    likely = [text for text in likely if all(place.fits(text, _firm(text, right)))]
    if len(likely) < 2:
        return likely
    steps = list(places(trace, candidate, starts, place.tolerance))
    here = {text: sum(place.fits(text, place.ordered)) for text in likely}
    likely = [text for text in likely if here[text] == max(here.values())]
    fits = {text: sum(sum(step.fits(text, step.ordered)) for step in steps) for text in likely}
    return [text for text in likely if fits[text] == max(fits.values())]


def _others(place: Place) -> bool:
    """Whether the rows at unit norm look like those of another trace: at unit norm, and no nearer than by chance."""
    x = place.values["x"].astype(np.float64)
    cosine = np.sum(x * place.step["x"], axis=1)
    return bool(np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-3) and np.mean(cosine) < ALIKE)


def _firm(text: str, right: list[str]) -> list[str]:
    """Those quantities that a mistake would surely make wrong: a port may count its gates, or y > 0 once more."""
    gates = "on" in MISTAKES.get(text, {})
    return [name for name in right if not gates or ORDER[name] < ORDER["seen"]]


def explains(place: Place, text: str, name: str, upto: list[str]) -> bool:
    """Whether a mistake fits, and comes at least twice as near to the candidate as what was expected does."""
    first = first_place(text)
    if ORDER[name] < first or not all(place.fits(text, [part for part in upto if ORDER[part] >= first])):
        return False
    got, allowed = place.values[name], place.allowed(name)
    return 2 * share_of(got, place.mistaken(text)[name], allowed) <= share_of(got, place.step[name], allowed)


def why_nothing(name: str, t: int, config: GBAConfig) -> str:
    """Why step t has no quantity of that name."""
    if name in ADAPTATION:
        return f"biases are adapted at this step, but only after steps that adapt_every = {config.adapt_every} divides"
    if config.untied:
        return TRUNCATED if int(config.form * config.steps) < t else EARLY_DECODER
    return "there is no decoder of its own at this step"
