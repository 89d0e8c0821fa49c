"""Evaluate a network over activations in one streaming pass, and against the true features where they are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors

from refgba import backends, formats
from refgba.backends.base import AnyConfig, AnyParams, Backend
from refgba.backends.comm import ALONE, Ranks
from refgba.baselines import METHODS
from refgba.config import Settings
from refgba.data import files, outputs
from refgba.data.activations import Activations, open_activations
from refgba.data.remarks import remarks
from refgba.data.store import load_matrix
from refgba.data.survey import Check, refuse_share
from refgba.errors import InputError, brief
from refgba.identifiability import partners
from refgba.metrics import frr, matched_recovery, per_group
from refgba.runs import folder
from refgba.runs.accumulate import Evaluation, quantiles
from refgba.runs.copies import ROWS, Copies, copies
from refgba.runs.held_out import HeldOut
from refgba.runs.parallel import require_agreement
from refgba.runs.passes import Dictionary as Dictionary
from refgba.runs.passes import Pass, added, passing, passing_dictionary
from refgba.types import Array, Dtype, Float64, Int64

THRESHOLDS = (0.8, 0.9)  # The cosines from which the paper calls a feature recovered.

# The arrays of every evaluation, and those of one that kept top rows.
ARRAYS = ("frequency", "peak", "mean", "std", "z_score", "l0_histogram")
TOP = ("top_rows", "top_values")
HISTOGRAM = ("activation_counts", "activation_end")

ENTRIES = 2**21  # This many neurons times rows are worked on at once: 16 MB in float64, or more (`_evaluate`).
CHUNK = 2048  # rows read at a time to be judged
SAMPLE = 65_536  # rows of its own data, at most, that a run is judged on when it has been trained

Tick: TypeAlias = Callable[[int], object]
Counting: TypeAlias = Callable[[str, int], AbstractContextManager[Tick]]  # from a label and a number of rows to come


def evaluate(
    params: AnyParams,
    config: AnyConfig,
    backend: Backend,
    chunks: Iterable[Array],
    tick: Tick = id,
    top: int = 0,
    bins: int = 0,
    centre: Float64 | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Everything that `Evaluation` measures, on the rows of `chunks` (rows, d), each scaled to unit norm.

    centre: (d,) is subtracted first, as in training (`refgba.data.centre`).  Calls `tick` with the number of rows of
    each chunk done.  Keeps the `top` highest rows of each neuron, counted from 0 in the order of the chunks, and
    histograms of so many bins.  ranks: where several share the network, params are of this rank's neurons, and rank 0
    gets the evaluation of all of them.  Raises InputError for a row of zeros, values that are not finite, or top < 0.
    """
    forward = passing(params, config, backend, centre, ranks)
    evaluation = Evaluation(config.width, params.W.shape[1], top, bins, ranks)
    return _evaluate(
        evaluation, -(-config.width // ranks.size), forward, ranks.relayed(iter(chunks)), tick, config.batch
    )


def evaluate_dictionary(
    dictionary: Dictionary, chunks: Iterable[Array], tick: Tick = id, top: int = 0, bins: int = 0
) -> Evaluation:
    """The same of any dictionary, on the rows of `chunks` (rows, d) as it prepares them."""
    M, d = dictionary.W_enc.shape
    return _evaluate(Evaluation(M, d, top, bins), M, passing_dictionary(dictionary), chunks, tick)


def _evaluate(
    evaluation: Evaluation, M: int, forward: Callable[[Array], Pass], chunks: Iterable[Array], tick: Tick,
    batch: int = 1,
) -> Evaluation:  # fmt: skip
    """Evaluate piece by piece; M: the most neurons that a rank has."""
    for chunk in chunks:
        for piece in pieces(chunk, M, batch):
            evaluation.update(*forward(piece)[:3])
        tick(len(chunk))
    evaluation.gather()
    return evaluation


def pieces(chunk: Array, M: int, batch: int = 1) -> Iterator[Array]:
    """The rows (L, d), no more at a time than take the memory of a training step, or than ENTRIES allow.

    A step holds W, its gradient and its moments, (M, d) each, beside the activity of its batch: so d rows are no more.
    """
    size = max(batch, chunk.shape[1], ENTRIES // M)
    return (chunk[l : l + size] for l in range(0, len(chunk), size))


def find_copies(
    forward: Callable[[Array], Pass], V: Array, D: Array, frequency: Float64, config: Settings | None,
    chunks: Iterator[Array],
) -> Copies | None:  # fmt: skip
    """As `refgba.runs.copies.copies`, by what `passing` made, on at most ROWS rows of the chunks (any, d)."""
    groups = None if config is None else METHODS[config.method].groups(config)
    small = chain.from_iterable(pieces(x, len(V)) for x in _first(ROWS, chunks))
    return copies(V, D, frequency, groups, map(forward, small))


@contextmanager
def trained(run: Path) -> Iterator[None]:
    """While a run that has just been trained is judged: an error for want of memory says that the run is complete."""
    try:
        yield
    except MemoryError as error:
        again = f"`refgba evaluate {files.quoted(run)}` judges it where there is more"
        done = f"training is done and {run / folder.FINAL} complete: {again}"
        raise MemoryError(f"{error}; {done}" if str(error) else done) from None


# ---- the result of an evaluation, and its file -----------------------------------------------------------------------


def result(evaluation: Evaluation, config: Settings | None) -> dict[str, Any]:
    """The object that `--json` promises: `Evaluation.summary`, `l0_distribution` and, where there are any, `groups`.

    Raises InputError as `Evaluation.summary`, or if the config is that of a network with other neurons.
    """
    counted = {"frequency": evaluation.frequency, "l0_histogram": evaluation.l0_histogram}
    return evaluation.summary() | summarise(counted, config)


def summarise(arrays: Mapping[str, npt.NDArray[Any]], config: Settings | None) -> dict[str, Any]:
    """The part of `result` that `frequency` and `l0_histogram` determine: not FVU, explained variance and loss."""
    p, h = arrays["frequency"], arrays["l0_histogram"]
    N = int(h.sum())
    l0 = float(np.rint(p * N).sum() / N)  # from whole counts, to the bit as `Evaluation` has it
    summary: dict[str, Any] = {
        "l0": l0,
        "activation_fraction": l0 / len(p),
        "dead": float(np.mean(p == 0)),
        "rows": N,
        "l0_distribution": quantiles(h),
    }
    groups = None if config is None else METHODS[config.method].groups(config)
    if groups is not None:
        summary["groups"] = [asdict(g) for g in per_group(p, groups.group, groups.target)]
    return summary


def arrays(evaluation: Evaluation, row: Callable[[Int64], Int64] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The measurements of each neuron, by name.

    `frequency`, `peak`, `mean`, `std` and `z_score`, each (M,) float64; `l0_histogram` (M + 1,) int64; and if top rows
    were kept `top_rows` (M, top) int64, -1 where there is none, and `top_values` (M, top) float64; and if histograms
    were, those of `refgba.runs.histograms`: `activation_counts` and `activation_end`.  Where rows of the data were left
    out, `row` turns numbers of rows in the evaluation into those in the data.  InputError if no row was
    seen.
    """
    names = (*ARRAYS, *(TOP if evaluation.top else ()), *(HISTOGRAM if evaluation.bins else ()))
    # safetensors writes an array's memory as it lies, whatever its strides say: a transpose would be scrambled.
    measured = {name: np.ascontiguousarray(getattr(evaluation, name)) for name in names}
    if row is not None and evaluation.top:
        top = measured["top_rows"]
        measured["top_rows"] = np.where(top < 0, top, row(top))
    return measured


def refuse_output(path: Path) -> None:
    """InputError, naming the path, unless `save` could make a new file of that name."""
    files.refuse_new_file(path)
    outputs.refuse_suffix(path, ".safetensors")


def save(
    evaluation: Evaluation, path: Path, about: dict[str, str], row: Callable[[Int64], Int64] | None = None
) -> None:
    """Write `arrays` to the safetensors file `path`, with `about` as its metadata.

    The file appears whole or not at all, in folders that are made: InputError if it cannot be written or no row was
    seen.
    """
    text = {name: value.encode(errors="backslashreplace").decode() for name, value in about.items()}  # names of files
    files.write_output(path, to_safetensors(arrays(evaluation, row), metadata=text))


def load(
    path: Path, config: Settings | None = None
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any], dict[str, str]]:
    """Read what `save` wrote: the arrays by name, what `summarise` makes of them, and the metadata.

    InputError, naming the file, for one that is damaged or of another network than that of the config.
    """
    files.regular_size(path)
    try:
        with safe_open(path, framework="numpy") as file:
            names = [*ARRAYS, *(name for name in TOP if name in set(file.keys()))]
            measured, about = {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except Exception as error:  # a SafetensorError, or any error of NumPy about a dtype that it does not know
        raise InputError(f"{path}: not a file of `refgba evaluate -o`, or damaged ({brief(error)})") from None
    check_arrays(str(path), measured, config)
    return measured, summarise(measured, config), about


def check_arrays(name: str, arrays: Mapping[str, npt.NDArray[Any]], config: Settings | None) -> None:
    """InputError, which begins with `name`, unless these arrays could be what the function `arrays` returns.

    All of ARRAYS have to be there, with finite values, and to fit each other and the config.
    """
    missing = [array for array in ARRAYS if array not in arrays]
    if missing:
        raise InputError(f"{name}: the evaluation has no {missing[0]}")
    M = arrays["frequency"].size
    shapes: dict[str, tuple[int, ...]] = {**dict.fromkeys(ARRAYS, (M,)), "l0_histogram": (M + 1,)}
    if "top_rows" in arrays:
        shapes["top_rows"] = (M, arrays["top_rows"].shape[-1] if arrays["top_rows"].ndim else 0)
    for array, shape in shapes.items():
        if arrays[array].shape != shape or not M:
            raise InputError(f"{name}: {array} has shape {arrays[array].shape}, it should be {shape}")
        if not np.isfinite(arrays[array]).all():
            raise InputError(f"{name}: {array} holds values that are not finite")
    if arrays["l0_histogram"].min() < 0 or not 0 < arrays["l0_histogram"].sum() < 2**32:
        raise InputError(f"{name}: l0_histogram should count at least one row")
    if arrays["frequency"].min() < 0 or arrays["frequency"].max() > 1:
        raise InputError(f"{name}: frequency should lie in [0, 1]")
    if config is not None and config.width != M:
        raise InputError(f"{name}: the evaluation has {M} neurons, the run {config.width}: it is of another network")


# ---- against the truth -----------------------------------------------------------------------------------------------


def load_truth(path: Path, d: int) -> Array:
    """True features V (n, d) of a store, float64; InputError as `open_store`, or for rows without a direction."""
    V = load_matrix(path, d)
    norm = np.linalg.norm(V, axis=1)
    bad = np.flatnonzero(~((norm > 0) & np.isfinite(norm)))
    if bad.size:
        raise InputError(f"{path}: row {bad[0]} is zero or not finite; every feature needs a direction")
    return V


def recovery(W: Array, V: Array) -> dict[str, Any]:
    """FRR of the neurons W (M, d) against the true features V (n, d), one-to-one recovery, and e (section 5).

    e is None where there are fewer neurons than features.
    """
    return {
        "frr": {str(tau): frr(W, V, tau) for tau in THRESHOLDS},
        "one_to_one": {str(tau): matched_recovery(W, V, tau) for tau in THRESHOLDS},
        "e": partners(W, V).e if len(W) >= len(V) else None,
    }


# ---- what is named by a path -----------------------------------------------------------------------------------------


@contextmanager
def silent(_label: str, _rows: int) -> Iterator[Tick]:
    """A `Counting` that shows nothing."""
    yield id


@dataclass(frozen=True)
class Judged:
    """A network judged on data.

    result: what `--json` promises, with what `Check.record` says of the rows, and the recovery where the true features
    are known.  features: the directions (M, d) that its neurons stand for.  check: knows which rows of the data were
    left out.  held_out: the numbers in the data of rows that were held out of them, if only these were judged.  copies:
    neurons that share a feature, where these were asked for and found; their summary is in the result, too.
    """

    evaluation: Evaluation
    result: dict[str, Any]
    features: Array
    check: Check
    held_out: Int64 | None = None
    copies: Copies | None = None

    def row(self, index: Int64) -> Int64:
        """The numbers in the data of rows given by their numbers among those judged."""
        rows = self.check.row(index)
        return rows if self.held_out is None else self.held_out[rows]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """`arrays` of the evaluation, with the numbers that rows have in the data."""
        return arrays(self.evaluation, self.row)

    def remarks(self) -> Iterator[str]:
        """What a user should know of rows that are not there yet or were left out, and of rows near zero."""
        if self.check.store.unfinished is not None:
            yield self.check.store.unfinished
        yield from remarks(**self.result)


def judge(
    network: Path,
    data: Path | Activations,
    backend: str | None = None,
    dtype: Dtype | None = None,
    drop_zero_rows: bool = False,
    top: int = 0,
    truth: Path | None = None,
    most: int | None = None,
    counting: Counting = silent,
    drop_below: float = 0.0,
    bins: int = 0,
    ranks: Ranks = ALONE,
    copied: bool = False,
) -> Judged:
    """Evaluate a run, a checkpoint or a dictionary on data, or on its first `most` rows.

    data: a path, or reopened activations of which the rows held out are judged.
    backend: numpy if it is not named.  dtype: that of the run if it is not named.  truth: the file of the true features
    (n, d).  drop_below: rows are left out if their norm is less than this share of the median norm of the rows that are
    read; above 0 they are read twice.  InputError, before any row is judged, for what cannot be read or does not fit,
    and for a dictionary with a backend or a dtype, which it does not take; and for rows that `Check` refuses.  ranks:
    each judges its own neurons of a run or a checkpoint, on rows that rank 0 alone reads, and rank 0 gets what was
    measured of all of them; all of them get the result.  copied: whether to look for neurons that share a feature, on
    one rank alone.
    """
    config: AnyConfig | None = None
    refuse_share(drop_below)
    if ranks.size > 1 and (truth is not None or formats.is_dictionary(network)):
        what = f"{network}: a dictionary is judged" if truth is None else "--truth is compared with all neurons"
        raise InputError(f"{what} in one process, not on {ranks.size} ranks: start it without mpiexec")
    if formats.is_dictionary(network):
        if backend is not None or dtype is not None:
            raise InputError(
                f"{network}: a dictionary is evaluated with NumPy in its own dtype, without --backend, --dtype"
            )
        dictionary = formats.read(network)
        W, D, master = dictionary.W_dec, dictionary.W_dec, str(dictionary.W_dec.dtype)
    else:
        opened = folder.open_network(network, ranks)
        require_agreement(ranks, {"network": opened.state["sha256"]})
        config = opened.config if dtype is None else replace(opened.config, dtype=dtype)
        name = backend or "numpy"
        ranks.first(lambda: backends.load_for(name, config, trains=False) and None)  # which compiles for all
        engine = backends.load_for(name, config, trains=False)
        backends.refuse_ranks(name, engine, config, ranks)
        W, D, master = opened.params.V, added(opened.params), config.master
    activations = open_activations(data, W.shape[1]) if isinstance(data, Path) else data
    held_out = None if isinstance(data, Path) else data.held_out
    recovered: dict[str, Any] = {} if truth is None else recovery(W, load_truth(truth, W.shape[1]))
    total = len(activations) if held_out is None else len(held_out)
    rows = total if most is None else min(most, total)
    median, check = None, Check(activations.store, master, drop_zero_rows)
    if drop_below and held_out is None and ranks.rank == 0:
        with counting("measuring norms", rows) as tick:
            for x in _first(rows, check.chunks(activations, CHUNK)):
                tick(len(x))
        median = check.sizes.median()
        check = Check(activations.store, master, drop_zero_rows, drop_below * (median or 0))

    def read(check: Check, rows: int) -> Iterator[Array]:
        given = check.chunks(activations, CHUNK) if held_out is None else map(check, activations.held(CHUNK))
        return _first(rows, given)

    chunks = read(check, rows)
    with counting("evaluating", rows) as tick:
        if config is None:
            evaluation = evaluate_dictionary(dictionary, chunks, tick, top, bins)
        else:
            evaluation = evaluate(opened.params, config, engine, chunks, tick, top, bins, opened.centre, ranks)
    try:
        judged = ranks.first(lambda: result(evaluation, config) | check.record(drop_below, median) | recovered)
    except InputError as error:
        raise InputError(f"{activations.store.path}: {error}") from None
    found = None
    if copied and ranks.size == 1:
        again = read(Check(activations.store, master, drop_zero_rows, check.smallest_kept), min(rows, ROWS))
        forward = (
            passing_dictionary(dictionary) if config is None else passing(opened.params, config, engine, opened.centre)
        )
        found = find_copies(forward, W, D, evaluation.frequency, config, again)
        judged["copies"] = None if found is None else found.summary
    return Judged(evaluation, judged, W, check, held_out, found)


def judge_trained(
    path: Path, data: Activations, backend: Backend, held_out: HeldOut | None = None, counting: Counting = silent,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:  # fmt: skip
    """What a run that has just been trained does on a sample of its own data, at most SAMPLE rows; for `train`.

    `held_out` in it is the summary of what the run does on the rows held out, None where there are none.  ranks: those
    that trained it, each of which judges its own neurons; all of them get the result.
    """
    network = folder.open_network(path, ranks)

    def over(label: str, rows: int, chunks: Iterator[Array]) -> Evaluation:
        with counting(label, min(rows, SAMPLE)) as tick, trained(path):
            return evaluate(network.params, network.config, backend, chunks, tick, centre=network.centre, ranks=ranks)

    evaluation = over("evaluating", len(data), data.sample(SAMPLE, CHUNK))
    others = None if held_out is None else over("held out", held_out.rows, held_out.chunks(SAMPLE, CHUNK))

    def summed() -> dict[str, Any]:
        on_others = None if others is None else result(others, network.config)
        if on_others is not None:
            on_others.pop("groups", None)
        return trained_result(evaluation, network, path) | {folder.HELD_OUT: on_others}

    return ranks.first(summed)


def trained_result(evaluation: Evaluation, network: folder.Network, path: Path) -> dict[str, Any]:
    """What `train` and `demo` promise under `--json` of the run in the folder `path`."""
    about = {"steps": network.state["step"], "seconds": network.seconds, "run": str(path)}
    return result(evaluation, network.config) | about


def _first(rows: int, chunks: Iterator[Array]) -> Iterator[Array]:
    """So many rows of the chunks (any, d)."""
    for x in chunks:
        yield x[:rows]
        rows -= len(x)
        if rows <= 0:
            return
