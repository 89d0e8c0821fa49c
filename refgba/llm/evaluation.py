"""`refgba llm evaluate`: what a model loses when an activation is REPLACED by a network's reconstruction of it.

    loss recovered = (ablated - spliced) / (ablated - clean) ,     ablated: zeros, or the mean row, in its place

A masked model guesses tokens that [MASK] hides from it.  Each counts as the token that it hides: its row is replaced
where that token's would be, although the harvest, whose text has no [MASK], has no such row.  Without that, nothing in
the last layer would be measured.

Everything is measured twice: `kept`, where the positions that the harvest left out are left alone, and `all`, where
attention sinks and special tokens are replaced too.  Zeroing those wrecks a model, which flatters whatever is compared.
Intervals are of the bootstrap over documents, since tokens of one are not independent.

An encoder without a head has no loss: the cosine between its final embeddings, clean and spliced, stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from refgba.errors import InputError
from refgba.llm.contexts import Context, batches, contexts, padded
from refgba.llm.draws import generator
from refgba.llm.harvesting import Progress, run
from refgba.llm.keeping import Keeping, norms
from refgba.llm.models import Model
from refgba.llm.networks import Coder
from refgba.llm.quantities import for_json, whole
from refgba.llm.splice import EVERYWHERE, Place, Rows, replacing, splicing
from refgba.llm.text import Fingerprint, TextOptions
from refgba.types import Array, Float64, Int64

TOKENS = 16_384
MEAN_TOKENS = 4096  # The mean row is measured on this many tokens.
LOGITS = 2**26  # A batch has at most this many logits.
MASKED = 0.15  # A masked model has to guess this share of the tokens.
DRAWS = 1000  # The bootstrap draws this many samples.
VARIANTS = ("spliced", "zero", "mean")
SCOPES = ("kept", "all")
GUESSED = "replaced like the tokens that the mask hides"


@dataclass
class Points:
    """What was measured at each point, a predicted token or an embedded one, over all batches."""

    document: list[Int64] = field(default_factory=list)
    position: list[Int64] = field(default_factory=list)
    measured: dict[str, list[Array]] = field(default_factory=dict)  # "clean", "kept spliced kl", ... -> per batch

    def add(self, name: str, values: Any) -> None:
        """Measurements of a batch."""
        self.measured.setdefault(name, []).append(np.asarray(values, np.float64))


@dataclass(frozen=True, eq=False)
class Target:
    """What is predicted in a batch.

    ids: what the model is given, (batch, position).  at: where it predicts, two arrays of as many entries as points.
    labels: the tokens that are right, a tensor.
    """

    ids: Any
    at: tuple[Int64, ...]
    labels: Any


def target(model: Model, batch: list[Context], ids: Any, mask: Any, number: int, seed: int) -> Target:
    """Of a causal model the next tokens; of a masked one some tokens, hidden from it; of an encoder no labels."""
    import torch

    host, there = ids.cpu().numpy(), mask.cpu().numpy().astype(bool)
    if model.kind == "causal":
        at = np.nonzero(there[:, :-1] & there[:, 1:])
        return Target(ids, at, ids[at[0], at[1] + 1])
    if model.kind == "encoder":
        return Target(ids, np.nonzero(there), None)
    hidden = model.tokenizer.tokenizer.mask_token_id
    if hidden is None:
        raise InputError(f"{model.name}: its tokenizer has no mask token, which a masked model's loss needs")
    open_ = there & ~np.isin(host, list(model.tokenizer.special))
    chosen = open_ & (generator(seed, "masked", number).random(host.shape) < MASKED)
    for c in range(len(batch)):  # at least one per context
        if open_[c].any() and not chosen[c].any():
            chosen[c, int(np.argmax(open_[c]))] = True
    at = np.nonzero(chosen)
    given = ids.clone()
    given[at] = hidden
    return Target(given, at, torch.as_tensor(ids[at]))


def evaluate(
    place: Place, text: TextOptions, tokens: int | None = TOKENS, batch: int = 8, pack: bool = False, seed: int = 0,
    tick: Callable[[Progress], object] = id,
) -> Evaluation:  # fmt: skip
    """What splicing does to a model on a text.

    tokens: how many are read, None for all.  batch: contexts at a time; fewer where logits would be too many.  seed: of
    the bootstrap and of what a masked model has to guess.  InputError where the text holds no token to predict.
    """
    return compare([place], text, tokens, batch, pack, seed, tick=tick)[0]


def compare(
    places: Sequence[Place], text: TextOptions, tokens: int | None = TOKENS, batch: int = 8, pack: bool = False,
    seed: int = 0, sinks: bool = True, tick: Callable[[Progress], object] = id,
) -> list[Evaluation]:  # fmt: skip
    """`evaluate` for several networks, one result each: the model runs clean and ablated once for all of them.

    places: of one site of one model, with the same positions kept.  sinks: whether to measure `all`, too.  InputError
    as `evaluate`, and for networks that are not put into one place.
    """
    import torch

    tokens = None if tokens is None else whole("--tokens", tokens, 2)
    batch, seed = whole("--batch", batch, 1), whole("--seed", seed)
    place = places[0]
    model = place.model
    for other in places[1:]:
        if other.model.module is not model.module or _where(other) != _where(place):
            raise InputError(f"{place.network.path} and {other.network.path} are not put into one place")
    vocabulary = 1
    if model.kind != "encoder":
        vocabulary = int(model.head().weight.shape[0])
    batch = max(1, min(batch, LOGITS // (place.context * vocabulary)))
    scopes = SCOPES if sinks else SCOPES[:1]
    means, judged = _survey(places, text, batch, pack, tokens)
    points, seen = [Points() for _ in places], 0
    changes: list[tuple[str, Rows, Keeping, list[Points]]] = []  # and whose points are measured with it
    for scope in scopes:
        mean, keeping = means[scope], _keeping(place, scope)
        changes += [
            (f"{scope} {name}", replacing(row), keeping, points)
            for name, row in (("zero", torch.zeros_like(mean)), ("mean", mean))
        ]
        changes += [
            (f"{scope} spliced", each.coder.reconstruct, keeping, [own])
            for each, own in zip(places, points, strict=True)
        ]
    for number, part in enumerate(_batches(place, text, batch, pack, tokens)):
        ids, mask = (torch.from_numpy(a).to(model.device) for a in padded(part, model.pad))
        goal = target(model, part, ids, mask, number, seed)
        c, t = goal.at
        seen += sum(len(context) for context in part)
        if not len(c):  # contexts of one token, after which none is there to predict
            continue
        document = np.array([part[i].document[j] for i, j in zip(c, t, strict=True)], np.int64)
        clean = _answer(model, goal, mask)
        for own in points:
            own.document.append(document)
            own.position.append(t)
            if model.kind != "encoder":
                own.add("clean", _losses(clean, goal.labels))
        for name, change, keeping, concerned in changes:
            with splicing(model, place.site, place.of, ids, mask, change, keeping):
                answer = _answer(model, goal, mask)
            if model.kind == "encoder":
                measured = {"cosine": _cosine(clean, answer)}
            else:
                measured = {"loss": _losses(answer, goal.labels), "kl": _divergences(clean, answer)}
            for own in concerned:
                for measure, values in measured.items():
                    own.add(f"{name} {measure}", values)
        tick(Progress(seen, 0, None if tokens is None else seen / tokens))
    if not points[0].position:
        where = ", ".join(str(path) for path in text.paths)
        raise InputError(f"{where}: in no context of the {seen} tokens that were read is there one to predict")
    return [
        Evaluation(each, seen, *found, own, seed, scopes)
        for each, found, own in zip(places, judged, points, strict=True)
    ]


def _where(place: Place) -> tuple[Any, ...]:
    return place.site, place.of, place.context, place.model.tokenizer.prefix, astuple(place.keeping)


def _keeping(place: Place, scope: str) -> Keeping:
    return EVERYWHERE if scope == "all" else place.keeping


def _batches(place: Place, text: TextOptions, size: int, pack: bool, tokens: int | None) -> Iterator[list[Context]]:
    source = contexts(text, place.model.tokenizer, place.context, pack, Fingerprint())
    return batches(source, size, tokens)


def _survey(
    places: Sequence[Place], text: TextOptions, size: int, pack: bool, tokens: int | None
) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """Mean rows of each scope, and L0 and FVU of the kept rows as each network takes them, on the first tokens."""
    import torch

    place = places[0]
    rows: dict[str, list[Any]] = {scope: [] for scope in SCOPES}
    most = MEAN_TOKENS if tokens is None else min(tokens, MEAN_TOKENS)
    for part in _batches(place, text, size, pack, most):
        activation = run(place.model, [place.site], place.of, part)[place.site]
        for scope in SCOPES:
            kept, _ = _keeping(place, scope)(*padded(part, place.model.pad), norms(activation))
            rows[scope].append(activation[torch.from_numpy(kept).to(activation.device)].float())
    if not rows["all"]:
        raise InputError(f"{', '.join(str(path) for path in text.paths)}: the text holds no token")
    x = torch.cat(rows["kept"])
    if not len(x):
        raise InputError("every position is left out; nothing is there to splice")
    with torch.inference_mode():
        means = {scope: torch.cat(parts).double().mean(dim=0).float() for scope, parts in rows.items()}
        return means, [_judged(each.coder, x) for each in places]


def _judged(coder: Coder, x: Any) -> tuple[float, float]:
    """L0 and FVU of rows x (R, d)."""
    prepared = coder.prepare(x)[0]
    codes = coder.encode(prepared)
    missing = (coder.decode(codes) - prepared).double().square().sum()
    fvu = missing / (prepared - prepared.mean(dim=0)).double().square().sum()
    return float((codes > 0).sum() / len(x)), float(fvu)


def _answer(model: Model, goal: Target, mask: Any) -> Any:
    """Logits at the points, or final embeddings, (points, any)."""
    import torch

    with torch.inference_mode():
        out = model.forward(goal.ids, mask)
        values = out.last_hidden_state if model.kind == "encoder" else out.logits
        return values[goal.at[0], goal.at[1]]


def _pieces(*tensors: Any) -> Iterator[tuple[Any, ...]]:
    """Some points at a time, so that float32 copies of logits stay small."""
    for start in range(0, len(tensors[0]), 128):
        yield tuple(tensor[start : start + 128] for tensor in tensors)


def _losses(logits: Any, labels: Any) -> Float64:
    """Cross-entropy in nats, (points,)."""
    import torch

    parts = [torch.nn.functional.cross_entropy(x.float(), y, reduction="none") for x, y in _pieces(logits, labels)]
    return np.asarray(torch.cat(parts).double().cpu())


def _divergences(clean: Any, other: Any) -> Float64:
    """KL(clean || other) in nats, (points,)."""
    import torch

    parts = []
    for x, y in _pieces(clean, other):
        p, q = x.float().log_softmax(1), y.float().log_softmax(1)
        parts.append((p.exp() * (p - q)).sum(1).clamp(min=0))
    return np.asarray(torch.cat(parts).double().cpu())


def _cosine(clean: Any, other: Any) -> Float64:
    import torch

    return np.asarray(torch.nn.functional.cosine_similarity(clean.double(), other.double(), dim=1).cpu())


class Evaluation:
    """What splicing does; `table` shows it, `record` is for JSON."""

    def __init__(
        self, place: Place, seen: int, l0: float, fvu: float, points: Points, seed: int, scopes: tuple[str, ...]
    ) -> None:
        """Take over the measurements; seen: how many tokens were read.  scopes: in which it was spliced and ablated."""
        self.place, self.seen, self.l0, self.fvu, self.seed, self.scopes = place, seen, l0, fvu, seed, scopes
        self.position = np.concatenate(points.position)
        self.values = {name: np.concatenate(parts) for name, parts in points.measured.items()}
        documents = np.concatenate(points.document)
        if not len(documents):
            raise InputError("the text is too short: nothing is predicted in it")
        names, self._group = np.unique(documents, return_inverse=True)
        self.documents = len(names)
        counts = np.bincount(self._group)
        rng = generator(seed, "bootstrap")
        self._draws = rng.multinomial(self.documents, np.full(self.documents, 1 / self.documents), DRAWS).astype(float)
        self._sizes = self._draws @ counts  # tokens in each draw

    def mean(self, name: str) -> dict[str, float | None]:
        """The mean over points of a measurement, such as "kept spliced kl", with its 95% interval."""
        return self._with_interval(float(self.values[name].mean()), self._drawn(name))

    def _drawn(self, name: str) -> Float64:
        """The mean in each draw of documents."""
        drawn: Float64 = self._draws @ np.bincount(self._group, self.values[name]) / self._sizes
        return drawn

    def _with_interval(self, value: float, drawn: Float64) -> dict[str, float | None]:
        if self.documents < 2 or not np.isfinite(drawn).all():
            return {"value": value, "low": None, "high": None}
        low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
        return {"value": value, "low": low, "high": high}

    def recovered(self, scope: str, against: str) -> dict[str, float | None]:
        """The share of the loss that splicing recovers; scope: "kept" or "all"; against: "zero" or "mean" ablation."""
        names = ("clean", f"{scope} spliced loss", f"{scope} {against} loss")
        clean, spliced, ablated = (float(self.values[name].mean()) for name in names)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.divide(ablated - spliced, ablated - clean))
            c, s, a = (self._drawn(name) for name in names)
            return self._with_interval(value, (a - s) / (a - c))

    @property
    def measures(self) -> tuple[str, ...]:
        """What is measured of each variant."""
        return ("loss", "kl") if "clean" in self.values else ("cosine",)

    def by_position(self) -> list[dict[str, Any]]:
        """Means over positions 0, 1, 2-3, 4-7, ... of a context: clean, and spliced as it was harvested."""
        names = [*(["clean"] if "clean" in self.values else []), *(f"kept spliced {m}" for m in self.measures)]
        parts, low = [], 0
        while low <= self.position.max():
            high = max(2 * low, 1)
            here = (self.position >= low) & (self.position < high)
            if here.any():
                means = {name: float(self.values[name][here].mean()) for name in names}
                parts.append({"from": low, "to": high - 1, "points": int(here.sum())} | means)
            low = high
        return parts

    def record(self) -> dict[str, Any]:
        """Everything, for JSON: None where something is not defined, such as the FVU of one row."""
        place, keeping = self.place, self.place.keeping
        result: dict[str, Any] = {
            "network": str(place.network.path),
            "model": place.model.name,
            "site": place.site,
            "of": place.of,
            "activation": "replaced by the reconstruction",
            "tokens": self.seen,
            "points": len(self.position),
            "documents": self.documents,
            "context": place.context,
            "l0": self.l0,
            "fvu": self.fvu,
            "interval": f"95%, bootstrap over documents, {DRAWS} draws, seed {self.seed}",
            "left_alone": {
                "first": keeping.drop_first,
                "special": sorted(keeping.special),
                "norm": keeping.largest_norm,
            },
            "left_alone_as_harvested": place.harvested,
        }
        if place.model.kind == "masked":
            result["tokens_to_guess"] = GUESSED
        if "clean" in self.values:
            result["clean"] = self.mean("clean")
        for scope in self.scopes:
            part: dict[str, Any] = {
                variant: {measure: self.mean(f"{scope} {variant} {measure}") for measure in self.measures}
                for variant in VARIANTS
            }
            if "clean" in self.values:
                part["loss_recovered"] = {against: self.recovered(scope, against) for against in ("zero", "mean")}
            result[scope] = part
        whole_record: dict[str, Any] = for_json(result | {"by_position": self.by_position()})
        return whole_record

    def table(self) -> str:
        """The result in lines."""
        place = self.place
        lines = [
            f"{place.network.path} in the {place.of} of {place.site}, which it replaces: L0 {self.l0:.1f}, "
            f"FVU {_words(self.fvu)}",
            f"{self.seen:,} tokens of {self.documents} documents; intervals are 95%, over documents",
        ]
        if place.model.kind == "masked":
            lines.append(f"tokens to guess are {GUESSED}")
        titles = {"kept": "positions that a harvest leaves out are left alone", "all": "all positions, sinks too"}
        if "clean" in self.values:
            lines.append(f"clean cross-entropy {_shown(self.mean('clean'))}")
        for scope in self.scopes:
            lines.append(f"{titles[scope]}:")
            for variant in VARIANTS:
                means = (f"{m} {_shown(self.mean(f'{scope} {variant} {m}'))}" for m in self.measures)
                lines.append(f"  {variant:8} {'   '.join(means)}")
            if "clean" in self.values:
                shares = (f"{_shown(self.recovered(scope, a))} of {a} ablation" for a in ("zero", "mean"))
                lines.append(f"  loss recovered {',  '.join(shares)}")
        lines.append("by position, spliced:")
        for part in self.by_position():
            values = "   ".join(f"{name.split()[-1]} {part[name]:.3f}" for name in list(part)[3:])
            lines.append(f"  {part['from']:5}-{part['to']:<5} {values}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()


def _words(value: float | None) -> str:
    return "not defined" if value is None or not np.isfinite(value) else f"{value:.4f}"


def _shown(value: dict[str, float | None]) -> str:
    if value["value"] is None or value["low"] is None or value["high"] is None:
        return _words(value["value"])
    return f"{value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
