"""The slice of CuPy 14 that `backends/cupy.py` uses, on the CPU: its host code and its kernels run where no GPU is.

`module()` stands in for `cupy`; kernels are compiled as C++ behind `emulated_cuda.h`.  Stricter than a GPU on purpose:

- fresh memory is NaN, and between guards that every launch and product checks;
- a kernel's arguments have the types of its parameters, which CuPy never checks;
- device and host arrays never mix;
- a copy to or from the device on a non-blocking stream happens as late as the waits of the host code allow.

Settings, which `module()` resets: `order` (one of ORDERS) and `seed`, how threads and blocks take turns;
`cuda.Device.mem_info`; and the counts `waits` (of the host for the device) and `launches` (of each kernel).
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
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

ORDERS = ("forward", "backward", "shuffled")
GUARD = 1024  # bytes on either side: a row that runs over
ALIGNMENT = 512  # as cudaMalloc

order, seed, waits = "forward", 0, 0
launches: Counter[str] = Counter()


def module() -> ModuleType:
    """This module in the place of `cupy`, with its settings as they were at first."""
    global order, seed, waits
    order, seed, waits = "forward", 0, 0
    launches.clear()
    Device.mem_info = (64 << 30, 80 << 30)
    return sys.modules[__name__]


def get_default_memory_pool() -> SimpleNamespace:
    """Memory that is freed is free at once."""
    return SimpleNamespace(free_all_blocks=lambda: None)


get_default_pinned_memory_pool = get_default_memory_pool


def _waited():
    global waits
    waits += 1


# ---------------------------------------------------------------------------------------------------------- memory


class _Memory(np.ndarray):
    """Bytes between two guards.  What NumPy makes of them has them as its base."""

    def intact(self):
        return (self[: self.start].tobytes(), self[self.stop :].tobytes()) == self.guards


_live: weakref.WeakValueDictionary[int, _Memory] = weakref.WeakValueDictionary()
_serial = iter(range(1 << 62))
_registry = threading.Lock()  # batches are put on the device by a thread of their own


def _allocate(shape, dtype, order="C"):
    """A host array of garbage in guarded memory.

    Garbage is NaN in float32, float64 and bfloat16 and large in integers.  It differs between allocations, so that
    what is copied from beyond one array to beyond another shows.
    """
    dtype = np.dtype(dtype)
    n = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if n > Device.mem_info[0]:
        raise OutOfMemoryError(f"Out of memory allocating {n:,} bytes")
    memory = np.ndarray.__new__(_Memory, (2 * GUARD + ALIGNMENT + n + n % 2,), np.uint8)
    memory.view(np.uint16)[:] = 0x7FF8 + next(_serial) % 8
    memory.start = GUARD + -(memory.ctypes.data + GUARD) % ALIGNMENT
    memory.stop = memory.start + n
    memory.guards = (memory[: memory.start].tobytes(), memory[memory.stop :].tobytes())
    with _registry:
        _live[memory.ctypes.data] = memory
    return np.ndarray(shape, dtype, memory, memory.start, order=order)


def _arrays():
    with _registry:
        return list(_live.items())


def _check_guards(name):
    for address, memory in _arrays():
        if not memory.intact():
            del _live[address]  # who is told once need not be told again
            raise AssertionError(f"{name} wrote outside of an array of {memory.stop - memory.start} bytes")


def _inside(address, nbytes):
    """Whether the bytes from address on belong to one array of the device."""
    return any(b + m.start <= address and address + nbytes <= b + m.stop for b, m in _arrays())


class OutOfMemoryError(MemoryError):
    pass


# ---------------------------------------------------------------------------------------------------------- arrays


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of the device: no subclass of NumPy's, so that nothing takes it for a host array, or mixes the two."""

    def __init__(self, host):
        self._host = host

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return _call(getattr(ufunc, method), inputs, kwargs)

    def __array_function__(self, function, types, args, kwargs):
        return _call(function, args, kwargs)

    def __getattr__(self, name):
        if name.startswith("_"):  # or NumPy would find __array_interface__
            raise AttributeError(name)
        return _through(getattr(self._host, name))

    def __getitem__(self, key):
        key = key if isinstance(key, tuple) else (key,)
        view = key if any(k is Ellipsis for k in key) else (*key, Ellipsis)  # an element too is a view
        return _call(self._host.__getitem__, (view,), {})

    def __setitem__(self, key, value):
        _call(self._host.__setitem__, (key, value), {})

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

    def __bool__(self):
        return bool(self.get())

    __index__ = __int__

    def __repr__(self):
        return repr(self._host)

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    @property
    def data(self):
        return SimpleNamespace(ptr=self._host.__array_interface__["data"][0])

    def get(self, stream=None, order="C", blocking=True, out=None):
        stream = stream or get_current_stream()
        if out is None:
            out = np.empty(self.shape, self.dtype, order)
        if self.dtype != out.dtype or self.shape != out.shape:
            raise TypeError(f"{self.dtype}{self.shape} cannot be copied into {out.dtype}{out.shape}")
        stream._do(lambda: np.copyto(out, self._host))
        if blocking:
            stream.synchronize()
        return out

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray) or self.dtype != arr.dtype:
            raise TypeError(f"{type(arr)} {getattr(arr, 'dtype', '')} cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        source = arr if any(np.may_share_memory(arr, p) for p in list(_pinned.values())) else arr.copy()
        (stream or get_current_stream())._do(lambda: np.copyto(self._host, source))


def _bare(x):
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: an array of the host among those of the device")
    if isinstance(x, list | tuple):
        return type(x)(_bare(y) for y in x)
    return x


def _dressed(x):
    if isinstance(x, list | tuple):
        return type(x)(_dressed(y) for y in x)
    if not isinstance(x, np.ndarray | np.generic):
        return x
    root = x = np.asarray(x)
    while isinstance(root.base, np.ndarray) and not isinstance(root, _Memory):
        root = root.base
    if not isinstance(root, _Memory):
        x, result = _allocate(x.shape, x.dtype, "F" if x.flags.fnc else "C"), x
        x[...] = result
    return ndarray(x)


def _call(function, args, kwargs):
    get_current_stream()._run()
    with np.errstate(all="ignore"):
        result = function(*_bare(args), **{k: _bare(v) for k, v in kwargs.items()})
    out = kwargs.get("out")
    if out is not None:
        return out[0] if isinstance(out, tuple) else out
    return _dressed(result)


def _through(thing):
    """What NumPy has, for device arrays."""
    if isinstance(thing, type | ModuleType) or not callable(thing):
        return _dressed(thing)
    return functools.wraps(thing)(lambda *args, **kwargs: _call(thing, args, kwargs))


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _through(getattr(np, name))


def empty(shape, dtype=float, order="C"):
    return ndarray(_allocate(shape, dtype, order))


def empty_like(a, dtype=None):
    return empty(a.shape, dtype or a.dtype)


def array(obj, dtype=None):
    if isinstance(obj, ndarray):
        return _call(np.array, (obj, dtype), {})
    host = np.asarray(obj, dtype)
    device = empty(host.shape, host.dtype, "F" if host.flags.fnc else "C")
    device.set(host)
    return device


def asarray(a, dtype=None, order="C"):
    return a if isinstance(a, ndarray) and dtype in (None, a.dtype) else array(np.asarray(a, order=order), dtype)


def asnumpy(a):
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


# --------------------------------------------------------------------------------------------------------- streams

_thread = threading.local()
_streams: weakref.WeakSet[Stream] = weakref.WeakSet()
_pinned: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()


class Stream:
    """A queue of copies that wait until somebody has to see them.  Only non-blocking streams have any."""

    def __init__(self, null=False, non_blocking=False):
        self.ptr = 0 if null else id(self)
        self._late, self._queue = non_blocking, []
        _streams.add(self)

    def _do(self, work):
        self._queue.append(work)
        if not self._late:
            self._run()

    def _run(self, until=()):
        while self._queue and not until:
            self._queue.pop(0)()

    def __enter__(self):
        _thread.__dict__.setdefault("streams", []).append(self)
        return self

    def __exit__(self, *_):
        _thread.streams.pop()

    def synchronize(self):
        _waited()
        self._run()

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        stream, reached = event._stream, event._reached
        self._do(lambda: stream._run(reached))


Stream.null = Stream(null=True)


def get_current_stream():
    return (_thread.__dict__.get("streams") or [Stream.null])[-1]


class Event:
    def __init__(self, **_):
        self._stream, self._reached = Stream.null, [True]

    def record(self, stream=None):
        self._stream, self._reached = stream or get_current_stream(), (reached := [])
        self._stream._do(lambda: reached.append(time.perf_counter()))

    @property
    def done(self):
        """Whether it has happened.  It has when asked again, so that a loop that polls it ends."""
        done = bool(self._reached)
        self._stream._run(self._reached)
        return done

    def synchronize(self):
        _waited()
        self._stream._run(self._reached)


class Device:
    mem_info = (64 << 30, 80 << 30)
    cublas_handle = 0xB1A5
    compute_capability = "90"

    def __init__(self, device=0):
        self.id = device

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def use(self):
        pass

    def synchronize(self):
        _waited()
        for stream in list(_streams):
            stream._run()


def _alloc_pinned_memory(size):
    """More than was asked for, as CuPy's pool: np.frombuffer needs the count."""
    memory = np.full(1 << max(9, (size - 1).bit_length()), 0xA5, np.uint8)
    _pinned[memory.ctypes.data] = memory
    return memory


# --------------------------------------------------------------------------------------------------------- kernels


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
    found = re.findall(rf"__global__\s+{bounds}void\s+{bounds}(\w+)\s*\(", _cxx("-E", "-P", "-x", "c++", plain))
    header = Path(__file__).with_name("emulated_cuda.h")
    footer = "".join(f"EMULATED_KERNEL({name}, {before or after})\n" for before, after, name in found)
    # Without the namespace __shared__ in an inline function would be of another kind than in a kernel.
    cpp.write_text(f'#include "{header}"\nnamespace {{\n{source}}}\n{footer}')
    _cxx("-O2", "-ffp-contract=off", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-o", so, cpp)
    return ctypes.PyDLL(str(so)), [name for _, _, name in found]  # PyDLL: one launch at a time, whatever the threads


class RawKernel:
    """Only what shows whether kernels can be compiled at all."""

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
        return _Kernel(library, name)


class _Kernel:
    def __init__(self, library, name):
        self.name = name
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
        (stream or get_current_stream())._run()
        pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        dims = ((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block))
        launches[self.name] += 1
        stuck = self._launch(pointers, *dims, ORDERS.index(order), ctypes.c_ulonglong(seed + launches.total()))
        assert not stuck, f"{self.name}: {stuck.decode()}"
        _check_guards(self.name)

    def _value(self, i, arg):
        """The bytes that a parameter gets, if they are of its type; signs may differ."""
        if isinstance(arg, ndarray):
            got, value = f"*{_type(arg)}", np.asarray(arg.data.ptr)
        elif isinstance(arg, bool | int | float | np.generic):
            value = np.asarray(arg, {bool: np.bool_, int: np.int64, float: np.float64}.get(type(arg)))
            got = _type(value)
        else:
            raise TypeError(f"Unsupported type {type(arg)}")
        wanted = self._parameters[i]
        assert got == wanted or (wanted == "*void" and got[0] == "*"), (
            f"{self.name}: argument {i} is {got}, not {wanted}"
        )
        return value


def _type(a):
    return f"{'f' if a.dtype.kind == 'f' else 'i' if a.dtype.kind in 'iub' else a.dtype.kind}{a.dtype.itemsize}"


# -------------------------------------------------------------------------------------------------------- products


def _rounded(x, bits):
    """The bits of float32 x, rounded to nearest even so that the last ones are 0; NaN stays NaN."""
    x = np.ascontiguousarray(x, np.float32)
    u = x.view(np.uint32)
    even = (u >> np.uint32(bits)) & np.uint32(1)
    up = u + (even + np.uint32((1 << bits - 1) - 1))
    return np.where(np.isnan(x), u | np.uint32(1 << 22), up) & np.uint32(~((1 << bits) - 1) & 0xFFFFFFFF)


def to_bf16(x):
    return (_rounded(x, 16) >> np.uint32(16)).astype(np.uint16)


def from_bf16(x):
    return (np.asarray(x, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


_DTYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float64), 14: np.dtype(np.uint16)}
_SUPPORTED = {68: {(0, 0), (14, 0), (14, 14)}, 70: {(1, 1)}, 77: {(0, 0)}}  # compute type: types of (A and B, C)


def _matrix(name, pointer, kind, rows, columns, ld):
    """The column-major matrix at an address of the device."""
    dtype = _DTYPES[kind]
    assert ld >= max(1, rows), f"gemmEx: ld{name} {ld} < {rows} rows"
    nbytes = (ld * (columns - 1) + rows) * dtype.itemsize if rows and columns else 0
    assert nbytes == 0 or _inside(pointer, nbytes), f"gemmEx: {name} lies outside of the arrays of the device"
    memory = (ctypes.c_ubyte * nbytes).from_address(pointer)
    return np.ndarray((rows, columns), dtype, memory, strides=(dtype.itemsize, ld * dtype.itemsize))


def _gemm_ex(handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, compute, algo):
    """C = alpha op(A) op(B) + beta C, column-major, by address; alpha and beta on the host."""
    assert handle == Device.cublas_handle, "gemmEx: not the handle"
    assert {transa, transb} <= {0, 1}, "gemmEx: operations are 0 (N) and 1 (T)"
    assert algo in (-1, 99), "gemmEx: algo is CUBLAS_GEMM_DEFAULT"
    assert Btype == Atype, "gemmEx: A and B differ in type"
    assert (Atype, Ctype) in _SUPPORTED[compute], "gemmEx: types that cuBLAS does not support"
    assert not any(_inside(p, 1) for p in (alpha, beta)), "gemmEx: alpha and beta are on the host"
    get_current_stream()._run()
    a = _matrix("a", A, Atype, *((k, m) if transa else (m, k)), lda)
    b = _matrix("b", B, Btype, *((n, k) if transb else (k, n)), ldb)
    c = _matrix("c", C, Ctype, m, n, ldc)
    assert not any(np.shares_memory(c, x) for x in (a, b)), "gemmEx: C overlaps A or B"
    scalar = ctypes.c_double if compute == 70 else ctypes.c_float
    factors = np.array([scalar.from_address(alpha).value, scalar.from_address(beta).value], scalar)
    wide = [from_bf16(x) if Atype == 14 else x for x in (a.T if transa else a, b.T if transb else b)]
    if compute == 77:
        wide = [_rounded(x, 13).view(np.float32) for x in wide]
    with np.errstate(all="ignore"):
        result = factors[0] * (wide[0] @ wide[1])
        if factors[1] != 0:
            result += factors[1] * (from_bf16(c) if Ctype == 14 else c)
    c[...] = to_bf16(result) if Ctype == 14 else result
    _check_guards("gemmEx")


def _get_elapsed_time(start, end):
    """Milliseconds, of events that have happened."""
    assert start._reached, "cudaErrorNotReady"
    assert end._reached, "cudaErrorNotReady"
    return 1e3 * (end._reached[0] - start._reached[0])


cuda = SimpleNamespace(
    Device=Device,
    Event=Event,
    Stream=Stream,
    alloc_pinned_memory=_alloc_pinned_memory,
    compiler=SimpleNamespace(CompileException=CompileException),
    cublas=SimpleNamespace(gemmEx=_gemm_ex),
    device=SimpleNamespace(get_cublas_handle=lambda: Device.cublas_handle),
    get_cublas_handle=lambda: Device.cublas_handle,
    get_current_stream=get_current_stream,
    get_elapsed_time=_get_elapsed_time,
    is_available=lambda: True,
    memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=SimpleNamespace(
        CUDARuntimeError=type("CUDARuntimeError", (RuntimeError,), {}),
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda _: {"name": b"emulated"},
    ),
)
