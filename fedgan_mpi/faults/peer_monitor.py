"""Connections between the server and the ranks of other machines, by which each finds that the
other has died or ends the job; beside MPI, of which it knows nothing.

The kernel closes what a process leaves open, however it ends. Who ends in order says so before, by
a byte, and that is all that ever travels. A machine without power or network does not answer the
kernel's probes.
"""

from __future__ import annotations

import fcntl
import hmac
import resource
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from platform import node

PATIENCE = 10.0
"""Seconds that all connections together may take to come about."""
_ATTEMPT = 4.0  # at most, for one of several addresses: a lost packet is sent again after 1 and 3

# A silent machine is found 20 to 30 seconds after its last answer: soon enough for those who wait,
# and late enough for a network that falters to go on with a job that MPI goes on with.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}

_LEAVES, _ENDS_JOB = b".", b"!"
_WORD = 16  # bytes
_RANK = struct.Struct("!i")
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Endpoint:
    """What a rank needs to know to connect to the server."""

    addresses: list[str]
    port: int
    password: bytes
    answer: bytes


class Listener:
    """Where the server awaits the ranks of other machines."""

    def __init__(self, ranks: Sequence[int]) -> None:
        """Raises OSError where there is no network."""
        self._ranks = ranks
        with suppress(OSError, ValueError):  # a file a rank, and the soft limit is often 1024
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        both = socket.has_dualstack_ipv6()
        self._ear = socket.create_server(
            ("", 0),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=len(ranks) + 128,  # strangers may come, too
        )
        self._ear.setblocking(False)
        words = secrets.token_bytes(_WORD), secrets.token_bytes(_WORD)
        self.invitation = Endpoint(_addresses(), self._ear.getsockname()[1], *words)

    def accept(self) -> dict[int, socket.socket]:
        """The connections of those ranks that came in time; strangers are turned away. After
        this nobody can come any more."""
        lines: dict[int, socket.socket] = {}
        until = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self._ear, selectors.EVENT_READ)
            with suppress(OSError):  # no file is left for one more
                while len(lines) < len(self._ranks) and (left := until - time.monotonic()) > 0:
                    for key, _ in selector.select(left):
                        guest = key.data
                        if guest is None:
                            self._let_in(selector)
                            continue
                        selector.unregister(guest)
                        rank = self._rank_of(guest)
                        if rank is None:
                            guest.close()
                        else:
                            lines[rank] = guest
            for key in selector.get_map().values():
                (key.data or self._ear).close()
        return lines

    def _let_in(self, selector: selectors.BaseSelector) -> None:
        """Whoever is at the door; what it says is awaited like the others'."""
        with suppress(BlockingIOError, ConnectionError):  # it has gone
            guest, _ = self._ear.accept()
            guest.setblocking(False)
            selector.register(guest, selectors.EVENT_READ, guest)

    def _rank_of(self, guest: socket.socket) -> int | None:
        """Whom the guest has shown to be; None for a stranger."""
        with suppress(OSError, struct.error):
            said = guest.recv(_WORD + _RANK.size)  # so few bytes come in one piece
            if hmac.compare_digest(said[:_WORD], self.invitation.password):
                (rank,) = _RANK.unpack(said[_WORD:])
                guest.sendall(self.invitation.answer)
                return int(rank)
        return None


def connect(invitation: Endpoint, rank: int) -> dict[int, socket.socket]:
    """The rank's connection to the server, by the server's rank, 0; empty where none comes about in
    time."""
    until = time.monotonic() + PATIENCE

    def left() -> float:
        return max(0.1, until - time.monotonic())

    attempt = min(_ATTEMPT, PATIENCE / max(1, len(invitation.addresses)))
    for address in invitation.addresses:
        with suppress(OSError):
            line = socket.create_connection((address, invitation.port), min(attempt, left()))
            # It waits for the server as long as it can: were it to come a second time, the end of
            # its first connection would look like its death.
            line.settimeout(left())
            if _is_server(line, invitation, rank):
                return {0: line}
            line.close()
    return {}


def _is_server(line: socket.socket, invitation: Endpoint, rank: int) -> bool:
    """Whether the server is at the other end: an address of its machine may be another's here, as
    those of bridges for containers are."""
    with suppress(OSError):
        line.sendall(invitation.password + _RANK.pack(rank))
        return hmac.compare_digest(line.recv(_WORD), invitation.answer)
    return False


class PeerMonitor:
    """One rank's connections; the server has one to each far rank, a far rank one to the server."""

    def __init__(
        self, lines: Mapping[int, socket.socket], far: Sequence[int], hosts: Sequence[str]
    ) -> None:
        """lines: by the rank at the other end. far: the ranks of other machines than the server's.
        hosts: each rank's."""
        self.far, self.hosts = far, hosts
        self.out_of_reach = False
        """Whether some of the dead may live, and their machine does not answer."""
        self.job_ends = False
        """Whether a rank at the other end has said so."""
        self._lines = lines
        self._dead: list[int] = []
        self._selector = selectors.DefaultSelector()
        for rank, line in lines.items():
            line.setblocking(False)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                if hasattr(socket, option):  # not every system has them
                    line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
            self._selector.register(line, selectors.EVENT_READ, rank)

    def dead(self) -> list[int]:
        """Ranks at the other ends whose process ended without having signed off, or whose machine
        cannot be reached."""
        for key, _ in self._selector.select(0):
            line, said = self._lines[key.data], b""
            try:
                said = line.recv(1)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                pass
            except OSError:
                self.out_of_reach = True
            self._selector.unregister(line)  # what comes first is all that counts
            if said == _ENDS_JOB:
                self.job_ends = True
            elif said != _LEAVES:
                self._dead.append(key.data)
        return sorted(self._dead)

    def sign_off(self, *, ends_job: bool = False) -> None:
        """This process ends, which is no death; or the whole job does."""
        for line in self._lines.values():
            with suppress(OSError):
                line.send(_ENDS_JOB if ends_job else _LEAVES)

    def close(self) -> None:
        """Sign off, and look no more."""
        self.sign_off()
        self._selector.close()
        for line in self._lines.values():
            line.close()


def _addresses() -> list[str]:
    """This machine's own, numeric: its name's come first, and last what leads to a machine from
    itself only."""
    found: list[str] = []
    with suppress(OSError, UnicodeError):  # a host's name may be none that DNS could know
        named = socket.getaddrinfo(node(), None, type=socket.SOCK_STREAM)
        found += [str(address[0]) for *_, address in named]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
        for _, interface in socket.if_nameindex():
            with suppress(OSError):  # it has none
                request = struct.pack("40s", interface.encode())
                found.append(socket.inet_ntoa(fcntl.ioctl(asks, _SIOCGIFADDR, request)[20:24]))
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            found.append(str(IPv6Address(bytes.fromhex(line[:32]))))
    whole = [address for address in dict.fromkeys(found) if not ip_address(address).is_link_local]
    return sorted(whole, key=lambda address: ip_address(address).is_loopback)
