"""Jobs that can be killed in a chosen phase: an exchange of the link's, computing, a checkpoint.

As a program this file is `python -m fedgan_mpi` with a board for each rank, a file in the directory
PHASES that outlives its process: its id, and what it is doing. As a module it kills by that board.
"""

from __future__ import annotations

import functools
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LENGTH = 256
IN_THREADS = ("write", "seal")
"""A checkpoint on its way to disk: phases beside that of the rank itself."""
HUNG = 10.0
"""Seconds in which a job must end after a death."""


# ---------------------------------------------------------------- inside a rank


class Board:
    """What this rank is doing, from the outermost phase to the innermost."""

    def __init__(self, directory: Path, rank: int) -> None:
        self.directory, self.stack = directory, ["start"]
        self.threads: list[str] = []
        with open(directory / f"rank_{rank}", "wb+") as file:
            file.truncate(LENGTH)
            self._memory = mmap.mmap(file.fileno(), LENGTH)
        self._write()

    def _write(self) -> None:
        phases = [*self.stack, *self.threads]
        self._memory[:] = f"{os.getpid()} {' '.join(phases)} ".encode().ljust(LENGTH, b"\0")

    def during(self, phase: str, owner: Any, method: str) -> None:
        """From now on calls of the method are that phase."""
        honest = getattr(owner, method)

        @functools.wraps(honest)
        def told(*arguments: Any, **named: Any) -> Any:
            self._seen(phase)
            phases = self.threads if phase in IN_THREADS else self.stack
            phases.append(phase)
            self._write()
            try:
                return honest(*arguments, **named)
            finally:
                phases.remove(phase) if phases is self.threads else phases.pop()
                self._write()

        setattr(owner, method, told)

    def _seen(self, phase: str) -> None:
        seen = self.directory / f"seen_{phase}"
        if self.stack[-1] != "start" and not seen.exists():
            seen.touch()


def with_board(directory: Path) -> None:
    """Let this rank tell its phases."""
    from fedgan_mpi.checkpoint import parts as checkpoint_parts
    from fedgan_mpi.checkpoint import writer as checkpoint_writer
    from fedgan_mpi.comm import link
    from fedgan_mpi.comm.launcher import announced_rank
    from fedgan_mpi.run import directory as record
    from fedgan_mpi.training import hooks as keep
    from fedgan_mpi.training import loop as train
    from fedgan_mpi.training import scoring

    board = Board(directory, announced_rank())
    for verb in link._VERBS[1:]:
        board.during(verb, link.Link, verb)
    board.during("rounds", train, "_train_from")
    board.during("compute", train, "run_round")
    board.during("score", scoring.Scoring, "see")
    board.during("score", scoring.Scoring, "settle")
    board.during("grid", keep.TrainingHooks, "_draw")
    board.during("report", keep.TrainingHooks, "finish")
    board.during("copy", checkpoint_writer.Checkpoints, "begin")
    board.during("copy", checkpoint_writer.Checkpoints, "begin_ahead")
    board.during("complete", checkpoint_writer.Checkpoints, "complete")
    board.during("record", record.Record, "round")
    board.during("write", checkpoint_parts, "_write_own")
    board.during("write", checkpoint_parts, "_write_together")
    board.during("seal", checkpoint_writer._Seal, "run")


# ---------------------------------------------------------------- outside


@dataclass(frozen=True, kw_only=True)
class Kill:
    """What came of one."""

    rank: int
    phase: str
    """In which the rank was when it died, the innermost; checkpoints being written come first."""
    status: int | None
    """Exit status of the job; None where it hung."""
    seconds: float
    """From the kill to the end of the job, launcher included; infinite where it hung."""
    left: int
    """Ranks that outlived their job by more than 5 s."""


def start(
    cwd: Path, *arguments: str, ranks: int = 3, python: Sequence[str] = (sys.executable,)
) -> subprocess.Popen[bytes]:
    """A job under `cwd`, whose output goes to log.txt and whose boards go to phases/. On two cores
    at most, so that more ranks share them on any machine."""
    boards = cwd / "phases"
    boards.mkdir(exist_ok=True)
    for old in boards.glob("rank_*"):
        old.unlink()
    command = ["mpirun", "-n", str(ranks), *python, __file__, *arguments]
    with open(cwd / "log.txt", "ab") as log:
        return subprocess.Popen(
            command, cwd=cwd, env={**os.environ, "PHASES": str(boards)},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_stay_on_two_cores,
        )  # fmt: skip


def _stay_on_two_cores() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def phases_seen(cwd: Path) -> list[str]:
    """Those that some rank has entered since rounds began."""
    return sorted(path.name[len("seen_") :] for path in (cwd / "phases").glob("seen_*"))


def read_board(cwd: Path, rank: int) -> tuple[int, list[str]] | None:
    """Process and phases of a rank, None where it has none yet."""
    try:
        words = (cwd / "phases" / f"rank_{rank}").read_bytes().rstrip(b"\0").decode().split()
    except FileNotFoundError:
        return None
    return (int(words[0]), words[1:]) if len(words) > 1 else None


def wait_for_rounds(job: subprocess.Popen[bytes], cwd: Path) -> None:
    """Return when a rank has begun its rounds, or the job has ended."""
    while job.poll() is None:
        board = read_board(cwd, 0)
        if board is not None and label(board[1]) != "start":
            return
        time.sleep(1e-3)


def label(phases: list[str]) -> str:
    """One word for what a rank is doing: a checkpoint on its way to disk first, then a score, else
    the innermost phase of its rounds."""
    if "rounds" not in phases:
        return "start"
    for phase in (*IN_THREADS, "score"):
        if phase in phases:
            return phase
    return phases[-1]


def kill_in(
    phase: str, job: subprocess.Popen[bytes], cwd: Path, rank: int, *, patience: float
) -> Kill | None:
    """SIGKILL a rank the next time that it is in that phase, or where it stands when patience is
    at its end; None where the job ended by itself.

    The rank is stopped before one looks, so that it dies where it was seen.
    """
    give_up = time.monotonic() + patience
    while job.poll() is None:
        board, impatient = read_board(cwd, rank), time.monotonic() > give_up
        if board is not None and (label(board[1]) == phase or impatient):
            process, _ = board
            try:
                os.kill(process, signal.SIGSTOP)
                _wait_until_stopped(process)
                stands = label((read_board(cwd, rank) or board)[1])
                if stands == phase or impatient:
                    return _kill(process, stands, job, cwd, rank)
                os.kill(process, signal.SIGCONT)
            except (ProcessLookupError, FileNotFoundError):
                continue  # it has ended meanwhile
        time.sleep(1e-4)
    return None


def _wait_until_stopped(process: int) -> None:
    while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "TZX":
        time.sleep(1e-4)


def _kill(process: int, stands: str, job: subprocess.Popen[bytes], cwd: Path, rank: int) -> Kill:
    boards = [read_board(cwd, int(path.name[5:])) for path in (cwd / "phases").glob("rank_*")]
    ranks = [board[0] for board in boards if board is not None]
    os.kill(process, signal.SIGKILL)
    killed = time.monotonic()
    try:
        status, seconds = job.wait(HUNG), time.monotonic() - killed
    except subprocess.TimeoutExpired:
        status, seconds = None, float("inf")
    deadline = time.monotonic() + 5
    while (left := [one for one in ranks if _lives(one)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for one in left:
        os.kill(one, signal.SIGKILL)
    job.wait(30)
    return Kill(rank=rank, phase=stands, status=status, seconds=seconds, left=len(left))


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


if __name__ == "__main__":
    from fedgan_mpi.training import signals

    signals.listen()
    with_board(Path(os.environ["PHASES"]))
    from fedgan_mpi.__main__ import main

    sys.exit(main(sys.argv[1:]))
