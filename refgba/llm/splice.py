"""Splicing: the activation at a site, at the positions that count, is what a function makes of it.

Positions that a harvest leaves out are left alone, so what the network never saw is not put through it.  The function
gets rows (R, d) and returns rows; whether these REPLACE the activation or EDIT it with the error kept is up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from refgba.errors import InputError, brief
from refgba.llm import sites
from refgba.llm.keeping import Keeping, norms, of_harvest
from refgba.llm.models import Model
from refgba.llm.networks import Coder, Network
from refgba.llm.quantities import whole
from refgba.llm.sites import Of

Rows = Callable[[Any], Any]  # from rows (R, d) to rows (R, d), on the model's device
EVERYWHERE = Keeping()  # Padding is left out even so.
CONTEXT = 128


@dataclass(frozen=True, eq=False)
class Place:
    """A network put into a model.

    keeping: the positions that the network was trained on.  harvested: whether these are known from a harvest.
    context: the tokens in a context.
    """

    model: Model
    network: Network
    coder: Coder
    site: str
    of: Of
    keeping: Keeping
    harvested: bool
    context: int


def place(
    network: Network, model: Model, site: str | None = None, of: Of | None = None, keeping: Keeping | None = None,
    context: int | None = None,
) -> Place:  # fmt: skip
    """Where a network belongs in a model.

    What is None is as it was harvested, where that is known; else the first position and special tokens are left alone.
    So is the token that contexts begin with, unless it was chosen when the model was opened.  InputError where nobody
    says which site it is, where it is another than the harvested one, where its rows have another d, and where the
    harvest of a run is not there any more, unless site, of and context are given.
    """
    about = network.harvested
    settings = about["settings"] if about else {}
    trained: Mapping[str, Any] = settings or network.origin.place or {}
    if network.lost is not None and None in (site, of, context):
        raise InputError(
            f"{network.path}: {network.lost}; name the harvest with --store, or else all of --site, --of and --context"
        )
    site = trained.get("site") or _claimed(network, model) if site is None else site
    [site, *more] = sites.find(model.module, (site,), model.name)
    if more:
        raise InputError(f"--site names {1 + len(more)} sites, {network.path} is for one")
    if trained and (site != trained["site"] or of not in (None, trained["of"])):
        raise InputError(
            f"{network.path}: is of the {trained['of']} of {trained['site']}, not of the "
            f"{of or trained['of']} of {site}"
        )
    claim = network.origin.claim
    of = of or cast(Of, trained.get("of") or (None if claim is None else claim.side) or "output")
    if claim is not None and not trained and (other := claim.differs(site, of)) is not None:
        raise InputError(f"{network.path}: is for {claim.words}; the {of} of {site} is {other}")
    if of not in sites.SIDES:
        raise InputError(f"--of should be {' or '.join(sites.SIDES)}, not {brief(of)}")
    usual = min(settings.get("context") or CONTEXT, model.longest or CONTEXT)
    length = usual if context is None else whole("--context", context, 1)
    model.refuse_context(length)
    d = width(model, site, of)
    if d != network.d:
        raise InputError(f"{network.path}: is for rows of d = {network.d}, {site} of {model.name} has d = {d}")
    if keeping is None:
        keeping = of_harvest(about, network.store) if about else Keeping(1, frozenset(model.tokenizer.special))
    if about:
        model = model.beginning_with(about["tokenizer"].get("prefix"))
    coder = Coder(network.dictionary, model.device)
    return Place(model, network, coder, site, of, keeping, about is not None, length)


def _claimed(network: Network, model: Model) -> str:
    """The site that a dictionary of another library names; InputError where it names none that the model has."""
    claim = network.origin.claim
    if claim is None:
        raise InputError(f"{network.path}: does not say which site it is for; name it with --site")
    names = {name for name, _ in model.module.named_modules()}
    inside = f"{model.module.base_model_prefix}.{claim.name}"  # some libraries hook the model without its head
    found = next((name for name in (claim.name, inside) if name in names), None)
    if found is None:
        raise InputError(f"{network.path}: is for {claim.words}, no submodule of {model.name}; name it with --site")
    return found


def width(model: Model, site: str, of: Of) -> int:
    """d at a site, by running the model on one token."""
    import torch

    ids = torch.full((1, 1), model.pad, device=model.device)
    with torch.inference_mode(), sites.capturing(model.module, [site], of) as seen:
        model.forward(ids, torch.ones_like(ids))
    if site not in seen:
        raise InputError(f"{model.name}: {site} is not used when the model runs on text")
    return int(seen[site][0].shape[-1])


@contextmanager
def splicing(
    model: Model, site: str, of: Of, ids: Any, mask: Any, change: Rows, keeping: Keeping = EVERYWHERE
) -> Iterator[None]:
    """While it lasts, a forward pass on this batch has changed rows at a site.

    ids, mask: tensors (batch, position), as `Model.forward` takes them; mask is 0 at padding, which is never changed.
    keeping: which other positions are left alone.  Rows that `change` returns unaltered stay the same to the bit.
    InputError for rows that are so large afterwards that the model's dtype or the square of their norm overflows: then
    what the model makes of them means nothing.
    """
    import torch

    host = np.asarray(ids.cpu()), np.asarray(mask.cpu())

    def edit(activation: Any) -> Any:
        kept, _ = keeping(*host, norms(activation))
        chosen = torch.from_numpy(kept).to(activation.device)
        changed = activation.clone()
        rows = change(activation[chosen]).to(activation.dtype)
        if not bool(rows.float().square().sum(dim=-1).isfinite().all()):
            raise InputError(
                f"{model.name}: changed rows of {site} are too large for the model; use a smaller strength"
            )
        changed[chosen] = rows
        return changed

    with sites.editing(model.module, site, of, edit):
        yield


def replacing(row: Any) -> Rows:
    """A change that puts one row (d,) in the place of all: zeros, or the mean."""
    return lambda rows: row.to(rows.dtype).expand_as(rows)
