"""Checkpoints of a run: everything that its next step depends on, so that a run that goes on is the same to the bit.

    checkpoints/step-N/
        params.safetensors      the parameters
        training.safetensors    moments m.* and v.* of the optimiser, the buffers, the neurons held, measured shares
        state.json              step, updates of each parameter, data and settings, seconds so far, checksums

Where several ranks trained, each wrote its part, as params-0-of-4.safetensors (`parts`); any number of ranks can go on
from them, and one process.

Schedules, minibatches and all randomness are functions of the settings, the data and the step (`refgba.recipe`,
`refgba.data.feed`), and need nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from refgba.adam import AdamW
from refgba.backends.base import AnyConfig, HostState
from refgba.backends.comm import ALONE, Ranks
from refgba.baselines import METHODS
from refgba.bias import Buffer
from refgba.data import files
from refgba.errors import InputError
from refgba.measured import Shares
from refgba.runs import folder
from refgba.runs.folder import TRAINING
from refgba.runs.schema import Damaged, Table, number, optional, require, whole
from refgba.types import Float64

CHECKPOINTS = "checkpoints"
NAME = re.compile(r"step-(\d+)")
EXTENDED = {"steps", "form"}  # These settings change when a run is extended.
# The fields of state.json that only a checkpoint has, besides `updates`.
FIELDS: Table = {
    "rows": whole(0),
    "last_rows": optional(whole(1)),
    "seconds": number(0, 1e15),
}
MEASURED: Table = {"looks": whole(0), "active": number(0, 1e9)}  # These a run has whose targets are measured.


def found(run: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    named = [(NAME.fullmatch(path.name), path) for path in (run / CHECKPOINTS).glob("step-*")]
    return [path for _, path in sorted(((int(name[1]), path) for name, path in named if name), reverse=True)]


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(path.name.removeprefix("step-"))


def save(
    run: Path, state: HostState, about: dict[str, Any], keep: int, centre: Float64 | None = None, ranks: Ranks = ALONE
) -> None:  # fmt: skip
    """Write the checkpoint of a state, each rank its part at the same time, and remove all but the newest `keep`.

    about: `data`, `backend` and `seconds`, for state.json.  centre: of the rows, as in `folder.Network`.
    OSError when it cannot be written; no other is then removed.
    """
    arrays: dict[str, Any] = {"counts": state.buffer.counts, "peaks": state.buffer.peaks}
    own = METHODS[state.config.method].OWN.name
    arrays[own] = getattr(state, own)
    shares = getattr(state, "shares", None)
    if shares is not None:
        arrays["shares"] = shares.p
        if getattr(state.config, "relative", 0):
            arrays["shares.peaks"] = shares.peaks
    if state.last is not None:
        arrays |= {"last.counts": state.last.counts, "last.peaks": state.last.peaks}
    for name, adam in state.optimiser.items():
        arrays |= {f"m.{name}": adam.m, f"v.{name}": adam.v}
    counters = {
        "step": state.t,
        "updates": {name: adam.t for name, adam in state.optimiser.items()},
        "rows": state.buffer.rows,
        "last_rows": state.last.rows if state.last is not None else None,
    }
    if shares is not None:
        counters |= {"looks": shares.looks, "active": shares.active}
    place = run / CHECKPOINTS
    ranks.first(lambda: place.mkdir(exist_ok=True))
    network = state.params, state.config, counters | about, {TRAINING: arrays}
    folder.write_network(place / f"step-{state.t}", *network, centre, ranks)

    def remove_old() -> None:
        for old in found(run)[keep:]:
            files.remove_folder(old)

    ranks.first(remove_old)


def newest(
    run: Path, config: AnyConfig, fingerprint: str, say: Callable[[str], object], ranks: Ranks = ALONE
) -> tuple[HostState, float] | None:
    """This rank's part of the newest undamaged checkpoint of a run, and the run's seconds so far; None without any yet.

    Calls `say` with a remark on each damaged one.  InputError when all are damaged, or when one belongs to other
    settings or other data.
    """
    paths = [Path(path) for path in ranks.first(lambda: [str(path) for path in found(run)])]
    for path in paths:
        loaded, damage = None, None
        try:
            loaded = load(path, config, fingerprint, ranks)
        except Damaged as error:
            damage = str(error)
        damages = [text for text in ranks.everyone(damage) if text is not None]
        if not damages:
            return loaded
        say(f"{damages[0]}; the checkpoint before it is used")
    if paths:
        raise InputError(f"{run / CHECKPOINTS}: every checkpoint is damaged; the run cannot go on")
    return None


def load(path: Path, config: AnyConfig, fingerprint: str, ranks: Ranks = ALONE) -> tuple[HostState, float]:
    """This rank's part of the state of a checkpoint, under the settings of its run, and the run's seconds up to it.

    Damaged, naming the file, when it is not as it was written; InputError when it belongs to a run with other settings
    or on other data.
    """
    network = folder.read_network(path, ranks)
    saved, params = network.state, network.params
    _require_same_run(network, config, fingerprint)
    method = METHODS[config.method]
    trained = list(method.optimised(config, saved["step"]))
    require(path / folder.STATE, saved, {**FIELDS, "updates": dict.fromkeys(trained, whole(0, saved["step"]))})
    rows, last_rows = saved["rows"], saved.get("last_rows")
    counted = {"": rows} | ({"last.": last_rows} if last_rows else {})
    arrays = _load_arrays(path / TRAINING, network, trained, counted, ranks)
    optimiser = {name: AdamW(arrays[f"m.{name}"], arrays[f"v.{name}"], saved["updates"][name]) for name in trained}
    buffer, last = _buffer(rows, arrays, ""), _buffer(last_rows, arrays, "last.") if last_rows else None
    own = arrays[method.OWN.name]
    state = method.State(config, params, optimiser, buffer, last, own, saved["step"])
    if "shares" in arrays:
        require(path / folder.STATE, saved, MEASURED)
        state.shares = Shares(len(own), saved["active"], saved["looks"])
        state.shares.p = arrays["shares"]
        state.shares.peaks = arrays.get("shares.peaks", state.shares.peaks)
    return state, saved["seconds"]


def _require_same_run(network: folder.Network, config: AnyConfig, fingerprint: str) -> None:
    """InputError unless a checkpoint has these settings and data; Damaged where its name is not its step."""
    path, step = network.path, network.state["step"]
    if type(network.config) is not type(config):
        raise InputError(f"{path}: a checkpoint of another run: its method is not the run's")
    for name, setting in asdict(network.config).items():
        right = getattr(config, name)
        if name not in EXTENDED and setting != right:
            raise InputError(f"{path}: a checkpoint of another run: its {name} is {setting}, the run's {right}")
    data = network.state.get("data")
    if data is None or data["fingerprint"] != fingerprint:
        raise InputError(f"{path}: a checkpoint of another data set than the run's")
    formed = [METHODS[c.method].description(c, None).formed for c in (network.config, config)]
    if formed[0] != formed[1] or network.config.steps > config.steps:  # an extension only adds steps, after forming
        raise InputError(f"{path}: a checkpoint of another run: its steps or form are not the run's, nor were before")
    if path.name != f"step-{step}":
        raise Damaged(f"{path / folder.STATE}: damaged: its step is {step}")


def _load_arrays(
    path: Path, network: folder.Network, trained: list[str], rows: dict[str, int], ranks: Ranks
) -> dict[str, Any]:  # fmt: skip
    """The arrays beside the parameters, checked.  rows: how many each buffer counted, by the prefix of its arrays."""
    M = ranks.count(network.config.width)
    own = METHODS[network.config.method].OWN
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {own.name: ((M,), own.dtype)}
    for name in trained:
        theta = network.params.arrays()[name]
        shapes |= {f"m.{name}": (theta.shape, theta.dtype), f"v.{name}": (theta.shape, theta.dtype)}
    if getattr(network.config, "targets_from", None) == "data":
        shapes["shares"] = ((M,), np.float64)
        if getattr(network.config, "relative", 0):
            shapes["shares.peaks"] = ((M,), np.float64)
    for prefix in rows:
        shapes |= {prefix + "counts": ((M,), np.int64), prefix + "peaks": ((M,), np.float64)}
    of = network.state.get("shards") or 1
    arrays = folder.load_part(path.parent, path.name, list(shapes), of, network.config.width, ranks)
    for name, (shape, dtype) in shapes.items():
        folder.check_array(path, name, arrays[name], shape, dtype)
        if name != own.name and not name.startswith("m.") and arrays[name].min() < 0:
            raise Damaged(f"{path}: {name} should not be negative")
    for prefix, most in rows.items():
        if arrays[prefix + "counts"].max() > most:
            raise Damaged(f"{path}: {prefix}counts should not exceed the {most} rows counted")
    return arrays


def _buffer(rows: int, arrays: dict[str, Any], prefix: str) -> Buffer:
    counts = arrays[prefix + "counts"]
    buffer = Buffer(len(counts), rows)
    buffer.counts, buffer.peaks = counts, arrays[prefix + "peaks"]
    return buffer
