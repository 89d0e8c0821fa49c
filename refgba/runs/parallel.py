"""A command on several ranks (`mpiexec -n P refgba train ..`): one of them speaks, and no failure leaves any waiting.

Rank 0 alone shows progress, prints results and writes the files of a run that are not parts of checkpoints.  If all
ranks fail alike, as at a mistake in a flag, rank 0 tells it and all of them end with its status.  A rank that fails
alone names itself and ends the others.  If one is killed, a thread of another one on its machine names it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import wraps
from importlib import import_module
from typing import Any

import click
import numpy as np

from refgba.backends import comm
from refgba.backends.comm import Ranks
from refgba.data.activations import Activations
from refgba.data.survey import Survey
from refgba.errors import InputError
from refgba.runs.signals import Stopped

GRACE = 5.0  # seconds after which a rank ends itself when another has died and the launcher has ended nothing

_rows = click.option(
    "--broadcast-rows", is_flag=True, help="under mpiexec: rank 0 alone reads the rows, and sends them to the others"
)


def on_ranks(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that gets `ranks`, those it was started with: one unless an MPI launcher started several."""

    @wraps(command)
    def started(*arguments: Any, broadcast_rows: bool, **named: Any) -> Any:
        ranks = comm.world(broadcast_rows)
        if not isinstance(ranks, comm.MPIRanks):
            return command(*arguments, ranks=ranks, **named)
        speak = _quiet(ranks)
        share_cores(ranks)
        watch = Watch(ranks, speak)
        try:
            result = command(*arguments, ranks=ranks, **named)
            ranks.wait()
        except BaseException as error:
            if not ranks.together():
                watch.told()
                speak(_alone(ranks, error))
                ranks.abort(_status(error))
            if ranks.rank == 0 and not isinstance(error, click.exceptions.Exit | Stopped):
                _tell_others(ranks, error, speak)
            elif not isinstance(error, click.exceptions.Exit | Stopped):
                ranks.everyone(_told(error))
            watch.close()
            raise
        watch.close()
        return result

    return _rows(started)


def _quiet(ranks: Ranks) -> Callable[[str], None]:
    """From here on only rank 0 writes to stdout and stderr.  Returns what writes to the real stderr of any rank."""
    handle = os.dup(2)
    if ranks.rank:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends

    def speak(text: str) -> None:
        os.write(handle, text.encode(errors="backslashreplace") + b"\n")

    return speak


def share_cores(ranks: Ranks) -> None:
    """Ranks on one machine share its cores, unless the environment says how many threads each is to have."""
    cores = max(1, len(os.sched_getaffinity(0)) // ranks.here)
    if not {"NUMBA_NUM_THREADS", "OMP_NUM_THREADS"} & set(os.environ):
        os.environ["NUMBA_NUM_THREADS"] = str(cores)
        try:
            import_module("threadpoolctl").threadpool_limits(cores)
        except ImportError:
            return  # then BLAS has as many threads as it chose


class Watch:
    """A thread that notices at once when another rank on this machine has died, and says which."""

    def __init__(self, ranks: comm.MPIRanks, speak: Callable[[str], None]) -> None:
        """Begin to watch; all ranks do so together."""
        self._ranks, self._speak, self._over = ranks, speak, False
        MPI = ranks.MPI
        self._window = MPI.Win.Allocate_shared(1 if ranks.local.rank == 0 else 0, 1, comm=ranks.local)
        memory, _ = self._window.Shared_query(0)
        self._flag = np.frombuffer(memory, np.uint8)  # (1,) whether a rank on this machine has told why all end
        machine = socket.gethostname()
        self._machine = machine
        places, pids = ranks.everyone(machine), ranks.everyone(os.getpid())
        self._pids = {r: pids[r] for r in range(ranks.size) if places[r] == machine and r != ranks.rank}
        if hasattr(os, "pidfd_open"):
            threading.Thread(target=self._look, daemon=True).start()

    def told(self) -> None:
        """This rank has told why all end, and the others need not."""
        self._flag[0] = 1

    def close(self) -> None:
        """All ranks are about to end as they should."""
        self._over = True
        self._ranks.wait()
        self._window.Free()

    def _look(self) -> None:
        poll, living = select.poll(), {}
        for rank, pid in self._pids.items():
            handle = os.pidfd_open(pid)
            living[handle] = rank
            poll.register(handle, select.POLLIN)
        while living:
            dead = sorted(living.pop(handle) for handle, _ in poll.poll())
            if self._over:
                return
            if not self._flag[0] and self._ranks.rank < min(living.values(), default=self._ranks.size):
                self._flag[0] = 1
                for rank in dead:
                    self._speak(
                        f"Error: rank {rank} of {self._ranks.size} has died (process {self._pids[rank]} on "
                        f"{self._machine}): it was killed, or ran out of memory; all ranks end, and "
                        "`refgba train --resume` goes on from the last checkpoint"
                    )
            time.sleep(GRACE)
            os._exit(1)


def _told(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, MemoryError):
        return f"not enough memory ({error})" if str(error) else "not enough memory"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error).replace("\n", " ") or type(error).__name__


def _alone(ranks: Ranks, error: BaseException) -> str:
    """What a rank says that fails alone: one line, under the traceback of a mistake in the program."""
    line = f"Error: rank {ranks.rank} of {ranks.size}: {_told(error)}"
    expected = (InputError, RuntimeError, MemoryError, OSError, Stopped, KeyboardInterrupt, click.exceptions.Exit)
    return line if isinstance(error, expected) else "".join(traceback.format_exception(error)) + line


def _status(error: BaseException) -> int:
    """The exit status of an error, as `refgba.runs.console` has it."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, click.exceptions.Exit):
        return int(error.exit_code)
    return 2 if isinstance(error, InputError | OSError) else 1


def _tell_others(ranks: Ranks, error: BaseException, speak: Callable[[str], None]) -> None:
    """On rank 0, which tells its own error later: those of other ranks that differ from it."""
    own = _told(error)
    for rank, text in enumerate(ranks.everyone(own)):
        if text != own:
            speak(f"Error: rank {rank} of {ranks.size}: {text}")


def require_agreement(ranks: Ranks, about: Mapping[str, Any]) -> None:
    """InputError, on all ranks, unless each has the same settings, data and whatever else `about` names."""
    for name, values in ((name, ranks.everyone(value)) for name, value in about.items()):
        for rank, value in enumerate(values):
            if value != values[0]:
                where = f"{name}: rank {rank} has {value}, rank 0 has {values[0]}"
                if isinstance(value, dict):
                    key = next(key for key in {**values[0], **value} if value.get(key) != values[0].get(key))
                    where = f"{key}: rank {rank} has {value.get(key)}, rank 0 has {values[0].get(key)}"
                raise InputError(f"ranks disagree on {where}; start all of them with the same command")


def surveyed(
    ranks: Ranks, data: Activations, survey: Callable[[], tuple[Activations, Survey]]
) -> tuple[Activations, Survey]:  # fmt: skip
    """The `survey` of all rows, which rank 0 alone reads, for every rank's data."""

    def of_first() -> dict[str, Any]:
        checked, found = survey()
        assert checked.crc is not None
        return {"dropped": checked.dropped.tolist(), "crc": checked.crc.tolist(), "survey": asdict(found)}

    if ranks.size == 1:
        return survey()
    found = ranks.first(of_first)
    dropped, crc = np.array(found["dropped"], np.int64), np.array(found["crc"], np.uint32)
    data = replace(data, dropped=dropped, crc=crc)
    if len(crc) != len(data.counts):
        raise InputError(f"{data.store.path}: rank {ranks.rank} of {ranks.size} has other data than rank 0")
    return data, Survey(**found["survey"])


def entered(ranks: Ranks, stack: ExitStack, enter: Callable[[], Any]) -> None:
    """On rank 0 alone, enter a context that lasts as long as the stack; its failure is raised on all ranks."""

    def on_first() -> None:
        stack.enter_context(enter())

    ranks.first(on_first)
