"""The same algorithm, fast: one module a backend, all behind the contract of `backends.base`."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from backends.base import Backend
from refgba.errors import InputError

__all__ = ["NAMES", "Backend", "load", "status"]

NAMES = ("numpy", "numba")


def _module(name: str) -> Backend:
    return cast(Backend, import_module(f"backends.{name}"))


def load(name: str) -> Backend:
    """The backend of that name, ready to use.

    InputError when there is none of that name, or when it cannot run here: then with the reason and what to install.
    There is no fallback to another.
    """
    if name not in NAMES:
        raise InputError(f"there is no backend {name!r}; the backends are {', '.join(NAMES)}")
    module = _module(name)
    reason = module.unusable()
    if reason is not None:
        raise InputError(f"backend {name!r} cannot run here: {reason}")
    return module


def status() -> dict[str, str | None]:
    """For every backend None if it can run here, or the reason why not and what to install."""
    return {name: _module(name).unusable() for name in NAMES}
