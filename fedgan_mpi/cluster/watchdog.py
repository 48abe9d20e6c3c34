"""Finds the rank that hangs: it neither fails nor ends, and all others wait for it for ever.

Each rank writes on a board, in memory that the ranks of its machine share, which exchange it has
entered. A thread beside the training looks at it.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

GRACE = 2.0
"""Seconds after the deadline that waiting ranks leave to the one that hangs, which can show where
it stands. One that is stopped as a whole cannot, and is named by the others."""

_ENTERED, _VERB, _WORLD_RANK, _NUMBERS = 0, 1, 2, 8  # a cache line each


class Board:
    """Where a machine's ranks say what they do; a line a rank."""

    def __init__(self, memory: NDArray[np.int64], line: int, world_rank: int) -> None:
        """memory: shared zeros, `length` numbers."""
        self._lines = memory.reshape(-1, _NUMBERS)
        self._mine = self._lines[line]
        self._mine[_WORLD_RANK] = world_rank

    @staticmethod
    def length(ranks: int) -> int:
        return ranks * _NUMBERS

    def enter(self, verb: int) -> int:
        """Gives the exchange that this one is part of; 0 is none."""
        outer = int(self._mine[_VERB])
        self._mine[_VERB] = verb
        self._mine[_ENTERED] += 1
        return outer

    def leave(self, outer: int) -> None:
        self._mine[_VERB] = outer

    @property
    def stamp(self) -> tuple[int, int]:
        """Another one whenever this rank has come further."""
        return int(self._mine[_ENTERED]), int(self._mine[_VERB])

    def behind(self) -> list[int]:
        """World ranks of this machine that have entered the fewest exchanges, fewer than others."""
        entered = self._lines[:, _ENTERED]
        least = entered == entered.min()
        return [] if least.all() else self._ranks(least)

    def waiting(self) -> list[int]:
        """World ranks of this machine that are in an exchange."""
        return self._ranks(self._lines[:, _VERB] > 0)

    def verb_of(self, world_rank: int) -> int:
        line = self._lines[:, _WORLD_RANK].tolist().index(world_rank)
        return int(self._lines[line, _VERB])

    def _ranks(self, chosen: NDArray[np.bool_]) -> list[int]:
        return sorted(self._lines[chosen, _WORLD_RANK].tolist())


class Watchdog(threading.Thread):
    """Ends the job where this rank makes no progress for `deadline` seconds."""

    def __init__(
        self,
        board: Board,
        rank: int,
        verbs: Sequence[str],
        deadline: float,
        end: Callable[[], None],
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.board, self.rank, self.verbs = board, rank, verbs
        self.deadline, self.end = deadline, end
        self._main = threading.main_thread().ident
        self._over = threading.Event()

    def stop(self) -> None:
        """Collective of a rank's own two threads: it looks no more."""
        self._over.set()
        self.join()

    def run(self) -> None:
        pause = min(0.5, self.deadline / 10)
        last, since = self.board.stamp, time.monotonic()
        before = since
        while not self._over.wait(pause):
            now, stamp = time.monotonic(), self.board.stamp
            if now - before > pause + 1:
                since += now - before - pause  # this process itself was stopped for so long
            before = now
            if stamp != last:
                last, since = stamp, now
            message = self._message(stamp[1], now - since)
            if message is not None:
                print(message, file=sys.stderr, flush=True)
                self.end()
                return

    def _message(self, verb: int, seconds: float) -> str | None:
        """What to say after so many seconds in an exchange or, with 0, outside of any."""
        board = self.board
        here = f"on {platform.node()}"
        if verb == 0:
            if seconds <= self.deadline:
                return None
            waiting = board.waiting()
            others = "".join(
                f"; {_ranks(waiting)} of the same machine wait in {self.verbs[board.verb_of(w)]}"
                for w in waiting[:1]
            )
            frame = sys._current_frames().get(self._main or 0)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
            return (
                f"[rank {self.rank} {here}] hangs: no exchange with others for {seconds:.0f} s, "
                f"link.deadline is {self.deadline:g}{others}. It is here:\n{stack}"
            )
        behind = board.behind()
        waiting = [rank for rank in board.waiting() if rank not in behind]
        if behind and waiting[:1] == [self.rank] and seconds > self.deadline + GRACE:
            return (
                f"[rank {self.rank} {here}] {_ranks(behind)} of this machine hangs: others have "
                f"waited for {seconds:.0f} s in {self.verbs[verb]}, link.deadline is "
                f"{self.deadline:g}"
            )
        if seconds > self.deadline + 2 * GRACE:
            return (
                f"[rank {self.rank} {here}] has waited in {self.verbs[verb]} for {seconds:.0f} s, "
                f"link.deadline is {self.deadline:g}; a rank of another machine hangs"
            )
        return None


def exit_soon(seconds: float) -> None:
    """End this process in a moment, whatever an MPI library makes of Abort in the meantime."""
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


def _ranks(ranks: Sequence[int]) -> str:
    names = ", ".join(map(str, ranks))
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}"
