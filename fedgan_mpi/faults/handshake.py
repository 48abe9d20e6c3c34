"""TCP handshake between the server and the ranks on other machines, at the start of a job.

The server accepts only clients that present its token, and answers with a second one. Independent
of MPI: the caller transmits the endpoint.
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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from platform import node

CONNECT_TIMEOUT = 10.0
"""Seconds until all connections must be established."""
_ADDRESS_TIMEOUT = 4.0  # per address, at most: TCP repeats a lost packet after 1 and 3 s
_TOKEN_BYTES = 16
_RANK = struct.Struct("!i")
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Endpoint:
    """The server's address and the tokens of both sides."""

    addresses: list[str]
    port: int
    client_token: bytes
    server_token: bytes


class Listener:
    """The server's listening socket for the ranks on other machines."""

    def __init__(self, ranks: Sequence[int]) -> None:
        """ranks: the clients to accept. Raises OSError without a network."""
        self._ranks = ranks
        with suppress(OSError, ValueError):  # one descriptor per rank; the soft limit is often 1024
            _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
        dual_stack = socket.has_dualstack_ipv6()
        self._socket = socket.create_server(
            ("", 0),
            family=socket.AF_INET6 if dual_stack else socket.AF_INET,
            dualstack_ipv6=dual_stack,
            backlog=len(ranks) + 128,  # leaves room for unknown clients
        )
        self._socket.setblocking(False)
        tokens = secrets.token_bytes(_TOKEN_BYTES), secrets.token_bytes(_TOKEN_BYTES)
        self.endpoint = Endpoint(_local_addresses(), self._socket.getsockname()[1], *tokens)

    def accept(self) -> dict[int, socket.socket]:
        """Return rank -> connection for the ranks that connect within `CONNECT_TIMEOUT`.

        Unknown clients are disconnected. Closes the listening socket.
        """
        connections: dict[int, socket.socket] = {}
        deadline = time.monotonic() + CONNECT_TIMEOUT
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            with suppress(OSError):  # out of file descriptors
                while len(connections) < len(self._ranks):
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        break
                    for key, _ in selector.select(remaining):
                        client = key.data
                        if client is None:
                            self._accept_client(selector)
                            continue
                        selector.unregister(client)
                        rank = self._authenticate(client)
                        if rank is None:
                            client.close()
                        else:
                            connections[rank] = client
            for key in selector.get_map().values():
                (key.data or self._socket).close()
        return connections

    def _accept_client(self, selector: selectors.BaseSelector) -> None:
        with suppress(BlockingIOError, ConnectionError):  # the client has disconnected
            client, _ = self._socket.accept()
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ, client)

    def _authenticate(self, client: socket.socket) -> int | None:
        """Return the client's rank; None for an unknown client."""
        with suppress(OSError, struct.error):
            # 20 bytes arrive in one piece.
            received = client.recv(_TOKEN_BYTES + _RANK.size)
            if hmac.compare_digest(received[:_TOKEN_BYTES], self.endpoint.client_token):
                (rank,) = _RANK.unpack(received[_TOKEN_BYTES:])
                client.sendall(self.endpoint.server_token)
                return int(rank)
        return None


def connect(endpoint: Endpoint, rank: int) -> dict[int, socket.socket]:
    """Return {0: connection to the server}; empty if none succeeds within `CONNECT_TIMEOUT`."""
    deadline = time.monotonic() + CONNECT_TIMEOUT

    def remaining() -> float:
        return max(0.1, deadline - time.monotonic())

    timeout = min(_ADDRESS_TIMEOUT, CONNECT_TIMEOUT / max(1, len(endpoint.addresses)))
    for address in endpoint.addresses:
        with suppress(OSError):
            connection = socket.create_connection(
                (address, endpoint.port), min(timeout, remaining())
            )
            # The answer may take all the remaining time. If this rank connected a second time, the
            # server would take the end of the first connection for its death.
            connection.settimeout(remaining())
            if _is_server(connection, endpoint, rank):
                return {0: connection}
            connection.close()
    return {}


def _is_server(connection: socket.socket, endpoint: Endpoint, rank: int) -> bool:
    """Exchange tokens and return whether the peer is the server.

    The same address may belong to another machine here, e.g. to a container bridge.
    """
    with suppress(OSError):
        connection.sendall(endpoint.client_token + _RANK.pack(rank))
        return hmac.compare_digest(connection.recv(_TOKEN_BYTES), endpoint.server_token)
    return False


def _local_addresses() -> list[str]:
    """Return this machine's numeric addresses.

    The host name's addresses come first, loopback addresses last.
    """
    found: list[str] = []
    with suppress(OSError, UnicodeError):  # the host name may be no valid DNS name
        resolved = socket.getaddrinfo(node(), None, type=socket.SOCK_STREAM)
        found += [str(address[0]) for *_, address in resolved]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, interface in socket.if_nameindex():
            with suppress(OSError):  # the interface has no address
                request = struct.pack("40s", interface.encode())
                found.append(socket.inet_ntoa(fcntl.ioctl(query, _SIOCGIFADDR, request)[20:24]))
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            found.append(str(IPv6Address(bytes.fromhex(line[:32]))))
    routable = [each for each in dict.fromkeys(found) if not ip_address(each).is_link_local]
    return sorted(routable, key=lambda address: ip_address(address).is_loopback)
