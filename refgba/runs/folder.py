"""A run on disk.  Layout:

    config.json         the settings: `--config` of another run reads it
    about.json          the backend, the version, the recipe and the data
    data.safetensors    checksums of the data, block by block, the rows left out, and those held out
    metrics.jsonl       how training went, one JSON object per line (`log`)
    checkpoints/step-N/ the whole state after step N (`checkpoints`), in shards where several ranks trained (`parts`)
    final/              the result

`final/` and each checkpoint are folders of a network: params.safetensors, the arrays of `refgba.sae.Params` by name
and the centre of the rows, where there is one; and state.json, which says what they belong to, with a checksum of every
file.  Each appears whole or not at all (`refgba.data.files`), and can be read without the run around it.  A folder is a
run once it has config.json, which is written last.  Nothing is ever pickled.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save, save_file

from refgba import __version__
from refgba.backends.base import AnyConfig, AnyParams
from refgba.backends.comm import ALONE, Ranks
from refgba.baselines import METHODS
from refgba.config import Settings, config_from_json
from refgba.data import files
from refgba.data.activations import PLACE, Activations
from refgba.data.store import DTYPES, LARGEST, checksum
from refgba.errors import InputError, unwritten
from refgba.runs import held_out, parts
from refgba.runs.parts import whole_name
from refgba.runs.schema import (
    Damaged,
    Table,
    each,
    entries,
    has,
    number,
    one_of,
    optional,
    require,
    require_file,
    text,
    whole,
)
from refgba.types import Float64, Int64

CONFIG, ABOUT, DATA, METRICS, FINAL = "config.json", "about.json", "data.safetensors", "metrics.jsonl", "final"
HELD_OUT = "held_out"  # in about.json what they are, in data.safetensors their numbers
DIVERGED = "diverged"  # in about.json the step by which training had diverged, if it did
SMALL = 2**24  # bytes: reading a file of this size for nothing costs little
PARAMS, TRAINING, STATE = "params.safetensors", "training.safetensors", "state.json"


_COUNT = whole(1, LARGEST - 1)
_RATIO = number(0, 1e300)
_DIMENSION: Table = {"dimension": whole(0), "ratio": _RATIO, "largest": _RATIO, "share": number(0, 1)}
_ORIGIN: Table = {"fingerprint": text, "rows": _COUNT, "d": _COUNT, "dtype": one_of(*DTYPES)}
ABOUT_FIELDS: Table = {
    "backend": text,
    "refgba": optional(text),
    "recipe": optional(text),
    "extended": optional(each(has({"at": whole(0), "steps": whole(1)}))),
    DIVERGED: optional(whole(0)),
    HELD_OUT: optional(has(held_out.FIELDS)),  # not in what earlier versions wrote, nor where nothing is held out
    "checkpoints": {"every": whole(0), "keep": whole(1)},
    "data": {
        **_ORIGIN,
        "path": text,
        "block": _COUNT,
        "windows": _COUNT,
        "dropped": optional(whole(0)),
        "drop_below": optional(number(0, 1)),  # this and the next six are not in what earlier versions wrote
        "faint": optional(whole(0)),
        "faint_dropped": optional(whole(0)),
        "median_norm": optional(number(0, 1e300)),
        "offset": optional(number(0, 1e300)),
        "gamma": optional(number(0, 1e300)),
        "centred": optional(lambda value: isinstance(value, bool)),
        "largest_norm": optional(number(0, 1e300)),  # this and the next eight came after those
        "largest_in": optional(whole(0)),
        "largest_share": optional(number(0, 1)),
        "compared": optional(whole(0)),
        "repeated": optional(whole(0)),
        "commonest": optional(whole(0)),
        "massive_dimensions": optional(whole(0)),
        "massive_share": optional(number(0, 1)),
        "massive": optional(each(has(_DIMENSION))),
        "harvest": optional(has(dict.fromkeys(PLACE, text))),  # which came after that; of a harvest alone
        "variance": number(1e-12, 1),  # of unit rows; `survey` refuses less
        "shards": each(entries(text, whole(0)), fewest=1),
    },
}
STATE_FIELDS: Table = {
    "step": whole(0),
    "config": lambda value: isinstance(value, dict),  # `config_from_json` checks it
    "shards": optional(whole(2)),  # only where several ranks wrote it
    "sha256": lambda value: isinstance(value, dict) and {PARAMS} <= set(map(whole_name, value)) <= {PARAMS, TRAINING},
    "data": optional(has(_ORIGIN)),
    "backend": optional(text),
    "refgba": optional(text),
    "centred": optional(lambda value: isinstance(value, bool)),
    "seconds": optional(number(0, 1e15)),
}


@dataclass(frozen=True)
class Network:
    """The folder of a network, read back.

    state: the contents of state.json: `step`, the `data` of its training, the version, and more in a checkpoint.
    centre: (d,) what rows lose before they are scaled to unit norm, None if nothing.
    """

    path: Path
    config: AnyConfig
    params: AnyParams
    state: dict[str, Any]
    centre: Float64 | None = None

    @property
    def seconds(self) -> float:
        """How long training took, 0 where the state does not say."""
        return float(self.state.get("seconds") or 0)

    def provenance(self) -> dict[str, Any]:
        """Where the network comes from, for those who export it."""
        origin = {name: self.state.get(name) for name in ("step", "data", "refgba", "backend")}
        return origin | {"config": asdict(self.config)}


@dataclass(frozen=True)
class Record:
    """What a run began with, read back: config.json, about.json and data.safetensors.

    dropped, crc, held_out: as in `refgba.data.activations.Activations`.
    """

    path: Path
    config: AnyConfig
    about: dict[str, Any]
    dropped: Int64
    crc: npt.NDArray[np.uint32]
    held_out: Int64
    centre: Float64 | None = None


# ---- runs ------------------------------------------------------------------------------------------------------------


def refuse_existing(path: Path) -> None:
    """InputError if `path` cannot take a new run: it holds one, finished or not, or is not a folder."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: exists and is not a folder")
    if (path / FINAL).exists():
        raise InputError(f"{path}: already holds a run; choose another folder or remove it")
    for name in (CONFIG, METRICS, ABOUT, DATA):
        if os.path.lexists(path / name):
            if diverged(path):
                state = f"of a run that did not finish: {diverged(path)}, and"
            elif name == CONFIG:  # `create` writes it last: what a run begins with is whole
                state = f"of a run that did not finish; {_going_on(path)}, or"
            else:
                state = f"but no {CONFIG}, so there is no run to go on with;"
            raise InputError(f"{path}: holds {name} {state} choose another folder or remove it")


def _going_on(path: Path) -> str:
    return f"`refgba train --resume {files.quoted(path)}` goes on with it"


def create(path: Path, config: Settings, about: Mapping[str, Any], data: Activations) -> None:
    """Make the folder of a new run on surveyed data.  InputError if that fails; then nothing of it is left."""
    refuse_existing(path)
    assert data.crc is not None
    arrays: dict[str, npt.NDArray[Any]] = {"dropped": data.dropped, "crc": data.crc}
    if data.held_out.size:
        arrays[HELD_OUT] = data.held_out
    if data.centre is not None:
        arrays["centre"] = data.centre
    try:
        with files.made(path):
            try:
                files.write(path / DATA, save(arrays))
                write_about(path, about)
                write_config(path, config)
            except OSError:
                for name in (CONFIG, ABOUT, DATA):
                    (path / name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise unwritten(path, error) from None


def read_config(path: Path) -> AnyConfig:
    """The settings in the config.json of a run; InputError, naming the file, when it is not as it was written."""
    data = files.read_file(path / CONFIG, files.LARGEST_JSON)
    try:
        return config_from_json(data.decode())
    except ValueError as error:  # an InputError, or no text
        raise InputError(f"{path / CONFIG}: {error}") from None


def read_about(path: Path) -> dict[str, Any]:
    """The about.json of a run; InputError, naming the file, when it is not as it was written."""
    about = files.read_json(path / ABOUT, 2**28)  # it lists the shards of the data
    require(path / ABOUT, about, ABOUT_FIELDS)
    return about


def diverged(path: Path) -> str:
    """In words, that training diverged in a run that has no result; nothing where it did not, as far as is recorded."""
    try:
        step = read_about(path).get(DIVERGED)
    except InputError:
        return ""
    return "" if step is None else f"training diverged by step {step}; begin anew with a lower lr"


def write_config(path: Path, config: Settings) -> None:
    """Make or replace the config.json of a run."""
    files.write(path / CONFIG, config.to_json().encode() + b"\n")


def write_about(path: Path, about: Mapping[str, Any]) -> None:
    """Make or replace the about.json of a run."""
    files.write(path / ABOUT, json.dumps(about, indent=2).encode() + b"\n")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from training in the folder of a run; InputError when one already does."""
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another process is training in this folder") from None
        yield
    finally:
        os.close(handle)


def read_record(path: Path) -> Record:
    """Read what a run began with; InputError, naming the file, when there is no run or its record is damaged."""
    if not (path / CONFIG).is_file():
        raise InputError(f"{path}: not a run, it has no {CONFIG}")
    config, about = read_config(path), read_about(path)
    kept = "share" in (about.get(HELD_OUT) or {})
    arrays = load_arrays(path / DATA, ("dropped", "crc", *([HELD_OUT] if kept else [])))
    dropped, crc = arrays["dropped"], arrays["crc"]
    rows = arrays.get(HELD_OUT, np.empty(0, np.int64))
    if not (dropped.dtype == rows.dtype == np.int64 and crc.dtype == np.uint32):
        raise Damaged(f"{path / DATA}: damaged: dropped and held_out should be int64 and crc uint32 numbers")
    if not dropped.ndim == crc.ndim == rows.ndim == 1 or (kept and len(rows) != about[HELD_OUT]["rows"]):
        raise Damaged(f"{path / DATA}: damaged: its arrays are not as they were written")
    centre = None
    if about["data"].get("centred"):
        centre = load_arrays(path / DATA, ("centre",))["centre"]
        _check_centre(path / DATA, centre, about["data"]["d"])
    return Record(path, config, about, dropped, crc, rows, centre)


# ---- networks --------------------------------------------------------------------------------------------------------


def write_network(
    path: Path,
    params: AnyParams,
    config: AnyConfig,
    state: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
    centre: Float64 | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Make or replace the folder of a network; `more` has the arrays of other .safetensors files, by file name.

    centre: as in `Network`.  Several ranks write a shard each, with their own neurons.  OSError when it cannot be
    written; what was there before then stays.
    """
    contents = {PARAMS: _arrays(params, centre)} | dict(more or {})
    with parts.shared_folder(path, ranks) as partial:
        sums = {}
        for whole, arrays in contents.items():
            name = parts.shard(whole, ranks.rank, ranks.size)
            # safetensors writes an array's memory as it lies, whatever its strides say: a transpose would be scrambled.
            try:
                save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, partial / name)
            except SafetensorError as error:
                raise OSError(str(error)) from None
            sums[name] = checksum(partial / name)
        of = {"shards": ranks.size} if ranks.size > 1 else {}
        _write_state(partial, {**state, **of}, config, sums, centre, ranks)


def write_result(
    path: Path, params: AnyParams, config: AnyConfig, state: Mapping[str, Any], centre: Float64 | None, ranks: Ranks
) -> None:  # fmt: skip
    """The same with the arrays of all ranks in one file, a block at a time."""
    with parts.shared_folder(path, ranks) as partial:
        parts.write_whole(partial / PARAMS, _arrays(params, centre), config.width, ranks)
        sums = {PARAMS: checksum(partial / PARAMS)} if ranks.rank == 0 else {}
        _write_state(partial, state, config, sums, centre, ranks)


def _arrays(params: AnyParams, centre: Float64 | None) -> dict[str, npt.NDArray[Any]]:
    """The arrays of params.safetensors."""
    arrays: dict[str, npt.NDArray[Any]] = params.arrays()
    return arrays if centre is None else arrays | {"centre": centre}


def _write_state(
    path: Path, state: Mapping[str, Any], config: AnyConfig, sums: Mapping[str, str], centre: Float64 | None,
    ranks: Ranks,
) -> None:  # fmt: skip
    """On rank 0, the state.json of a folder whose files, of all ranks, have these checksums."""
    for name in sums:
        files.flush(path / name)
    every = {name: checksum for own in ranks.everyone(dict(sums)) for name, checksum in own.items()}
    if ranks.rank == 0:
        about = {**state, "refgba": __version__, "config": asdict(config), "sha256": every}
        if centre is not None:
            about["centred"] = True
        (path / STATE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def open_network(path: Path, ranks: Ranks = ALONE) -> Network:
    """Read the result of a run, or a checkpoint; InputError, naming the file, when there is none or it is damaged.

    `path`: the folder of a run that has finished, or one in its checkpoints/.  The example writes the last folder of a
    run by hand:

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from refgba.config import GBAConfig
    >>> from refgba.gba import random_params
    >>> from refgba.runs.folder import open_network, write_network
    >>> config = GBAConfig(width=20)
    >>> with TemporaryDirectory() as folder:
    ...     write_network(Path(folder) / "final", random_params(config, d=5), config, {"step": 0})
    ...     network = open_network(Path(folder) / "final")
    >>> network.params.W.shape, network.config.groups
    ((20, 5), 10)
    """
    if (path / CONFIG).is_file() and (path / ABOUT).is_file() and not (path / STATE).exists():
        if not (path / FINAL).is_dir():
            how = diverged(path) or _going_on(path)
            raise InputError(
                f"{path}: the run has not finished, it has no {FINAL}/; {how}, and a checkpoint in it can be named "
                "instead"
            )
        path = path / FINAL
    if not (path / STATE).is_file():
        lacks = ABOUT if (path / CONFIG).is_file() else CONFIG
        raise InputError(
            f"{path}: not a run, it has no {lacks}; nor a checkpoint, it has no {STATE}; `refgba import` makes a "
            "dictionary of the parameters of a port"
        )
    return read_network(path, ranks)


def read_network(path: Path, ranks: Ranks = ALONE) -> Network:
    """Read the folder of a network and check it; Damaged, naming the file, when it is not as it was written.

    Each of several ranks gets its own neurons.  The checksum of each file is checked by one of them: it is for all of
    them to find out (`Ranks.everyone`) whether one has raised an error, before they use what they got.
    """
    try:
        state = files.read_json(path / STATE)
        require(path / STATE, state, STATE_FIELDS)
        config = config_from_json(json.dumps(state["config"]))
        of = state.get("shards") or 1
        for whole in sorted(set(map(whole_name, state["sha256"]))):
            for name in (parts.shard(whole, r, of) for r in range(ranks.rank, of, ranks.size)):
                if _checksum(path / name) != state["sha256"].get(name):
                    raise InputError(f"{path / name}: damaged: it does not match its checksum in {STATE}")
        params, centre = _load_params(path, config, state["step"], of, ranks), None
        if state.get("centred"):
            centre = load_part(path, PARAMS, ("centre",), of, config.width, ranks)["centre"]
            _check_centre(path / PARAMS, centre, params.b_pre.size)
        return Network(path, config, params, state, centre)
    except InputError as error:
        named = str(error) if str(path) in str(error) else f"{path / STATE}: {error}"
        raise Damaged(named) from None


def _checksum(path: Path) -> str:
    """The checksum of a .safetensors file, of which a large one is read only if it is as long as its header says."""
    require_file(path)
    if path.exists() and path.stat().st_size > SMALL:
        load_arrays(path, ())
    return checksum(path)


def _load_params(path: Path, config: AnyConfig, step: int, of: int, ranks: Ranks) -> AnyParams:
    method = METHODS[config.method]
    names = method.parameters(config, step)
    params: AnyParams = method.Params(**_parameters(path, config, names, of, ranks))
    return params


def _parameters(
    path: Path, config: Settings, names: tuple[str, ...], of: int, ranks: Ranks
) -> dict[str, npt.NDArray[Any]]:  # fmt: skip
    arrays = load_part(path, PARAMS, names, of, config.width, ranks)
    M, d = ranks.count(config.width), arrays["b_pre"].size
    shapes = {"W": (M, d), "W_dec": (M, d), "b_pre": (d,)}
    for name, array in arrays.items():
        check_array(path / PARAMS, name, array, shapes.get(name, (M,)), config.master)
    return arrays


def load_part(
    path: Path, name: str, arrays: list[str] | tuple[str, ...], of: int, M: int, ranks: Ranks
) -> dict[str, npt.NDArray[Any]]:  # fmt: skip
    """A rank's part of arrays of M neurons in a file of a network's folder, or in its `of` shards; Damaged as below."""
    if of == ranks.size == 1:
        return load_arrays(path / name, arrays)
    return parts.load(path, name, arrays, of, M, ranks)


def _check_centre(path: Path, centre: npt.NDArray[Any], d: int) -> None:
    """Damaged unless this is the centre of rows of d dimensions."""
    check_array(path, "centre", centre, (d,), "float64")


def check_array(path: Path, name: str, array: npt.NDArray[Any], shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    """Damaged unless an array of a file has this shape and dtype, and finite values."""
    if array.shape != shape:
        raise Damaged(f"{path}: {name} has shape {array.shape}, it should be {shape}")
    if array.dtype != np.dtype(dtype) or not np.isfinite(array).all():
        raise Damaged(f"{path}: {name} should hold finite {np.dtype(dtype)} values")


def load_arrays(path: Path, names: Iterator[str] | list[str] | tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a .safetensors file by name; Damaged when one is not there, or the file is longer than they are."""
    with parts.opened(path) as file:
        return {name: file.get_tensor(name) for name in names}
