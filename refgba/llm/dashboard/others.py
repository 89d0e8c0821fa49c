"""The files in which other projects keep what features fire on: SAEDashboard, circuit-tracer and delphi.

    saedashboard     batch-0.json, batch-1.json, ..: SAEDashboard's and Neuronpedia's, of PER_BATCH neurons each
    circuit-tracer   one JSON file per neuron, for its front end
    delphi           every activation of every neuron, as its LatentDataset reads them, in OUT/SITE/

What a survey does not know stays empty: correlations with the model's own neurons, and logits where no model was given.
Windows, not whole contexts, are written; tokens that the harvest left out have the activation 0.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refgba.data.files import output_folder
from refgba.errors import InputError
from refgba.formats.dictionary import Dictionary
from refgba.llm.dashboard.examples import Examples
from refgba.llm.dashboard.features import Features
from refgba.llm.dashboard.logits import BINS as LOGIT_BINS
from refgba.llm.dashboard.logits import Effects
from refgba.llm.dashboard.survey import activity, edges
from refgba.llm.records import Harvest
from refgba.runs.judging import Counting, silent
from refgba.types import Array, Float64

PER_BATCH = 128  # A batch of SAEDashboard has this many neurons.
ALIGNED = 3  # So many of the model's neurons are named, those that a decoder row is nearest to.
BARS = 50  # circuit-tracer's histogram has this many bars of equal width.
PERCENTILES = 99
SPLITS = 5  # delphi reads this many files.
PIECE = 2**20  # So many tokens are written at a time.

Writer = Callable[[Features, Examples, int, Effects | None, Path], object]  # it writes one neuron to a folder


def write_features(
    features: Features, out: Path | str, format: str, effects: Effects | None = None, counting: Counting = silent
) -> None:
    """Write what neurons fire on to the new folder `out`, whole or not at all, in one of WRITERS.

    effects: what each neuron does to logits.  InputError for a folder that is not empty, and for another format.
    """
    if format not in WRITERS:
        raise InputError(f"unknown format {format!r}; the formats are {', '.join(FORMATS)}")
    with output_folder(Path(out)) as folder:
        for neurons, examples in features.batches(counting):
            for m in neurons.tolist():
                WRITERS[format](features, examples, m, effects, folder)


def _rounded(values: Array) -> list[float]:
    """Numbers to five digits after the point, as SAEDashboard writes them."""
    return [round(float(value), 5) for value in values]


def _activations(examples: Examples, e: int) -> Array:
    values: Array = np.nan_to_num(examples.activation[e, : examples.length[e]])
    return values


def _parts(examples: Examples, neuron: int) -> list[tuple[int, list[int]]]:
    """The examples of a neuron by part: 0 for the highest, then the quantiles."""
    mine = examples.of(neuron)
    part = examples.part[mine]
    return [(int(q), (mine.start + np.flatnonzero(part == q)).tolist()) for q in np.unique(part)]


# ---- SAEDashboard, Neuronpedia ---------------------------------------------------------------------------------------


def saedashboard(features: Features, examples: Examples, m: int, effects: Effects | None, folder: Path) -> None:
    """Add a neuron to its batch file: the first of a batch begins it, the last ends it.

    Neurons come in rising order.  How many windows are held at a time has no say in which file they go to.
    """
    about = features.harvest.store.about
    batch: dict[str, Any] = {
        "model_id": Path(str(about.get("model"))).name,
        "layer": about.get("layer"),
        "sae_set": features.path.name,
        "sae_id_suffix": None,
        "features": [],
    }
    head, tail = json.dumps(batch)[:-2], "]}"
    first, last = m % PER_BATCH == 0, (m + 1) % PER_BATCH == 0 or m + 1 == features.M
    text = json.dumps(_feature(features, examples, m, effects))
    with (folder / f"batch-{m // PER_BATCH}.json").open("w" if first else "a", encoding="utf-8") as file:
        file.write((head if first else ", ") + text + (tail if last else ""))


def _feature(features: Features, examples: Examples, m: int, effects: Effects | None) -> dict[str, Any]:
    v = features.dictionary.W_dec[m]
    aligned = np.argsort(-v, kind="stable")[:ALIGNED]
    held = np.flatnonzero(features.survey.histogram[m])
    middle = (edges()[:-1] + edges()[1:]) / 2
    settings = features.harvest.settings
    feature: dict[str, Any] = {
        "feature_index": m,
        "neuron_alignment_indices": aligned.tolist(),
        "neuron_alignment_values": _rounded(v[aligned]),
        "neuron_alignment_l1": _rounded(np.abs(v[aligned]) / max(np.abs(v).sum(), 1e-30)),
    }
    for name in ("correlated_neurons", "correlated_features"):
        feature |= {f"{name}_indices": [], f"{name}_l1": [], f"{name}_pearson": []}
    for name, pairs in (
        ("neg", [] if effects is None else effects.suppressed(m)),
        ("pos", [] if effects is None else effects.promoted(m)),
    ):
        feature[f"{name}_str"] = [effects.names[i] for i, _ in pairs] if effects is not None else []
        feature[f"{name}_values"] = [round(value, 5) for _, value in pairs]
    feature |= {
        "frac_nonzero": float(features.frequency[m]),
        "freq_hist_data_bar_values": _rounded(middle[held]),
        "freq_hist_data_bar_heights": features.survey.histogram[m, held].tolist(),
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "n_prompts_total": int(features.harvest.context_starts[-1]),
        "n_tokens_in_prompt": settings.get("context", 0),
        "dataset": ", ".join(settings.get("text", {}).get("paths", [])),
        "decoder_weights_dist": [],
        "activations": [a for q, part in _parts(examples, m) for a in _sequences(features, examples, q, part)],
        "vector": v.tolist(),
    }
    if effects is not None:
        low, high = effects.low_value[m, 0], effects.high_value[m, 0]
        step = (high - low) / LOGIT_BINS
        feature["logits_hist_data_bar_heights"] = effects.histogram[m].tolist()
        feature["logits_hist_data_bar_values"] = _rounded(low + step * (np.arange(LOGIT_BINS) + 0.5))
    return feature


def _sequences(features: Features, examples: Examples, part: int, chosen: list[int]) -> list[dict[str, Any]]:
    """The examples of a part as SAEDashboard has them: its top ones are from -1 to the peak and hold -1."""
    values = examples.value[chosen]
    limits = (-1.0, float(values.max()), -1.0)
    if part:
        limits = (float(values.min()), float(values.max()), 1 / features.survey.choice.quantiles)
    return [
        dict(zip(("bin_min", "bin_max", "bin_contains"), limits, strict=True))
        | {
            "tokens": examples.tokens(e),
            "values": _rounded(_activations(examples, e)),
            "qualifying_token_index": examples.peak(e),
        }
        for e in chosen
    ]


# ---- circuit-tracer --------------------------------------------------------------------------------------------------


def circuit_tracer(features: Features, examples: Examples, m: int, effects: Effects | None, folder: Path) -> None:
    """Write the file of a neuron."""
    named = f"{Path(str(features.harvest.store.about.get('model'))).name}/{features.harvest.settings['site']}"
    traced = _traced(features, examples, m, effects, named)
    (folder / f"{m}.json").write_text(json.dumps(traced), encoding="utf-8")


def _traced(features: Features, examples: Examples, m: int, effects: Effects | None, named: str) -> dict[str, Any]:
    limits, counts = distribution(features, m)
    low, high = (float(limits[0]), float(limits[-1])) if len(limits) else (0.0, 0.0)
    histogram, percentiles = np.zeros(BARS), np.zeros(0)
    if len(limits):
        histogram = np.diff(np.interp(np.linspace(low, high, BARS + 1), limits, counts))
        percentiles = np.interp(np.arange(1, PERCENTILES + 1) / 100 * counts[-1], counts, limits)
    names = ["Top activations"] + [f"Quantile {q}" for q in range(1, features.survey.choice.quantiles + 1)]
    return {
        "transcoder_id": f"{named}/{features.path.name}",
        "index": m,
        "examples_quantiles": [
            {"quantile_name": names[q], "examples": [_example(examples, e) for e in part]}
            for q, part in _parts(examples, m)
        ],
        "top_logits": [] if effects is None else [effects.names[i] for i, _ in effects.promoted(m)],
        "bottom_logits": [] if effects is None else [effects.names[i] for i, _ in effects.suppressed(m)],
        "act_min": low,
        "act_max": high,
        "quantile_values": percentiles.tolist(),
        "histogram": histogram.tolist(),
        "activation_frequency": float(features.frequency[m]),
    }


def _example(examples: Examples, e: int) -> dict[str, Any]:
    return {
        "tokens": examples.tokens(e),
        "tokens_acts_list": _rounded(_activations(examples, e)),
        "train_token_ind": examples.peak(e),
        "is_repeated_datapoint": False,  # passages that end in the same tokens have been counted once
    }


def distribution(features: Features, neuron: int) -> tuple[Float64, Float64]:
    """Limits (n,) of a neuron's activations and how many are up to each, from its histogram and its peak.

    Between two limits, which are a quarter of a doubling apart, activations are taken to be spread evenly.
    """
    counts = features.survey.histogram[neuron].astype(np.float64)
    held = np.flatnonzero(counts)
    if not len(held):
        return np.zeros(0), np.zeros(0)
    limits = edges()[held[0] : held[-1] + 2].copy()
    limits[-1] = max(float(features.peak[neuron]), limits[-2])
    return limits, np.concatenate([[0], np.cumsum(counts[held[0] : held[-1] + 1])])


WRITERS: dict[str, Writer] = {"saedashboard": saedashboard, "circuit-tracer": circuit_tracer}
FORMATS = (*WRITERS, "delphi")


# ---- delphi ----------------------------------------------------------------------------------------------------------


def write_delphi(
    dictionary: Dictionary, harvest: Harvest, out: Path | str, splits: int = SPLITS, counting: Counting = silent
) -> int:
    """Write every activation of every neuron to the new folder `out`, in one pass; returns how many there are.

    delphi reads it as LatentDataset(out, ..., modules=[site]).  Its float16 cannot hold what is beyond 65504: that is
    refused, with an InputError.  Contexts are filled up to one length with a special token where there is one, where
    no neuron is said to fire.  What is held in memory is a block of rows; the rest goes through temporary files.
    """
    M, settings = len(dictionary.W_enc), harvest.settings
    limits = np.linspace(0, M, min(splits, M) + 1).astype(np.int64)
    contexts = int(harvest.context_starts[-1])
    length = max(int(np.diff(harvest.tokens(k).starts).max()) for k in range(len(harvest.files)))
    small = max(contexts, length, int(np.diff(limits).max())) <= 2**16
    dtype, counts = np.dtype("<u2" if small else "<u4"), [0] * (len(limits) - 1)
    with output_folder(Path(out)) as folder, ExitStack() as stack, counting("reading rows", len(harvest)) as tick:
        module = folder / settings["site"]
        module.mkdir()
        spools = [
            tuple(stack.enter_context((module / f"{k}.{name}").open("wb+")) for name in ("locations", "activations"))
            for k in range(len(counts))
        ]
        for block in activity(dictionary, harvest):
            if len(block.value) and block.value.max() > np.finfo(np.float16).max:
                raise InputError(f"an activation of {block.value.max():.6g} is beyond what delphi's float16 can hold")
            tokens = harvest.tokens(block.shard)
            context = harvest.context_starts[block.shard] + tokens.context[block.place]
            split = np.searchsorted(limits, block.neuron, side="right") - 1
            where = np.stack([context, tokens.position[block.place], block.neuron - limits[split]], axis=1)
            for k in np.unique(split).tolist():
                mine = split == k
                spools[k][0].write(where[mine].astype(dtype).tobytes())
                spools[k][1].write(block.value[mine].astype("<f2").tobytes())
                counts[k] += int(mine.sum())
            tick(block.rows)
        for k, (low, high) in enumerate(zip(limits[:-1].tolist(), limits[1:].tolist(), strict=True)):
            shapes = {"locations": [counts[k], 3], "activations": [counts[k]], "tokens": [contexts, length]}
            codes = {"locations": "U16" if small else "U32", "activations": "F16", "tokens": "I32"}
            with (module / f"{low}_{high - 1}.safetensors").open("wb") as file:
                file.write(_header(shapes, codes))
                for spool in spools[k]:
                    spool.seek(0)
                    shutil.copyfileobj(spool, file)
                _write_tokens(harvest, length, file)
        for spool in (spool for pair in spools for spool in pair):
            Path(spool.name).unlink()
        (module / "config.json").write_text(json.dumps(_config(harvest, length, len(counts)), indent=4), "utf-8")
    return sum(counts)


SIZES = {"U16": 2, "U32": 4, "F16": 2, "I32": 4}


def _header(shapes: dict[str, list[int]], codes: dict[str, str]) -> bytes:
    """How a .safetensors file with these tensors, one after another, begins."""
    entries, offset = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * SIZES[codes[name]]
        entries[name] = {"dtype": codes[name], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_tokens(harvest: Harvest, length: int, file: BinaryIO) -> None:
    """All contexts as rows of `length` ids."""
    filler = min(harvest.special, default=0)
    for shard in range(len(harvest.files)):
        tokens = harvest.tokens(shard)
        step = max(1, PIECE // length)
        for c in range(0, tokens.contexts, step):
            starts = tokens.starts[c : c + step + 1]
            sizes = np.diff(starts)
            rows = np.full((len(sizes), length), filler, "<i4")
            rows[np.arange(length) < sizes[:, None]] = tokens.ids[starts[0] : starts[-1]]
            file.write(rows.tobytes())


def _config(harvest: Harvest, length: int, splits: int) -> dict[str, Any]:
    """delphi's config.json.  Fields of a data set say where the text was; none is loaded, since files have `tokens`."""
    settings = harvest.settings
    text = settings.get("text", {})
    return {
        "dataset_repo": ", ".join(text.get("paths", [])),
        "dataset_split": "",
        "dataset_name": "",
        "dataset_column": text.get("column", "text"),
        "batch_size": settings.get("batch", 1),
        "cache_ctx_len": length,
        "n_tokens": int(sum(harvest.tokens(k).starts[-1] for k in range(len(harvest.files)))),
        "n_splits": splits,
        "model_name": settings["model"],
    }
