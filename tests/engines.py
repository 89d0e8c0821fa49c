"""Every backend in every dtype, for tests to run over, and the libraries of others: what is missing skips its tests.

"cupy emulated" is backends/cupy.py, the modules beside it and its kernels, on the CPU: tests/emulated_cupy.py in the
place of CuPy (`in_place_of_cupy`).
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import emulated_cupy
import pytest

from refgba import backends
from refgba.backends.base import Backend

DTYPES = {
    "numpy": ("float64", "float32"),
    "numba": ("float64", "float32"),
    "cupy": ("float64", "float32", "tf32", "bfloat16"),
}
DTYPES["cupy emulated"] = DTYPES["cupy"]
ENGINES = [
    pytest.param(name, dtype, id=f"{name} {dtype}", marks=[pytest.mark.gpu] if name == "cupy" else [])
    for name, dtypes in DTYPES.items()
    for dtype in dtypes
]
CUDA = Path(backends.__file__).with_name("cupy_kernels.cu")
CUDA_KERNELS = re.findall(
    r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(', CUDA.read_text(encoding="utf-8")
)


@contextmanager
def in_place_of_cupy(library: Any) -> Iterator[Any]:
    """backends/cupy.py, with `library` as the `cp` of all of its modules; a skipped test where CuPy is missing."""
    backend = pytest.importorskip("refgba.backends.cupy", reason="CuPy is not installed", exc_type=ImportError)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith(backend.__name__)]:
            patch.setattr(sys.modules[name], "cp", library)
        yield backend


@contextmanager
def engine(name: str) -> Iterator[Backend]:
    """The backend, or a skipped test."""
    if name == "cupy emulated":
        if emulated_cupy.compiler() is None:
            pytest.skip("no C++ compiler for the kernels")
        with in_place_of_cupy(emulated_cupy.module()) as backend:
            yield backend
    else:
        reason = backends.status()[name]
        if reason is not None:
            pytest.skip(f"{name}: {reason}")
        yield backends.load(name)


def real(test):
    """A test of a real library: run by `make test-all`, and blind to what libraries deprecate in one another."""
    return pytest.mark.interop(pytest.mark.filterwarnings("ignore")(test))


def program(monkeypatch, name, *libraries):
    """A program of benchmarks/ that trains with numba, as a module; a skipped test where a library is missing."""
    for needed in libraries:
        library(needed)
    if backends.status()["numba"] is not None:
        pytest.skip("numba is not installed: pip install '.[cpu]'")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module(name)


def library(name):
    """The library, or a skipped test.  One that is there and cannot be imported is an error, not a skip."""
    if importlib.util.find_spec(name.split(".")[0]) is None:
        pytest.skip(f"{name} is not installed: pip install '.[interop]'")
    functions = vars(math).copy()
    try:
        return importlib.import_module(name)
    finally:  # nnsight, which dictionary_learning imports, replaces them, and numba could compile none from then on
        vars(math).update(functions)
