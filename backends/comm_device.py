"""Sums of device arrays over ranks: by NCCL, or through the host and MPI where NCCL cannot.

No machine with two GPUs was at hand: the way through the host is tested with a stand-in for CuPy, and NCCL has never
been run.  NCCL takes one GPU per rank, so ranks that share a GPU go through the host.  The all-reduce is queued on the
current stream, and no rank waits for it.
"""

from __future__ import annotations

from typing import Any, Protocol

import cupy as cp
import numpy as np

TYPES = {"float64": "NCCL_FLOAT64", "float32": "NCCL_FLOAT32", "float16": "NCCL_FLOAT16", "bfloat16": "NCCL_BFLOAT16"}


class DeviceSums(Protocol):
    """What adds up device arrays."""

    def sum(self, array: Any) -> Any:
        """The sum over all ranks of a contiguous device array of the same shape, which is overwritten."""


class ThroughHost:
    """Copies to the host, adds up there by MPI, and copies back."""

    def __init__(self, comm: Any) -> None:
        """comm: of mpi4py."""
        self._comm = comm

    def sum(self, array: Any) -> Any:
        """See `DeviceSums`; sums are of float32 at least."""
        host = np.ascontiguousarray(cp.asnumpy(array))
        wide = host if host.dtype.itemsize >= 4 else host.astype(np.float32)
        total = np.empty_like(wide)
        self._comm.Allreduce(wide, total)
        array[...] = cp.asarray(total.astype(host.dtype, copy=False))
        return array


class ByNCCL:
    """NCCL by CuPy's binding, on the current stream."""

    def __init__(self, comm: Any) -> None:
        """Join the others; all ranks do so together.  comm: of mpi4py, to share the name of the group."""
        name = np.array(cp.cuda.nccl.get_unique_id(), np.int64) if comm.rank == 0 else np.empty(128, np.int64)
        comm.Bcast(name)
        self._group = cp.cuda.nccl.NcclCommunicator(comm.size, tuple(int(part) for part in name), comm.rank)

    def sum(self, array: Any) -> Any:
        """See `DeviceSums`."""
        nccl, stream = cp.cuda.nccl, cp.cuda.get_current_stream()
        kind = getattr(nccl, TYPES[str(array.dtype)])
        self._group.allReduce(array.data.ptr, array.data.ptr, array.size, kind, nccl.NCCL_SUM, stream.ptr)
        return array


def device_sums(comm: Any) -> DeviceSums:
    """How these ranks add up: by NCCL if it is there and each has a GPU of its own, else through the host.

    All ranks call this together and choose alike.
    """
    own = np.frombuffer(gpu().encode().ljust(64, b"\0")[:64], np.uint8)
    every = np.empty((comm.size, 64), np.uint8)
    comm.Allgather(own, every)
    names = {row.tobytes() for row in every}
    return ByNCCL(comm) if len(names) == comm.size and getattr(cp.cuda.nccl, "available", False) else ThroughHost(comm)


def gpu() -> str:
    """What tells the current GPU from all others of a cluster."""
    properties = cp.cuda.runtime.getDeviceProperties(cp.cuda.Device().id)
    return str(bytes(properties["uuid"]).hex())
