"""Direct effects: what a direction at a site adds to the logits on its way through the residual stream alone.

It takes three things, and each is found by running the model rather than by the names in it: whether what a site puts
out is added to the residual stream as it is, which norm comes last, and the unembedding.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

from refgba.errors import InputError
from refgba.llm import sites
from refgba.llm.models import Model
from refgba.llm.sites import Of
from refgba.types import Array

SIZE = 1e-2  # of the trial edit, of the activation's norm
CLOSE = 2e-2  # relative: an edit that comes out of its block so near to itself went straight through


def block_of(site: str) -> str | None:
    """The block of layers that a site lies in: its name up to the number, None where there is none."""
    parts = site.split(".")
    numbers = [k for k, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else None


def writes_to_stream(model: Model, site: str, of: Of) -> bool:
    """Whether an edit at the site comes out of its block unaltered: then it is added to the residual stream."""
    import torch

    block = block_of(site)
    if of != "output" or block is None:
        return False
    if site == block:
        return model.kind == "causal"
    vocabulary = model.module.get_input_embeddings().weight.shape[0]
    ids = torch.arange(8, device=model.device)[None] % vocabulary
    edits: list[Any] = []

    def edit(x: Any) -> Any:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device, x.dtype)
        edits.append(noise * (SIZE * x.norm() / noise.norm()))
        return x + edits[-1]

    with torch.inference_mode():
        with sites.capturing(model.module, [block], "output") as plain:
            model.forward(ids, torch.ones_like(ids))
        with sites.capturing(model.module, [block], "output") as moved, sites.editing(model.module, site, of, edit):
            model.forward(ids, torch.ones_like(ids))
    change, moved_by = edits[0].double(), (moved[block][0].double() - plain[block][0].double())
    if change.shape != moved_by.shape:
        return False
    return bool((moved_by - change).norm() <= CLOSE * change.norm())


def final_norm(model: Model) -> tuple[Any, bool]:
    """The weight of the norm before the unembedding, (d,), as it acts, and whether the norm takes off the mean.

    Ones where there is no such norm.  Both are measured, so it does not matter whether the module multiplies by w or,
    as Gemma's, by 1 + w.
    """
    import torch

    names = [name for name, module in model.module.named_modules() if "norm" in type(module).__name__.lower()]
    head = next(name for name, module in model.module.named_modules() if module is model.head())
    ids = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    out: dict[str, Any] = {}
    with ExitStack() as hooks, torch.inference_mode(), sites.capturing(model.module, [head], "input") as into:
        for name in names:
            module = model.module.get_submodule(name)
            handle = module.register_forward_hook(lambda *given, name=name: out.__setitem__(name, given[2]))
            hooks.callback(handle.remove)
        model.forward(ids, torch.ones_like(ids))
    last_in = into[head][0]
    d = int(last_in.shape[-1])
    with torch.inference_mode():
        whole = {name: value for name, value in out.items() if isinstance(value, torch.Tensor)}
        same = [n for n, value in whole.items() if value.shape == last_in.shape and torch.equal(value, last_in)]
        if not same:
            return torch.ones(d, device=model.device), False
        last = model.module.get_submodule(same[-1])
        signs = torch.ones(1, 1, d, device=model.device, dtype=last_in.dtype)
        signs[..., 1::2] = -1  # of mean 0 and size 1: what a norm leaves as it is, but for its weight
        scale = ((last(signs) - last(-signs)) / 2 * signs).flatten().float()
        return scale, bool(torch.allclose(last(signs + 1), last(signs), rtol=1e-2, atol=1e-2))


class Unembedding:
    """Direct effects of directions at a site, `effects`; `why_not` says where there are none."""

    def __init__(self, model: Model, site: str, of: Of, d: int) -> None:
        """Find out whether the site allows it."""
        self.why_not: str | None = None
        weight = model.head().weight
        if int(weight.shape[1]) != d:
            self.why_not = f"rows have d = {d}, the unembedding {int(weight.shape[1])}"
        elif not writes_to_stream(model, site, of):
            self.why_not = f"what {site} puts out is not added to the residual stream as it is"
        else:
            self.weight = weight
            self.scale, self.centred = final_norm(model)

    def effects(self, direction: Array) -> Any:
        """Logits (vocabulary,) that a direction (d,) adds, up to the final norm's size, their mean taken off."""
        import torch

        if self.why_not is not None:
            raise InputError(self.why_not)
        row = torch.from_numpy(np.ascontiguousarray(direction, np.float32)).to(self.weight.device)
        if self.centred:
            row = row - row.mean()
        logits = self.weight.float() @ (row * self.scale)
        return logits - logits.mean()
