"""Which site a run was trained on, by its own record: rows of another site would mean nothing to its neurons.

about.json of a run on a harvest names model, site and side of the site.  Earlier versions did not write that: then the
store that it names as its data tells, as long as it is there.  What neither tells is not checked, since a dictionary of
another library may belong to any store.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from refgba.data.activations import PLACE
from refgba.data.store import read_meta
from refgba.errors import InputError
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


def refuse_other_site(about: Mapping[str, Any] | None, harvest: Harvest, network: Path) -> None:
    """InputError where a run was trained on another site than that of `harvest`, or on the other side of it.

    about: as `run_about` gives it.  network: the run, for the message.
    """
    trained = None if about is None else trained_on(about)
    if trained is None:
        return
    own, other = (f"the {place['of']} of {place['site']}" for place in (trained, harvest.settings))
    if own != other:
        raise InputError(
            f"{harvest.store.path}: is of {other}, but {network} was trained on {own}; give a store of {own}"
        )
