"""Peer monitor: TCP connections between the server and the ranks on other machines.

The kernel closes a connection when its process ends. A process that exits in order sends one byte
before; nothing else is ever sent. If a machine loses power or network, TCP keep-alive probes stay
unanswered. Independent of MPI.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

# A silent machine is detected 20 to 30 s after its last answer. A shorter time would end jobs that
# MPI continues after a brief network failure.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}

_RANK_EXITS, _JOB_ENDS = b".", b"!"


class PeerMonitor:
    """This rank's connections: the server's to every remote rank, a remote rank's to the server."""

    def __init__(
        self,
        connections: Mapping[int, socket.socket],
        remote_ranks: Sequence[int],
        hosts: Sequence[str],
    ) -> None:
        """connections: peer rank -> connection. remote_ranks: the ranks on other machines than the
        server's that are connected with it. hosts: the host name of every rank."""
        self.remote_ranks, self.hosts = remote_ranks, hosts
        self.unreachable = False
        """Whether a dead rank's machine did not answer, so that the rank may be alive."""
        self.job_ends = False
        """Whether a peer has announced the end of the job."""
        self._connections = connections
        self._dead: list[int] = []
        self._selector = selectors.PollSelector()  # not epoll, which needs a descriptor
        for rank, connection in connections.items():
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                if hasattr(socket, option):  # missing on some systems
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
            self._selector.register(connection, selectors.EVENT_READ, rank)

    def dead(self) -> list[int]:
        """Return the peers that ended without `sign_off` or cannot be reached."""
        for key, _ in self._selector.select(0):
            connection, received = self._connections[key.data], b""
            try:
                received = connection.recv(1)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                pass
            except OSError:
                self.unreachable = True
            self._selector.unregister(connection)  # only a peer's first event counts
            if received == _JOB_ENDS:
                self.job_ends = True
            elif received != _RANK_EXITS:
                self._dead.append(key.data)
        return sorted(self._dead)

    def sign_off(self, *, ends_job: bool = False) -> None:
        """Announce that this process exits in order, or that it ends the whole job."""
        for connection in self._connections.values():
            with suppress(OSError):
                connection.send(_JOB_ENDS if ends_job else _RANK_EXITS)

    def close(self) -> None:
        """Sign off and close all connections."""
        self.sign_off()
        self._selector.close()
        for connection in self._connections.values():
            connection.close()
