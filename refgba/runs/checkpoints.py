"""Checkpoints of a run: everything that its next step depends on, so that a run that goes on is the same to the bit.

    checkpoints/step-N/
        params.safetensors      the parameters
        training.safetensors    moments m.* and v.* of the optimiser, the buffers, the neurons held
        state.json              step, updates of each parameter, data and settings, seconds so far, checksums

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

from refgba import baselines, gba
from refgba.adam import AdamW
from refgba.backends.base import AnyConfig, HostState
from refgba.bias import Buffer
from refgba.config import BaselineConfig
from refgba.data import files
from refgba.errors import InputError
from refgba.runs import folder
from refgba.runs.folder import TRAINING, Damaged

CHECKPOINTS = "checkpoints"
NAME = re.compile(r"step-(\d+)")
EXTENDED = {"steps", "form"}  # settings that change when a run is extended


def found(run: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    named = [(NAME.fullmatch(path.name), path) for path in (run / CHECKPOINTS).glob("step-*")]
    return [path for _, path in sorted(((int(name[1]), path) for name, path in named if name), reverse=True)]


def save(run: Path, state: HostState, about: dict[str, Any], keep: int) -> None:
    """Write the checkpoint of a state, and remove all but the newest `keep`.

    about: `data`, `backend` and `seconds`, for state.json.  OSError when it cannot be written; no other is then
    removed.
    """
    arrays: dict[str, Any] = {"counts": state.buffer.counts, "peaks": state.buffer.peaks}
    arrays |= {"held": state.held} if isinstance(state, gba.State) else {"idle": state.idle}
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
    place = run / CHECKPOINTS
    place.mkdir(exist_ok=True)
    folder.write_network(place / f"step-{state.t}", state.params, state.config, counters | about, {TRAINING: arrays})
    for old in found(run)[keep:]:
        files.remove_folder(old)


def newest(
    run: Path, config: AnyConfig, fingerprint: str, say: Callable[[str], object]
) -> tuple[HostState, float] | None:
    """The newest undamaged checkpoint of a run and its seconds so far; None where the run has none yet.

    Calls `say` with a remark on each damaged one.  InputError when all are damaged, or when one belongs to other
    settings or other data.
    """
    paths = found(run)
    for path in paths:
        try:
            return load(path, config, fingerprint)
        except Damaged as error:
            say(f"{error}; the checkpoint before it is used")
    if paths:
        raise InputError(f"{run / CHECKPOINTS}: every checkpoint is damaged; the run cannot go on")
    return None


def load(path: Path, config: AnyConfig, fingerprint: str) -> tuple[HostState, float]:
    """The state of a checkpoint, under the settings of its run, and the seconds that the run took up to it.

    Damaged, naming the file, when it is not as it was written; InputError when it belongs to a run with other settings
    or on other data.
    """
    network = folder.read_network(path)
    saved, params = network.state, network.params
    if type(network.config) is not type(config):
        raise InputError(f"{path}: a checkpoint of another run: its method is not the run's")
    for name, setting in asdict(network.config).items():
        right = getattr(config, name)
        if name not in EXTENDED and setting != right:
            raise InputError(f"{path}: a checkpoint of another run: its {name} is {setting}, the run's {right}")
    data = saved.get("data")
    if not isinstance(data, dict) or data.get("fingerprint") != fingerprint:
        raise InputError(f"{path}: a checkpoint of another data set than the run's")
    M, shapes = config.width, dict[str, tuple[tuple[int, ...], Any]]()
    if isinstance(config, BaselineConfig):
        names, shapes["idle"] = list(baselines.trained(config)), ((M,), np.int64)
    else:
        names, shapes["held"] = [name for name in params.arrays() if name != "b"], ((M,), np.bool_)
    for name in names:
        theta = params.arrays()[name]
        shapes |= {f"m.{name}": (theta.shape, theta.dtype), f"v.{name}": (theta.shape, theta.dtype)}
    for prefix in ("", "last.") if saved.get("last_rows") is not None else ("",):
        shapes |= {prefix + "counts": ((M,), np.int64), prefix + "peaks": ((M,), np.float64)}
    arrays = folder.load_arrays(path / TRAINING, list(shapes))
    for name, (shape, dtype) in shapes.items():
        folder.check_array(path / TRAINING, name, arrays[name], shape, dtype)
    updates, rows, last_rows = saved.get("updates"), saved.get("rows"), saved.get("last_rows")
    if not (
        isinstance(updates, dict)
        and all(type(updates.get(name)) is int for name in names)
        and type(rows) is int
        and type(last_rows) in (int, type(None))
        and isinstance(saved.get("seconds"), float)
    ):
        raise Damaged(f"{path / folder.STATE}: damaged: updates, rows, last_rows or seconds are not as written")
    optimiser = {name: AdamW(arrays[f"m.{name}"], arrays[f"v.{name}"], updates[name]) for name in names}
    last = None if last_rows is None else _buffer(M, last_rows, arrays, "last.")
    kind: Any = baselines.State if isinstance(config, BaselineConfig) else gba.State
    own = arrays["idle" if isinstance(config, BaselineConfig) else "held"]
    return kind(config, params, optimiser, _buffer(M, rows, arrays, ""), last, own, saved["step"]), saved["seconds"]


def _buffer(M: int, rows: int, arrays: dict[str, Any], prefix: str) -> Buffer:
    buffer = Buffer(M, rows)
    buffer.counts, buffer.peaks = arrays[prefix + "counts"], arrays[prefix + "peaks"]
    return buffer
