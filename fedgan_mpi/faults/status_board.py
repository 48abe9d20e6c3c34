"""Status board: shared memory in which each rank of a machine reports its current exchange.

Each rank also locks one byte of the board's file. The kernel releases the lock when the process
ends, so the other ranks detect its death.
"""

from __future__ import annotations

import fcntl
import mmap
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_ENTERED, _VERB, _WORLD_RANK, _EXIT, _BEATS, _TICKS = range(6)
_COLUMNS = 8  # one cache line per rank
_RANK_EXITS, _JOB_ENDS = 1, 2  # values of _EXIT


class StatusBoard:
    """One rank's view of its machine's board. The board has one line per rank.

    A verb is a number that names an exchange; 0 means that the rank is in none.
    """

    def __init__(self, file: BinaryIO, line: int, world_rank: int) -> None:
        """file: `nbytes` zeros that the machine's ranks share. Locks this rank's byte of it.

        The board uses locks, because a process has another number in each container.
        """
        memory = mmap.mmap(file.fileno(), 0)
        self._lines = np.frombuffer(memory, np.int64).reshape(-1, _COLUMNS)
        self._file, self._line = file, line  # closing the file would release the lock
        fcntl.lockf(file, fcntl.LOCK_EX, 1, line)
        self._own = self._lines[line]
        self._own[_WORLD_RANK] = world_rank

    @property
    def ranks(self) -> int:
        """The number of ranks of this machine."""
        return len(self._lines)

    @staticmethod
    def nbytes(ranks: int) -> int:
        """Return the size of a board."""
        return 8 * ranks * _COLUMNS

    def enter(self, verb: int) -> int:
        """Record that this rank enters an exchange, and return the enclosing exchange's verb."""
        outer = int(self._own[_VERB])
        self._own[_VERB] = verb
        self._own[_ENTERED] += 1
        return outer

    def leave(self, outer: int) -> None:
        """Record that this rank is back in the exchange `outer`."""
        self._own[_VERB] = outer

    @property
    def progress(self) -> tuple[int, int]:
        """(exchanges entered, current verb) of this rank; changes whenever the rank proceeds."""
        return int(self._own[_ENTERED]), int(self._own[_VERB])

    def beat(self) -> None:
        """Record activity of a rank that computes for long without an exchange."""
        self._own[_BEATS] += 1

    def activity(self) -> int:
        """Return a number that changes whenever a rank of this machine proceeds."""
        return int(self._lines[:, _ENTERED].sum() + self._lines[:, _BEATS].sum())

    def tick(self) -> None:
        """Record that this process runs, whatever its rank does."""
        self._own[_TICKS] += 1

    def ticks(self) -> dict[int, int]:
        """Return world rank -> ticks, for the ranks of this machine that have not signed off."""
        running = self._lines[self._lines[:, _EXIT] == 0]
        return dict(zip(running[:, _WORLD_RANK].tolist(), running[:, _TICKS].tolist(), strict=True))

    def computing(self) -> list[int]:
        """Return the world ranks of this machine that are in no exchange."""
        return self._world_ranks(self._lines[:, _VERB] == 0)

    def waiting(self) -> list[int]:
        """Return the world ranks of this machine that are in an exchange."""
        return self._world_ranks(self._lines[:, _VERB] > 0)

    def verb_of(self, world_rank: int) -> int:
        """Return the current verb of a rank of this machine."""
        line = self._lines[:, _WORLD_RANK].tolist().index(world_rank)
        return int(self._lines[line, _VERB])

    def sign_off(self, *, ends_job: bool = False) -> None:
        """Announce that this process exits in order, or that it ends the whole job."""
        self._own[_EXIT] = _JOB_ENDS if ends_job else _RANK_EXITS

    def job_ends(self) -> bool:
        """Return whether a rank of this machine has announced the end of the job."""
        return bool((self._lines[:, _EXIT] == _JOB_ENDS).any())

    def dead(self) -> list[int]:
        """Return the world ranks of this machine whose process ended without `sign_off`."""
        return self._world_ranks(
            np.array([self._is_dead(line) for line in range(len(self._lines))])
        )

    def is_lowest_alive(self, dead: Sequence[int]) -> bool:
        """Return whether this rank is the lowest of its machine outside `dead`."""
        return self._own[_WORLD_RANK] == min(set(self._lines[:, _WORLD_RANK].tolist()) - {*dead})

    def _is_dead(self, line: int) -> bool:
        if line == self._line or self._lines[line, _EXIT]:
            return False
        try:
            # Shared, because ranks that test at the same time must not find each other's lock.
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, line)
        except OSError:
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, line)
        return not self._lines[line, _EXIT]  # it may have signed off after the first test

    def _world_ranks(self, selected: NDArray[np.bool_]) -> list[int]:
        return sorted(self._lines[selected, _WORLD_RANK].tolist())
