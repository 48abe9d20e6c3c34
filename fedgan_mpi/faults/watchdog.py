"""Watchdog thread: ends the job if a rank has died or hangs.

Launchers do not do this in time: some keep the other ranks waiting forever, SLURM for its KillWait.
Ranks of the same machine are observed on the status board, ranks of other machines through the
peer monitor.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import groupby

from fedgan_mpi.faults.peer_monitor import PeerMonitor
from fedgan_mpi.faults.status_board import StatusBoard

logger = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds between the stages of a failure.

A hanging rank gets this time after the deadline to print its own stack; then the waiting ranks
report it, since a stopped process cannot. A launcher gets this time to end a job with a dead rank.
"""


class Watchdog(threading.Thread):
    """Ends the job if a rank has died, or if this rank makes no progress for `deadline` seconds."""

    def __init__(
        self,
        board: StatusBoard,
        rank: int,
        verbs: Sequence[str],
        deadline: float | None,
        abort: Callable[[], None],
        *,
        peer_monitor: PeerMonitor | None = None,
        survive: bool = False,
        only_machine: bool = False,
    ) -> None:
        """verbs: names of the board's verbs. deadline: None for no limit. survive: ignore
        deaths. only_machine: the job has no rank on another machine."""
        super().__init__(name="watchdog", daemon=True)
        self.board, self.rank, self.verbs = board, rank, verbs
        self.deadline, self.abort = math.inf if deadline is None else deadline, abort
        self.peer_monitor, self.survive = peer_monitor, survive
        self.only_machine = only_machine
        self._ticks: dict[int, tuple[int, float]] = {}  # world rank -> ticks, time of the last one
        self._main_thread = threading.main_thread().ident
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Stop the thread and close the peer monitor."""
        self._stopped.set()
        self.join()
        if self.peer_monitor is not None:
            self.peer_monitor.close()

    def sign_off(self, *, ends_job: bool = False) -> None:
        """Announce that this process exits in order, or that it ends the whole job."""
        self.board.sign_off(ends_job=ends_job)
        if self.peer_monitor is not None:
            self.peer_monitor.sign_off(ends_job=ends_job)

    def run(self) -> None:
        """Check every half second, or every tenth of a shorter deadline, which may change."""
        progress, progress_time = self._progress(), time.monotonic()
        last_check, death_time, job_end_time = progress_time, math.inf, math.inf
        while not self._stopped.wait(pause := min(0.5, self.deadline / 10)):  # seconds
            now, current = time.monotonic(), self._progress()
            if now - last_check > pause + 1:  # this process itself was suspended
                progress_time += now - last_check - pause
            last_check = now
            self._tick(now)
            if current != progress:
                progress, progress_time = current, now
            dead = [] if self.survive else self._dead()
            death_time = min(death_time, now) if dead else math.inf
            if job_end_time == math.inf and not self.survive and self._job_ends():
                job_end_time = now
                self.sign_off(ends_job=True)  # forwards it to the other machines
            message = self._hang_message(current[1], now - progress_time)
            message = message or self._death_message(dead, now - death_time)
            if message is None and now - job_end_time > GRACE:
                message = ""
            if message is not None:
                if message:
                    logger.error("%s", message)
                self.abort()
                return

    def _progress(self) -> tuple[int, int]:
        """(activity of this machine, current verb of this rank)."""
        return self.board.activity(), self.board.progress[1]

    def _dead(self) -> list[int]:
        remote = [] if self.peer_monitor is None else self.peer_monitor.dead()
        return sorted({*self.board.dead(), *remote})

    def _job_ends(self) -> bool:
        """Return whether a rank has announced the end of the job.

        Its MPI_Abort may not reach this rank: SLURM's waits for KillWait.
        """
        remote = self.peer_monitor is not None and self.peer_monitor.job_ends
        return remote or self.board.job_ends()

    def _death_message(self, dead: Sequence[int], seconds: float) -> str | None:
        """Return the message to print and then abort, or None to keep running.

        seconds: time since the first death was detected. One rank reports. The other ranks report
        one GRACE later, unless the end of the job has been announced: then they print an empty
        message.
        """
        monitor = self.peer_monitor
        reports, turn = self.board.is_lowest_alive(dead), 1
        if monitor is not None and self.rank in monitor.remote_ranks:
            # The server detects remote deaths, and ranks of its machine detect the server's death.
            # They report first. If that machine is gone, the lowest remote rank reports.
            alive = {*monitor.remote_ranks} - {*dead}
            reports, turn = 0 in dead and self.rank == min(alive), 2
        if seconds <= (turn if reports else turn + 1) * GRACE:
            return None
        if not reports and self._job_ends():
            return ""
        if monitor is None:
            names, verb = f"{format_ranks(dead)} of this machine", "died"
        else:
            names = format_hosts(dead, monitor.hosts)
            verb = "died or been cut off" if monitor.unreachable else "died"
        has = "has" if len(dead) == 1 else "have"
        return f"{names} {has} {verb}, and the job ends"

    def _hang_message(self, verb: int, seconds: float) -> str | None:
        """Return the message to print and then abort, or None to keep running.

        seconds: time without progress, in the exchange `verb` or, with 0, outside of any.
        """
        board = self.board
        limit = f"link.deadline is {self.deadline:g}"
        if verb == 0:
            if seconds <= self.deadline:
                return None
            return (
                f"hangs: no exchange with others for {seconds:.0f} s, {limit}"
                f"{self._waiting_ranks()}. Its stack:\n{self._main_stack()}"
            )
        # A rank inside an exchange waits for others, unless its process does not run.
        hanging = self._suspended(seconds / 2) or board.computing()
        waiting = [rank for rank in board.waiting() if rank not in hanging]
        if hanging and waiting[:1] == [self.rank] and seconds > self.deadline + GRACE:
            hang = "hangs" if len(hanging) == 1 else "hang"
            return (
                f"{format_ranks(hanging)} of this machine {hang}: others have waited for "
                f"{seconds:.0f} s in {self.verbs[verb]}, {limit}"
            )
        if seconds > self.deadline + 2 * GRACE:
            cause = (
                "all ranks wait for MPI" if self.only_machine else "a rank of another machine hangs"
            )
            return f"has waited in {self.verbs[verb]} for {seconds:.0f} s, {limit}; {cause}"
        return None

    def _tick(self, now: float) -> None:
        """Show the other ranks that this process runs, and observe which of theirs do."""
        self.board.tick()
        for rank, ticks in self.board.ticks().items():
            if self._ticks.get(rank, (None,))[0] != ticks:
                self._ticks[rank] = ticks, now

    def _suspended(self, seconds: float) -> list[int]:
        """Return the ranks of this machine whose watchdogs have not run for `seconds`.

        Such a process is stopped by a signal or a debugger, or an extension keeps Python's lock.
        """
        running = self.board.ticks()
        since = time.monotonic() - seconds
        return sorted(rank for rank in running if self._ticks.get(rank, (0, 0.0))[1] < since)

    def _waiting_ranks(self) -> str:
        waiting = self.board.waiting()
        if not waiting:
            return ""
        verb = self.verbs[self.board.verb_of(waiting[0])]
        wait = "waits" if len(waiting) == 1 else "wait"
        return f"; {format_ranks(waiting)} of the same machine {wait} in {verb}"

    def _main_stack(self) -> str:
        frame = sys._current_frames().get(self._main_thread or 0)
        return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else ""


def exit_after(seconds: float) -> None:
    """Exit this process with status 1 after a delay, even if MPI_Abort blocks."""
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


def format_ranks(ranks: Sequence[int]) -> str:
    """Return e.g. "rank 3" or "ranks 1, 2"."""
    names = ", ".join(map(str, ranks))
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}"


def format_hosts(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Return e.g. "ranks 1, 2 on a, rank 3 on b". hosts: the host name of every rank."""
    groups = groupby(sorted(ranks, key=lambda rank: (hosts[rank], rank)), hosts.__getitem__)
    return ", ".join(f"{format_ranks(list(group))} on {host}" for host, group in groups)
