"""numba's compiler as numba_kernels.py and baselines/numba.py use it: with a cache that never stands in the way.

numba keeps what it compiled beside the source, else in the user's cache.  Where neither can be written, `njit` keeps it
in `refgba.backends.environment.cache_folder`; NUMBA_CACHE_DIR goes before all of them.  What is damaged, or cannot be
read, is compiled and written again; what cannot be written is compiled by every process
(tests/test_environment_caches.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
import numpy as np

from refgba.backends import environment

Function = Callable[..., Any]
config: Any = numba.config  # whose attributes numba makes as it is imported


class ToleratedCache:
    """A cache of numba's for one function, but that a file which cannot be used is the same as one that is not there.

    It has what `numba.core.caching.Cache` has.
    """

    def __init__(self, cache: Any) -> None:
        """In the place of `cache`."""
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, signature: Any, context: Any) -> Any:
        """What was compiled for a signature, or None; damaged files are given up, and written again later."""
        try:
            return self._cache.load_overload(signature, context)
        except Exception:  # unpickling what is damaged can raise anything
            with suppress(Exception):
                self._cache.flush()
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep what was compiled, if that can be done."""
        with suppress(Exception):  # disks are full, folders are gone
            self._cache.save_overload(signature, result)


def njit(**options: Any) -> Callable[[Function], Function]:
    """`numba.njit` with these options, and a cache.  RuntimeError if NUMBA_CACHE_DIR leaves no folder for it."""

    def compiled(function: Function) -> Function:
        dispatcher: Any = numba.njit(**options)(function)
        if not config.DISABLE_JIT:  # else it is the function itself; see `unusable`
            _enable_cache(dispatcher)
            if hasattr(dispatcher, "_cache"):
                dispatcher._cache = ToleratedCache(dispatcher._cache)
        return dispatcher  # type: ignore[no-any-return]  # numba has no types for what it returns

    return compiled


def _enable_cache(dispatcher: Any) -> None:
    """Let numba find a folder for the cache of a function, or give it ours."""
    homeless = not os.path.isabs(os.path.expanduser("~"))  # numba would make a folder named ~ here
    if config.CACHE_DIR or not homeless:
        try:
            dispatcher.enable_caching()
            return
        except RuntimeError:  # no locator available
            if config.CACHE_DIR:
                raise
    with suppress(OSError):  # without any temporary directory there is no cache
        config.CACHE_DIR = str(environment.cache_folder() / "numba")
        try:
            dispatcher.enable_caching()
        finally:
            config.CACHE_DIR = ""


@njit(parallel=True, nogil=True)
def products(A, B, f):
    """f[k] <- A B for each k: small, and it takes what the kernels take, threads and a BLAS."""
    for k in numba.prange(len(f)):
        np.dot(A, B, f[k])


def unusable() -> str | None:
    """Why numba cannot compute here and what to do, in one line; None when it can.  Compiles a kernel, and runs it."""
    if config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set, and nothing would be compiled: unset it; --backend numpy compiles nothing"
    f = np.empty((2, 2, 2))
    try:
        products(np.eye(2), np.eye(2), f)
    except Exception as error:
        return environment.reason("numba", "numba cannot compile and run a kernel", error)
    return None if (f == np.eye(2)).all() else "numba computes wrong numbers"
