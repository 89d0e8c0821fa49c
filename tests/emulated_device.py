"""The emulated GPU: how it is set and what it counts, its memory's size, its streams, and pinned memory of the host.

A part of emulated_cupy.py, and of nothing else.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from typing import NamedTuple

import numpy as np

ORDERS = ("forward", "backward", "shuffled")


class Work(NamedTuple):
    """Something that a stream does in its turn: a kernel, a product, a copy, the record of an event or a wait for one.

    arrays: addresses of the memory that it is given.
    """

    stream: Stream
    name: str
    arrays: tuple[int, ...]
    event: Event | None = None


class Emulation:
    """How the device behaves, and what it has done since `reset`.

    order: one of ORDERS, in which threads and blocks take turns; seed: of "shuffled".  waits: of the host for the
    device.  launches: of each kernel, by name.  unaligned: products of matrices whose rows do not begin at multiples of
    16 bytes.  log: where a test puts a list, all work given to streams comes there, in the order of the host.
    """

    def __init__(self):
        self.reset()

    def reset(self):
        self.order, self.seed, self.waits, self.unaligned = "forward", 0, 0, 0
        self.launches = Counter()
        self.log: list[Work] | None = None
        Device.mem_info = Device.MEMORY


# ---------------------------------------------------------------------------------------------------------- device

_thread = threading.local()


class Device:
    """One of several; which one is current belongs to a thread, and a new thread begins with the first."""

    MEMORY = (64 << 30, 80 << 30)  # bytes: free, and all
    mem_info = MEMORY
    compute_capability = "90"

    def __init__(self, device=None):
        self.id = _thread.__dict__.get("device", 0) if device is None else device

    def __enter__(self):
        _thread.__dict__.setdefault("before", []).append(Device().id)
        self.use()
        return self

    def __exit__(self, *_):
        _thread.device = _thread.before.pop()

    def use(self):
        _thread.device = self.id

    def synchronize(self):
        emulation.waits += 1
        for stream in list(_streams):
            stream._run()


def get_cublas_handle():
    """That of the thread and its current device."""
    handles = _thread.__dict__.setdefault("handles", {})
    return handles.setdefault(Device().id, next(_handles))


_handles = iter(range(0xB1A5, 1 << 62))
emulation = Emulation()


# --------------------------------------------------------------------------------------------------------- streams

_streams: weakref.WeakSet[Stream] = weakref.WeakSet()


class Stream:
    """A queue of copies that wait until somebody has to see them.  Only the queues of non-blocking streams fill."""

    def __init__(self, null=False, non_blocking=False):
        self.ptr = 0 if null else id(self)
        self.device_id = -1 if null else Device().id
        self._late, self._queue = non_blocking, []
        _streams.add(self)

    def reachable(self):
        """Whether it is of the current device; the null stream is of every device."""
        return self.device_id in (-1, Device().id)

    def _do(self, work):
        self._queue.append(work)
        if not self._late:
            self._run()

    def _run(self, until=()):
        while self._queue and not until:
            self._queue.pop(0)()

    def __enter__(self):
        if not self.reachable():
            raise RuntimeError(f"The device that the stream is created on ({self.device_id}) is not the current one")
        _thread.__dict__.setdefault("streams", []).append(self)
        return self

    def __exit__(self, *_):
        _thread.streams.pop()

    def synchronize(self):
        emulation.waits += 1
        self._run()

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        stream, reached = event._stream, event._reached
        log("wait", [], self, event)
        self._do(lambda: stream._run(reached))


Stream.null = Stream(null=True)


def get_current_stream():
    return (_thread.__dict__.get("streams") or [Stream.null])[-1]


class Event:
    def __init__(self, **_):
        self._stream, self._reached = Stream.null, [True]

    def record(self, stream=None):
        self._stream, self._reached = stream or get_current_stream(), (reached := [])
        log("record", [], self._stream, self)
        self._stream._do(lambda: reached.append(time.perf_counter()))

    @property
    def done(self):
        """Whether it has happened.  The second time it has, so that a loop that polls it ends."""
        done = bool(self._reached)
        self._stream._run(self._reached)
        return done

    def synchronize(self):
        emulation.waits += 1
        self._stream._run(self._reached)


def log(name, arrays, stream=None, event=None):
    """Keep what a stream, or the current one, is given to do with these arrays."""
    if emulation.log is not None:
        emulation.log.append(Work(stream or get_current_stream(), name, tuple(a.data.ptr for a in arrays), event))


def enqueue(stream, work):
    """Have a stream do some work in its turn."""
    stream._do(work)


def catch_up(stream=None):
    """Have a stream, or the current one, do all that is in its queue."""
    (stream or get_current_stream())._run()


def get_elapsed_time(start, end):
    """Milliseconds, of events that have happened."""
    assert start._reached, "cudaErrorNotReady"
    assert end._reached, "cudaErrorNotReady"
    return 1e3 * (end._reached[0] - start._reached[0])


# --------------------------------------------------------------------------------------------------- pinned memory

pinned: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()


def alloc_pinned_memory(size):
    """At least `size` bytes, usually more, as from CuPy's pool: np.frombuffer needs the count."""
    memory = np.full(1 << max(9, (size - 1).bit_length()), 0xA5, np.uint8)
    pinned[memory.ctypes.data] = memory
    return memory
