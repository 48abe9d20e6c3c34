"""The peer monitor: how each side detects the end of a process on another machine."""

from __future__ import annotations

import subprocess

import pytest
from peers import HOSTS, start_remote_rank, start_server, wait_for_dead

from fedgan_mpi.faults.handshake import Listener, connect
from fedgan_mpi.faults.peer_monitor import PeerMonitor


def connect_to_server() -> tuple[subprocess.Popen[str], PeerMonitor]:
    process, endpoint = start_server(1)
    return process, PeerMonitor(connect(endpoint, 1), [1], HOSTS)


def test_a_remote_process_that_ends_without_signing_off_is_dead():
    listener = Listener([2, 3, 4])
    others = {rank: start_remote_rank(listener.endpoint, rank) for rank in (2, 3, 4)}
    monitor = PeerMonitor(listener.accept(), [2, 3, 4], HOSTS)
    assert monitor.dead() == []
    others[3].kill()
    assert wait_for_dead(monitor) == [3]
    others[2].communicate("sign off\n")
    assert wait_for_dead(monitor) == [3]
    others[4].communicate("\n")
    assert wait_for_dead(monitor) == [3, 4]
    assert not monitor.unreachable


@pytest.mark.parametrize(
    "command, dead", [("sign off\n", []), ("\n", [0]), (None, [0])], ids=["exit", "crash", "kill"]
)
def test_a_remote_rank_detects_how_the_server_ends(command, dead):
    process, monitor = connect_to_server()
    assert wait_for_dead(monitor, 0.2) == []
    if command is None:
        process.kill()
    process.communicate(command)
    assert wait_for_dead(monitor, 0.2) == dead


@pytest.mark.parametrize("command, ends_job", [("end job\n", True), ("sign off\n", False)])
def test_the_end_of_the_job_is_announced_and_is_no_death(command, ends_job):
    process, monitor = connect_to_server()
    process.communicate(command)
    assert wait_for_dead(monitor, 0.2) == []
    assert monitor.job_ends == ends_job


def test_a_closed_monitor_is_no_death():
    listener = Listener([1, 2])
    processes = [start_remote_rank(listener.endpoint, rank) for rank in (1, 2)]
    monitor = PeerMonitor(listener.accept(), [1, 2], HOSTS)
    assert processes[0].stdin is not None
    processes[0].stdin.write("close\n")
    processes[0].stdin.flush()
    processes[1].kill()
    assert wait_for_dead(monitor) == [2]
    processes[0].communicate("\n")
    assert wait_for_dead(monitor, 0.2) == [2]
    processes[1].communicate()
