"""The board by which ranks of one machine see who has died."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedgan_mpi.faults.watchdog import Board

CHILD = """
import sys
from fedgan_mpi.faults.watchdog import Board
board = Board(open(sys.argv[1], "r+b"), int(sys.argv[2]), int(sys.argv[2]) + 10)
print("here", flush=True)
said = input()
if said == "sign off":
    board.sign_off()
if said == "end the job":
    board.sign_off(ends_job=True)
if said == "who is dead?":
    print(board.dead())
"""


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "board"
    path.write_bytes(bytes(Board.length(4)))
    return path


def child(path: Path, line: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, path, str(line)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process


def test_the_dead_are_those_whose_process_ended_without_a_word(path):
    others = [child(path, line) for line in (0, 2, 3)]
    board = Board(open(path, "r+b"), 1, 11)  # noqa: SIM115 - it must stay open
    assert board.dead() == []
    others[0].kill()
    others[0].wait()
    assert board.dead() == [10]
    assert board.is_first([10]) and not board.is_first([])  # who speaks for those who are left
    others[1].communicate("sign off\n")
    assert board.dead() == [10]
    others[2].communicate("\n")
    assert board.dead() == [10, 13]


def test_each_rank_sees_the_dead(path):
    board, other = Board(open(path, "r+b"), 0, 10), child(path, 3)  # noqa: SIM115
    for line in (1, 2):
        child(path, line).communicate("\n")
    assert board.dead() == [11, 12]
    assert board.dead() == [11, 12]  # asking takes nothing
    assert other.communicate("who is dead?\n")[0] == "[11, 12]\n"


def test_who_ends_the_job_tells_its_machine_and_is_no_death(path):
    board, others = Board(open(path, "r+b"), 0, 10), [child(path, line) for line in (1, 2, 3)]  # noqa: SIM115
    others[0].communicate("sign off\n")
    assert not board.job_ends()
    others[1].communicate("end the job\n")
    assert board.job_ends() and board.dead() == []
    others[2].communicate("sign off\n")


def test_those_behind_are_whom_others_wait_for(path):
    boards = [Board(open(path, "r+b"), line, line + 10) for line in range(4)]  # noqa: SIM115
    assert boards[0].behind() == []  # all compute
    outer = [board.enter(7) for board in boards[:3]]
    assert boards[0].behind() == [13]  # it has not come
    boards[3].enter(7)
    assert boards[0].behind() == []  # all wait
    boards[1].leave(0)  # by itself in the middle
    assert boards[0].behind() == [11]
    boards[1].enter(7)
    assert boards[0].behind() == [10, 12, 13]
    for board in boards:
        board.leave(0)
    assert boards[1].behind() == [10, 12, 13] and outer == [0, 0, 0]
