"""`refgba llm steer`: text that a model writes while neurons are held up or down.

The edit is that of `effects`, with the error kept: s p_m v_m, at the scale of the row, at each token; p_m is the
neuron's peak.  The model writes with its cache, so after the prompt each step sees one token, and it is edited too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refgba.errors import InputError
from refgba.llm.draws import generator
from refgba.llm.effects import random_direction, survey
from refgba.llm.quantities import each, finite, whole
from refgba.llm.records import open_harvest
from refgba.llm.splice import Place, splicing
from refgba.llm.text import TextOptions
from refgba.types import Array

SAMPLE = 16_384  # Peaks are measured on this many rows of a store.
ROWS = 1024  # So many rows are read at a time.


@dataclass(frozen=True)
class Written:
    """A prompt and how it goes on: as the model would, steered, and with random directions of the same norm."""

    prompt: str
    clean: str
    steered: str
    random: list[str]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))

    def __repr__(self) -> str:
        texts = [("clean", self.clean), ("steered", self.steered), *(("random", text) for text in self.random)]
        return "\n".join([f"prompt   {self.prompt!r}", *(f"{name:8} {text!r}" for name, text in texts)])


def peaks(place: Place, neurons: list[int], text: TextOptions | None = None, tokens: int = SAMPLE) -> Array:
    """The highest code of each of the neurons, on a text, or else on rows of the store that the network is of.

    InputError where there is neither, and for a neuron that never fires there.
    """
    import torch

    neurons = place.network.neurons(neurons)
    if text is not None:
        found = survey(place, text, tokens).peak[neurons]
    elif place.network.store is None:
        raise InputError(f"{place.network.path}: the store that it was trained on is not there; give --text or --peak")
    else:
        found = np.zeros(len(neurons), np.float32)
        rng = generator(0, "peaks")
        harvest = open_harvest(place.network.store, place.network.d)
        for shard in rng.permutation(len(harvest.files))[: max(1, SAMPLE // ROWS)].tolist():
            rows = harvest.store.shards[shard].rows
            for start in range(0, min(rows, SAMPLE), ROWS):
                x = np.array(harvest.rows(shard, start, min(start + ROWS, rows)), np.float32)
                with torch.inference_mode():
                    codes = place.coder.codes(torch.from_numpy(x).to(place.model.device))[:, neurons]
                found = np.maximum(found, codes.max(dim=0).values.float().cpu().numpy())
    silent = [m for m, peak in zip(neurons, found, strict=True) if not peak > 0]
    if silent:
        raise InputError(f"{place.network.path}: neuron {silent[0]} never fires there, so it has no peak; give --peak")
    return found


def direction(place: Place, neurons: list[int], by: Array) -> Any:
    """What is added to a row at the network's scale, a tensor (d,): Σ by_m v_m."""
    import torch

    added = (np.asarray(by)[:, None] * place.network.dictionary.W_dec[neurons]).sum(axis=0)
    return torch.from_numpy(added.astype(np.float32)).to(place.model.device)


@contextmanager
def pushed(place: Place, added: Any, ids: Any, mask: Any, first: bool) -> Iterator[None]:
    """While it lasts, rows of the tokens `ids` become x + scale * added; first: whether they begin the context."""

    def change(rows: Any) -> Any:
        x = rows.float()
        return x + added * place.coder.prepare(x)[1]

    keeping = place.keeping if first else replace(place.keeping, drop_first=0)
    with splicing(place.model, place.site, place.of, ids, mask, change, keeping):
        yield


def write(
    place: Place, prompt: str, added: Any = None, new: int = 40, temperature: float = 0.0, seed: int = 0,
    cache: bool = True,
) -> str:  # fmt: skip
    """How a causal model goes on with a prompt, up to `new` tokens, decoded.

    added: None, or the direction (d,) that is added to every token's row.  temperature: 0 takes the likeliest token.
    seed: of what is drawn else.  cache: whether keys and values of earlier tokens are kept; without, all is computed
    anew for each token, to the same text.  InputError for a model of another kind, an empty prompt, and one too long.
    """
    import torch

    model = place.model
    new, temperature, seed = whole("--new", new, 1), finite("--temperature", temperature, 0), whole("--seed", seed)
    if model.kind != "causal":
        raise InputError(f"{model.name}: {type(model.module).__name__} does not write text")
    ids = [*model.tokenizer.prefix, *model.tokenizer(prompt)[0].tolist()]
    if not ids:
        raise InputError("the prompt holds no token")
    if model.longest is not None and len(ids) + new > model.longest:
        raise InputError(f"{len(ids)} tokens and {new} new ones are more than the {model.longest} of {model.name}")
    rng, past, begun = generator(seed, "writing"), None, len(ids)
    ends = {model.tokenizer.tokenizer.eos_token_id}
    with torch.inference_mode():
        while len(ids) < begun + new:
            given = ids if past is None else ids[-1:]
            inputs = torch.tensor([given], device=model.device)
            there = torch.ones((1, len(ids)), dtype=torch.int64, device=model.device)
            steering = (
                pushed(place, added, inputs, torch.ones_like(inputs), past is None)
                if added is not None
                else nullcontext()
            )
            with steering:
                logits, past = model.go_on(inputs, there, past, cache)
            id = _next(logits[0, -1].float(), temperature, rng)
            if id in ends:
                break
            ids.append(id)
    text: str = model.tokenizer.tokenizer.decode(ids[begun:])
    return text


def _next(logits: Any, temperature: float, rng: np.random.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    scaled = logits.double()
    p = ((scaled - scaled.max()) / temperature).softmax(0).cpu().numpy()
    return int(rng.choice(len(p), p=p / p.sum()))


def steer(
    place: Place, prompts: list[str], neurons: list[int], by: list[float], peak: list[float], new: int = 40,
    temperature: float = 0.0, seed: int = 0, random: int = 1, tick: Callable[[int], object] = id,
) -> list[Written]:  # fmt: skip
    """Let the model go on with each prompt: clean, steered, and with random directions of the same norm beside.

    by: strengths of the neurons in units of their peaks, peak (neurons,).  InputError as `write`, for neurons that are
    not there or named twice, and for numbers that are not finite.
    """
    neurons = place.network.neurons(neurons)
    by, peak = each("--by", by, len(neurons)), each("--peak", peak, len(neurons))
    random = whole("--random", random)
    added = direction(place, neurons, np.asarray(by) * np.asarray(peak))
    written = []
    for prompt in prompts:
        edits = [None, added, *(random_direction(added, seed + k) for k in range(random))]
        clean, steered, *beside = [write(place, prompt, edit, new, temperature, seed) for edit in edits]
        written.append(Written(prompt, clean, steered, beside))
        tick(1)
    return written
