"""The failure detector on several ranks: TCP connections and local work inside an exchange."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fedgan_mpi import log
from fedgan_mpi.comm.link import Link
from fedgan_mpi.errors import AgreedError
from fedgan_mpi.faults import detector, handshake
from fedgan_mpi.faults.detector import connect_peers

pytestmark = pytest.mark.mpi(min_size=3)


def two_machines(comm) -> int:
    """Return this rank's leader if ranks 0 and 1 were on one machine, the others on a second."""
    return 0 if comm.rank < 2 else 2


def test_remote_ranks_connect_to_the_server(comm):
    monitor = connect_peers(comm, comm.Barrier, two_machines(comm))
    assert (monitor is not None) == (comm.rank != 1)
    comm.barrier()
    if monitor is not None:
        assert monitor.remote_ranks == [*range(2, comm.size)] and monitor.dead() == []
    comm.barrier()
    if monitor is not None and comm.rank > 0:
        monitor.close()
    comm.barrier()
    if monitor is not None and comm.rank == 0:
        assert monitor.dead() == []
        monitor.close()


def test_ranks_of_one_machine_open_no_connection(comm, monkeypatch):
    monkeypatch.setattr(detector, "Listener", None)
    assert connect_peers(comm, comm.Barrier, leader=0) is None


def test_a_monitor_that_is_off_opens_no_connection(comm, monkeypatch):
    monkeypatch.setattr(detector, "Listener", None)
    assert connect_peers(comm, comm.Barrier, two_machines(comm), "off") is None


def test_ranks_connect_by_the_chosen_network_and_a_wrong_one_is_told_to_all(comm):
    monitor = connect_peers(comm, comm.Barrier, two_machines(comm), "lo")
    assert (monitor is not None) == (comm.rank != 1)
    comm.barrier()
    if monitor is not None:
        monitor.close()
    with pytest.raises(AgreedError, match=r"link\.peer_monitor is 'ib7', but must be 'on', "):
        connect_peers(comm, comm.Barrier, two_machines(comm), "ib7")


def test_a_failed_connection_is_reported_and_the_others_are_observed(comm, monkeypatch, capfd):
    log.start(comm.rank)
    monkeypatch.setattr(handshake, "CONNECT_TIMEOUT", 1.0)
    if comm.rank == 2:
        monkeypatch.setattr(detector, "connect", lambda endpoint, rank: {})
    monitor = connect_peers(comm, comm.Barrier, two_machines(comm))
    others = [*range(3, comm.size)]
    assert (monitor is not None) == (comm.rank in others or (comm.rank == 0 and bool(others)))
    comm.barrier()
    if monitor is not None:
        assert monitor.remote_ranks == others and monitor.dead() == []
    comm.barrier()
    if monitor is not None:
        monitor.close()
    warning = capfd.readouterr().err
    is_warning = "rank 2 on" in warning and "cannot connect to this host" in warning
    assert is_warning == (comm.rank == 0)


@pytest.mark.parametrize("transport", ["mpi", "polling", "shared_memory"])
def test_the_board_shows_overlapped_work_as_computing(comm, monkeypatch, transport):
    """So that a hang in this work is reported by the rank that hangs."""
    link = Link(comm, transport=transport)
    link.watch(100.0)
    board, verbs, left = link.detector.board, [], []
    leave = board.leave
    monkeypatch.setattr(board, "leave", lambda verb: (left.append(verb), leave(verb)))
    for turn in range(3):
        total = link.sum(np.array([1.0]), overlap=lambda: verbs.append(board.progress[1]))
        assert total[0] == link.size
        assert len(verbs) == turn + 1
    assert not any(verbs) and board.progress[1] == 0
    verb_of_sum = left[1]  # the rank waits in the sum again
    assert left == [0, verb_of_sum, 0] * 3 and verb_of_sum > 0
    entered = float(board.progress[0])
    assert link.sum(np.array([entered]))[0] == entered * link.size
    link.watch(None)


@pytest.mark.parametrize("transport", ["mpi", "shared_memory"])
def test_the_board_shows_work_of_the_server_inside_a_verb_as_computing(comm, transport):
    link = Link(comm, transport=transport)
    link.watch(100.0)
    board = link.detector.board
    assert link.from_server(lambda: (board.progress[1], board.computing()[0])) == (0, 0)
    verbs = []

    class Uplink:
        def send(self, into):
            verbs.append(board.progress[1])
            link.barrier()

        def finish(self, into):
            verbs.append(board.progress[1])

    link.average(Uplink(), into=None)
    assert verbs == [0] * (2 if link.is_server else 1) and board.progress[1] == 0
    link.watch(None)


def test_a_server_that_draws_longer_than_the_deadline_is_no_hang(comm):
    link, aborted = Link(comm), []
    link.abort = lambda code=1: aborted.append(code)
    link.watch(1.0)
    time.sleep(4)  # before the rounds, for which alone the deadline is
    link.watch_for_hangs()
    if link.is_server:
        with link.shows_activity():
            time.sleep(4)  # longer than the deadline and the time for reports of a hang
    link.barrier()
    link.watch(None)
    assert not aborted
