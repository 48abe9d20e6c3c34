"""Finds the rank that hangs, neither failing nor ending, and the one that has died where the
launcher leaves the others waiting for it for ever, or for long: SLURM's for its KillWait.

Each rank writes on a board, in memory that the ranks of its machine share, which exchange it has
entered, and holds a lock that the kernel takes back from the dead. Those of other machines are the
lifeline's. A thread beside the training looks at all of them.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.faults.peer_monitor import PeerMonitor

GRACE = 2.0
"""Seconds after the deadline that waiting ranks leave to the one that hangs, which can show where
it stands. One that is stopped as a whole cannot, and is named by the others. As many that a
launcher has to end a job in which a rank has died."""

_ENTERED, _VERB, _WORLD_RANK, _LEFT, _NUMBERS = 0, 1, 2, 3, 8  # a cache line each
_ALONE, _WITH_ALL = 1, 2  # how a rank has left


class Board:
    """Where a machine's ranks say what they do; a line a rank."""

    def __init__(self, file: BinaryIO, line: int, world_rank: int) -> None:
        """file: zeros that the machine's ranks share, `length` bytes. Its bytes are locked, one a
        rank: a lock, other than a process number, means the same in every container."""
        memory = mmap.mmap(file.fileno(), 0)
        self._lines = np.frombuffer(memory, np.int64).reshape(-1, _NUMBERS)
        self._file, self._line = file, line  # a rank that closed the file would lose its lock
        fcntl.lockf(file, fcntl.LOCK_EX, 1, line)
        self._mine = self._lines[line]
        self._mine[_WORLD_RANK] = world_rank

    @staticmethod
    def length(ranks: int) -> int:
        """Bytes."""
        return 8 * ranks * _NUMBERS

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
        """World ranks of this machine that others wait for: they have entered fewer exchanges, or
        do something by themselves in the middle of one."""
        entered = self._lines[:, _ENTERED]
        least = entered == entered.min()
        if least.all():
            least = self._lines[:, _VERB] == 0
        return [] if least.all() else self._ranks(least)

    def waiting(self) -> list[int]:
        """World ranks of this machine that are in an exchange."""
        return self._ranks(self._lines[:, _VERB] > 0)

    def verb_of(self, world_rank: int) -> int:
        line = self._lines[:, _WORLD_RANK].tolist().index(world_rank)
        return int(self._lines[line, _VERB])

    def sign_off(self, *, ends_job: bool = False) -> None:
        """This process ends, which is no death; or the whole job does."""
        self._mine[_LEFT] = _WITH_ALL if ends_job else _ALONE

    def job_ends(self) -> bool:
        """Whether a rank of this machine has said so."""
        return bool((self._lines[:, _LEFT] == _WITH_ALL).any())

    def dead(self) -> list[int]:
        """World ranks of this machine whose process ended without having signed off."""
        return self._ranks(np.array([self._is_dead(line) for line in range(len(self._lines))]))

    def is_first(self, dead: Sequence[int]) -> bool:
        """Whether this rank is the lowest of this machine that is not among the dead."""
        return self._mine[_WORLD_RANK] == min(set(self._lines[:, _WORLD_RANK].tolist()) - {*dead})

    def _is_dead(self, line: int) -> bool:
        if line == self._line or self._lines[line, _LEFT]:
            return False
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, line)
        except OSError:
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, line)
        return not self._lines[line, _LEFT]  # it may have done so in the meantime

    def _ranks(self, chosen: NDArray[np.bool_]) -> list[int]:
        return sorted(self._lines[chosen, _WORLD_RANK].tolist())


class Watchdog(threading.Thread):
    """Ends the job where a rank of this machine or at the lifeline has died, or this one makes no
    progress for `deadline` seconds."""

    def __init__(
        self,
        board: Board,
        rank: int,
        verbs: Sequence[str],
        deadline: float | None,
        end: Callable[[], None],
        *,
        lifeline: PeerMonitor | None = None,
        survives: bool = False,
    ) -> None:
        """deadline: None for none. survives: deaths are others' worry."""
        super().__init__(name="watchdog", daemon=True)
        self.board, self.rank, self.verbs = board, rank, verbs
        self.deadline, self.end = math.inf if deadline is None else deadline, end
        self.lifeline, self.survives = lifeline, survives
        self._main = threading.main_thread().ident
        self._over = threading.Event()

    def stop(self) -> None:
        """Collective of a rank's own two threads: it looks no more."""
        self._over.set()
        self.join()
        if self.lifeline is not None:
            self.lifeline.close()

    def sign_off(self, *, ends_job: bool = False) -> None:
        """This process ends, which is no death; or the whole job does."""
        self.board.sign_off(ends_job=ends_job)
        if self.lifeline is not None:
            self.lifeline.sign_off(ends_job=ends_job)

    def run(self) -> None:
        pause = min(0.5, self.deadline / 10)  # seconds
        last, since = self.board.stamp, time.monotonic()
        before, died, over = since, math.inf, math.inf
        while not self._over.wait(pause):
            now, stamp = time.monotonic(), self.board.stamp
            if now - before > pause + 1:
                since += now - before - pause  # this process itself was stopped for so long
            before = now
            if stamp != last:
                last, since = stamp, now
            dead = [] if self.survives else self._dead()
            died = min(died, now) if dead else math.inf
            if over == math.inf and not self.survives and self._job_ends():
                over = now
                self.sign_off(ends_job=True)  # so that all machines learn of it
            message = self._message(stamp[1], now - since) or self._last_words(dead, now - died)
            if message is None and now - over > GRACE:
                message = ""
            if message is not None:
                print(message, end="", file=sys.stderr, flush=True)
                self.end()
                return

    def _dead(self) -> list[int]:
        far = [] if self.lifeline is None else self.lifeline.dead()
        return sorted({*self.board.dead(), *far})

    def _job_ends(self) -> bool:
        """Whether a rank has ended the job, which its Abort may not have told this one: SLURM's
        leaves ranks to its KillWait."""
        far = self.lifeline is not None and self.lifeline.job_ends
        return far or self.board.job_ends()

    def _last_words(self, dead: Sequence[int], seconds: float) -> str | None:
        """What to say so many seconds after ranks were found dead: one speaks for all, and the
        others, should its Abort not reach them, end in silence."""
        lifeline = self.lifeline
        speaks, turn = self.board.is_first(dead), 1
        if lifeline is not None and self.rank in lifeline.far:
            # The server learns of every death, and its machine of the server's: theirs is the word.
            # But the whole machine may be gone.
            speaks, turn = 0 in dead and self.rank == min({*lifeline.far} - {*dead}), 2
        if speaks and seconds > turn * GRACE:
            here = f"[rank {self.rank} on {platform.node()}]"
            if lifeline is None:
                who, how = f"{_ranks(dead)} of this machine", "died"
            else:
                who = ranks_on_hosts(dead, lifeline.hosts)
                how = "died or been cut off" if lifeline.out_of_reach else "died"
            return f"{here} {who} {'has' if len(dead) == 1 else 'have'} {how}, and the job ends\n"
        return "" if seconds > (turn + 1) * GRACE else None

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
                f"{self.deadline:g}\n"
            )
        if seconds > self.deadline + 2 * GRACE:
            return (
                f"[rank {self.rank} {here}] has waited in {self.verbs[verb]} for {seconds:.0f} s, "
                f"link.deadline is {self.deadline:g}; a rank of another machine hangs\n"
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


def ranks_on_hosts(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """In words. hosts: each rank's."""
    groups = groupby(sorted(ranks, key=lambda rank: (hosts[rank], rank)), hosts.__getitem__)
    return ", ".join(f"{_ranks(list(group))} on {host}" for host, group in groups)
