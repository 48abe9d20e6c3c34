"""TCP handshake between the server and the ranks on other machines, at the start of a job.

Both sides prove that they know the job's key, and neither sends it: each answers the other's random
challenge with an HMAC. Independent of MPI: the caller transmits the endpoint, with the key.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import resource
import secrets
import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from fedgan_mpi.config.require import require

CONNECT_TIMEOUT = 10.0
"""Seconds until all connections must be established."""
MAX_CLIENTS = 64
"""Largest number of unauthenticated connections, not counting one for each expected rank."""
_ADDRESS_TIMEOUT = 4.0  # per address, at most: TCP repeats a lost packet after 1 and 3 s
_RETRY = 0.05  # seconds
_NONCE_BYTES = 32
_RANK = struct.Struct("!i")
_PROOF = hashlib.sha256
_PROOF_BYTES = _PROOF().digest_size
_ANSWER_BYTES = _RANK.size + _NONCE_BYTES + _PROOF_BYTES
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Endpoint:
    """The server's address, and the key of the job."""

    addresses: list[str]
    port: int
    key: bytes

    def proof(self, side: bytes, server_nonce: bytes, client_nonce: bytes, rank: int) -> bytes:
        """Return the HMAC by which a side, b"client" or b"server", shows that it knows the key.

        It is bound to side, rank and both challenges, so that no recorded one is accepted.
        """
        message = side + server_nonce + client_nonce + _RANK.pack(rank)
        return hmac.digest(self.key, message, _PROOF)


@dataclass
class _Client:
    """An unauthenticated connection."""

    connection: socket.socket
    address: str
    nonce: bytes
    received: bytes = b""


class Listener:
    """The server's listening socket for the ranks on other machines."""

    def __init__(self, ranks: Sequence[int], network: str | None = None) -> None:
        """ranks: the clients to accept, each once. network: an interface or address of this
        machine, where alone it listens; None: everywhere. Raises UserError if this machine has no
        such network, and OSError if it has none at all."""
        addresses = local_addresses(network)
        self._ranks = ranks
        with suppress(OSError, ValueError):  # one descriptor per rank; the soft limit is often 1024
            _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
        dual_stack = network is None and socket.has_dualstack_ipv6()
        is_ipv6 = dual_stack or (network is not None and ":" in addresses[0])
        self._socket = socket.create_server(
            ("" if network is None else addresses[0], 0),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            dualstack_ipv6=dual_stack,
            backlog=len(ranks) + 128,  # leaves room for unknown clients
        )
        self._socket.setblocking(False)
        self._clients: dict[int, _Client] = {}  # descriptor -> client, oldest first
        port = self._socket.getsockname()[1]
        self.endpoint = Endpoint(addresses, port, secrets.token_bytes(32))

    def accept(self) -> dict[int, socket.socket]:
        """Return rank -> connection for the ranks that connect within `CONNECT_TIMEOUT`.

        Unknown clients, and a second client for a rank, are disconnected. Closes the listening
        socket.
        """
        connections: dict[int, socket.socket] = {}
        deadline = time.monotonic() + CONNECT_TIMEOUT
        # Not epoll, which needs a descriptor.
        with closing(self._socket), selectors.PollSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            while len(connections) < len(self._ranks):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                for key, _ in selector.select(remaining):
                    if key.fileobj is self._socket:
                        self._accept_client(selector)
                    elif key.fd in self._clients:  # it has not been disconnected in this loop
                        self._receive(key.fd, connections, selector)
            for descriptor in [*self._clients]:
                self._disconnect(descriptor, selector)
        return connections

    def _accept_client(self, selector: selectors.BaseSelector) -> None:
        """Send a challenge to the next client."""
        if len(self._clients) >= MAX_CLIENTS + len(self._ranks):
            self._disconnect(self._most_dispensable(), selector)
        try:
            connection, address = self._socket.accept()
        except (BlockingIOError, ConnectionError):  # the client has disconnected
            return
        except OSError:  # out of descriptors
            if self._clients:
                self._disconnect(self._most_dispensable(), selector)
            else:
                time.sleep(_RETRY)
            return
        client = _Client(connection, str(address[0]), secrets.token_bytes(_NONCE_BYTES))
        connection.setblocking(False)
        self._clients[connection.fileno()] = client
        selector.register(connection, selectors.EVENT_READ)
        with suppress(OSError):
            connection.send(client.nonce)  # fits into the empty buffer

    def _receive(
        self,
        descriptor: int,
        connections: dict[int, socket.socket],
        selector: selectors.BaseSelector,
    ) -> None:
        """Read from a client; once its answer is complete, accept or disconnect it."""
        client = self._clients[descriptor]
        try:
            piece = client.connection.recv(_ANSWER_BYTES - len(client.received))
        except BlockingIOError:  # the event was of an earlier client with this descriptor
            return
        except OSError:
            piece = b""
        client.received += piece
        if piece and len(client.received) < _ANSWER_BYTES:
            return
        rank = self._rank_of(client)
        if rank is None or rank in connections:
            self._disconnect(descriptor, selector)
            return
        nonce = client.received[_RANK.size : -_PROOF_BYTES]
        try:
            client.connection.send(self.endpoint.proof(b"server", client.nonce, nonce, rank))
        except OSError:
            self._disconnect(descriptor, selector)
            return
        selector.unregister(client.connection)
        connections[rank] = self._clients.pop(descriptor).connection

    def _rank_of(self, client: _Client) -> int | None:
        """Return the expected rank that a client has proven to be; None otherwise."""
        if len(client.received) < _ANSWER_BYTES:
            return None
        (rank,) = _RANK.unpack(client.received[: _RANK.size])
        nonce, proof = client.received[_RANK.size : -_PROOF_BYTES], client.received[-_PROOF_BYTES:]
        expected = self.endpoint.proof(b"client", client.nonce, nonce, rank)
        return rank if hmac.compare_digest(proof, expected) and rank in self._ranks else None

    def _most_dispensable(self) -> int:
        """Return the descriptor of the oldest client of the address that has the most clients."""
        clients_of = Counter(client.address for client in self._clients.values())
        return max(self._clients, key=lambda fd: clients_of[self._clients[fd].address])

    def _disconnect(self, descriptor: int, selector: selectors.BaseSelector) -> None:
        client = self._clients.pop(descriptor)
        selector.unregister(client.connection)
        client.connection.close()


def connect(endpoint: Endpoint, rank: int) -> dict[int, socket.socket]:
    """Return {0: connection to the server}; empty if none succeeds within `CONNECT_TIMEOUT`."""
    deadline = time.monotonic() + CONNECT_TIMEOUT

    def remaining() -> float:
        return max(0.1, deadline - time.monotonic())

    timeout = min(_ADDRESS_TIMEOUT, CONNECT_TIMEOUT / max(1, len(endpoint.addresses)))
    again = True
    while again and time.monotonic() < deadline:
        again = False
        for address in endpoint.addresses:
            with suppress(OSError):
                connection = socket.create_connection(
                    (address, endpoint.port), min(timeout, remaining())
                )
                again = True  # if it is the server: it disconnects clients if it has too many
                if _is_server(connection, endpoint, rank, remaining):
                    return {0: connection}
                connection.close()
        time.sleep(_RETRY)
    return {}


def _is_server(
    connection: socket.socket, endpoint: Endpoint, rank: int, remaining: Callable[[], float]
) -> bool:
    """Prove this rank's identity, and return whether the peer proves that it is the server.

    The same address may belong to another machine here, e.g. to a container bridge.
    """
    own_nonce = secrets.token_bytes(_NONCE_BYTES)
    with suppress(OSError):
        nonce = _receive(connection, _NONCE_BYTES)
        if len(nonce) < _NONCE_BYTES:
            return False
        # The answer may take all the remaining time. If this rank connected a second time, the
        # server would take the end of the first connection for its death.
        connection.settimeout(remaining())
        proof = endpoint.proof(b"client", nonce, own_nonce, rank)
        connection.sendall(_RANK.pack(rank) + own_nonce + proof)
        expected = endpoint.proof(b"server", nonce, own_nonce, rank)
        return hmac.compare_digest(_receive(connection, _PROOF_BYTES), expected)
    return False


def _receive(connection: socket.socket, nbytes: int) -> bytes:
    """Return the next bytes; fewer if the peer disconnects."""
    received = b""
    while len(received) < nbytes and (piece := connection.recv(nbytes - len(received))):
        received += piece
    return received


def local_addresses(network: str | None = None) -> list[str]:
    """Return this machine's numeric addresses, without a DNS query, which may block.

    The address of the default route comes first, loopback addresses last. network: only the first
    address of this interface, or this address. Raises UserError if this machine does not have it.
    """
    found = _addresses_of_interfaces()
    addresses = [address for each in found.values() for address in each]
    if network is not None:
        chosen = found.get(network, [each for each in addresses if each == network])
        right = "'on', 'off', or an interface or address of the server's machine: "
        require(bool(chosen), "link.peer_monitor", network, right + ", ".join(found))
        return chosen[:1]
    for family, documentation in ((socket.AF_INET6, "2001:db8::1"), (socket.AF_INET, "192.0.2.1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as query:
            query.connect((documentation, 9))  # sends nothing; the kernel looks up the route
            addresses.insert(0, str(query.getsockname()[0]))
    return sorted(dict.fromkeys(addresses), key=lambda address: ip_address(address).is_loopback)


def _addresses_of_interfaces() -> dict[str, list[str]]:
    """Return interface -> numeric addresses, IPv4 first; none that are valid on one link only."""
    found: dict[str, list[str]] = {}
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, interface in socket.if_nameindex():
            with suppress(OSError):  # the interface has no address
                request = struct.pack("40s", interface.encode())
                address = fcntl.ioctl(query, _SIOCGIFADDR, request)[20:24]
                found.setdefault(interface, []).append(socket.inet_ntoa(address))
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, interface = line.split()
            found.setdefault(interface, []).append(str(IPv6Address(bytes.fromhex(digits))))
    usable = {
        interface: [each for each in addresses if not ip_address(each).is_link_local]
        for interface, addresses in found.items()
    }
    return {interface: addresses for interface, addresses in usable.items() if addresses}
