"""The same algorithms, fast: one module per backend, all behind the contract of `refgba.backends.base`.

The name of a module is the value of `--backend`.  GBA's modules are here and the baselines' in the folder `baselines`,
as `TWINS` of each method in `refgba.baselines.METHODS` says: a backend has a method if its file is there.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import numpy as np

from refgba.backends import environment, shards
from refgba.backends.base import AnyConfig, AnyParams, Backend, HostState, ParallelBackend
from refgba.backends.baselines.traits import LACKING
from refgba.backends.comm import ALONE, Ranks
from refgba.baselines import METHODS
from refgba.config import GBAConfig
from refgba.errors import InputError

__all__ = [
    "AUTO",
    "NAMES",
    "Backend",
    "automatic",
    "begin",
    "given",
    "go_on",
    "load",
    "load_for",
    "refuse_ranks",
    "status",
]

NAMES = ("numpy", "numba", "cupy")
AUTO = "auto"  # a value of `--backend` that stands for one of them: `automatic`

_tried: set[tuple[str, str, str, bool]] = set()  # what `_try` was called with, and went well


def _path(name: str, method: str) -> str:
    """The dotted path of the module of a backend for a method, whether or not there is one."""
    return f"{METHODS[method].TWINS}.{name}"


def _has(name: str, method: str) -> bool:
    """Whether a backend has a method: whether there is such a module, usable here or not, that does not lack it."""
    return method not in LACKING.get(name, ()) and find_spec(_path(name, method)) is not None


def _module(name: str, method: str = "gba") -> Backend | str:
    """The module of a backend for a method, or why it cannot be used here and what to do."""
    refusal = environment.refusal(name)
    if refusal is not None:
        return refusal
    try:
        module = cast(Backend, import_module(_path(name, method)))
        return module.unusable() or module
    except Exception as error:
        if name not in environment.NEEDS:
            raise
        return environment.reason(name, f"{name} fails", error)


def _try(name: str, backend: Backend, dtype: str, method: str, trains: bool) -> None:
    """Use a tiny network, and train it if `trains`, once per process: InputError if the backend's libraries fail at it.

    This compiles what a run needs, and so takes the time that the first step of the run then does not.
    """
    use = name, method, dtype, trains
    if name not in environment.NEEDS or use in _tried:
        return
    config = METHODS[method].configure(8, "default", width=64, steps=8, batch=8, dtype=dtype)
    try:
        state = begin(backend, config, 8)
        for x in (np.zeros((8, 8)), 9 * np.eye(8)) if trains else ():  # on which no neurons are active, and many
            float(backend.step(state, backend.put(state, x)).loss)
            backend.adapt(state)
        _, s = backend.encode(state, backend.put(state, np.eye(8)))
        backend.get(backend.decode(state, s))
    except InputError:
        return  # What a device refuses it refuses the run too, and then names the sizes of the run.
    except MemoryError:
        raise
    except Exception as error:
        why = environment.reason(name, "its first use fails", error)
        raise InputError(f"backend {name!r} cannot run here: {why}") from error
    _tried.add(use)


def load(name: str, dtype: str | None = None, method: str = "gba", trains: bool = True) -> Backend:
    """The backend of that name, ready to use, and able to compute in `dtype` if one is given.

    method: one of `refgba.baselines.METHODS`.  With a dtype the backend is tried, so that no run begins where it could
    not go on; trains: false if `encode` and `decode` are all that is wanted, and no step need be compiled.

    InputError when there is no backend of that name, when it cannot run here, then with the reason and what to do, or
    when it lacks the method or the dtype.  There is no fallback.

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
        methods = ", ".join(other for other in METHODS if _has(name, other))
        able = " and ".join(other for other in NAMES if _has(other, method))
        raise InputError(f"backend {name!r} trains with method {methods} only; {able} have the baselines")
    module = _module(name, method)
    if isinstance(module, str):
        raise InputError(f"backend {name!r} cannot run here: {module}")
    if dtype is not None and dtype not in module.DTYPES:
        raise InputError(f"backend {name!r} has no dtype {dtype}; it has {', '.join(module.DTYPES)}")
    if dtype is not None:
        _try(name, module, dtype, method, trains)
    return module


def load_for(name: str, config: AnyConfig, trains: bool = True) -> Backend:
    """`load` for the method and the dtype of a run's settings."""
    return load(name, config.dtype, config.method, trains)


def automatic(config: AnyConfig) -> tuple[str, str | None]:
    """The backend that AUTO means: numba where it can run a training of these settings, else numpy, and then why."""
    try:
        load_for("numba", config)
    except InputError as error:
        return "numpy", str(error)
    return "numba", None


def begin(backend: Backend, config: AnyConfig, d: int, ranks: Ranks = ALONE) -> Any:
    """The state of a run on data of d dimensions before its first step, whatever its method: this rank's neurons."""
    if ranks.size == 1:
        return backend.init(METHODS[config.method].random_params(config, d), config)
    return given(backend, shards.random_params(cast(GBAConfig, config), d, ranks), config, ranks)


def given(backend: Backend, params: AnyParams, config: AnyConfig, ranks: Ranks = ALONE) -> Any:
    """The state of a network with these parameters, which are those of this rank's neurons."""
    return _joined(backend, backend.init(params, config), ranks)


def go_on(backend: Backend, saved: HostState, ranks: Ranks = ALONE) -> Any:
    """The state of a run that goes on from this rank's part of a checkpoint."""
    return _joined(backend, backend.restore(saved), ranks)


def _joined(backend: Backend, state: Any, ranks: Ranks) -> Any:
    if ranks.size > 1:
        cast(ParallelBackend, backend).join(state, ranks)
    return state


def refuse_ranks(name: str, backend: Backend, config: AnyConfig, ranks: Ranks) -> None:
    """InputError where a run with these settings cannot lie on so many ranks."""
    if ranks.size == 1:
        return
    if not hasattr(backend, "join"):
        raise InputError(
            f"backend {name!r} trains method {config.method} in one process, not on {ranks.size} ranks: start it "
            "without mpiexec"
        )
    shards.refuse_too_many(cast(GBAConfig, config), ranks)


def status() -> dict[str, str | None]:
    """For every backend None if it can run here, or the reason why not and what to do.

    >>> from refgba import backends
    >>> backends.status()["numpy"] is None  # it always can
    True
    """
    modules = {name: _module(name) for name in NAMES}
    return {name: module if isinstance(module, str) else None for name, module in modules.items()}
