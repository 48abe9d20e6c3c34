"""The TCP handshake: which clients are accepted, which server is accepted, and time limits."""

from __future__ import annotations

import hmac
import socket
import struct
import threading
import time
from ipaddress import ip_address

import pytest
from peers import start_remote_rank, start_server

from fedgan_mpi.errors import UserError
from fedgan_mpi.faults import handshake
from fedgan_mpi.faults.handshake import Endpoint, Listener, connect, local_addresses

RANK_BYTES, NONCE_BYTES, PROOF_BYTES = 4, 32, 32
ANSWER_BYTES = RANK_BYTES + NONCE_BYTES + PROOF_BYTES


class AcceptInBackground:
    """The server's `accept` in a thread; `connections` waits for its result."""

    def __init__(self, listener: Listener) -> None:
        self._result: dict[int, socket.socket] = {}
        self._thread = threading.Thread(target=lambda: self._result.update(listener.accept()))
        self._thread.start()

    def connections(self) -> dict[int, socket.socket]:
        self._thread.join()
        return self._result


def open_connection(endpoint: Endpoint) -> tuple[socket.socket, bytes]:
    """Connect and return the server's challenge."""
    connection = socket.create_connection(("127.0.0.1", endpoint.port), 5)
    return connection, receive(connection, NONCE_BYTES)


def receive(connection: socket.socket, nbytes: int) -> bytes:
    """Return the next bytes, fewer if the peer disconnects."""
    received = b""
    try:
        while len(received) < nbytes and (piece := connection.recv(nbytes - len(received))):
            received += piece
    except ConnectionResetError:
        pass
    return received


def answer(endpoint: Endpoint, nonce: bytes, rank: int, key: bytes | None = None) -> bytes:
    """Return what a client that knows `key` sends; None: the key of the job."""
    own = bytes(NONCE_BYTES)
    message = b"client" + nonce + own + struct.pack("!i", rank)
    proof = hmac.digest(endpoint.key if key is None else key, message, "sha256")
    return struct.pack("!i", rank) + own + proof


# ------------------------------------------------------------ who is accepted


def test_unknown_clients_are_refused_and_do_not_block_others():
    listener = Listener([7])
    endpoint = listener.endpoint
    accept = AcceptInBackground(listener)
    unknown = [open_connection(endpoint) for _ in range(4)]
    unknown[1][0].sendall(answer(endpoint, unknown[1][1], 7, key=bytes(32)))
    unknown[2][0].sendall(answer(endpoint, unknown[2][1], 7)[:50])
    no_linger = struct.pack("ii", 1, 0)
    closed = unknown[3][0]
    closed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)  # close() sends a reset
    closed.close()
    start = time.monotonic()
    assert connect(endpoint, 7)
    assert list(accept.connections()) == [7] and time.monotonic() - start < 5
    assert [receive(connection, 1) for connection, _ in unknown[:3]] == [b""] * 3  # no answer
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", endpoint.port))


def test_only_expected_ranks_are_accepted_and_each_once():
    listener = Listener([7, 8])
    endpoint = listener.endpoint
    accept = AcceptInBackground(listener)
    first, nonce = open_connection(endpoint)
    first.sendall(answer(endpoint, nonce, 7))
    assert len(receive(first, PROOF_BYTES)) == PROOF_BYTES
    for rank in (7, 0, 9, -1):  # with the right key
        connection, nonce = open_connection(endpoint)
        connection.sendall(answer(endpoint, nonce, rank))
        assert receive(connection, 1) == b"", rank
    assert connect(endpoint, 8)
    connections = accept.connections()
    assert sorted(connections) == [7, 8]
    first.sendall(b"x")
    time.sleep(0.1)
    assert connections[7].recv(1) == b"x"


def test_an_answer_is_of_no_use_to_those_who_have_heard_it():
    """It is bound to the server's challenge, to the side and to the rank."""
    listener = Listener([1, 2])
    endpoint = listener.endpoint
    accept = AcceptInBackground(listener)
    first, nonce = open_connection(endpoint)
    heard = answer(endpoint, nonce, 1)
    first.sendall(heard)
    proof = receive(first, PROOF_BYTES)
    for replayed in (
        heard,
        struct.pack("!i", 2) + heard[RANK_BYTES:],
        struct.pack("!i", 2) + bytes(NONCE_BYTES) + proof,
    ):
        connection, _ = open_connection(endpoint)
        connection.sendall(replayed)
        assert receive(connection, 1) == b""
    assert connect(endpoint, 2)
    assert sorted(accept.connections()) == [1, 2]


# ------------------------------------------------------------ what is sent


def serve_once(act) -> tuple[Endpoint, threading.Thread]:
    """Listen without knowing the key, and pass each client to `act`."""
    service = socket.create_server(("127.0.0.1", 0))
    service.settimeout(1.5)

    def serve() -> None:
        with service:
            try:
                while True:
                    client, _ = service.accept()
                    with client:
                        client.settimeout(0.5)
                        act(client)
            except TimeoutError:
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    return Endpoint(["127.0.0.1"], service.getsockname()[1], b"k" * 32), thread


def test_a_false_server_learns_nothing_and_is_not_believed(monkeypatch):
    monkeypatch.setattr(handshake, "CONNECT_TIMEOUT", 0.8)
    heard = []

    def reflect(client: socket.socket) -> None:
        client.sendall(bytes(NONCE_BYTES))
        heard.append(receive(client, ANSWER_BYTES))
        client.sendall(heard[-1][-PROOF_BYTES:])  # the client's own proof

    endpoint, thread = serve_once(reflect)
    assert connect(endpoint, 1) == {}
    thread.join()
    assert len(heard[0]) == ANSWER_BYTES and endpoint.key not in heard[0]
    assert not any(endpoint.key[:8] in each for each in heard)
    if len(heard) > 1:
        assert heard[0][RANK_BYTES:-PROOF_BYTES] != heard[1][RANK_BYTES:-PROOF_BYTES]


@pytest.mark.parametrize("nbytes", [0, 31])
def test_a_client_answers_no_challenge_that_is_too_short(nbytes, monkeypatch):
    monkeypatch.setattr(handshake, "CONNECT_TIMEOUT", 0.5)
    heard = []

    def challenge(client: socket.socket) -> None:
        client.sendall(bytes(nbytes))
        client.shutdown(socket.SHUT_WR)
        heard.append(receive(client, ANSWER_BYTES))

    endpoint, thread = serve_once(challenge)
    assert connect(endpoint, 1) == {}
    thread.join()
    assert heard and not any(heard)


# ------------------------------------------------------------ limits


def test_the_server_stops_waiting_after_the_timeout(monkeypatch):
    monkeypatch.setattr(handshake, "CONNECT_TIMEOUT", 3.0)
    listener = Listener([1, 2])
    with socket.create_connection(("127.0.0.1", listener.endpoint.port)):
        remote = start_remote_rank(listener.endpoint, 2)
        start = time.monotonic()
        assert set(listener.accept()) == {2}
        assert 2.5 < time.monotonic() - start < 6
    remote.communicate("\n")


@pytest.mark.parametrize("answer", [b"", b"220 welcome to another service\r\n"])
def test_a_remote_rank_refuses_another_service(answer, monkeypatch):
    monkeypatch.setattr(handshake, "CONNECT_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
        endpoint = Endpoint(["127.0.0.1"], port, b"k" * 32)

        def serve() -> None:
            client, _ = service.accept()
            with client:
                client.sendall(answer)
                time.sleep(1)

        thread = threading.Thread(target=serve)
        thread.start()
        assert connect(endpoint, 1) == {}
        thread.join()
    assert connect(endpoint, 1) == {}  # nothing listens


def test_the_server_accepts_more_ranks_than_the_soft_limit_on_files():
    process, endpoint = start_server(100, file_limit=40)
    connections = [connect(endpoint, rank) for rank in range(1, 101)]
    assert all(connections)
    process.communicate("sign off\n")
    assert process.returncode == 0


def test_clients_do_not_exhaust_a_low_limit_on_files():
    """The hard limit leaves room for the expected ranks, but not for all other clients."""
    process, endpoint = start_server(4, file_limit=24, hard_limit=24)
    clients = [socket.create_connection(("127.0.0.1", endpoint.port), 5) for _ in range(60)]
    connections = [connect(endpoint, rank) for rank in range(1, 5)]
    assert all(connections)
    process.communicate("sign off\n")
    assert process.returncode == 0 and len(clients) == 60


def test_ranks_beyond_the_hard_limit_on_files_are_not_accepted_and_the_others_are(monkeypatch):
    monkeypatch.setattr(handshake, "CONNECT_TIMEOUT", 1.0)
    process, endpoint = start_server(40, file_limit=24, hard_limit=24)
    connections = [connect(endpoint, rank) for rank in range(1, 23)]
    assert all(connections[:10]) and not connections[-1]
    process.communicate("sign off\n", timeout=20)
    assert process.returncode == 0


def test_clients_are_limited_and_the_oldest_of_the_busiest_address_goes_first(monkeypatch):
    monkeypatch.setattr(handshake, "MAX_CLIENTS", 8)
    listener = Listener([1])
    accept = AcceptInBackground(listener)
    clients = [open_connection(listener.endpoint)[0] for _ in range(30)]
    assert receive(clients[0], 1) == receive(clients[20], 1) == b""
    clients[-1].settimeout(0.2)
    with pytest.raises(TimeoutError):  # still connected
        clients[-1].recv(1)
    assert connect(listener.endpoint, 1)
    assert list(accept.connections()) == [1]


# ------------------------------------------------------------ networks


def is_loopback(address: str) -> bool:
    return ip_address(address).is_loopback


def test_addresses_need_no_dns_and_loopback_comes_last(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)  # it may block for minutes
    addresses = local_addresses()
    assert "127.0.0.1" in addresses and len(set(addresses)) == len(addresses)
    assert addresses == sorted(addresses, key=is_loopback)
    assert not any(ip_address(address).is_link_local for address in addresses)


@pytest.mark.parametrize("network", ["lo", "127.0.0.1"])
def test_a_chosen_network_is_the_only_one(network):
    listener = Listener([7], network)
    assert listener.endpoint.addresses == ["127.0.0.1"]
    accept = AcceptInBackground(listener)
    for other in local_addresses():
        if not is_loopback(other):
            with pytest.raises(OSError):
                socket.create_connection((other, listener.endpoint.port), 1)
    assert connect(listener.endpoint, 7) and list(accept.connections()) == [7]


def test_a_network_that_does_not_exist_is_named_with_those_that_do():
    right = r"link.peer_monitor is 'ib7', but must be 'on', 'off', or an interface .*: .*\blo\b"
    with pytest.raises(UserError, match=right):
        Listener([7], "ib7")
