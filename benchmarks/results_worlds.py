"""The sections of benchmarks/results/README.md on SAELens' synthetic world and on time to quality.

They are made of what saelens_worlds.py and time_to_quality.py wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from results_llm import Table

WORLDS, TIME = "saelens-worlds.json", "time-to-quality.json"
NAMES = {
    "measured": "GBA, measured targets",
    "default": "GBA, default recipe",
    "jumprelu": "JumpReLU of SAELens",
    "batchtopk": "BatchTopK of SAELens",
    "topk": "TopK of SAELens",
    "matryoshka": "Matryoshka of SAELens",
}
COLUMNS = {  # what it is called, and its digits
    "mcc": ("mean cosine", 3),
    "uniqueness": ("uniqueness", 3),
    "f1": ("F1 of gates", 3),
    "l0": ("L0", 2),
    "true_l0": ("active features per row", 2),
    "dead": ("dead, %", 1),
    "explained": ("variance explained", 3),
    "seconds": ("CPU seconds", 0),
}
RANGED = ("mcc", "uniqueness", "f1", "l0")  # with the lowest and the highest seed beside the mean


def sections(folder: Path, table: Table) -> Iterator[str]:
    """Both sections."""
    yield of_worlds(json.loads((folder / WORLDS).read_text(encoding="utf-8")), table)
    yield of_time(json.loads((folder / TIME).read_text(encoding="utf-8")), table)


def of_worlds(data: dict[str, Any], table: Table) -> str:
    """What networks find in SAELens' synthetic world."""
    world, versions = data["world"], data["environment"]
    heads, rows = ["network"], []
    for key, (name, _) in COLUMNS.items():
        heads += [name, "lowest", "highest"] if key in RANGED else [name]
    for name, runs in data["found"].items():
        cells = [NAMES[name] + (f", lr {runs[0]['lr']:g}" if "lr" in runs[0] else "")]
        for key, (_, digits) in COLUMNS.items():
            values = [run[key] for run in runs]
            numbers = [sum(values) / len(values)] + ([min(values), max(values)] if key in RANGED else [])
            cells += [f"{number:.{digits}f}" for number in numbers]
        rows.append(cells)
    return (
        "## SAELens' synthetic world\n\n"
        f"{world['features']} features in d = {world['d']} that are active independently of one another, with "
        f"frequencies from {world['max_prob']:g} to {world['min_prob']:g} by Zipf's law: {data['active']:.2f} per "
        "row.  Features, rows and evaluation are SAELens' (`FeatureDictionary`, `ActivationGenerator`, "
        "`eval_sae_on_synthetic_data`), and its networks are trained by its own loop; the seeds are ours, and all "
        "rows, for all networks, are scaled to unit norm.  All networks have 1024 neurons and saw "
        f"{data['rows']} rows, each once.  SAELens' networks were given the K that is right, and the best of "
        f"{len(data['rates'])} learning rates on another seed ({data['tried_steps']} steps each); for GBA nothing was "
        "set but the number of steps.  Mean cosine is of features and neurons matched one to one.  Uniqueness is the "
        "number of features that are the nearest one of some neuron, per neuron.  F1 compares where a neuron fires "
        f"with where its nearest feature is active.  Means over {data['seeds']} seeds.\n\n"
        f"[{WORLDS}]({WORLDS}) has every number.  `{data['command']} -o FILE` measures them again (SAELens "
        f"{versions['sae_lens']}, torch {versions['torch']}); its first lines say what is SAELens' and what is "
        f"ours.\n\n{table(heads, rows)}"
    )


WAYS = {  # what is measured of a network, and how it is called
    "matched": "{k} active per row in the mean",
    "capped": "at most {k} per row",
    "whole": "all active neurons",
}


def of_time(data: dict[str, Any], table: Table) -> str:
    """How long runs take until they reconstruct as well as TopK does in the end."""
    setting, versions, best = data["setting"], data["environment"], data["best"]
    ways = {way: words.format(k=setting["k"]) for way, words in WAYS.items()}
    heads = ["network", "CPU seconds of the run"]
    for words in ways.values():
        heads += [f"FVU, {words}", f"L0, {words}"]
    for way in data["reached"]:
        for library in best:
            heads += [f"seconds to the FVU of {library}'s TopK, {ways[way]}", "times as fast"]
    rows = []
    for name, looks in data["looks"].items():
        cells = [name, f"{looks[-1]['seconds']:.1f}"]
        for way in ways:
            cells += [f"{looks[-1][f'{way} fvu']:.4f}", f"{looks[-1][f'{way} l0']:.1f}"]
        for reached in data["reached"].values():
            for library, theirs in best.items():
                seconds, whole = reached[library].get(name), data["looks"][theirs][-1]["seconds"]
                cells += ["", ""] if seconds is None else [f"{seconds:.1f}", f"{whole / seconds:.1f}"]
        rows.append(cells)
    rates = " and ".join(f"{lr:g}" for lr in setting["rates"])
    return (
        "## time to quality\n\n"
        "Seconds of one thread until held-out rows are reconstructed as well as by TopK with "
        f"K = {setting['k']} at the end of its run of {setting['steps']} steps.  TopK is that of dictionary_learning, "
        f"by its trainer, and that of SAELens, by its loop, each at the better of the learning rates {rates}.  GBA is "
        f"`--recipe measured` with `--l0 {setting['k']}`; nothing else is set but the number of steps, of which fewer "
        f"make a faster run.  All have {setting['width']} neurons and saw the same batches of {setting['rows']} rows, "
        f"d = {setting['d']}.  Every {setting['look']} steps FVU is measured on {setting['held_out']} other rows, with "
        "the clock stopped.  GBA has somewhat more than K active neurons per row there; to compare at one L0, only the "
        "largest K per row in the mean count, by one threshold, or, stricter, the largest K of each row.  An empty "
        "cell was not reached.\n\n"
        f"[{TIME}]({TIME}) has every measurement.  `{data['command']} -o FILE` repeats them, all programs in turns of "
        f"{setting['look']} steps, so that what else the machine did fell on all of them ({versions['cpu']}, SAELens "
        f"{versions['sae_lens']}, dictionary_learning {versions['versions']['dictionary-learning']}, torch "
        f"{versions['torch']}).\n\n{table(heads, rows)}"
    )
