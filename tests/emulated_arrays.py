"""Arrays of the emulated device: each in memory between guards, garbage when fresh, and never mixed with the host's.

A part of emulated_cupy.py, and of nothing else.
"""

from __future__ import annotations

import functools
import threading
import weakref
from types import ModuleType, SimpleNamespace

import numpy as np
from emulated_device import Device, catch_up, enqueue, get_current_stream, log, pinned

GUARD = 1024  # bytes on either side: a row that runs over
ALIGNMENT = 512  # as cudaMalloc


# ---------------------------------------------------------------------------------------------------------- memory


class _Memory(np.ndarray):
    """Bytes between two guards.  Every NumPy array made of them has this one as its base."""

    def intact(self):
        return (self[: self.start].tobytes(), self[self.stop :].tobytes()) == self.guards


_live: weakref.WeakValueDictionary[int, _Memory] = weakref.WeakValueDictionary()
_serial = iter(range(1 << 62))
_registry = threading.Lock()  # batches are put on the device by a thread of their own


def allocate(shape, dtype, order="C"):
    """A host array of garbage in guarded memory.

    Garbage is NaN in float32, float64 and bfloat16, and large in integers.  It differs between allocations, so that
    a copy from beyond one array to beyond another shows.
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


def _memories():
    """(address, memory) of every array there is."""
    with _registry:
        return list(_live.items())


def check_guards(name):
    """An AssertionError where something has written outside of an array; `name` is what ran last."""
    for address, memory in _memories():
        if not memory.intact():
            del _live[address]  # reported once
            raise AssertionError(f"{name} wrote outside of an array of {memory.stop - memory.start} bytes")


def inside(address, nbytes):
    """Whether the bytes from address on belong to one array of the device."""
    return any(b + m.start <= address and address + nbytes <= b + m.stop for b, m in _memories())


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
        return through(getattr(self._host, name))

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
        enqueue(stream, lambda: np.copyto(out, self._host))
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
        source = arr if any(np.may_share_memory(arr, p) for p in list(pinned.values())) else arr.copy()
        log("set", [self], stream)
        enqueue(stream or get_current_stream(), lambda: np.copyto(self._host, source))


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
        x, result = allocate(x.shape, x.dtype, "F" if x.flags.fnc else "C"), x
        x[...] = result
    return ndarray(x)


def _call(function, args, kwargs):
    catch_up()
    with np.errstate(all="ignore"):
        result = function(*_bare(args), **{k: _bare(v) for k, v in kwargs.items()})
    out = kwargs.get("out")
    if out is not None:
        return out[0] if isinstance(out, tuple) else out
    return _dressed(result)


def through(thing):
    """What NumPy has, for device arrays."""
    if isinstance(thing, type | ModuleType) or not callable(thing):
        return _dressed(thing)
    return functools.wraps(thing)(lambda *args, **kwargs: _call(thing, args, kwargs))


def empty(shape, dtype=float, order="C"):
    return ndarray(allocate(shape, dtype, order))


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
