"""Records what each rank of a job is doing, in files that survive the rank.

    mpirun -n 3 python -m fedgan_mpi.testing.phases [arguments of fedgan_mpi]

The program is `python -m fedgan_mpi` with a phase board per rank: a memory-mapped file in the
directory $PHASES with the process id and the phases that the rank is in. `kills.py` reads boards.
"""

from __future__ import annotations

import functools
import importlib
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DIRECTORY = "PHASES"
"""Environment variable that names the directory of the boards."""
IN_THREADS = ("write", "seal")
"""Checkpoint phases, which run in a thread beside the phases of the rounds."""
METHODS = {
    "compute": ["fedgan_mpi.training.loop:run_round"],
    "score": [
        "fedgan_mpi.training.scoring:Scoring.accumulate",
        "fedgan_mpi.training.scoring:Scoring.finish",
    ],
    "grid": ["fedgan_mpi.run.record:Record.grid"],
    "record": ["fedgan_mpi.run.record:Record.round"],
    "report": ["fedgan_mpi.training.hooks:TrainingHooks.on_run_end"],
    "copy": ["fedgan_mpi.checkpoint.writer:CheckpointWriter.begin"],
    "complete": ["fedgan_mpi.checkpoint.writer:CheckpointWriter.complete"],
    "write": ["fedgan_mpi.checkpoint.writer:write_files"],
    "seal": ["fedgan_mpi.checkpoint.sealing:Seal.run"],
}
"""Phase -> its functions and methods. Each verb of the link is a phase, too."""
_LENGTH = 256  # bytes of a board


class Board:
    """The phases of this rank, outermost first. Written to `directory/rank_RANK`.

    The first entry is "start" until the first round begins, then "rounds".
    """

    def __init__(self, directory: Path, rank: int) -> None:
        self.directory, self.stack = directory, ["start"]
        self.threads: list[str] = []
        with open(directory / f"rank_{rank}", "wb+") as file:
            file.truncate(_LENGTH)
            self._memory = mmap.mmap(file.fileno(), _LENGTH)
        self._write()

    def wrap(self, phase: str, owner: Any, name: str) -> None:
        """Replace a function or method by one that enters the phase for the time of each call."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            phases = self.threads if phase in IN_THREADS else self.stack
            if phase == "compute":
                self.stack[0] = "rounds"
            self._mark_as_seen(phase)
            phases.append(phase)
            self._write()
            try:
                return original(*arguments, **keywords)
            finally:
                phases.remove(phase) if phases is self.threads else phases.pop()
                self._write()

        setattr(owner, name, wrapper)

    def _write(self) -> None:
        phases = [*self.stack, *self.threads]
        self._memory[:] = f"{os.getpid()} {' '.join(phases)} ".encode().ljust(_LENGTH, b"\0")

    def _mark_as_seen(self, phase: str) -> None:
        path = self.directory / f"seen_{phase}"
        if self.stack[0] != "start" and not path.exists():
            path.touch()


def install_board(directory: Path) -> None:
    """Record the phases of this process, the rank that the launcher announces."""
    from fedgan_mpi.comm.launcher import announced_rank
    from fedgan_mpi.comm.link import Link
    from fedgan_mpi.comm.verbs import VERBS

    board = Board(directory, announced_rank())
    for verb in VERBS[1:]:
        board.wrap(verb, Link, verb)
    for phase, places in METHODS.items():
        for place in places:
            module, _, path = place.partition(":")
            owner: Any = importlib.import_module(module)
            *classes, name = path.split(".")
            for each in classes:
                owner = getattr(owner, each)
            board.wrap(phase, owner, name)


def read_board(directory: Path, rank: int) -> tuple[int, list[str]] | None:
    """Return the process id and the phases of a rank, or None if it has no board yet."""
    try:
        words = (directory / f"rank_{rank}").read_bytes().rstrip(b"\0").decode().split()
    except FileNotFoundError:
        return None
    return (int(words[0]), words[1:]) if len(words) > 1 else None


def phases_seen(directory: Path) -> list[str]:
    """Return the phases that any rank has entered since its first round."""
    return sorted(path.name.removeprefix("seen_") for path in directory.glob("seen_*"))


def current_phase(phases: Sequence[str]) -> str:
    """Reduce the phases of a board to one: "start", a checkpoint phase, "score" or the innermost.

    The first of these that applies is returned.
    """
    if "start" in phases:
        return "start"
    for phase in (*IN_THREADS, "score"):
        if phase in phases:
            return phase
    return phases[-1]


if __name__ == "__main__":
    from fedgan_mpi.training import signals

    signals.install()
    install_board(Path(os.environ[DIRECTORY]))
    from fedgan_mpi.__main__ import main

    sys.exit(main(sys.argv[1:]))
