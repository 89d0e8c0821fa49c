"""Commands on several ranks, started as a user starts them: by the mpiexec that is installed beside this Python."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MPIEXEC = Path(sys.executable).parent / "mpiexec"
WHY_NOT = (
    "mpi4py is not installed: pip install '.[mpi]'"
    if find_spec("mpi4py") is None
    else "no mpiexec is installed beside this Python: pip install '.[mpi]'"
    if not MPIEXEC.exists()
    else ""
)
needs_mpi = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
TRAIN = [sys.executable, "-m", "refgba", "train"]


def environment():
    """One thread per rank, and this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def start(ranks, *command, before=(), **more):
    """A command on so many ranks, in the background, in a session of its own.  before: what stands before mpiexec."""
    whole = [*before, str(MPIEXEC), "-n", str(ranks), *map(str, command)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(whole, text=True, env=environment(), start_new_session=True, **streams)


def finish(process, seconds=120):
    """Its exit status, stdout and stderr; after so many seconds it has failed."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def on_ranks(ranks, *command, seconds=120):
    """Run a command on so many ranks."""
    return finish(start(ranks, *command), seconds)


def processes_of(folder):
    """The processes whose command line names a folder: the ranks of a run there and their launcher, by rank first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                rank = dict(
                    line.split("=", 1) for line in (entry / "environ").read_bytes().decode().split("\0") if "=" in line
                ).get("PMI_RANK")
            except (OSError, UnicodeDecodeError):
                continue
            if str(folder) in command:
                found.append((-1 if rank is None else int(rank), int(entry.name)))
    return sorted(found)
