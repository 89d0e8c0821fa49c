"""What an experiment ends in: its numbers, the verdict that follows from them, its figures, and the files of these."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refgba.data import files
from refgba.data.outputs import Output, result
from refgba.errors import unwritten
from refgba.experiments.drawing import Picture, png


class Verdict(str):
    """How a measurement compares: a grade, and one sentence with the numbers.

    claims: what the paper says (or what its theory does), in words, and whether it holds in the numbers, None where
    they cannot tell; the grade counts those that hold.
    """

    claims: dict[str, bool | None]

    def __new__(cls, claims: Mapping[str, bool | None], sentence: str) -> Verdict:
        """The sentence, under the grade that the claims earn."""
        verdict = super().__new__(cls, f"{grade(claims)}: {sentence}")
        verdict.claims = {claim: None if holds is None else bool(holds) for claim, holds in claims.items()}
        return verdict


def grade(claims: Mapping[str, bool | None]) -> str:
    """The first words of a verdict: how many claims, each checked by itself, hold in the numbers."""
    told = [holds for holds in claims.values() if holds is not None]
    if not told and claims:
        return "Not resolved"
    if len(told) < len(claims) and all(told):
        return "Reproduced as far as resolved"
    return "Reproduced" if all(told) else "Reproduced in part" if any(told) else "Not reproduced"


def resolved(claims: Mapping[str, bool], data: Mapping[str, Any], beyond_quick: Collection[str]) -> dict[str, Any]:
    """The claims, but None for those that the numbers of a quick run cannot resolve, whichever way they turn out.

    beyond_quick: these claims.  In each of them a quick run is known to end otherwise than the full one.
    """
    quick = data.get("scale") == "quick"
    return {claim: None if quick and claim in beyond_quick else holds for claim, holds in claims.items()}


@dataclass(frozen=True)
class Outcome:
    """What an experiment ended in.

    question: what the paper claims, one sentence.  verdict: how the measurement compares, computed from `data`.  data:
    every number, with settings, seeds, versions and seconds; nothing but JSON.
    """

    name: str
    question: str
    verdict: Verdict
    data: dict[str, Any]
    figures: tuple[Picture, ...]


def written(name: str) -> Output:
    """What `write` writes to NAME.json."""
    return result(f"what `refgba reproduce {name}` writes", "name", "question", "verdict", "figures", "data")


def write(outcome: Outcome, out: Path) -> list[Path]:
    """Write NAME-1.png, NAME-2.png, ... and then NAME.json into the folder `out`, each whole or not at all.

    Returns the files, JSON first.  InputError without matplotlib, or when the folder cannot be made or written.
    """
    images = {f"{outcome.name}-{k}.png": png(picture) for k, picture in enumerate(outcome.figures, start=1)}
    record = {
        "name": outcome.name,
        "question": outcome.question,
        "verdict": outcome.verdict,
        "claims": outcome.verdict.claims,
        "figures": [
            {"file": file, "title": p.title, "alt": p.alt} for file, p in zip(images, outcome.figures, strict=True)
        ],
        "data": outcome.data,
    }
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    with made(out):
        try:
            for file, image in images.items():
                files.write(out / file, image)
            files.write(out / f"{outcome.name}.json", text.encode())
        except OSError as error:
            raise unwritten(out, error) from None
    return [out / f"{outcome.name}.json", *(out / file for file in images)]


@contextmanager
def made(out: Path) -> Iterator[None]:
    """Make the folder as `files.made`; InputError when that cannot be."""
    with ExitStack() as stack:
        try:
            stack.enter_context(files.made(out))
        except OSError as error:
            raise unwritten(out, error) from None
        yield
