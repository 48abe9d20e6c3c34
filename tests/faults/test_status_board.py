"""The status board: dead, computing and waiting ranks of one machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedgan_mpi.faults.status_board import StatusBoard

CHILD = """
import sys
from fedgan_mpi.faults.status_board import StatusBoard
board = StatusBoard(open(sys.argv[1], "r+b"), int(sys.argv[2]), int(sys.argv[2]) + 10)
print("ready", flush=True)
command = input()
if command == "sign off":
    board.sign_off()
if command == "end job":
    board.sign_off(ends_job=True)
if command == "list dead":
    print(board.dead())
if command == "list dead many times":
    print(all(13 in board.dead() for _ in range(3000)))  # others end meanwhile
"""


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "board"
    path.write_bytes(bytes(StatusBoard.nbytes(4)))
    return path


def open_board(path: Path, line: int) -> StatusBoard:
    return StatusBoard(open(path, "r+b"), line, line + 10)


def start_rank(path: Path, line: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, path, str(line)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_process_that_ends_without_signing_off_is_dead(path):
    others = [start_rank(path, line) for line in (0, 2, 3)]
    board = open_board(path, 1)
    assert board.dead() == []
    others[0].kill()
    others[0].wait()
    assert board.dead() == [10]
    assert board.is_lowest_alive([10]) and not board.is_lowest_alive([])
    others[1].communicate("sign off\n")
    assert board.dead() == [10]
    others[2].communicate("\n")
    assert board.dead() == [10, 13]


def test_every_rank_detects_the_dead(path):
    board, other = open_board(path, 0), start_rank(path, 3)
    for line in (1, 2):
        start_rank(path, line).communicate("\n")
    assert board.dead() == [11, 12]
    assert board.dead() == [11, 12]  # the test of a lock does not keep it
    assert other.communicate("list dead\n")[0] == "[11, 12]\n"


def test_ranks_that_test_at_the_same_time_all_detect_the_dead(path):
    """A rank that overlooks a death once would count the seconds since then anew."""
    others = [start_rank(path, line) for line in (0, 1, 2)]
    start_rank(path, 3).communicate("\n")
    for other in others:
        assert other.stdin is not None
        other.stdin.write("list dead many times\n")
        other.stdin.flush()
    assert [other.communicate()[0] for other in others] == ["True\n"] * 3


def test_the_end_of_the_job_is_announced_and_is_no_death(path):
    board, others = open_board(path, 0), [start_rank(path, line) for line in (1, 2, 3)]
    others[0].communicate("sign off\n")
    assert not board.job_ends()
    others[1].communicate("end job\n")
    assert board.job_ends() and board.dead() == []
    others[2].communicate("sign off\n")


def test_ranks_compute_unless_they_are_in_an_exchange(path):
    boards = [open_board(path, line) for line in range(4)]
    assert boards[0].computing() == [10, 11, 12, 13] and boards[0].waiting() == []
    outer = [board.enter(7) for board in boards[:3]]
    assert boards[0].computing() == [13] and boards[3].waiting() == [10, 11, 12]
    boards[3].enter(7)
    boards[1].leave(0)  # computes inside the exchange
    assert boards[0].computing() == [11] and outer == [0, 0, 0]


def test_each_rank_counts_for_itself_that_it_runs(path):
    boards = [open_board(path, line) for line in range(4)]
    for _ in range(3):
        boards[1].tick()
    boards[2].tick()
    assert boards[0].ticks() == {10: 0, 11: 3, 12: 1, 13: 0} and boards[0].activity() == 0
    boards[3].sign_off()
    assert list(boards[0].ticks()) == [10, 11, 12]
