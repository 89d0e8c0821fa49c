"""Sites: submodules of a model by name, whose output or input is read or changed while the model runs.

A module's output is a tensor, or a tuple or (of GPT-1's blocks) a list that begins with one, by the version of
transformers; the rest of it stays.  Its input is its first tensor, whether it is given by position or by keyword.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

from refgba.errors import InputError, brief

Of = Literal["output", "input"]
SIDES: tuple[str, ...] = get_args(Of)
Edit = Callable[[Any], Any]  # from an activation (batch, position, d) to one of the same shape


class Stop(BaseException):
    """Ends a forward pass once all sites were seen; not an Exception, which models may catch."""


def find(module: Any, patterns: tuple[str, ...], model: str) -> list[str]:
    """Names of submodules, in the model's order, that any of the patterns matches: names, or wildcards * ? [..].

    InputError for a pattern that matches none, with the closest names, and for no pattern.
    """
    if not patterns:
        raise InputError("give at least one --site")
    names = [name for name, _ in module.named_modules() if name]
    found: list[str] = []
    for pattern in patterns:
        if not pattern:
            raise InputError(f"{model}: --site is empty; name a submodule, such as {names[-1]}")
        matching = [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            by_shape = {re.sub(r"\d+", "0", name): name for name in reversed(names)}
            near = difflib.get_close_matches(pattern, names, 3, 0.4) or list(by_shape.values())[-3:]
            raise InputError(f"{model}: has no submodule {brief(pattern)!r}; the closest are {', '.join(near)}")
        found += matching
    return [name for name in names if name in set(found)]


def layer(site: str) -> int | None:
    """The number of the layer in a site's name, None where there is none."""
    digits = [part for part in site.split(".") if part.isdecimal()]
    return int(digits[0]) if digits else None


def _swap(value: Any, edit: Edit, where: str) -> Any:
    """A module's output with its tensor edited."""
    import torch

    if isinstance(value, torch.Tensor):
        return edit(value)
    if isinstance(value, tuple | list) and value and isinstance(value[0], torch.Tensor):
        edited = (edit(value[0]), *value[1:])
        return edited if isinstance(value, tuple) else list(edited)
    raise InputError(f"{where} is {type(value).__name__}, neither a tensor nor a tuple or list that begins with one")


def _swap_input(args: Any, named: Any, edit: Edit, where: str) -> tuple[Any, Any]:
    """A module's arguments with the first tensor edited."""
    import torch

    if args and isinstance(args[0], torch.Tensor):
        return (edit(args[0]), *args[1:]), named
    for name, value in named.items():
        if isinstance(value, torch.Tensor):
            return args, {**named, name: edit(value)}
    raise InputError(f"{where} is no tensor")


def checked(value: Any, where: str, shape: tuple[int, ...] | None = None) -> Any:
    """The activation, if it is (batch, position, d); InputError if not.  shape: of the ids, (batch, position)."""
    actual = tuple(value.shape)
    if len(actual) != 3 or (shape is not None and actual[:2] != shape) or not value.is_floating_point():
        batch = "batch, position" if shape is None else f"{shape[0]}, {shape[1]}"
        raise InputError(f"{where} has the shape {actual} in {value.dtype}; it should be ({batch}, d) of floats")
    return value


@contextmanager
def editing(module: Any, site: str, of: Of, edit: Edit) -> Iterator[None]:
    """While it lasts, the activation at a site is what `edit` makes of it."""
    where = f"the {of} of {site}"

    def change(value: Any) -> Any:
        return edit(checked(value, where))

    target = module.get_submodule(site)
    if of == "output":
        handle = target.register_forward_hook(lambda _module, _args, out: _swap(out, change, where))
    else:
        handle = target.register_forward_pre_hook(
            lambda _module, args, named: _swap_input(args, named, change, where), with_kwargs=True
        )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def capturing(module: Any, sites: list[str], of: Of, stop: bool = False) -> Iterator[dict[str, list[Any]]]:
    """While it lasts, the activations at the sites are kept: a list per site, one entry per call of the module.

    stop: whether the forward pass is ended, by `Stop`, once all sites were seen.
    """
    seen: dict[str, list[Any]] = {}

    def keep(site: str) -> Edit:
        def edit(value: Any) -> Any:
            seen.setdefault(site, []).append(value.detach().clone())  # some models go on in place
            if stop and len(seen) == len(sites):
                raise Stop
            return value

        return edit

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(editing(module, site, of, keep(site)))
        yield seen


@contextmanager
def wrapped(module: Any, sites: list[str], of: Of) -> Iterator[dict[str, list[Any]]]:
    """As `capturing`, by another road: each module's `forward` is replaced on the instance, and no hook is used."""
    seen: dict[str, list[Any]] = {site: [] for site in sites}

    def recorded(site: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        where = f"the {of} of {site}"

        def run(*args: Any, **named: Any) -> Any:
            def keep(value: Any) -> Any:
                seen[site].append(value.detach().clone())
                return value

            if of == "input":
                _swap_input(args, named, keep, where)
            out = forward(*args, **named)
            if of == "output":
                _swap(out, keep, where)
            return out

        return run

    targets = [module.get_submodule(site) for site in sites]
    before = [vars(target).get("forward") for target in targets]
    try:
        for site, target in zip(sites, targets, strict=True):
            target.forward = recorded(site, target.forward)
        yield seen
    finally:
        for target, forward in zip(targets, before, strict=True):
            del target.forward
            if forward is not None:
                target.forward = forward
