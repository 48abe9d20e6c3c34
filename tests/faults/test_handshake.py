"""The TCP handshake: which clients are accepted, which server is accepted, and time limits."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest
from peers import start_remote_rank, start_server

from fedgan_mpi.faults import handshake
from fedgan_mpi.faults.handshake import Endpoint, Listener, connect


def test_unknown_clients_are_refused_and_do_not_block_others():
    listener = Listener([7])
    port, token = listener.endpoint.port, listener.endpoint.client_token
    unknown = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    unknown[1].sendall(bytes(len(token)) + struct.pack("!i", 7))  # a wrong token
    unknown[2].sendall(token[:5])
    no_linger = struct.pack("ii", 1, 0)
    unknown[3].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)  # close() sends a reset
    unknown[3].close()
    remote = start_remote_rank(listener.endpoint, 7)
    start = time.monotonic()
    connections = listener.accept()
    assert list(connections) == [7] and time.monotonic() - start < 5
    assert unknown[0].recv(1) == unknown[1].recv(1) == b""  # closed without an answer
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port))
    remote.communicate("\n")


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
        endpoint = Endpoint(["127.0.0.1"], port, b"p" * 16, b"a" * 16)

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


def test_loopback_addresses_come_last(monkeypatch):
    resolved = [("127.0.1.1", 0), ("::1", 0, 0, 0), ("192.0.2.7", 0), ("fe80::1", 0, 0, 2)]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", address) for address in resolved]
    )
    addresses = Listener([1]).endpoint.addresses
    assert addresses[0] == "192.0.2.7" and "127.0.1.1" in addresses and "fe80::1" not in addresses
    is_loopback = [address in ("127.0.1.1", "127.0.0.1", "::1") for address in addresses]
    assert is_loopback == sorted(is_loopback)


@pytest.mark.parametrize("name", ["a" * 64, "a..b"])
def test_a_host_name_may_be_no_valid_dns_name(name, monkeypatch):
    monkeypatch.setattr(handshake, "node", lambda: name)
    assert "127.0.0.1" in Listener([1]).endpoint.addresses
