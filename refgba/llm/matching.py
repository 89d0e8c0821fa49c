"""Which site a network was trained on, by its own record: rows of another site would mean nothing to its neurons.

about.json of a run on a harvest names model, site and side of the site, and so does what was exported from it.  Earlier
versions did not write that: then the store that a run names as its data tells, as long as it is there.  A dictionary of
another library may say where it belongs in words of its own (`claims`).  What none of these tells is not checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refgba import formats
from refgba.data.activations import PLACE
from refgba.data.store import read_meta
from refgba.errors import InputError
from refgba.llm.claims import Claim, claim_of, harvested_at
from refgba.llm.records import Harvest, is_harvest
from refgba.runs import folder


def run_about(network: Path) -> dict[str, Any] | None:
    """about.json of the run that `network` is, or is a checkpoint or the result of; None where it is no such.

    InputError, naming the file, for one that is damaged.
    """
    for run in (network, network.parent, network.parent.parent):
        if (run / folder.ABOUT).is_file():
            return folder.read_about(run)
    return None


def trained_on(about: Mapping[str, Any]) -> dict[str, str] | None:
    """`model`, `site` and `of`, by about.json of a run; None where that is not known, or no harvest wrote its data."""
    data = about["data"]
    recorded: dict[str, str] | None = data.get("harvest")
    if recorded is not None:
        return recorded
    path = Path(data["path"])
    with suppress(InputError):  # a store that cannot be read tells nothing
        if data["path"] and is_harvest(path):
            meta = read_meta(path)
            if holds(meta, data):
                settings = meta["harvest"]["settings"]
                return {name: str(settings[name]) for name in PLACE}
    return None


def holds(meta: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Whether a store, by its meta.json, still begins with the rows of a run, by `data` of its about.json."""
    shards = [[entry["file"], entry["rows"]] for entry in meta["shards"]]
    return bool(shards[: len(data["shards"])] == data["shards"] and meta["d"] == data["d"])


@dataclass(frozen=True)
class Origin:
    """Where a network was trained, by its own record.

    place: `model`, `site` and `of` of a harvest, None where they are not known.  claim: what a dictionary of another
    library says instead, None where it says nothing.
    """

    place: dict[str, str] | None = None
    claim: Claim | None = None


def origin_of(network: Path) -> Origin:
    """Where a run, one of its checkpoints or a dictionary was trained; InputError as `run_about` and `claim_of`."""
    if not formats.is_dictionary(network):
        about = run_about(network)
        return Origin(None if about is None else trained_on(about))
    place = harvested_at(network)
    return Origin(place, None if place is not None else claim_of(network))


def refuse_other_site(origin: Origin, harvest: Harvest, network: Path) -> None:
    """InputError where a network was trained on another site than that of `harvest`, or on the other side of it.

    origin: of the network, as far as it is known.  network: its path, for the message.
    """
    settings = harvest.settings
    own = _words(settings)
    if origin.place is not None and (trained := _words(origin.place)) != own:
        raise InputError(
            f"{harvest.store.path}: is of {own}, but {network} was trained on {trained}; give a store of {trained}"
        )
    if origin.claim is not None and (other := origin.claim.differs(settings["site"], settings["of"])) is not None:
        raise InputError(
            f"{harvest.store.path}: is of {own}, {other} than {network} is for ({origin.claim.words}); give a store of "
            "the same"
        )


def _words(place: Mapping[str, str]) -> str:
    return f"the {place['of']} of {place['site']}"
