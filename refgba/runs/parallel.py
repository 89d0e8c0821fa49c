"""A command on several ranks (`mpiexec -n P refgba train ..`): one of them speaks, and no failure leaves any waiting.

Rank 0 alone shows progress, prints results and writes the files of a run that are not parts of checkpoints.  If all
ranks fail alike, as at a mistake in a flag, rank 0 tells it and all of them end with its status.  A rank that fails
alone names itself and ends the others.  If one is killed, a process beside the ranks of its machine names it.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np

from refgba.backends import comm
from refgba.backends.comm import Ranks
from refgba.data.activations import Activations
from refgba.data.survey import Survey
from refgba.errors import InputError, os_status
from refgba.runs import witness
from refgba.runs.given import refuse_unused
from refgba.runs.sections import Sectioned
from refgba.runs.signals import Stopped


class Ranked(click.Command):
    """A command that gets `ranks`, those it was started with: one unless an MPI launcher started several.

    The rows of its data are read by rank 0 alone, unless it has a flag `--broadcast-rows` that says so.
    """

    def make_context(self, *args: Any, **named: Any) -> click.Context:
        """Read the flags; a mistake in those of all ranks is told once."""
        try:
            return super().make_context(*args, **named)
        except (click.UsageError, InputError):
            with joined():
                raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; InputError unless all ranks have the same flags."""
        flags = {param.opts[0]: _plain(ctx.params.get(param.name or "")) for param in self.params}
        with joined(ctx.params.pop("broadcast_rows", True)) as ranks:
            if not set(comm.LAUNCHED) & set(os.environ):
                refuse_unused(["broadcast_rows"], "without mpiexec")
            require_agreement(ranks, {"flags": flags})
            ctx.params["ranks"] = ranks
            return super().invoke(ctx)


class RankedSections(Ranked, Sectioned):
    """The same with the help of a command that has many flags."""


def _plain(value: Any) -> Any:
    """The value of a flag as JSON holds it."""
    return value if value is None or isinstance(value, int | float) else str(value)


@contextmanager
def joined(broadcasts: bool = False) -> Iterator[Ranks]:
    """The ranks that this process was started with; where there are several, none of them is left waiting by a failure.

    broadcasts: as in `Ranks`.
    """
    try:
        ranks = comm.world(broadcasts)
    except InputError:
        if not comm.first_here():
            _be_quiet()
        raise
    if not isinstance(ranks, comm.MPIRanks):
        yield ranks
        return
    handle = os.dup(2)
    if ranks.rank:
        _be_quiet()
    share_cores(ranks)
    watch = Watch(ranks, handle)
    try:
        yield ranks
        ranks.wait()
    except BaseException as error:
        if not ranks.together():
            watch.end()
            os.write(handle, _alone(ranks, error).encode(errors="backslashreplace") + b"\n")
            ranks.abort(_status(error))
        own = _told(error)
        for rank, told in enumerate(ranks.everyone(own)):
            if told != own and ranks.rank == 0:  # which tells its own error on the way out
                text = f"Error: rank {rank} of {ranks.size}: {told}"
                os.write(handle, text.encode(errors="backslashreplace") + b"\n")
        watch.end()
        if ranks.rank and isinstance(error, click.ClickException):
            raise click.exceptions.Exit(_status(error)) from None  # click would show it, and rank 0 has
        raise
    watch.end()


def _be_quiet() -> None:
    """From here on this process writes nothing to stdout and stderr."""
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends


def share_cores(ranks: Ranks) -> None:
    """Ranks on one machine share its cores, unless the environment says how many threads each is to have."""
    cores = max(1, len(os.sched_getaffinity(0)) // ranks.here)
    if not {"NUMBA_NUM_THREADS", "OMP_NUM_THREADS"} & set(os.environ):
        os.environ["NUMBA_NUM_THREADS"] = str(cores)
        try:
            import_module("threadpoolctl").threadpool_limits(cores)
        except ImportError:
            return  # then BLAS has as many threads as it chose


def _place() -> list[str]:
    """What processes have in common that know each other by number and can connect to each other."""
    spaces = [Path("/proc/self/ns") / kind for kind in ("net", "pid")]
    return [socket.gethostname(), *(os.readlink(space) for space in spaces if space.is_symlink())]


class Watch:
    """A process beside the ranks of each machine that says which of them has died (`witness`), until it is ended."""

    def __init__(self, ranks: comm.MPIRanks, handle: int) -> None:
        """Begin to watch; all ranks do so together.  handle: of the real stderr."""
        places, processes = ranks.everyone(_place()), ranks.everyone(os.getpid())
        here = [r for r in range(ranks.size) if places[r] == places[ranks.rank]]
        self._witness: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        if not hasattr(select, "epoll"):
            return  # On such a system only the launcher tells.
        name = "\0refgba-" + ranks.everyone(secrets.token_hex(16))[here[0]]  # a name that no file has
        with socket.socket(socket.AF_UNIX) as listening:
            if ranks.rank == here[0]:
                listening.bind(name)
                listening.listen(len(here))
                pairs = [f"{r}:{processes[r]}" for r in here]
                own = str(listening.fileno())
                nothing = subprocess.DEVNULL
                self._witness = subprocess.Popen(
                    [sys.executable, "-I", "-S", witness.__file__, str(ranks.size), own, *pairs],
                    stdin=nothing, stdout=nothing, stderr=handle, start_new_session=True, pass_fds=[listening.fileno()],
                )  # fmt: skip
            ranks.wait()
            self._connection = socket.socket(socket.AF_UNIX)
            self._connection.connect(name)
        ranks.wait()

    def end(self) -> None:
        """All ranks end as they should, or this one has told why they do not."""
        if self._connection:
            with suppress(OSError):  # of a witness that another rank has ended
                self._connection.send(b".")
        if self._witness:
            self._witness.wait()


def _told(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, click.ClickException):
        return error.format_message().replace("\n", " ")
    if isinstance(error, MemoryError):
        return f"not enough memory ({error})" if str(error) else "not enough memory"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error).replace("\n", " ") or type(error).__name__


def _alone(ranks: Ranks, error: BaseException) -> str:
    """What a rank says that fails alone: one line, under the traceback of a mistake in the program."""
    line = f"Error: rank {ranks.rank} of {ranks.size}: {_told(error)}"
    expected = (
        InputError, RuntimeError, MemoryError, OSError, Stopped, KeyboardInterrupt, click.exceptions.Exit,
        click.ClickException,
    )  # fmt: skip
    return line if isinstance(error, expected) else "".join(traceback.format_exception(error)) + line


def _status(error: BaseException) -> int:
    """The exit status of an error, as `refgba.runs.console` has it."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, click.exceptions.Exit):
        return int(error.exit_code)
    if isinstance(error, InputError):
        return error.status
    if isinstance(error, OSError):
        return os_status(error)
    return 2 if isinstance(error, click.UsageError) else 1


def require_agreement(ranks: Ranks, about: Mapping[str, Any]) -> None:
    """InputError, on all ranks, unless each has the same settings, data and whatever else `about` names."""
    for name, values in ((name, ranks.everyone(value)) for name, value in about.items()):
        for rank, value in enumerate(values):
            if value != values[0]:
                where = f"{name}: rank {rank} has {value}, rank 0 has {values[0]}"
                if isinstance(value, dict):
                    keys = [key for key in {**values[0], **value} if value.get(key) != values[0].get(key)]
                    having = [", ".join(_having(key, has.get(key)) for key in keys) for has in (value, values[0])]
                    where = f"{name}: rank {rank} has {having[0]}, rank 0 has {having[1]}"
                raise InputError(f"ranks disagree on {where}; start all of them with the same command")


def _having(key: str, value: Any) -> str:
    return f"no {key}" if value is None else f"{key} {value}"


def surveyed(
    ranks: Ranks, data: Activations, survey: Callable[[], tuple[Activations, Survey]]
) -> tuple[Activations, Survey]:  # fmt: skip
    """The `survey` of all rows, which rank 0 alone reads, for every rank's data, with the centre that it found."""

    def of_first() -> dict[str, Any]:
        checked, found = survey()
        assert checked.crc is not None
        centre = None if checked.centre is None else checked.centre.tolist()
        sent = {"dropped": checked.dropped.tolist(), "crc": checked.crc.tolist(), "centre": centre}
        return sent | {"survey": asdict(found)}

    if ranks.size == 1:
        return survey()
    found = ranks.first(of_first)
    dropped, crc = np.array(found["dropped"], np.int64), np.array(found["crc"], np.uint32)
    centre = None if found["centre"] is None else np.array(found["centre"], np.float64)
    data = replace(data, dropped=dropped, crc=crc, centre=centre)
    if len(crc) != len(data.counts):
        raise InputError(f"{data.store.path}: rank {ranks.rank} of {ranks.size} has other data than rank 0")
    for k in () if ranks.broadcasts else (0, len(crc) - 1):  # other blocks are checked when they are read
        data.stored(k)
    return data, Survey(**found["survey"])


def entered(ranks: Ranks, stack: ExitStack, enter: Callable[[], Any]) -> None:
    """On rank 0 alone, enter a context that lasts as long as the stack; its failure is raised on all ranks."""

    def on_first() -> None:
        stack.enter_context(enter())

    ranks.first(on_first)
