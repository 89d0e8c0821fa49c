"""A small process beside the ranks of a machine: it says which of them died first, and ends those that are left.

    python witness.py RANKS HANDLE RANK:PROCESS...

A launcher that notices a death kills the other ranks at once, so that none of them could tell.  This process is none of
the launcher's.  Every rank of the machine has a connection to it, by the listening socket HANDLE.  A rank that ends as
it should, or has told why it does not (`parallel`), says so there, and then there is nothing left to watch; a
connection that ends without a word is a death.  It uses the standard library alone, and starts in no time.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time

GRACE = 3.0  # seconds that a launcher has to end the other ranks
PEER = struct.Struct("3i")  # process, user and group at the other end of a connection


def main(arguments: list[str]) -> None:
    """Watch the ranks of this machine, of so many on all machines."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ranks = {int(process): int(rank) for rank, process in (pair.split(":") for pair in arguments[2:])}
    connections: dict[int, tuple[socket.socket, int]] = {}  # and the process at the other end, by handle
    # The system lists connections in the order in which they ended, however late this process has its turn.
    ended = select.epoll()
    with socket.socket(fileno=int(arguments[1])) as listening:
        while len(connections) < len(ranks):
            connection, _ = listening.accept()
            process, *_ = PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
            if process in ranks:
                connections[connection.fileno()] = connection, process
                ended.register(connection, select.EPOLLIN | select.EPOLLRDHUP)
    first, _ = ended.poll()[0]
    connection, dead = connections.pop(first)
    if connection.recv(1):
        return
    text = (
        f"Error: rank {ranks[dead]} of {arguments[0]} has died (process {dead} on {socket.gethostname()}): it was "
        "killed, or ran out of memory; all ranks end, and `refgba train --resume` goes on from the last checkpoint"
    )
    os.write(2, text.encode() + b"\n")
    until = time.monotonic() + GRACE
    for connection, process in connections.values():
        connection.settimeout(max(0.001, until - time.monotonic()))
        try:
            connection.recv(1)
        except TimeoutError:
            os.kill(process, signal.SIGKILL)  # which is there: its connection is
        except ConnectionError:
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
