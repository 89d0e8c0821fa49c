"""A small process beside the ranks of a machine: it says which of them died first, and ends those that are left.

    python witness.py RANKS RANK:PROCESS...

A launcher that notices a death kills the other ranks at once, so that none of them could tell.  This process is none of
the launcher's.  It is ended by the ranks when they end as they should, or have told why they do not (`parallel`); else
it ends when they have ended.  It uses the standard library alone, and starts in no time.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

GRACE = 3.0  # seconds that a launcher has to end the other ranks


def main(arguments: list[str]) -> None:
    """Watch the ranks of this machine, of so many on all machines."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    poll, dead = select.poll(), []
    watched: dict[int, tuple[int, int]] = {}  # rank and process by handle
    for rank, process in (map(int, argument.split(":")) for argument in arguments[1:]):
        try:
            handle = os.pidfd_open(process)
        except ProcessLookupError:
            dead.append((rank, process))
            continue
        watched[handle] = rank, process
        poll.register(handle, select.POLLIN)
    dead = dead or [watched.pop(handle) for handle, _ in poll.poll()]
    for rank, process in sorted(dead):
        text = (
            f"Error: rank {rank} of {arguments[0]} has died (process {process} on {socket.gethostname()}): it was "
            "killed, or ran out of memory; all ranks end, and `refgba train --resume` goes on from the last checkpoint"
        )
        os.write(2, text.encode() + b"\n")
    until = time.monotonic() + GRACE
    for handle, (_, process) in watched.items():
        if not select.select([handle], [], [], max(0.0, until - time.monotonic()))[0]:
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
