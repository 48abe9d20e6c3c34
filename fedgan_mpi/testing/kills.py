"""Kills a rank of a job with SIGKILL in a chosen phase, and reports how the job ended.

Needs Linux: it reads /proc. The phases come from the boards of `phases.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgan_mpi.testing.jobs import MPIRUN
from fedgan_mpi.testing.phases import DIRECTORY, current_phase, phases_seen, read_board

TIME_TO_END = 10.0
"""Seconds within which a job must end after the death of a rank."""
BOARDS = "phases"
"""Directory of the boards, below the working directory of a job."""
LOG = "log.txt"
"""Output of a job, in its working directory."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One killed rank and the end of its job."""

    rank: int
    phase: str
    """The rank's phase at its death, as `current_phase` names it."""
    status: int | None
    """Exit status of the job. None if it hung."""
    seconds: float
    """From the kill to the end of the job, launcher included. Infinite if it hung."""
    survivors: int
    """Ranks still alive 5 s after the end of their job."""


def start_recorded_job(
    cwd: Path, *arguments: str, ranks: int = 3, python: Sequence[str] = (sys.executable,)
) -> subprocess.Popen[bytes]:
    """Start a job with phase boards in `cwd/phases` and its output in `cwd/log.txt`.

    The job is limited to two cores, so that more ranks share cores on any machine.
    """
    boards = cwd / BOARDS
    boards.mkdir(exist_ok=True)
    for old in boards.glob("rank_*"):
        old.unlink()
    program = [*python, "-m", "fedgan_mpi.testing.phases"]
    with open(cwd / LOG, "ab") as log:
        return subprocess.Popen(
            [MPIRUN, "-n", str(ranks), *program, *arguments],
            cwd=cwd, env={**os.environ, DIRECTORY: str(boards)},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_limit_to_two_cores,
        )  # fmt: skip


def _limit_to_two_cores() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def phases_of_job(cwd: Path) -> list[str]:
    """Return the phases that any rank of the job in `cwd` has entered since its first round."""
    return phases_seen(cwd / BOARDS)


def wait_for_rounds(job: subprocess.Popen[bytes], cwd: Path) -> None:
    """Return when the server begins its first round, or the job has ended."""
    while job.poll() is None:
        board = read_board(cwd / BOARDS, 0)
        if board is not None and current_phase(board[1]) != "start":
            return
        time.sleep(1e-3)


def kill_in_phase(
    phase: str, job: subprocess.Popen[bytes], cwd: Path, rank: int, *, timeout: float
) -> Kill | None:
    """Kill a rank when it next enters the phase, or in any phase after `timeout` seconds.

    Returns None if the job ends first. The rank is stopped before its board is read, so that it
    dies in the phase that the result names.
    """
    deadline = time.monotonic() + timeout
    while job.poll() is None:
        board, is_late = read_board(cwd / BOARDS, rank), time.monotonic() > deadline
        if board is not None and (current_phase(board[1]) == phase or is_late):
            process, _ = board
            try:
                os.kill(process, signal.SIGSTOP)
                _wait_until_stopped(process)
                stopped_in = current_phase((read_board(cwd / BOARDS, rank) or board)[1])
                if stopped_in == phase or is_late:
                    return _kill(process, stopped_in, job, cwd, rank)
                os.kill(process, signal.SIGCONT)
            except (ProcessLookupError, FileNotFoundError):
                continue  # the process has ended
        time.sleep(1e-4)
    return None


def _wait_until_stopped(process: int) -> None:
    while _state(process) not in "TZX":
        time.sleep(1e-4)


def _kill(process: int, phase: str, job: subprocess.Popen[bytes], cwd: Path, rank: int) -> Kill:
    numbers = [int(path.name.removeprefix("rank_")) for path in (cwd / BOARDS).glob("rank_*")]
    boards = [read_board(cwd / BOARDS, number) for number in numbers]
    ranks = [board[0] for board in boards if board is not None]
    os.kill(process, signal.SIGKILL)
    killed = time.monotonic()
    try:
        status, seconds = job.wait(TIME_TO_END), time.monotonic() - killed
    except subprocess.TimeoutExpired:
        status, seconds = None, float("inf")
    deadline = time.monotonic() + 5
    while (survivors := list(filter(_is_alive, ranks))) and time.monotonic() < deadline:
        time.sleep(0.05)
    for survivor in survivors:
        os.kill(survivor, signal.SIGKILL)
    job.wait(30)
    return Kill(rank=rank, phase=phase, status=status, seconds=seconds, survivors=len(survivors))


def _is_alive(process: int) -> bool:
    try:
        return _state(process) not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _state(process: int) -> str:
    """Return the state letter of a process, as in proc(5)."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
