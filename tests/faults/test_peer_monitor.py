"""The connections by which ranks of different machines see who has died."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from fedgan_mpi.faults import peer_monitor as lifeline
from fedgan_mpi.faults import watchdog
from fedgan_mpi.faults.peer_monitor import Endpoint, Listener, PeerMonitor, connect
from fedgan_mpi.faults.watchdog import Board, Watchdog, ranks_on_hosts

HOSTS = ["a", "a", "b", "b", "c"]

FAR = """
import pickle, sys
from fedgan_mpi.faults.peer_monitor import Lifeline, connect
invitation = pickle.loads(bytes.fromhex(sys.argv[1]))
line = Lifeline(connect(invitation, int(sys.argv[2])), [], [])
print("here", flush=True)
said = input()
if said == "close":
    line.close()
    input()
elif said:
    line.sign_off(ends_job=said == "end the job")
"""

SERVER = """
import pickle, resource
from fedgan_mpi.faults.peer_monitor import Lifeline, Listener
resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
listener = Listener(range(1, int(input()) + 1))
print(pickle.dumps(listener.invitation).hex(), flush=True)
line = Lifeline(listener.accept(), [], [])
print("here", flush=True)
said = input()
if said:
    line.sign_off(ends_job=said == "end the job")
"""


def child(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def server(ranks: int) -> tuple[subprocess.Popen[str], Endpoint]:
    """Another process, which takes so many ranks."""
    process = child(SERVER)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{ranks}\n")
    process.stdin.flush()
    return process, pickle.loads(bytes.fromhex(process.stdout.readline()))


def far_rank(invitation: Endpoint, rank: int) -> subprocess.Popen[str]:
    return child(FAR, pickle.dumps(invitation).hex(), str(rank))


def dead_within(line: PeerMonitor, seconds: float = 1.0) -> list[int]:
    """Whom it has found dead after so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        line.dead()
        time.sleep(0.02)
    return line.dead()


def test_the_dead_are_those_whose_process_ended_without_a_word():
    listener = Listener([2, 3, 4])
    others = {rank: far_rank(listener.invitation, rank) for rank in (2, 3, 4)}
    line = PeerMonitor(listener.accept(), [2, 3, 4], HOSTS)
    assert line.dead() == []
    others[3].kill()
    assert dead_within(line) == [3]
    others[2].communicate("sign off\n")
    assert dead_within(line) == [3]
    others[4].communicate("\n")
    assert dead_within(line) == [3, 4]
    assert not line.out_of_reach


@pytest.mark.parametrize("word, dead", [("sign off\n", []), ("\n", [0]), (None, [0])])
def test_a_far_rank_sees_how_the_server_ends(word, dead):
    process, invitation = server(1)
    line = PeerMonitor(connect(invitation, 1), [1], HOSTS)
    assert dead_within(line, 0.2) == []
    if word is None:
        process.kill()
    process.communicate(word)
    assert dead_within(line, 0.2) == dead


def test_who_ends_the_job_tells_the_other_end_and_is_no_death():
    process, invitation = server(1)
    line = PeerMonitor(connect(invitation, 1), [1], HOSTS)
    process.communicate("end the job\n")
    assert dead_within(line, 0.2) == [] and line.job_ends
    process, invitation = server(1)
    line = PeerMonitor(connect(invitation, 1), [1], HOSTS)
    process.communicate("sign off\n")
    assert dead_within(line, 0.2) == [] and not line.job_ends


def test_one_that_looks_no_more_is_no_death():
    listener = Listener([1, 2])
    processes = [far_rank(listener.invitation, rank) for rank in (1, 2)]
    line = PeerMonitor(listener.accept(), [1, 2], HOSTS)
    assert processes[0].stdin is not None
    processes[0].stdin.write("close\n")
    processes[0].stdin.flush()
    processes[1].kill()
    assert dead_within(line) == [2]
    processes[0].communicate("\n")
    assert dead_within(line, 0.2) == [2]
    processes[1].communicate()


def test_strangers_neither_come_in_nor_keep_others_out():
    listener = Listener([7])
    port, password = listener.invitation.port, listener.invitation.password
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    strangers[1].sendall(bytes(len(password)) + struct.pack("!i", 7))  # another word
    strangers[2].sendall(password[:5])
    hard = struct.pack("ii", 1, 0)
    strangers[3].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)  # ends by a reset
    strangers[3].close()
    late = far_rank(listener.invitation, 7)
    began = time.monotonic()
    lines = listener.accept()
    assert list(lines) == [7] and time.monotonic() - began < 5
    assert strangers[0].recv(1) == strangers[1].recv(1) == b""  # sent away, without an answer
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port))
    late.communicate("\n")


def test_who_does_not_come_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(lifeline, "PATIENCE", 3.0)
    listener = Listener([1, 2])
    with socket.create_connection(("127.0.0.1", listener.invitation.port)):
        process = far_rank(listener.invitation, 2)
        began = time.monotonic()
        assert set(listener.accept()) == {2}
        assert 2.5 < time.monotonic() - began < 6
    process.communicate("\n")


@pytest.mark.parametrize("said", [b"", b"220 welcome to another service\r\n"])
def test_a_far_rank_does_not_take_a_stranger_for_the_server(said, monkeypatch):
    monkeypatch.setattr(lifeline, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        invitation = Endpoint(["127.0.0.1"], port, b"p" * 16, b"a" * 16)

        def answer() -> None:
            guest, _ = stranger.accept()
            with guest:
                guest.sendall(said)
                time.sleep(1)

        thread = threading.Thread(target=answer)
        thread.start()
        assert connect(invitation, 1) == {}
        thread.join()
    assert connect(invitation, 1) == {}  # nobody at all


def test_the_server_takes_more_ranks_than_the_soft_limit_on_files():
    process, invitation = server(100)
    lines = [connect(invitation, rank) for rank in range(1, 101)]
    assert all(lines)
    process.communicate("sign off\n")
    assert process.returncode == 0


def test_addresses_that_lead_elsewhere_come_first(monkeypatch):
    named = [("127.0.1.1", 0), ("::1", 0, 0, 0), ("192.0.2.7", 0), ("fe80::1", 0, 0, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", a) for a in named])
    found = lifeline._addresses()
    assert found[0] == "192.0.2.7" and "127.0.1.1" in found and "fe80::1" not in found
    inside = [address in ("127.0.1.1", "127.0.0.1", "::1") for address in found]
    assert inside == sorted(inside)


@pytest.mark.parametrize("name", ["a" * 64, "a..b"])
def test_a_host_may_have_a_name_that_is_no_address(name, monkeypatch):
    monkeypatch.setattr(lifeline, "node", lambda: name)
    assert "127.0.0.1" in lifeline._addresses()


def test_ranks_are_named_with_their_hosts():
    assert ranks_on_hosts([4], HOSTS) == "rank 4 on c"
    assert ranks_on_hosts([2, 0, 3, 1], HOSTS) == "ranks 0, 1 on a, ranks 2, 3 on b"


@pytest.fixture
def boards(tmp_path, monkeypatch) -> Iterator[list[Board]]:
    """A machine's two, of the rank that they are asked for and the next."""
    monkeypatch.setattr(watchdog, "GRACE", 0.2)
    # Both ranks are this process, which its own locks do not keep out.
    monkeypatch.setattr(Board, "dead", lambda self: [])
    path = tmp_path / "board"
    path.write_bytes(bytes(Board.length(2)))
    with open(path, "r+b") as file, open(path, "r+b") as other:
        yield [Board(file, 0, 2), Board(other, 1, 3)]


class FakeLine:
    far, hosts = (2, 3, 4), HOSTS

    def __init__(self, dead: Sequence[int] = (), *, cut: bool = False, job_ends: bool = False):
        self._dead, self.out_of_reach, self.job_ends = list(dead), cut, job_ends
        self.said: list[bool] = []

    def dead(self) -> list[int]:
        return self._dead

    def sign_off(self, *, ends_job: bool = False) -> None:
        self.said.append(ends_job)


def what_it_says(board: Board, rank: int, line: FakeLine | None, capfd) -> str:
    """Until it has ended the job."""
    ended = threading.Event()
    dog = Watchdog(board, rank, [""], 1.5, ended.set, lifeline=cast(Any, line))
    dog.start()
    assert ended.wait(5)
    dog.join()
    here, told = f"[rank {rank} on {os.uname().nodename}] ", capfd.readouterr().err
    assert told == "" or (told.startswith(here) and told.endswith(", and the job ends\n"))
    return told.removeprefix(here).removesuffix(", and the job ends\n")


@pytest.mark.parametrize(
    "line, said",
    [
        (FakeLine([3]), "rank 3 on b has died"),
        (FakeLine([2, 3, 4], cut=True), "ranks 2, 3 on b, rank 4 on c have died or been cut off"),
    ],
)
def test_the_server_speaks_for_all(line, said, boards, capfd):
    boards[0]._mine[2] = 0
    assert what_it_says(boards[0], 0, line, capfd) == said


@pytest.mark.parametrize(
    "rank, dead, said",
    [
        (2, [0], "rank 0 on a has died"),
        (3, [0, 2], "rank 0 on a, rank 2 on b have died"),
        (3, [0], ""),  # 2 speaks
        (2, [3], ""),  # the server speaks
    ],
)
def test_the_first_far_rank_speaks_where_the_server_cannot(rank, dead, said, boards, capfd):
    assert what_it_says(boards[rank - 2], rank, FakeLine(dead), capfd) == said


def test_who_learns_that_the_job_ends_tells_all_it_knows_and_ends(boards, capfd):
    line = FakeLine(job_ends=True)
    assert what_it_says(boards[0], 2, line, capfd) == ""
    assert line.said == [True]
    assert what_it_says(boards[1], 3, None, capfd) == ""  # from the board of its machine
