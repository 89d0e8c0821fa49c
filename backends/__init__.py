"""The same algorithm, fast: one module a backend, all behind the contract of `refgba.backends.base`."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

from refgba import baselines as reference  # `refgba.backends.baselines` takes the plain name once it is imported
from refgba import gba
from refgba.backends.base import AnyConfig, Backend
from refgba.config import BaselineConfig
from refgba.errors import InputError

__all__ = ["NAMES", "Backend", "begin", "load", "load_for", "status"]

NAMES = ("numpy", "numba", "cupy")
BASELINES = ("numpy", "numba")  # those that train the baselines too
INSTALL = {
    "numba": "pip install numba threadpoolctl",
    "cupy": "pip install 'cupy-cuda12x[ctk]' for CUDA 12, or 'cupy-cuda13x[ctk]' for CUDA 13",
}


def _module(name: str, method: str = "gba") -> Backend | str:
    """The module of a backend for a method, or why it cannot be used here and what to install."""
    try:
        module = cast(
            Backend,
            import_module(f"refgba.backends.{name}" if method == "gba" else f"refgba.backends.baselines.{name}"),
        )
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        why = f"{error.name} is not installed" if missing else " ".join(str(error).split())
        return f"{why}: {INSTALL[name]}"
    return module.unusable() or module


def load(name: str, dtype: str | None = None, method: str = "gba") -> Backend:
    """The backend of that name, ready to use, and able to compute in `dtype` if one is given.

    method: "gba", or one of `refgba.config.Method`, the baselines.  InputError when there is none of that name, when it
    cannot run here, then with the reason and what to install, or when it lacks the method or the dtype.  There is no
    fallback to another.

    >>> from refgba import backends
    >>> backends.load("numpy").DTYPES
    ('float64', 'float32')
    >>> backends.load("abacus")
    Traceback (most recent call last):
    refgba.errors.InputError: there is no backend 'abacus'; the backends are numpy, numba, cupy
    """
    if name not in NAMES:
        raise InputError(f"there is no backend {name!r}; the backends are {', '.join(NAMES)}")
    if method != "gba" and name not in BASELINES:
        raise InputError(f"backend {name!r} trains with method gba only; {' and '.join(BASELINES)} have the baselines")
    module = _module(name, method)
    if isinstance(module, str):
        raise InputError(f"backend {name!r} cannot run here: {module}")
    if dtype is not None and dtype not in module.DTYPES:
        raise InputError(f"backend {name!r} has no dtype {dtype}; it has {', '.join(module.DTYPES)}")
    return module


def load_for(name: str, config: AnyConfig) -> Backend:
    """`load` for the method and the dtype of a run's settings."""
    return load(name, config.dtype, config.method if isinstance(config, BaselineConfig) else "gba")


def begin(backend: Backend, config: AnyConfig, d: int) -> Any:
    """The state of a run on data of d dimensions before its first step, whatever its method."""
    if isinstance(config, BaselineConfig):
        return backend.init(reference.random_params(config, d), config)
    return backend.init(gba.random_params(config, d), config)


def status() -> dict[str, str | None]:
    """For every backend None if it can run here, or the reason why not and what to install.

    >>> from refgba import backends
    >>> backends.status()["numpy"] is None  # it always can
    True
    """
    modules = {name: _module(name) for name in NAMES}
    return {name: module if isinstance(module, str) else None for name, module in modules.items()}
