"""Traces of the oracle on disk, and backends written down as candidates.

A trace is a folder of two files, and so is a candidate: arrays.safetensors, arrays named "STEP/QUANTITY", and
index.json, which says how the steps start and, for a trace, its settings.  format.md describes them.  Everything in a
folder is checked before it is used, and nothing is ever pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from refgba import __version__, gba, model, recipe
from refgba.adam import AdamW
from refgba.backends.base import Backend
from refgba.bias import Buffer
from refgba.config import LARGEST as LARGEST_COUNT
from refgba.config import GBAConfig
from refgba.data import files, store
from refgba.errors import InputError, brief
from refgba.oracle.comparison import TOLERANCE, compare
from refgba.oracle.place import Starts
from refgba.oracle.recording import LARGEST, Trace, record, state_arrays
from refgba.oracle.report import Report
from refgba.oracle.stepwise import QUANTITIES, Value
from refgba.oracle.validation import checked_trace
from refgba.sae import Params, unit_rows
from refgba.types import Array, Dtype

INDEX, ARRAYS = "index.json", "arrays.safetensors"
FORMAT, VERSION = "refgba-trace", 1
FOLDER = (
    f"a trace, or a candidate, is a folder of {ARRAYS}, whose arrays are named like 3/dW, and {INDEX} with at least "
    f'{{"format": "{FORMAT}", "version": {VERSION}, "starts": "trace"}}; see `refgba oracle format`'
)
STARTS: tuple[Starts, ...] = ("trace", "own")

# The settings of a trace unless others are chosen: small, and with adaptations so large that a dozen steps show biases
# at -1 and at 0, and neurons above, at and far below their targets, held and free.
SMALL: dict[str, Any] = {
    "width": 12, "groups": 3, "steps": 12, "batch": 12, "adapt_every": 3, "lr": 0.02, "weight_decay": 0.1, "hold": 0.6,
    "a_init": 0.3, "b_init": -0.2, "gamma_minus": 1.2, "gamma_plus": 1.8, "seed": 11,
}  # fmt: skip


def example(config: GBAConfig, d: int, steps: int | None = None) -> Trace:
    """A trace of the first `steps` steps, or all, on synthetic rows of d dimensions, each of 2 or 3 of 2 d features."""
    law = model.Uniform(2 * d, (2, 3))
    steps = config.steps if steps is None else steps
    return record(config, model.SyntheticModel(law, d, seed=config.seed).draw(0, steps * config.batch).X)


# Settings in whose trace decisions meet their limits exactly: frequencies are counts of 32 rows, and targets and floors
# powers of 2, so that p = p_k and p = floor p_k occur and are exact in every dtype.  form T is 8.5: F is 8.
TIES: dict[str, Any] = {
    "width": 14, "groups": 4, "htf": 0.5, "ltf": 0.0625, "floor": 0.25, "steps": 16, "batch": 8, "adapt_every": 4,
    "form": 0.53125, "lr": 0.02, "hold": 0.5, "a_init": 0.3, "b_init": -0.2, "gamma_minus": 0.4, "gamma_plus": 0.6,
    "seed": 2011,
}  # fmt: skip


def ties() -> Trace:
    """A trace of ties, in 5 dimensions.

    The last group, of three neurons, never fires: their biases begin at -1, and without a positive peak T_k = 0 leaves
    them there.  So their rows stay as they are, and the cosine of two of them, (1, 0, 0, 0, 0) and (1, 1, 1, 1, 0) / 2,
    is `hold` = 1/2 exactly.  K does not divide M: groups have 4, 3, 4 and 3 neurons.
    Of the others some are held and some go on to learn when fitting begins.
    """
    config = recipe.default(5, **TIES)
    start = gba.random_params(config, 5)
    start.b[11:] = -1
    start.W[11:] = np.array([[1, 0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5, 0], [0, 0, 0, 0, 1]])
    rows = model.SyntheticModel(model.Uniform(10, (2, 3)), 5, seed=config.seed).draw(0, config.steps * config.batch)
    return record(config, rows.X, start)


def write_trace(trace: Trace, out: Path, origin: Mapping[str, Any] | None = None) -> None:
    """Write a trace to the new folder `out`, whole or not at all; InputError when it exists or cannot be written.

    origin: of a window of a run, what computed the state before it (`window.Window.origin`).
    """
    quantities = {name: {"shape": list(q.shape), "line": q.line} for name, q in QUANTITIES.items()}
    of_run = {"first": trace.first, "run": dict(origin)} if origin else {}
    _write(trace.arrays, "own", out, {"steps": trace.steps, **of_run, **_settings(trace), "quantities": quantities})


def write_candidate(arrays: Mapping[str, Value], starts: Starts, out: Path, trace: Trace | None = None) -> None:
    """Write arrays to compare with a trace to the new folder `out`, as `write_trace` does.

    With the `trace` that they are for, its settings are written too, and `check` refuses to compare with another.
    """
    _write(arrays, starts, out, _settings(trace) if trace else {})


def _settings(trace: Trace) -> dict[str, Any]:
    return {"d": trace.d, "config": asdict(trace.config)}


def _write(arrays: Mapping[str, Value], starts: Starts, out: Path, more: Mapping[str, Any]) -> None:
    index = {"format": FORMAT, "version": VERSION, "starts": starts, "refgba": __version__, **more}
    # safetensors writes an array's memory as it lies, whatever its strides say
    data = save({name: np.asarray(value, order="C") for name, value in arrays.items()})
    files.write_new_folder(out, {ARRAYS: data, INDEX: json.dumps(index, indent=1).encode() + b"\n"})


def read_trace(path: Path) -> Trace:
    """Read a trace; InputError, naming the file, when it is not whole and sound."""
    index = _index(path)
    try:
        if not isinstance(index.get("config"), dict):
            raise InputError("it has no config: a dump to compare, not a trace?")
        config = GBAConfig.from_json(json.dumps(index["config"]))
        first = _first(index)
    except InputError as error:
        raise InputError(f"{path / INDEX}: {error}") from None
    try:
        return checked_trace(config, _arrays(path / ARRAYS)[0], first)
    except InputError as error:
        raise _named(path / ARRAYS, error) from None


def check(trace: Path, candidate: Path, tolerance: float | None = None) -> Report:
    """`oracle.compare` on files; InputError, naming the file, where they cannot be compared.

    A candidate may repeat settings of its trace ("config", "d"), and then it is compared with no other.
    """
    index = _index(candidate)
    starts = index["starts"]
    arrays, narrow = _arrays(candidate / ARRAYS)
    recorded = read_trace(trace)
    _refuse_other_settings(index, recorded, candidate / INDEX)
    if tolerance is None and narrow:
        tolerance = TOLERANCE["bfloat16"]
    try:
        return compare(recorded, arrays, starts, tolerance)
    except InputError as error:
        raise _named(candidate / ARRAYS, error) from None


def _index(path: Path) -> dict[str, Any]:
    if path.is_file():
        raise InputError(f"{path}: is a file; {FOLDER}")
    if path.is_dir() and not (path / INDEX).exists():
        raise InputError(f"{path / INDEX}: no such file; {FOLDER}")
    index = files.read_json(path / INDEX)
    if index.get("format") != FORMAT or index.get("version") != VERSION:
        raise InputError(f'{path / INDEX}: should say "format": "{FORMAT}", "version": {VERSION}')
    if index.get("starts") not in STARTS:
        raise InputError(
            f'{path / INDEX}: "starts" should be "trace", if every step began with the trace\'s state, or "own", not '
            f"{brief(index.get('starts'))!r}"
        )
    return index


def _first(index: Mapping[str, Any]) -> int:
    """The number of the first recorded step."""
    first = index.get("first", 1)
    if type(first) is not int or not 0 < first <= LARGEST_COUNT:
        raise InputError(f'"first" should be the number of the first recorded step, not {brief(first)!r}')
    return first


def _refuse_other_settings(index: Mapping[str, Any], trace: Trace, path: Path) -> None:
    """InputError where a candidate repeats the settings of another trace; the arithmetic (dtype) is its own."""
    config = index.get("config", {})
    if not isinstance(config, dict):
        raise InputError(f'{path}: "config" should be the trace\'s, an object of settings')
    settings = _settings(trace)
    pairs = [("d", index.get("d", trace.d), trace.d)]
    pairs += [(name, value, settings["config"].get(name)) for name, value in config.items() if name != "dtype"]
    others = [f"{brief(name)} is {brief(value)}, not {right}" for name, value, right in pairs if value != right]
    if others:
        raise InputError(f"{path}: made for another trace: {'; '.join(others[:5])}")


def _arrays(path: Path) -> tuple[dict[str, Value], bool]:
    """The arrays of a file, those in bfloat16 as float32, and whether there are such."""
    if files.regular_size(path) > LARGEST:
        raise InputError(f"{path}: larger than {LARGEST:,} bytes, as no trace is")
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            narrow = [name for name in names if file.get_slice(name).get_dtype() == "BF16"]
            arrays = {name: file.get_tensor(name) for name in names if name not in narrow}
        return arrays | _widened(path, narrow), bool(narrow)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: no such dtype in NumPy
        raise InputError(f"{path}: cannot be read as safetensors of NumPy's dtypes ({brief(error)})") from None


def _widened(path: Path, names: list[str]) -> dict[str, Value]:
    """Arrays in bfloat16, which NumPy lacks, as float32 of the same values."""
    if not names:
        return {}
    data = files.read_file(path, LARGEST)
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])  # safe_open has checked it
    arrays = {}
    for name in names:
        start, end = header[name]["data_offsets"]
        bits = np.frombuffer(data[begin + start : begin + end], "<u2")
        arrays[name] = store.values(bits.astype(np.uint16)).reshape(header[name]["shape"])
    return arrays


def _named(path: Path, error: InputError) -> InputError:
    return error if str(path) in str(error) else InputError(f"{path}: {error}")


# ---- backends as candidates ------------------------------------------------------------------------------------------


def dump(trace: Trace, backend: Backend, dtype: Dtype, starts: Starts = "trace") -> dict[str, Value]:
    """What a backend makes of a trace's rows in a dtype, for `oracle.compare`: all quantities that its contract shows.

    The contract hides the two paths of the gradient of W, W before it is renormalised, and Algorithm 2's decisions.
    """
    config = replace(trace.config, dtype=dtype)
    arrays: dict[str, Value] = {}
    state = backend.restore(_host(config, trace, trace.first))
    for t in trace.numbers:
        if starts == "trace":
            state = backend.restore(_host(config, trace, t))
        for name, value in _step(backend, state, trace.at(t)["rows"]).items():
            arrays[f"{t}/{name}"] = np.array(value)
    return arrays


def _host(config: GBAConfig, trace: Trace, t: int) -> gba.State:
    """The state before step t, in the dtype of `config`."""
    was = trace.before(t)
    params = Params(**{name: was[name] for name in ("W", "a", "b", "b_pre", "W_dec") if name in was})
    optimiser = {
        name: AdamW(_as(config, was[f"m.{name}"]), _as(config, was[f"v.{name}"]), int(was[f"updates.{name}"]))
        for name in params.arrays()
        if name != "b"
    }
    buffer = Buffer(config.width, int(was["left.seen"]))
    buffer.counts, buffer.peaks = was["left.counts"].copy(), was["left.peaks"].copy()
    return gba.State(config, params.astype(config.master), optimiser, buffer, None, was["held"].copy(), t - 1)


def _as(config: GBAConfig, value: Value) -> Array:
    return value.astype(config.master)


def _step(backend: Backend, state: Any, rows: Value) -> dict[str, Any]:
    """The quantities that a backend shows of one step."""
    config, t = state.config, state.t + 1
    x = unit_rows(rows.astype(config.master))
    on_device = backend.put(state, x)
    y, s = backend.encode(state, on_device)
    seen: dict[str, Any] = {"x": x, "y": backend.get(y), "s": backend.get(s)}
    seen |= {"on": seen["y"] > 0, "f": backend.get(backend.decode(state, s))}
    if not (config.untied and recipe.fit_begins(config, t)):  # there the decoder begins within the step
        seen |= {f"d{name}": g for name, g in backend.gradients(state, on_device).arrays().items()}
    metrics = backend.step(state, on_device)
    after = _exported(backend, state)
    seen |= {"loss": np.asarray(float(metrics.loss), config.master)}
    seen |= {name: after[f"left.{name}"] for name in ("seen", "counts", "peaks")}
    if t % config.adapt_every == 0:
        backend.adapt(state)
        after = _exported(backend, state)
    return seen | after


def _exported(backend: Backend, state: Any) -> dict[str, Value]:
    return state_arrays(cast(gba.State, backend.export(state)))
