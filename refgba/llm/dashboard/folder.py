"""The page: a folder that opens from disk, with neither server nor network.

    index.html       the table of all neurons, and the script that shows one
    neurons-0.js ..  of each PER_FILE neurons what is shown of them, loaded when one of them is looked at

Data are deflated JSON in base64, which no HTML parser can mistake for markup, and text from models and files goes into
the page as text alone.  The page's own policy forbids it to load anything from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refgba.data.files import output_folder, refuse_full_folder
from refgba.errors import InputError
from refgba.llm.dashboard.examples import Examples
from refgba.llm.dashboard.features import Features, fingerprint, open_dictionary
from refgba.llm.dashboard.logits import Effects
from refgba.llm.dashboard.survey import LOWEST_OCTAVE, PER_OCTAVE
from refgba.llm.matching import origin_of, refuse_other_site
from refgba.llm.records import Harvest, open_harvest
from refgba.report.likeness import nearest
from refgba.report.neurons import deflated, float_words, packed
from refgba.report.page import Html, Section, data_script, element, join, json_text, page, pager
from refgba.report.words import percent, rounded
from refgba.runs.judging import Counting, silent
from refgba.sae import unit_rows
from refgba.types import Array, Float64, Int64

PER_FILE = 64  # A file holds this many neurons.
NEAR = 6  # So many neighbours are shown.
SHOWN = 6  # The table shows this many tokens of a neuron.
ABSENT = 2**32 - 1

WHICH = {
    "": "all", "alive": "that fired", "over": "over target", "half": "on over half of the rows", "dead": "never fired",
}  # fmt: skip


class Near(NamedTuple):
    """Of each neuron the nearest decoder directions: numbers and cosines, (M, any) each."""

    number: Int64
    cosine: Float64


def write_dashboard(
    features: Features, out: Path | str, effects: Effects | None = None, other: Path | str | None = None,
    counting: Counting = silent,
) -> None:  # fmt: skip
    """Write the page of a network's neurons to the new folder `out`.

    effects: what each neuron does to logits.  other: another network of the same d, such as another seed's run, in
    which each neuron's nearest is looked up.  InputError for a folder that is not empty, and as `directions`.
    """
    out, other = Path(out), None if other is None else Path(other)
    refuse_full_folder(out)
    V = _float32_rows(features.dictionary.W_dec)
    agreeing = None if other is None else Near(*nearest(V, _float32_rows(directions(other, features.harvest)), 1))
    near = Near(*nearest(V, None, NEAR))
    with output_folder(out) as folder:
        words: dict[str, int] = {}
        tokens = np.full((features.M, SHOWN), ABSENT, np.uint32)
        for neurons, examples in features.batches(counting):
            for m in neurons.tolist():
                texts = _peaks(examples, m)
                tokens[m, : len(texts)] = [words.setdefault(text, len(words)) for text in texts]
            for k, part in _files(neurons):
                text = json.dumps(_entries(features, examples, part, near, agreeing, effects), separators=(",", ":"))
                mode = "a" if part[0] % PER_FILE else "w"
                with (folder / f"neurons-{k}.js").open(mode, encoding="ascii") as file:
                    file.write(f'neuronFile({k}, "{deflated([text.encode()])}");\n')
        index = _page(features, tokens, list(words), near, agreeing, other, effects is not None)
        (folder / "index.html").write_text(index, encoding="utf-8", errors="backslashreplace")


def is_of(page: Path, network: Path, store: Path) -> bool:
    """Whether a page, by its fingerprint, shows this network on this store as both are now.

    False for a page of an earlier version, which has none.  InputError for a network or a store that cannot be read.
    """
    dictionary, _ = open_dictionary(network)
    harvest = open_harvest(store, dictionary.W_enc.shape[1])
    try:
        return fingerprint(dictionary, harvest).encode() in page.read_bytes()
    except OSError as error:
        raise InputError(f"{page}: cannot be read ({error.strerror or error})") from None


def directions(other: Path, harvest: Harvest) -> Array:
    """Decoder rows (any, d) of another network; InputError for one of another d or site than that of the store."""
    V, d = open_dictionary(other)[0].W_dec, harvest.store.d
    if V.shape[1] != d:
        raise InputError(f"{other}: is for rows of d = {V.shape[1]}, not {d}")
    refuse_other_site(origin_of(other), harvest, other)
    return V


def _float32_rows(V: Array) -> Array:
    """Rows of unit norm in float32, which is exact enough to rank cosines; rows of zeros stay."""
    return unit_rows(V, otherwise=V).astype(np.float32)


def _files(neurons: Int64) -> Iterator[tuple[int, Int64]]:
    """Consecutive neurons by the file that they go into."""
    for k in range(int(neurons[0]) // PER_FILE, int(neurons[-1]) // PER_FILE + 1):
        yield k, neurons[neurons // PER_FILE == k]


def _peaks(examples: Examples, neuron: int) -> list[str]:
    """The tokens on which a neuron is highest, each once."""
    mine = examples.of(neuron)
    at = np.arange(mine.start, mine.stop)
    at = at[examples.part[at] == 0]
    pieces = examples.piece[at, examples.position[at] - examples.begin[at]].tolist()
    return [examples.vocabulary[piece] for piece in list(dict.fromkeys(pieces))[:SHOWN]]


# ---- one neuron ------------------------------------------------------------------------------------------------------


def _entries(
    features: Features, examples: Examples, neurons: Int64, near: Near, agreeing: Near | None, effects: Effects | None
) -> dict[str, Any]:
    """What a file holds: texts of tokens, and of each neuron its contexts in terms of these."""
    texts: dict[str, int] = {}

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    entries = []
    for m in neurons.tolist():
        mine = examples.of(m)
        histogram = features.survey.histogram[m]
        held = np.flatnonzero(histogram)
        entry: dict[str, Any] = {
            "neuron": m,
            "near": _pairs(near, m),
            "contexts": [_context(examples, e, number) for e in range(mine.start, mine.stop)],
        }
        if len(held):
            entry["histogram"] = [int(held[0]), histogram[held[0] : held[-1] + 1].tolist()]
        if agreeing is not None:
            entry["agreeing"] = _pairs(agreeing, m)
        if effects is not None:
            entry["promoted"] = [[number(effects.names[i]), _short(v)] for i, v in effects.promoted(m)]
            entry["suppressed"] = [[number(effects.names[i]), _short(v)] for i, v in effects.suppressed(m)]
        entries.append(entry)
    return {"texts": list(texts), "neurons": entries}


def _pairs(near: Near, m: int) -> list[list[float]]:
    return [[i, _short(c)] for i, c in zip(near.number[m].tolist(), near.cosine[m].tolist(), strict=True) if i >= 0]


def _context(examples: Examples, e: int, number: Any) -> list[Any]:
    """Part, document, position, peak, tokens, activations above 0 by place, and places that the harvest left out."""
    length = int(examples.length[e])
    activation = examples.activation[e, :length]
    fired = np.flatnonzero(activation > 0)
    return [
        int(examples.part[e]), int(examples.document[e]), int(examples.position[e]), examples.peak(e),
        [number(text) for text in examples.tokens(e)],
        [[i, _short(activation[i])] for i in fired.tolist()],
        np.flatnonzero(np.isnan(activation)).tolist(),
    ]  # fmt: skip


def _short(value: float) -> float:
    """A number to four digits, which is what is shown and more than colours tell apart."""
    return float(f"{value:.4g}")


# ---- the page --------------------------------------------------------------------------------------------------------


def resource(name: str) -> str:
    """The text of a file that lies beside this one."""
    return resources.files("refgba.llm.dashboard").joinpath(name).read_text(encoding="utf-8")


def _page(
    features: Features, tokens: np.ndarray[Any, Any], words: Sequence[str], near: Near, agreeing: Near | None,
    other: Path | None, effects: bool,
) -> str:  # fmt: skip
    survey, settings = features.survey, features.harvest.settings
    columns: list[dict[str, Any]] = [{"name": "count", "kind": "whole"}]
    data = [survey.count.astype(np.uint32)]
    floats = {"peak": features.peak, "mean": features.mean, "near": near.cosine[:, 0]}
    if agreeing is not None:
        floats["agreeing"] = agreeing.cosine[:, 0]
    if features.target is not None:
        floats["target"] = features.target
    for name, values in floats.items():
        columns.append({"name": name, "kind": "float"})
        data.append(float_words(values))
    columns.append({"name": "tokens", "kind": "whole", "width": tokens.shape[1]})
    data.append(tokens.ravel())
    about = {
        "neurons": features.M, "rows": features.rows, "columns": columns, "shown": tokens.shape[1],
        "perFile": PER_FILE, "lowest": LOWEST_OCTAVE, "perOctave": PER_OCTAVE, "quantiles": survey.choice.quantiles,
        "other": None if other is None else other.name or str(other), "effects": effects, "absent": ABSENT,
        "fingerprint": fingerprint(features.dictionary, features.harvest),
    }  # fmt: skip
    which = [element("option", text, value=value) for value, text in WHICH.items()]
    controls = element(
        "div",
        element("label", "token or number", element("input", type="search", name="find", spellcheck="false")),
        element("label", "show", element("select", *which, name="which")),
        class_="controls",
        hidden=True,
    )
    table = element("table", element("thead"), element("tbody"))
    scroll = element("div", table, class_="scroll", role="region", tabindex="0", aria_label="Neurons")
    status = element("p", "The table needs JavaScript.", class_="status", role="status")
    body = join(
        element("div", controls, status, scroll, pager(), class_="neurons", id="table"),
        element("div", id="neuron", hidden=True),
        data_script("about", json_text(json.dumps(about))),
        data_script("columns", packed(data)),
        data_script("words", deflated([json.dumps(list(words)).encode()])),
    )
    lead = "A neuron (latent, feature) is one line. Its tokens are those on which it is highest. "
    lead += "Keys: / searches, ← and → go from neuron to neuron, Esc goes back."
    section = Section("Neurons", body, lead)
    title = f"{features.path.name or features.path}: {settings['site']} of {Path(settings['model']).name}"
    script = _shared() + resource("dashboard.js")
    return page(title, _facts(features), [section], script, resource("dashboard.css"), beside=True)


def _shared() -> str:
    from refgba.report.page import resource as shared

    return shared("shared.js")


def _facts(features: Features) -> Html:
    """What was run on what."""
    survey, settings = features.survey, features.harvest.settings
    alive = int(np.count_nonzero(survey.count))
    facts = {
        "network": f"{features.path}, {features.M:,} neurons, {features.dictionary.activation}",
        "site": f"{settings['of']} of {settings['site']}, {settings['model']}",
        "rows": f"{features.rows:,} of {features.harvest.store.path}"
        + (f"; {survey.zeros:,} rows of zeros left out" if survey.zeros else ""),
        "fired": f"{alive:,} neurons ({percent(alive / features.M)}), "
        f"{rounded(float(survey.count.sum()) / max(1, features.rows))} per row (L0)",
        "contexts": f"the {survey.choice.top} highest, and {survey.choice.quantiles} quantiles of a random "
        f"{survey.sample.size} (seed {survey.choice.seed}); passages that end in the same tokens count once",
    }
    pairs = (part for name, text in facts.items() for part in (element("dt", name), element("dd", text)))
    return element("dl", *pairs, class_="facts")
