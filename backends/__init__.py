"""The same algorithms, fast: one module per backend, all behind the contract of `refgba.backends.base`.

The name of a module is the value of `--backend`.  GBA's modules are here and the baselines' in the folder `baselines`,
as `TWINS` of each method in `refgba.baselines.METHODS` says: a backend has a method if its file is there.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

from refgba.backends.base import AnyConfig, Backend
from refgba.baselines import METHODS
from refgba.errors import InputError

__all__ = ["NAMES", "Backend", "begin", "load", "load_for", "status"]

NAMES = ("numpy", "numba", "cupy")
INSTALL = {
    "numba": "pip install numba threadpoolctl",
    "cupy": "pip install 'cupy-cuda12x[ctk]' for CUDA 12, or 'cupy-cuda13x[ctk]' for CUDA 13",
}


def _path(name: str, method: str) -> str:
    """The dotted path of the module of a backend for a method, whether or not there is one."""
    return f"{METHODS[method].TWINS}.{name}"


def _has(name: str, method: str) -> bool:
    """Whether a backend has a method: whether there is such a module, usable here or not."""
    return find_spec(_path(name, method)) is not None


def _module(name: str, method: str = "gba") -> Backend | str:
    """The module of a backend for a method, or why it cannot be used here and what to install."""
    try:
        module = cast(Backend, import_module(_path(name, method)))
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        why = f"{error.name} is not installed" if missing else " ".join(str(error).split())
        return f"{why}: {INSTALL[name]}"
    return module.unusable() or module


def load(name: str, dtype: str | None = None, method: str = "gba") -> Backend:
    """The backend of that name, ready to use, and able to compute in `dtype` if one is given.

    method: one of `refgba.baselines.METHODS`.  InputError when there is no backend of that name, when it cannot run
    here, then with the reason and what to install, or when it lacks the method or the dtype.  There is no fallback.

    >>> from refgba import backends
    >>> backends.load("numpy").DTYPES
    ('float64', 'float32')
    >>> backends.load("abacus")
    Traceback (most recent call last):
    refgba.errors.InputError: there is no backend 'abacus'; the backends are numpy, numba, cupy
    """
    if name not in NAMES:
        raise InputError(f"there is no backend {name!r}; the backends are {', '.join(NAMES)}")
    if not _has(name, method):
        methods = " and ".join(other for other in METHODS if _has(name, other))
        able = " and ".join(other for other in NAMES if _has(other, method))
        raise InputError(f"backend {name!r} trains with method {methods} only; {able} have the baselines")
    module = _module(name, method)
    if isinstance(module, str):
        raise InputError(f"backend {name!r} cannot run here: {module}")
    if dtype is not None and dtype not in module.DTYPES:
        raise InputError(f"backend {name!r} has no dtype {dtype}; it has {', '.join(module.DTYPES)}")
    return module


def load_for(name: str, config: AnyConfig) -> Backend:
    """`load` for the method and the dtype of a run's settings."""
    return load(name, config.dtype, config.method)


def begin(backend: Backend, config: AnyConfig, d: int) -> Any:
    """The state of a run on data of d dimensions before its first step, whatever its method."""
    return backend.init(METHODS[config.method].random_params(config, d), config)


def status() -> dict[str, str | None]:
    """For every backend None if it can run here, or the reason why not and what to install.

    >>> from refgba import backends
    >>> backends.status()["numpy"] is None  # it always can
    True
    """
    modules = {name: _module(name) for name in NAMES}
    return {name: module if isinstance(module, str) else None for name, module in modules.items()}
