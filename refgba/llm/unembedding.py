"""Direct effects: what a direction at a site adds to the logits on its way through the residual stream alone.

It takes three things, and each is found by running the model rather than by the names in it: the norm that comes last,
whether what a site puts out arrives there as it is, and the unembedding.  What a site puts out may also arrive behind
that norm, where no norm is between it and the unembedding: so do the last block of GPT-1, which ends in a norm of its
own and has no other, and the last norm itself.  In the head of a masked model, a dense layer and a nonlinearity stand
between the stream and the unembedding: nothing arrives as it is, so nothing acts directly.
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

LARGE = 1e3  # the trial edit, times the stream: whatever reads the stream through a norm adds next to nothing to it
LARGEST = {"float16": 1e4}  # numbers of the trial edit, where a dtype holds no larger ones
CLOSE = 2e-2  # relative: an edit that arrives so near to itself went straight through
TOKENS = 8  # The model runs on at most this many tokens.


class Ending:
    """How a model ends: the residual stream, the last norm, the unembedding.

    head: the unembedding's name.  norm: the name of the norm whose output the unembedding is given, or None.  given:
    what each of these two that there is is given on a few tokens, (1, position, d), by its name.
    """

    def __init__(self, model: Model) -> None:
        """Run the model on a few tokens; InputError where it has no unembedding."""
        import torch

        self.model, self.norm = model, None
        self.head = next(name for name, module in model.module.named_modules() if module is model.head())
        names = [name for name, module in model.module.named_modules() if "norm" in type(module).__name__.lower()]
        out: dict[str, Any] = {}
        with ExitStack() as hooks, sites.capturing(model.module, [self.head], "input") as into:
            for name in names:
                module = model.module.get_submodule(name)
                handle = module.register_forward_hook(lambda *given, name=name: out.__setitem__(name, given[2]))
                hooks.callback(handle.remove)
            self._run()
        last = into[self.head][0]
        whole = {name: value for name, value in out.items() if isinstance(value, torch.Tensor)}
        same = [n for n, v in whole.items() if v.shape == last.shape and torch.equal(v, last)]
        if same:
            self.norm = same[-1]
        self.given = self._inputs()

    def _run(self) -> None:
        import torch

        vocabulary = self.model.module.get_input_embeddings().weight.shape[0]
        ids = torch.arange(min(TOKENS, self.model.longest or TOKENS), device=self.model.device)[None] % vocabulary
        with torch.inference_mode():
            self.model.forward(ids, torch.ones_like(ids))

    def _inputs(self) -> dict[str, Any]:
        """What the norm, if there is one, and the unembedding are given."""
        ends = [name for name in (self.norm, self.head) if name is not None]
        with sites.capturing(self.model.module, ends, "input") as seen:
            self._run()
        return {name: seen[name][0] for name in ends}

    def reached_from(self, site: str, of: Of) -> str | None:
        """At which of `given` what is added at a site arrives as it is; None where it does at none."""
        return next((end for end in self.given if self._arrives(site, of, end)), None)

    def _arrives(self, site: str, of: Of, end: str) -> bool:
        import torch

        plain = self.given[end]
        size = float(plain.float().square().mean().sqrt())
        signs = torch.randint(0, 2, plain.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        added = (signs.double() * min(LARGE * size, LARGEST.get(self.model.dtype, np.inf))).to(plain.device)

        def edit(x: Any) -> Any:
            return x + added.to(x.dtype) if x.shape == added.shape else x

        with sites.editing(self.model.module, site, of, edit):
            moved = self._inputs()[end]
        return bool(((moved.double() - plain.double()) - added).norm() <= CLOSE * added.norm())

    def scale(self) -> tuple[Any, bool]:
        """The weight of the last norm, (d,), as it acts, and whether the norm takes off the mean.

        Ones where there is no such norm.  Both are measured, so it does not matter whether the module multiplies by w
        or, as Gemma's, by 1 + w.
        """
        import torch

        given = self.given[self.head]
        d = int(given.shape[-1])
        if self.norm is None:
            return torch.ones(d, device=given.device), False
        last = self.model.module.get_submodule(self.norm)
        with torch.inference_mode():
            signs = torch.ones(1, 1, d, device=given.device, dtype=given.dtype)
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
            return
        ending = Ending(model)
        end = ending.reached_from(site, of)
        if end is None:
            what = f"what {site} puts out" if of == "output" else f"what is added to the input of {site}"
            self.why_not = f"{what} does not come to the unembedding as it is, but for a norm"
            if model.kind == "masked":
                self.why_not += "; the head of a masked model usually changes it"
            return
        self.weight = weight
        self.scale: Any = 1.0
        self.centred = False
        if end == ending.norm:
            self.scale, self.centred = ending.scale()

    def effects(self, direction: Array) -> Any:
        """Logits (vocabulary,) that a direction (d,) adds, up to the final norm's size, their mean taken off."""
        import torch

        if self.why_not is not None:
            raise InputError(self.why_not)
        row = torch.from_numpy(np.array(direction, np.float32)).to(self.weight.device)
        if self.centred:
            row = row - row.mean()
        logits = self.weight.float() @ (row * self.scale)
        return logits - logits.mean()
