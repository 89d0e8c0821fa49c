"""The commands of this room from Python: what they read and write, and results that show themselves.

`docs/llm.md` has an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refgba.errors import InputError
from refgba.llm import effects, evaluation, harvesting, quantities, steering
from refgba.llm.effects import Effect
from refgba.llm.evaluation import Evaluation
from refgba.llm.models import Model, open_model
from refgba.llm.networks import Network, open_network
from refgba.llm.records import Harvest
from refgba.llm.splice import Place, place
from refgba.llm.steering import Written
from refgba.llm.text import TextOptions
from refgba.notebook.rows import in_python

Text = str | Path | Sequence[str | Path] | TextOptions
AnyNetwork = str | Path | Network | Place


def text_of(text: Text) -> TextOptions:
    """Files and folders of text, with `TextOptions` for more."""
    if isinstance(text, TextOptions):
        return text
    paths = [text] if isinstance(text, str | Path) else list(text)
    if not paths or not all(isinstance(path, str | Path) and str(path) for path in paths):
        raise InputError("text should be the path of a file or a folder, or several")
    return TextOptions(tuple(Path(path) for path in paths))


def _model(model: str | Path | Model) -> Model:
    return model if isinstance(model, Model) else open_model(model)


def _place(network: AnyNetwork, model: str | Path | Model, where: dict[str, Any]) -> Place:
    """The network in the model; InputError where it is open already and something else is said of its place."""
    given = {name: value for name, value in where.items() if value is not None}
    settled = given if isinstance(network, Place) else {"store"} & set(given) if isinstance(network, Network) else ()
    if settled:
        raise InputError(f"{', '.join(sorted(settled))}: was settled when the network was opened; leave it out")
    if isinstance(network, Place):
        return network
    store = where.pop("store", None)
    opened = network if isinstance(network, Network) else open_network(network, store)
    return place(opened, _model(model), **where)


def harvest(
    model: str | Path | Model, sites: str | Sequence[str], text: Text, out: str | Path, **settings: Any
) -> list[Harvest]:
    """`refgba harvest`: the stores of the sites, one for each that matches.

    settings: of `refgba.llm.harvesting.Settings`, such as tokens and context.  InputError as the command.
    """
    patterns = (sites,) if isinstance(sites, str) else tuple(sites)
    with in_python():
        chosen = harvesting.Settings(**settings)
        return harvesting.harvest(_model(model), patterns, text_of(text), Path(out), chosen)


def evaluate(
    network: AnyNetwork, model: str | Path | Model, text: Text, tokens: int | None = evaluation.TOKENS, batch: int = 8,
    pack: bool = False, seed: int = 0, **where: Any,
) -> Evaluation:  # fmt: skip
    """`refgba llm evaluate`: `values` has an array per measurement, `record()` everything, and it prints as a table.

    where: site, of, context, store and keeping, where they are not as harvested.  InputError as the command.
    """
    with in_python():
        return evaluation.evaluate(_place(network, model, where), text_of(text), tokens, batch, pack, seed)


def effects_of(
    network: AnyNetwork, model: str | Path | Model, text: Text, neurons: int | Sequence[int],
    strengths: float | Sequence[float] = effects.STRENGTHS, together: bool = False, replaced: bool = False,
    tokens: int = effects.TOKENS, sample: int = effects.SAMPLE, random: int = effects.RANDOM, seed: int = 0,
    **where: Any,
) -> list[Effect]:  # fmt: skip
    """`refgba llm effects` of neurons, one result each, or one of all of them if they are edited together."""
    with in_python():
        put = _place(network, model, where)
        chosen = put.network.neurons(neurons)
        surveyed = effects.survey(put, text_of(text), tokens)
        measured = effects.Effects(put, surveyed, sample, replaced, random, seed)
        return [measured.of(part, strengths) for part in ([chosen] if together else chosen)]


def rank(
    network: AnyNetwork, model: str | Path | Model, text: Text, tokens: int = effects.TOKENS, **where: Any
) -> effects.Survey:
    """How all neurons fire on a text, and what ablating each would do to the loss, `attribution`, to first order."""
    with in_python():
        return effects.survey(_place(network, model, where), text_of(text), tokens, rank=True)


def steer(
    network: AnyNetwork, model: str | Path | Model, prompt: str | Sequence[str], neuron: int | Sequence[int],
    by: float | Sequence[float], peak: float | Sequence[float] | None = None, text: Text | None = None, new: int = 40,
    temperature: float = 0.0, seed: int = 0, random: int = 1, **where: Any,
) -> list[Written]:  # fmt: skip
    """`refgba llm steer`: how the model goes on with each prompt, by itself and steered.

    by, peak: one number, or one per neuron; a peak that is not given is measured, on `text` or on the harvest.
    """
    with in_python():
        put = _place(network, model, where)
        prompts = [prompt] if isinstance(prompt, str) else quantities.listed(prompt)
        if not prompts or not all(isinstance(text, str) for text in prompts):
            raise InputError("prompt should be a text, or several")
        neurons = put.network.neurons(neuron)
        strengths = quantities.each("--by", by, len(neurons))
        if peak is None:
            peaks = steering.peaks(put, neurons, None if text is None else text_of(text)).tolist()
        else:
            peaks = quantities.each("--peak", peak, len(neurons))
        return steering.steer(put, prompts, neurons, strengths, peaks, new, temperature, seed, random)
