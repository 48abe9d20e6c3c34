"""The watchdog's last message: which rank reports a death, and in which words."""

from __future__ import annotations

import platform
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest
from peers import HOSTS

from fedgan_mpi import log
from fedgan_mpi.faults import watchdog
from fedgan_mpi.faults.status_board import StatusBoard
from fedgan_mpi.faults.watchdog import Watchdog, format_hosts

MakeBoard = Callable[[int, int], StatusBoard]


class FakeMonitor:
    """A peer monitor with given observations. Records announced ends."""

    remote_ranks, hosts = (2, 3, 4), HOSTS

    def __init__(
        self, dead: Sequence[int] = (), *, unreachable: bool = False, job_ends: bool = False
    ) -> None:
        self._dead, self.unreachable, self.job_ends = list(dead), unreachable, job_ends
        self.announced: list[bool] = []

    def dead(self) -> list[int]:
        return self._dead

    def sign_off(self, *, ends_job: bool = False) -> None:
        self.announced.append(ends_job)


@pytest.fixture
def make_board(tmp_path, monkeypatch) -> Iterator[MakeBoard]:
    """Create a board from a line and a world rank. The board belongs to a machine of two ranks."""
    monkeypatch.setattr(watchdog, "GRACE", 0.2)
    # Both lines belong to this process, and a process does not exclude itself from its own locks.
    monkeypatch.setattr(StatusBoard, "dead", lambda self: [])
    path = tmp_path / "board"
    path.write_bytes(bytes(StatusBoard.nbytes(2)))
    files = [open(path, "r+b") for _ in range(2)]  # noqa: SIM115 - closed below
    yield lambda line, world_rank: StatusBoard(files[line], line, world_rank)
    for file in files:
        file.close()


@pytest.fixture
def remote_boards(make_board) -> list[StatusBoard]:
    """The boards of ranks 2 and 3."""
    return [make_board(0, 2), make_board(1, 3)]


def last_message(board: StatusBoard, rank: int, monitor: FakeMonitor | None, capfd) -> str:
    """Run a watchdog until it aborts, and return the core of its message."""
    log.start(rank)
    aborted = threading.Event()
    thread = Watchdog(board, rank, [""], 1.5, aborted.set, peer_monitor=cast(Any, monitor))
    thread.start()
    assert aborted.wait(5)
    thread.join()
    prefix, suffix = f"[rank {rank} on {platform.node()}] ", ", and the job ends\n"
    message = capfd.readouterr().err
    assert message == "" or (message.startswith(prefix) and message.endswith(suffix))
    return message.removeprefix(prefix).removesuffix(suffix)


@pytest.mark.parametrize(
    "monitor, expected",
    [
        (FakeMonitor([3]), "rank 3 on b has died"),
        (
            FakeMonitor([2, 3, 4], unreachable=True),
            "ranks 2, 3 on b, rank 4 on c have died or been cut off",
        ),
    ],
)
def test_the_server_reports_remote_deaths(monitor, expected, make_board, capfd):
    board = make_board(0, 0)
    make_board(1, 1)
    assert last_message(board, 0, monitor, capfd) == expected


@pytest.mark.parametrize(
    "rank, dead, expected",
    [
        (2, [0], "rank 0 on a has died"),
        (3, [0, 2], "rank 0 on a, rank 2 on b have died"),
        (3, [0], "rank 0 on a has died"),  # rank 2 does not report in time
        (2, [3], "rank 3 on b has died"),  # the server does not report in time
    ],
)
def test_a_remote_rank_reports_if_the_server_does_not(rank, dead, expected, remote_boards, capfd):
    message = last_message(remote_boards[rank - 2], rank, FakeMonitor(dead), capfd)
    assert message == expected


@pytest.mark.parametrize("rank, dead", [(3, [0]), (2, [3])])
def test_a_death_that_another_rank_has_reported_is_not_reported_again(
    rank, dead, remote_boards, capfd
):
    monitor = FakeMonitor(dead, job_ends=True)
    assert last_message(remote_boards[rank - 2], rank, monitor, capfd) == ""


def test_the_end_of_the_job_reaches_other_machines_and_the_own_machine(remote_boards, capfd):
    monitor = FakeMonitor(job_ends=True)
    assert last_message(remote_boards[0], 2, monitor, capfd) == ""
    assert monitor.announced == [True]
    assert last_message(remote_boards[1], 3, None, capfd) == ""  # from the board


def test_a_rank_that_computes_for_too_long_reports_its_stack(make_board, capfd):
    board, other = make_board(0, 0), make_board(1, 1)
    other.enter(1)
    log.start(0)
    aborted = threading.Event()
    thread = Watchdog(board, 0, ["", "average"], 0.3, aborted.set)
    thread.start()
    assert aborted.wait(5)
    thread.join()
    message = capfd.readouterr().err
    assert re.search(r"\] hangs: no exchange with others for \d s, link.deadline is 0.3; ", message)
    assert "; rank 1 of the same machine waits in average. Its stack:\n" in message
    assert "test_a_rank_that_computes_for_too_long_reports_its_stack" in message


def test_a_waiting_rank_reports_a_rank_that_hangs_in_silence(make_board, capfd):
    board = make_board(0, 0)
    make_board(1, 1)
    board.enter(1)
    log.start(0)
    aborted = threading.Event()
    thread = Watchdog(board, 0, ["", "average"], 0.3, aborted.set)
    thread.start()
    assert aborted.wait(5)
    thread.join()
    hang = r"\] rank 1 of this machine hangs: others have waited for \d s in average, "
    assert re.search(hang, capfd.readouterr().err)


def test_ranks_are_named_with_their_hosts():
    assert format_hosts([4], HOSTS) == "rank 4 on c"
    assert format_hosts([2, 0, 3, 1], HOSTS) == "ranks 0, 1 on a, ranks 2, 3 on b"


def test_activity_of_any_rank_of_the_machine_resets_the_time_limit(make_board):
    """A long score shows activity without exchanges, while the other ranks wait for it."""
    waiting, scoring = make_board(0, 0), make_board(1, 1)
    waiting.enter(1)
    aborted = threading.Event()
    log.start(0)
    thread = Watchdog(waiting, 0, ["", "sum"], 1.0, aborted.set)
    thread.start()
    for _ in range(20):
        scoring.beat()
        assert not aborted.wait(0.2)
    assert aborted.wait(10)  # no more activity
    thread.join()


@pytest.mark.parametrize("stopped", [0, 1])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_stopped_rank_is_named_inside_any_exchange(stopped, ahead, make_board, capfd):
    """All are in the same exchange, or those that the stopped rank has served are in the next."""
    boards = [make_board(0, 0), make_board(1, 1)]
    for board in boards:
        board.enter(1)
    if ahead:
        boards[1 - stopped].enter(1)
    message = hang_message(boards[1 - stopped], 1 - stopped, capfd, running=[], only_machine=True)
    names = f"rank {stopped} of this machine hangs: others have waited for "
    assert names in message and " s in average, link.deadline is 0.3" in message


@pytest.mark.parametrize("behind", [0, 1])
def test_a_rank_that_waits_for_another_machine_is_not_blamed(behind, make_board, capfd):
    """A server that sums is an exchange behind the ranks whose vectors it has."""
    boards = [make_board(0, 0), make_board(1, 1)]
    for board in boards:
        board.enter(1)
    boards[1 - behind].enter(1)
    message = hang_message(boards[1 - behind], 1 - behind, capfd, running=[boards[behind]])
    assert "of this machine hang" not in message and "; a rank of another machine hangs" in message


def test_no_other_machine_is_blamed_if_there_is_none(make_board, capfd):
    boards = [make_board(0, 0), make_board(1, 1)]
    for board in boards:
        board.enter(1)
    message = hang_message(boards[0], 0, capfd, running=boards[1:], only_machine=True)
    assert re.search(r"\] has waited in average for \d s, .*; all ranks wait for MPI\n", message)


def hang_message(
    board: StatusBoard,
    rank: int,
    capfd,
    *,
    running: Sequence[StatusBoard],
    only_machine: bool = False,
) -> str:
    """Return what a rank's watchdog reports. running: boards of ranks that are not stopped."""
    log.start(rank)
    aborted = threading.Event()
    verbs = ["", "average"]
    thread = Watchdog(board, rank, verbs, 0.3, aborted.set, only_machine=only_machine)
    thread.start()
    for _ in range(250):
        for other in running:
            other.tick()
        if aborted.wait(0.02):
            break
    thread.join()
    return capfd.readouterr().err
