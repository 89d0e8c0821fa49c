"""A run on disk.  Layout:

    config.json         the settings: `--config` of another run reads it
    about.json          the backend, the version and the data
    metrics.jsonl       one JSON object a line, as training went
    final/              the result: params.safetensors, and state.json with the step it belongs to

`final/` appears whole or not at all: it is written under a temporary name, flushed to disk and renamed.  Parameters
are the arrays of `refgba.sae.Params` by name; nothing is ever pickled.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from refgba.config import GBAConfig
from refgba.errors import InputError
from refgba.sae import Params

CONFIG, ABOUT, METRICS, FINAL = "config.json", "about.json", "metrics.jsonl", "final"
PARAMS, STATE = "params.safetensors", "state.json"


@dataclass(frozen=True)
class Run:
    """A finished run, read back."""

    path: Path
    config: GBAConfig
    params: Params


def refuse_existing(path: Path) -> None:
    """InputError if a run cannot be written to `path`: there is one, finished or not, or the path is not a folder."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: exists and is not a folder")
    if (path / FINAL).exists():
        raise InputError(f"{path}: already holds a run; choose another folder or remove it")
    for name in (CONFIG, ABOUT, METRICS):
        if os.path.lexists(path / name):
            raise InputError(f"{path}: holds {name} of a run that did not finish; choose another folder or remove it")


def create(path: Path, config: GBAConfig, about: dict[str, Any]) -> None:
    """Make the folder of a new run with its `config.json` and `about.json`; nothing of them is left if it fails."""
    refuse_existing(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        _write(path / ABOUT, json.dumps(about, indent=2).encode() + b"\n")
        _write(path / CONFIG, config.to_json().encode() + b"\n")
    except OSError as error:
        for name in (ABOUT, CONFIG):
            (path / name).unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def finish(path: Path, params: Params, state: dict[str, Any]) -> Path:
    """Write the result of a run to its `final/`."""
    # safetensors writes an array's memory as it lies, whatever its strides say: a transpose would be scrambled.
    arrays = {name: np.ascontiguousarray(array) for name, array in params.arrays().items()}
    partial, final = Path(tempfile.mkdtemp(prefix=f".{FINAL}-", dir=path)), path / FINAL
    try:
        partial.chmod(0o755)  # mkdtemp makes it private
        _write(partial / PARAMS, save(arrays))
        _write(partial / STATE, json.dumps(state, indent=2).encode() + b"\n")
        _flush_folder(partial)
        partial.rename(final)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush_folder(path)
    return final


def open_run(path: Path) -> Run:
    """Read a finished run; InputError, naming the file, when there is none or it is damaged."""
    if not (path / CONFIG).is_file():
        raise InputError(f"{path}: not a run, it has no {CONFIG}")
    if not (path / FINAL / PARAMS).is_file():
        raise InputError(f"{path}: the run has not finished, it has no {FINAL}/{PARAMS}")
    try:
        config = GBAConfig.from_json((path / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path / CONFIG}: {error}") from None
    return Run(path, config, _load_params(path / FINAL / PARAMS, config))


def _load_params(path: Path, config: GBAConfig) -> Params:
    names = [f.name for f in fields(Params) if f.name != "W_dec" or config.untied]
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        readable = os.access(path, os.R_OK)
        what = "damaged or not a run's parameters" if readable else "cannot be read"
        raise InputError(f"{path}: {what} ({error})") from None
    M, d = config.width, arrays["b_pre"].size
    shapes = {"W": (M, d), "W_dec": (M, d), "a": (M,), "b": (M,), "b_pre": (d,)}
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            raise InputError(f"{path}: {name} has shape {array.shape}, it should be {shapes[name]}")
        if array.dtype != np.dtype(config.master) or not np.isfinite(array).all():
            raise InputError(f"{path}: {name} should hold finite {config.master} values")
    return Params(**arrays)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
