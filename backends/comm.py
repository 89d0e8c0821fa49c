"""Ranks: processes that share one network, each with neurons of its own, and the little that they tell each other.

Rank r of P has the neurons r, r + P, r + 2 P, .. so that each group of neurons is spread evenly, whatever P is.  A step
shares one sum of reconstructions (L, d), and one small message with the gradient of b_pre (d,); an adaptation shares
2 K numbers.  Neither grows with M.

`Ranks` is one process alone: its sums are what they are given.  A backend calls them all the same, so that it has one
code path for any number of ranks.  `MPIRanks` is a process that an MPI launcher started with others: mpi4py carries
host arrays, and device arrays go by NCCL or through the host (`refgba.backends.comm_device`).

All ranks make the same calls in the same order.  A rank that fails must not just leave, since the others would wait
for it for ever: `together` finds out whether all of them fail alike, and `abort` ends them where they do not.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from refgba.errors import InputError
from refgba.types import Array, Float64

T = TypeVar("T")

# Where launchers say how many processes they started: mpich, Open MPI, MVAPICH and Slurm's srun.
LAUNCHED = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# Where they say which of the processes on its machine this one is.
LOCAL = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
PATIENCE = 2.0  # seconds in which ranks that fail alike all find out
MOMENT = 0.002  # seconds between two looks at a message that may take long
BLOCK = 2**22  # entries of W that travel at a time, 32 MB in float64


class Ranks:
    """One process alone, and what any number of ranks provides.

    rank, size: this one's number, from 0, and how many there are.  here: how many of them are on this machine.
    traffic: bytes that this rank has handed over, by the name of what is shared; always empty for one process.
    broadcasts: whether rows of data are read by rank 0 alone.

    >>> import numpy as np
    >>> from refgba.backends.comm import Ranks
    >>> alone = Ranks()
    >>> alone.sum(np.ones(2)), alone.totals(np.ones(2), np.float64(3.0))
    (array([1., 1.]), (array([1., 1.]), array(3.)))
    >>> np.arange(7)[Ranks(rank=1, size=3).own(7)]  # the neurons of the second of three
    array([1, 4])
    """

    def __init__(self, rank: int = 0, size: int = 1, here: int = 1, broadcasts: bool = False) -> None:
        """A rank by its numbers."""
        self.rank, self.size, self.here, self.broadcasts = rank, size, here, broadcasts
        self.traffic: Counter[str] = Counter()

    def own(self, M: int) -> slice:
        """Which of M neurons are this rank's."""
        return slice(self.rank, M, self.size)

    def count(self, M: int) -> int:
        """How many of M neurons are this rank's."""
        return len(range(M)[self.own(M)])

    # ---- sums, within steps and adaptations

    def sum(self, array: Any) -> Any:
        """The sum over all ranks of an array of the same shape, host or device, which is overwritten."""
        return array

    def totals(self, *parts: Any) -> tuple[Float64, ...]:
        """The sums over all ranks of a few small host arrays or numbers, in float64, as one message.

        Whether a rank has been asked to stop goes along: `agreed`.
        """
        return tuple(np.asarray(part, np.float64) for part in parts)

    def agreed(self, stop: Callable[[], int]) -> int:
        """The number of the signal that asked any rank to stop, 0 if none was: the same on all ranks.

        Called once after each step.  It costs no message: what other ranks were asked comes with their next `totals`.
        """
        return stop()

    def others(self, W: Array) -> Iterator[Array]:  # noqa: ARG002
        """The rows of all other ranks' W (M / P, d), a block at a time: each goes once round the ring of ranks."""
        yield from ()

    # ---- around steps

    def everyone(self, value: T) -> list[T]:
        """What each rank gave, by rank; values are such as JSON holds."""
        return [value]

    def first(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, which alone does it; the others wait.  Its failure is raised on all ranks."""
        return work()

    def broadcast(
        self, rows: Generator[Array], shape: tuple[int, int], dtype: str, steps: int  # noqa: ARG002
    ) -> Generator[Array]:  # fmt: skip
        """The batches of so many steps, each (L, d) of this shape and dtype: `rows`, which rank 0 alone reads."""
        return rows

    def relayed(self, chunks: Iterator[Array]) -> Iterator[Array]:
        """Chunks of rows (any, d), which rank 0 alone reads where it `broadcasts`."""
        return chunks

    def gathered(self, array: Array, rows: int) -> Iterator[Array]:
        """On rank 0 the rows of all neurons in their order, a block at a time, from each rank's own (M / P, ..).

        rows: how many of each rank's go into a block.  Other ranks get blocks of no rows.
        """
        return (array[start : start + rows] for start in range(0, len(array), rows))

    def wait(self) -> None:
        """Wait until all ranks are here, without keeping a core busy."""

    # ---- the end

    def together(self) -> bool:
        """Whether all ranks come here within PATIENCE: false on a rank that fails alone."""
        return True

    def abort(self, status: int) -> None:
        """End all ranks at once, with this exit status."""
        raise SystemExit(status)


ALONE = Ranks()


class MPIRanks(Ranks):
    """A rank of MPI.COMM_WORLD."""

    def __init__(self, MPI: Any) -> None:
        """Join the others; MPI: the module of mpi4py."""
        self.MPI, self.comm = MPI, MPI.COMM_WORLD.Dup()
        local = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        super().__init__(self.comm.rank, self.comm.size, local.size)
        self.local, self.meeting = local, self.comm.Dup()
        self.asks, self.asked, self.failed_alone = 0, 0, False
        self._device: Any = None

    def sum(self, array: Any) -> Any:
        """See `Ranks`."""
        self.traffic["sum"] += array.nbytes
        if hasattr(array, "__cuda_array_interface__"):
            if self._device is None:
                self._device = import_module("refgba.backends.comm_device").device_sums(self.comm)
            return self._device.sum(array)
        array = np.ascontiguousarray(array)
        self.comm.Allreduce(self.MPI.IN_PLACE, array)
        return array

    def totals(self, *parts: Any) -> tuple[Float64, ...]:
        """See `Ranks`."""
        arrays = [np.asarray(part, np.float64) for part in parts]
        message = np.concatenate([*(array.ravel() for array in arrays), [float(self.asks > 0)]])
        self.traffic["totals"] += message.nbytes
        self.comm.Allreduce(self.MPI.IN_PLACE, message)
        self.asked += int(message[-1])
        ends = np.cumsum([array.size for array in arrays])
        return tuple(message[e - a.size : e].reshape(a.shape) for a, e in zip(arrays, ends, strict=True))

    def agreed(self, stop: Callable[[], int]) -> int:
        """See `Ranks`."""
        self.asks, asked, self.asked = stop(), self.asked, 0
        return int(max(self.everyone(self.asks))) if asked else 0

    def others(self, W: Array) -> Iterator[Array]:
        """See `Ranks`."""
        m, d = W.shape
        rows, right, left = max(1, BLOCK // d), (self.rank + 1) % self.size, (self.rank - 1) % self.size
        for start in range(0, max(self.everyone(m)), rows):
            block = W[start : start + rows].copy()
            for _ in range(self.size - 1):
                length = np.array([len(block)])
                self.comm.Sendrecv_replace(length, right, source=left)
                came = np.empty((int(length[0]), d), W.dtype)
                self.traffic["ring"] += block.nbytes
                self.comm.Sendrecv(block, right, recvbuf=came, source=left)
                block = came
                yield block

    def everyone(self, value: T) -> list[T]:
        """See `Ranks`."""
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = np.empty(self.size, np.int64)
        self.comm.Allgather(np.array([text.size]), sizes)
        every = np.empty(int(sizes.sum()), np.uint8)
        self.comm.Allgatherv(text, (every, sizes))
        self.traffic["everyone"] += text.nbytes
        parts = np.split(every, np.cumsum(sizes)[:-1])
        return [json.loads(part.tobytes()) for part in parts]

    def first(self, work: Callable[[], T]) -> T:
        """See `Ranks`."""
        error: BaseException | None = None
        outcome: Any = None
        if self.rank == 0:
            try:
                outcome = [work(), None]
            except Exception as failure:
                error, outcome = failure, [None, _described(failure)]
        self.wait()
        result, failed = self.everyone(outcome)[0]
        if error is not None:
            raise error
        if failed is not None:
            raise _failure(*failed)
        return result  # type: ignore[no-any-return]

    def broadcast(self, rows: Generator[Array], shape: tuple[int, int], dtype: str, steps: int) -> Generator[Array]:
        """See `Ranks`."""
        with closing(rows):
            for _ in range(steps):
                x = np.ascontiguousarray(next(rows), dtype) if self.rank == 0 else np.empty(shape, dtype)
                self.traffic["rows"] += x.nbytes if self.rank == 0 else 0
                self.comm.Bcast(x)
                yield x

    def relayed(self, chunks: Iterator[Array]) -> Iterator[Array]:
        """See `Ranks`."""
        if not self.broadcasts:
            yield from chunks
            return
        while True:
            chunk = next(chunks, None) if self.rank == 0 else None
            kind: Any = None if chunk is None else {"shape": chunk.shape, "dtype": str(chunk.dtype)}
            kind = self.everyone(kind)[0]
            if kind is None:
                return
            x = np.empty(**kind) if chunk is None else np.ascontiguousarray(chunk)
            self.traffic["rows"] += x.nbytes if self.rank == 0 else 0
            self.comm.Bcast(x)
            yield x

    def gathered(self, array: Array, rows: int) -> Iterator[Array]:
        """See `Ranks`."""
        width = array[:1].size
        for start in range(0, max(self.everyone(len(array))), rows):
            block = np.ascontiguousarray(array[start : start + rows])
            counts = np.array(self.everyone(len(block)))
            every = np.empty((int(counts.sum()) if self.rank == 0 else 0, *array.shape[1:]), array.dtype)
            if self.rank:
                self.traffic["gathered"] += block.nbytes
            self.comm.Gatherv(block, (every, counts * width) if self.rank == 0 else None)
            if self.rank == 0:
                ends = np.cumsum(counts)
                ordered = np.empty_like(every)
                for r in range(self.size):
                    ordered[r :: self.size] = every[ends[r] - counts[r] : ends[r]]
                every = ordered
            yield every

    def wait(self) -> None:
        """See `Ranks`."""
        self._looked_for(self.comm.Ibarrier(), float("inf"))

    def together(self) -> bool:
        """See `Ranks`."""
        if not self.failed_alone:
            self.failed_alone = not self._looked_for(self.meeting.Ibarrier(), PATIENCE)
        return not self.failed_alone

    def abort(self, status: int) -> None:
        """See `Ranks`."""
        self.comm.Abort(status)

    def _looked_for(self, request: Any, seconds: float) -> bool:
        """Whether a message comes within so many seconds."""
        until = time.monotonic() + seconds
        while not request.Test():
            if time.monotonic() > until:
                return False
            time.sleep(MOMENT)
        return True


def world(broadcasts: bool = False) -> Ranks:
    """The ranks that this process was started with, one if no MPI launcher started it.

    InputError where a launcher started several and mpi4py cannot be imported.
    """
    launched = [os.environ[name] for name in LAUNCHED if name in os.environ]
    if not launched or launched[0] == "1":
        return Ranks()
    os.environ.setdefault("UCX_DEBUG_SIGNO", "0")  # else mpich's UCX takes a SIGHUP for a wish to log every message
    try:
        MPI = import_module("mpi4py.MPI")
    except ImportError as error:
        raise InputError(
            f"an MPI launcher started several processes, and mpi4py cannot be imported ({error}): "
            "pip install '.[mpi]' in refgba's folder, or start refgba without mpiexec"
        ) from None
    if MPI.COMM_WORLD.size == 1:
        raise InputError(
            "an MPI launcher started several processes, and mpi4py finds one: its MPI is not the launcher's; take the "
            "mpiexec that was installed beside mpi4py"
        )
    ranks = MPIRanks(MPI)
    ranks.broadcasts = broadcasts
    return ranks


def first_here() -> bool:
    """Whether this process is the first of its machine, by what the launcher says, without MPI."""
    return next((os.environ[name] for name in LOCAL if name in os.environ), "0") == "0"


def _described(error: Exception) -> list[Any]:
    """What other ranks are told of an error: its kind, and its message."""
    if isinstance(error, OSError):
        return ["OSError", error.errno, error.strerror or str(error)]
    return ["InputError" if isinstance(error, InputError) else type(error).__name__, str(error)]


def _failure(kind: str, *about: Any) -> Exception:
    """The error of rank 0 on another rank."""
    known: dict[str, type[Exception]] = {"OSError": OSError, "InputError": InputError, "MemoryError": MemoryError}
    return known.get(kind, RuntimeError)(*about)
