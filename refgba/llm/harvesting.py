"""`refgba harvest`: activations of a language model on a text, as stores that `refgba train` takes, one per site.

Rows that are left out are counted in meta.json, by the first reason that holds: `first`, the first positions of a
context, where models park attention at norms a hundred times the median; `special`, special tokens wherever they
occur; `norm`, rows beyond a multiple of the median norm, which is measured on the first contexts and then fixed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from refgba.data import files
from refgba.data.store import META
from refgba.errors import InputError, brief
from refgba.llm import sites
from refgba.llm.contexts import Context, batches, contexts, padded
from refgba.llm.keeping import Keeping, norms
from refgba.llm.models import Model
from refgba.llm.quantities import finite, whole
from refgba.llm.records import VERSION, Harvest, is_harvest, open_harvest
from refgba.llm.shards import FILES, LINES, Seen, Site
from refgba.llm.sites import Of
from refgba.llm.text import TABLES, Fingerprint, Omissions, Omitted, TextOptions, refuse_beginnings, resolved
from refgba.types import Array

CONTEXT, BATCH, SHARD = 128, 8, 32_768  # tokens in a context, contexts in a batch, tokens in a shard
MEASURED = 2048  # The median norm is measured on at least this many tokens.
MAX_NORM = 10.0  # Rows of more than this many median norms are left out.
EXACT = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 1e-2}  # hooked rows against the plain forward's, relative
ALONE = {"float32": 1e-3, "bfloat16": 1e-1, "float16": 5e-2}  # rows of a padded batch against a context alone


@dataclass(frozen=True)
class Settings:
    """How a text is read and which rows are kept.

    context: the most tokens in a context, None for CONTEXT or, if that is less, what the model was made for.  batch:
    contexts at a time.  tokens: how many the model sees altogether, None for all.  pack: whether documents share
    contexts.  of: "output" of a site, or "input".  dtype: of the store, None for float32, or bfloat16 where the model
    computes in 16 bits.  drop_first: how many first positions of each context are left out.  keep_special: whether rows
    at special tokens are kept.  max_norm: rows beyond this multiple of the median norm are left out; 0 keeps all.
    shard: about how many tokens a shard covers.
    """

    context: int | None = None
    batch: int = BATCH
    tokens: int | None = None
    pack: bool = False
    of: Of = "output"
    dtype: str | None = None
    drop_first: int = 1
    keep_special: bool = False
    max_norm: float = MAX_NORM
    shard: int = SHARD

    def __post_init__(self) -> None:
        for name, least in (("context", 1), ("batch", 1), ("tokens", 1), ("drop_first", 0), ("shard", 1)):
            given = getattr(self, name)
            if given is not None or name not in ("context", "tokens"):
                object.__setattr__(self, name, whole(f"--{name.replace('_', '-')}", given, least))
        object.__setattr__(self, "max_norm", finite("--max-norm", self.max_norm, 0))
        if self.of not in sites.SIDES:
            raise InputError(f"of a site there is {' or '.join(sites.SIDES)}, not {brief(self.of)}")
        if self.dtype not in (None, *EXACT):
            raise InputError(f"--dtype should be one of {', '.join(EXACT)}, not {brief(self.dtype)}")
        if self.drop_first >= (self.context or CONTEXT):
            raise InputError(f"--drop-first {self.drop_first} leaves none of a context")


@dataclass(frozen=True)
class Progress:
    """tokens: seen so far, of them `before` by earlier attempts.  share: of the whole harvest, None if unknown."""

    tokens: int
    before: int
    share: float | None


def harvest(
    model: Model, patterns: tuple[str, ...], text: TextOptions, out: Path, settings: Settings = Settings(),
    tick: Callable[[Progress], object] = id, remark: Callable[[str], object] = id,
) -> list[Harvest]:  # fmt: skip
    """Write the activations of the sites that match the patterns; the stores.

    out: the folder of the store; where several sites match, of a store per site, in folders of their names.  What is
    there already is gone on with, to the same bytes; of a store that is whole the text is compared.  Files in folders
    that turn out not to be UTF-8, and lines without text, are left out, and counted in meta.json.  `tick` is called
    after each batch, `remark` with a line about the self-check, about what was left out, and about a store that was
    whole.  InputError, before anything is written, for sites, text, settings and folders that do not fit; and where
    hooked rows are not those of the plain forward pass.
    """
    found = sites.find(model.module, patterns, model.name)
    settings = replace(settings, context=settings.context or min(CONTEXT, model.longest or CONTEXT))
    assert settings.context is not None
    model.refuse_context(settings.context)
    omissions = Omissions()
    listed = replace(resolved(text), left_out=omissions)
    refuse_beginnings(listed, whole=settings.tokens is None)
    special = frozenset() if settings.keep_special else frozenset(model.tokenizer.special)
    keeping = Keeping(settings.drop_first, special)
    first = _first(model, listed, keeping, settings)
    if not first:
        raise InputError(f"{', '.join(str(path) for path in text.paths)}: the text holds no token")
    places = {site: out / site if len(found) > 1 else out for site in found}
    if len(found) > 1:
        _refuse_other_content(out, places)
    remark(check(model, found, settings.of, first[0]))
    dtype = settings.dtype or ("float32" if model.dtype == "float32" else "bfloat16")
    stores: dict[str, Site] = {}
    try:
        for site, place in places.items():
            stores[site] = Site(place, _about(model, site, text, settings, dtype))
        if not all(store.complete for store in stores.values()):
            _begin(model, stores, first, keeping, settings, dtype)
            _go_on(model, stores, listed, keeping, settings, tick)
        else:
            _refuse_other_text(model, list(stores.values()), listed, keeping, settings)
            remark(f"{out}: was there already, whole and of this model and text; nothing was written")
    except BaseException:
        for store in stores.values():
            store.abandon()
        raise
    finally:
        for store in stores.values():
            store.unlock()
    for line in omissions.remarks():
        remark(line)
    return [open_harvest(place) for place in places.values()]


def _refuse_other_content(out: Path, places: Mapping[str, Path]) -> None:
    """InputError for a folder of stores that is a store itself, or holds anything but stores."""
    files.refuse_folder(out)
    if (out / META).exists():
        raise InputError(f"{out}: is a store itself; choose another folder for a store per site")
    for path in sorted(out.iterdir()) if out.exists() else []:
        if path not in places.values() and not path.name.startswith(files.PARTIAL) and not is_harvest(path):
            raise InputError(f"{out}: holds {brief(path.name)}, which is no store of a harvest; choose another folder")


def _about(model: Model, site: str, text: TextOptions, settings: Settings, dtype: str) -> dict[str, Any]:
    """What meta.json says of a site before anything has been computed."""
    chosen: dict[str, Any] = {"model": model.name, "site": site, "kind": model.kind, "computed_in": model.dtype}
    chosen |= {"model_class": type(model.module).__name__, "device": model.device.type, "text": text.record()}
    chosen |= asdict(settings) | {"dtype": dtype}
    about = {"version": VERSION, "settings": chosen, "tokenizer": model.tokenizer.record(), "weights": model.weights()}
    return {"model": model.name, "layer": sites.layer(site), "site": site, "harvest": about}


def _source(model: Model, text: TextOptions, settings: Settings, fingerprint: Fingerprint) -> Iterator[Context]:
    return contexts(text, model.tokenizer, settings.context or CONTEXT, settings.pack, fingerprint)


def _first(model: Model, text: TextOptions, keeping: Keeping, settings: Settings) -> list[list[Context]]:
    """The first batches, enough to measure the median norm; none where the text has no token."""
    held: list[list[Context]] = []
    tokens, rows = 0, False
    for batch in batches(_source(model, text, settings, Fingerprint()), settings.batch, settings.tokens):
        held.append(batch)
        tokens += sum(len(context) for context in batch)
        rows = rows or rows_in(batch, keeping, model.pad) > 0
        if tokens >= MEASURED and rows:
            break
    return held


def rows_in(batch: list[Context], keeping: Keeping, pad: int) -> int:
    """How many rows of a batch are kept, whatever their norms."""
    ids, mask = padded(batch, pad)
    kept, _ = keeping.up_to(None)(ids, mask, np.zeros(ids.shape))
    return int(kept.sum())


def run(model: Model, found: list[str], of: Of, batch: list[Context]) -> dict[str, Any]:
    """The activations of a batch at each site, tensors (contexts, longest, d); the forward pass ends after the last."""
    import torch

    ids, mask = (torch.from_numpy(a).to(model.device) for a in padded(batch, model.pad))
    with torch.inference_mode(), sites.capturing(model.module, found, of, stop=True) as seen, suppress(sites.Stop):
        model.forward(ids, mask)
    missing = [site for site in found if site not in seen]
    if missing:
        raise InputError(f"{model.name}: {missing[0]} is not used when the model runs on text")
    return {site: sites.checked(seen[site][0], f"the {of} of {site}", tuple(ids.shape)) for site in found}


def check(model: Model, found: list[str], of: Of, batch: list[Context]) -> str:
    """Compare the rows of a batch with the plain forward pass, and those of a context in it with the context alone.

    Returns a line that says how near they are.  InputError where they are not the same.
    """
    import torch

    hooked = run(model, found, of, batch)
    ids, mask = (torch.from_numpy(a).to(model.device) for a in padded(batch, model.pad))
    head = model.module.get_output_embeddings()
    few = {} if any(model.module.get_submodule(site) is head for site in found) else model.without_logits()
    with torch.inference_mode(), sites.wrapped(model.module, found, of) as plain:
        model.forward(ids, mask, **few)
    shortest = min(range(len(batch)), key=lambda c: len(batch[c]))
    length, worst, apart = len(batch[shortest]), 0.0, 0.0
    alone = run(model, found, of, [batch[shortest]])
    for site in found:
        if len(plain[site]) != 1:
            raise InputError(f"{model.name}: {site} runs {len(plain[site])} times in one forward pass, not once")
        rows, same = hooked[site][mask.bool()].double(), plain[site][0][mask.bool()].double()
        worst = max(worst, float((rows - same).norm() / same.norm().clamp(min=1e-30)))
        row, own = hooked[site][shortest, :length].double(), alone[site][0].double()
        apart = max(apart, float(((row - own).norm(dim=1) / own.norm(dim=1).clamp(min=1e-30)).median()))
    if not worst <= EXACT[model.dtype]:
        raise InputError(f"{model.name}: hooked rows differ from the plain forward pass by {worst:.2g} of their norm")
    if not apart <= ALONE[model.dtype]:
        raise InputError(f"{model.name}: rows of a batch differ from a context alone by {apart:.2g}: padding leaks in")
    how = "to the bit" if worst == 0 else f"to {worst:.1g} of their norm"
    return f"hooked rows equal the plain forward pass {how}, and a context alone to {apart:.1g}"


def _begin(
    model: Model, stores: dict[str, Site], first: list[list[Context]], keeping: Keeping, settings: Settings, dtype: str
) -> None:
    """Measure the median norms and make the stores that are not there yet."""
    fresh = [site for site, store in stores.items() if not store.begun]
    if not fresh:
        return
    measured: dict[str, list[Array]] = {site: [] for site in fresh}
    d = {}
    for batch in first:
        for site, activation in run(model, fresh, settings.of, batch).items():
            norm, d[site] = norms(activation), int(activation.shape[-1])
            kept, _ = keeping(*padded(batch, model.pad), norm)
            measured[site].append(norm[kept])
    for site in fresh:
        kept = np.concatenate(measured[site])
        kept = kept[np.isfinite(kept)]
        if not len(kept):
            raise InputError(
                f"{site}: every row is left out: the first --drop-first of each context, and special tokens, or none "
                "is finite"
            )
        # Some sites are silent at most tokens: the others, which are not outliers for that, then make the median.
        median = float(np.median(kept)) or float(np.median(kept[kept > 0] if kept.any() else kept))
        about = {"median_norm": median, "largest_norm": settings.max_norm * median if settings.max_norm else None}
        stores[site].begin(d[site], dtype, about)


def _go_on(
    model: Model, stores: dict[str, Site], text: TextOptions, keeping: Keeping, settings: Settings,
    tick: Callable[[Progress], object],
) -> None:  # fmt: skip
    """Write the shards that are not there yet."""
    shard = min(len(store.shards) for store in stores.values())
    behind = next(store for store in stores.values() if len(store.shards) == shard)
    seen, fingerprint = behind.seen(shard), Fingerprint()
    left_out: Counter[str] = Counter()  # since the beginning of the text

    def leave_out(omitted: Omitted) -> None:
        left_out[FILES if omitted.number is None else LINES] += 1
        if text.left_out is not None:
            text.left_out(omitted)

    source = _source(model, replace(text, left_out=leave_out), settings, fingerprint)
    skipped = sum(1 for _ in islice(source, seen.contexts))
    if skipped != seen.contexts or (shard and str(fingerprint) != seen.text):
        raise InputError(f"{behind.out}: the text is not the one that the harvest was begun with")
    left = None if settings.tokens is None else settings.tokens - seen.tokens
    coming = batches(source, settings.batch, left) if left != 0 else iter(())
    size, before, start = _size(text), seen.tokens, seen.tokens
    batch = next(coming, None)
    while batch is not None:
        writing = {site: store for site, store in stores.items() if len(store.shards) == shard and not store.complete}
        for site, activation in run(model, list(writing), settings.of, batch).items():
            _add(writing[site], batch, activation, keeping, model.pad)
        tokens = sum(len(context) for context in batch)
        seen = Seen(seen.contexts + len(batch), seen.tokens + tokens, str(fingerprint), Counter(left_out))
        batch = next(coming, None)
        if batch is None:
            seen = replace(seen, left_out=left_out)  # the last files may be such
        # A shard has rows at every site.  Where some sites are ahead after a kill, it ends where theirs did.
        ahead = [store.seen(shard + 1).tokens for store in stores.values() if len(store.shards) > shard]
        full = seen.tokens - start >= settings.shard and all(store.has_rows() for store in writing.values())
        if batch is None or (full and seen.tokens >= max(ahead, default=0)):
            for store in writing.values():
                store.close(seen, complete=batch is None)
            shard, start = shard + 1, seen.tokens
        shares = [seen.tokens / settings.tokens] if settings.tokens else []
        shares += [fingerprint.bytes / size] if size else []
        tick(Progress(seen.tokens, before, min(1.0, max(shares)) if shares else None))


def _refuse_other_text(
    model: Model, stores: list[Site], text: TextOptions, keeping: Keeping, settings: Settings
) -> None:  # fmt: skip
    """InputError unless whole stores are of this text: tokens are made of it again, and the model is not run."""
    store = max(stores, key=lambda store: store.seen(len(store.shards)).contexts)
    end, same, fingerprint, contexts = store.seen(len(store.shards)), False, Fingerprint(), 0
    for batch in batches(_source(model, text, settings, fingerprint), settings.batch, settings.tokens):
        contexts += len(batch)
        if contexts == end.contexts:
            same = str(fingerprint) == end.text
        elif contexts > end.contexts:  # batches at the end of which no row was kept are in no shard
            same = same and not rows_in(batch, keeping, model.pad)
        if contexts >= end.contexts and not same:
            break
    if not same:
        raise InputError(
            f"{store.out}: is whole, and of another text: what --text names has changed since; choose another folder"
        )


def _size(text: TextOptions) -> int | None:
    """Bytes of all files of a text that is `resolved`, None where they hold more than text."""
    if any(path.suffix.lower() in (*TABLES, ".jsonl") for path in text.paths):
        return None
    return sum(path.stat().st_size for path in text.paths)


def _add(store: Site, batch: list[Context], activation: Any, keeping: Keeping, pad: int) -> None:
    """The rows of a batch that are kept; InputError for one that is not finite."""
    import torch

    ids, mask = padded(batch, pad)
    norm = norms(activation)
    kept, dropped = keeping.up_to(store.about["harvest"]["largest_norm"])(ids, mask, norm)
    bad = np.argwhere(mask.astype(bool) & ~np.isfinite(norm))
    if len(bad):
        c, p = bad[0].tolist()
        raise InputError(
            f"{store.about['site']}: the row of token {p} in a context of document {batch[c].document[p]} is not "
            "finite; --compute float32 or bfloat16 would hold more than float16"
        )
    context, position = np.nonzero(kept)
    rows = activation[torch.from_numpy(kept).to(activation.device)].float().cpu().numpy()
    store.add(batch, rows, context, position, norm[kept], dropped)
