"""CUDA kernels of the emulated device: compiled as C++ behind emulated_cuda.h, and launched with checked arguments.

A part of emulated_cupy.py, and of nothing else.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from emulated_arrays import check_guards, ndarray
from emulated_device import ORDERS, catch_up, emulation, get_current_stream, log


def compiler():
    """The C++ compiler, or None where kernels cannot be emulated: the header needs the ELF sections of Linux."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((shutil.which(n) for n in names if n and shutil.which(n)), None) if sys.platform == "linux" else None


class CompileException(Exception):
    pass


@functools.cache
def _folder():
    folder = tempfile.mkdtemp(prefix="emulated_cuda_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _cxx(*args):
    done = subprocess.run([compiler(), "-std=c++17", *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise CompileException(done.stderr)
    return done.stdout


@functools.cache
def _library(code, macros):
    """The kernels of a source, compiled: (library, names)."""
    stem = _folder() / f"kernels{len(list(_folder().glob('*.so')))}"
    plain, cpp, so = (stem.with_suffix(suffix) for suffix in (".cu", ".cpp", ".so"))
    source = "".join(f"#define {name} {value or 1}\n" for name, value in macros) + f'#line 1 "kernels.cu"\n{code}\n'
    plain.write_text(source)
    bounds = r"(?:__launch_bounds__\s*\(((?:[^()]|\([^()]*\))*)\)\s*)?"
    kernels = re.findall(rf"__global__\s+{bounds}void\s+{bounds}(\w+)\s*\(", _cxx("-E", "-P", "-x", "c++", plain))
    header = Path(__file__).with_name("emulated_cuda.h")
    footer = "".join(f"EMULATED_KERNEL({name}, {before or after})\n" for before, after, name in kernels)
    # Without the namespace __shared__ in an inline function would be of another kind than in a kernel.
    cpp.write_text(f'#include "{header}"\nnamespace {{\n{source}}}\n{footer}')
    _cxx("-O2", "-ffp-contract=off", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-o", so, cpp)
    return ctypes.PyDLL(str(so)), [name for *_, name in kernels]  # with PyDLL launches come one at a time


class RawKernel:
    """As much of it as `unusable` needs to see whether kernels can be compiled at all."""

    def __init__(self, code, name):
        self._module, self._name = RawModule(code=code), name

    def compile(self):
        self._module.get_function(self._name)


class RawModule:
    def __init__(self, *, code, options=()):
        assert isinstance(options, tuple), "options are a tuple"
        self._source = code, tuple(o[2:].partition("=")[::2] for o in options if o.startswith("-D"))

    def compile(self):
        _library(*self._source)

    def get_function(self, name):
        library, names = _library(*self._source)
        assert name in names, f"no kernel {name}; there are {', '.join(names)}"
        # CuPy compiles with -ftz=true, which is about float alone; a CPU flushes both widths or neither.
        return _Kernel(library, name, flushes=("REAL", "double") not in self._source[1])


class _Kernel:
    def __init__(self, library, name, flushes):
        self.name, self._flushes = name, int(flushes)
        self._launch, signature, bounds = (getattr(library, f"{f}_{name}") for f in ("launch", "signature", "bounds"))
        self._launch.restype = signature.restype = ctypes.c_char_p
        self._parameters, self._most_threads = signature().decode().split(), bounds()

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None):
        grid, block = (tuple(max(1, int(n)) for n in (*dims, 1, 1)[:3]) for dims in (grid, block))  # as CuPy: never 0
        assert not shared_mem, "dynamic shared memory is not emulated"
        assert np.prod(block) <= self._most_threads, f"{self.name}: block {block} of over {self._most_threads} threads"
        assert max(grid[1:]) < 1 << 16, f"{self.name}: grid {grid}"
        assert len(args) == len(self._parameters), f"{self.name}: {len(args)} arguments for {self._parameters}"
        values = [self._value(i, a) for i, a in enumerate(args)]
        assert (stream or get_current_stream()).reachable(), f"{self.name}: the stream is another device's"
        catch_up(stream)
        pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        dims = ((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block))
        emulation.launches[self.name] += 1
        log(self.name, [a for a in args if isinstance(a, ndarray)], stream)
        turns = ORDERS.index(emulation.order), ctypes.c_ulonglong(emulation.seed + emulation.launches.total())
        stuck = self._launch(pointers, *dims, *turns, self._flushes)
        assert not stuck, f"{self.name}: {stuck.decode()}"
        check_guards(self.name)

    def _value(self, i, arg):
        """The bytes that a parameter gets, if they are of its type; signs may differ."""
        if isinstance(arg, ndarray):
            got, value = f"*{_type(arg)}", np.asarray(arg.data.ptr)
        elif arg is None:
            got, value = "*null", np.zeros((), np.uintp)
        elif isinstance(arg, bool | int | float | np.generic):
            value = np.asarray(arg, {bool: np.bool_, int: np.int64, float: np.float64}.get(type(arg)))
            got = _type(value)
        else:
            raise TypeError(f"Unsupported type {type(arg)}")
        wanted = self._parameters[i]
        assert got == wanted or (wanted[0] == got[0] == "*" and "*void" in (wanted, got.replace("null", "void"))), (
            f"{self.name}: argument {i} is {got}, not {wanted}"
        )
        return value


def _type(a):
    return f"{'f' if a.dtype.kind == 'f' else 'i' if a.dtype.kind in 'iub' else a.dtype.kind}{a.dtype.itemsize}"
