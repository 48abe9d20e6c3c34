"""Failure detector of one rank: status board, peer monitor and watchdog thread."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mpi4py import MPI

from fedgan_mpi.errors import AgreedError
from fedgan_mpi.faults.handshake import Endpoint, Listener, connect
from fedgan_mpi.faults.peer_monitor import PeerMonitor
from fedgan_mpi.faults.status_board import StatusBoard
from fedgan_mpi.faults.watchdog import GRACE, Watchdog, exit_after, format_hosts
from fedgan_mpi.hardware.shared_files import open_shared_file

T = TypeVar("T")
_BEAT = 0.1  # seconds between two signs of activity
logger = logging.getLogger(__name__)


class FailureDetector:
    """Ends the job if a rank dies or hangs. Active between `start` and `stop`."""

    def __init__(self, verbs: Sequence[str]) -> None:
        """verbs: names of the exchanges, by their number on the status board; 0 means none."""
        self._verbs = verbs
        self.board: StatusBoard | None = None
        """The board on which this rank reports its exchanges; None without a detector."""
        self._watchdog: Watchdog | None = None
        self._leader = 0  # the lowest rank of this machine

    def create_board(self, comm: MPI.Comm) -> tuple[StatusBoard | None, str | None]:
        """Collective. Return this machine's board, or None and the reason for its absence."""
        machine = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self._leader = machine.bcast(comm.rank)
        try:
            file = open_shared_file(machine, StatusBoard.nbytes(machine.size))
            return StatusBoard(file, machine.rank, comm.rank), None
        except (AgreedError, OSError) as error:  # OSError: the file system has no locks
            return None, str(error)
        finally:
            machine.Free()

    def start(
        self,
        comm: MPI.Comm,
        barrier: Callable[[], None],
        deadline: float | None,
        abort: Callable[[], None],
        *,
        survive: bool,
    ) -> None:
        """Collective, after every rank has its board. Start the watchdog.

        It calls `abort` if a rank has died, or if this rank makes no progress for `deadline`
        seconds; None: no limit. survive: ignore deaths.
        """
        assert self.board is not None
        peer_monitor = None if survive else connect_peers(comm, barrier, self._leader)
        atexit.register(self.sign_off)

        def end_job() -> None:
            exit_after(GRACE)  # under srun, MPI_Abort waits for the other ranks
            abort()

        self._watchdog = Watchdog(
            self.board,
            comm.rank,
            self._verbs,
            deadline,
            end_job,
            peer_monitor=peer_monitor,
            survive=survive,
            only_machine=self.board.ranks == comm.size,
        )
        self._watchdog.start()

    def stop(self) -> None:
        """Stop the watchdog, after every rank has finished the run or before another start."""
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog.sign_off(ends_job=False)
            atexit.unregister(self.sign_off)
            self._watchdog = None

    def sign_off(self, *, ends_job: bool = False) -> None:
        """Announce that this process exits in order, or that it ends the whole job."""
        if self._watchdog is not None:
            self._watchdog.sign_off(ends_job=ends_job)

    @contextlib.contextmanager
    def shows_activity(self) -> Iterator[None]:
        """Show this rank as active for as long as the block runs, if its process is not stopped."""
        if self.board is None:
            yield
            return
        beat, is_over = self.board.beat, threading.Event()

        def show() -> None:
            while not is_over.wait(_BEAT):
                beat()

        thread = threading.Thread(target=show, name="activity", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def waits_for_results(self) -> None:
        """Let the server draw and write the results without a time limit; called on every rank.

        Its own machine sees its activity, and keeps the limit. Other machines do not see it.
        """
        if self._watchdog is not None and self._leader != 0:
            self._watchdog.deadline = math.inf

    def run_outside_exchange(self, function: Callable[[], T]) -> T:
        """Run local work inside an exchange and return its result; the board shows this rank as
        computing."""
        if self.board is None:
            return function()
        _, verb = self.board.progress
        self.board.leave(0)
        try:
            return function()
        finally:
            self.board.leave(verb)


def connect_peers(comm: MPI.Comm, barrier: Callable[[], None], leader: int) -> PeerMonitor | None:
    """Collective. Connect the server with every rank on another machine, by TCP.

    leader: the lowest rank of this rank's machine. Returns None on ranks without a connection. If a
    remote rank cannot connect, the server prints a warning, and the others are observed.
    """
    machines = comm.allgather((leader, platform.node()))
    remote_ranks = [rank for rank, (other, _) in enumerate(machines) if other != machines[0][0]]
    hosts = [host for _, host in machines]
    if not remote_ranks:
        return None
    is_server = comm.rank == 0
    listener: Listener | None = None
    if is_server:
        with contextlib.suppress(OSError):
            listener = Listener(remote_ranks)
    endpoint: Endpoint | None = comm.bcast(listener and listener.endpoint)
    connections = {}
    if listener is not None:
        connections = listener.accept()
    elif endpoint is not None and comm.rank in remote_ranks:
        connections = connect(endpoint, comm.rank)
    barrier()
    ends = comm.allgather(sorted(connections))  # a connection counts if both ends have it
    connected = [rank for rank in remote_ranks if rank in ends[0] and ends[rank]]
    missing = [rank for rank in remote_ranks if rank not in connected]
    if missing and is_server:
        logger.warning(
            "%s cannot connect to this host by TCP: only ranks of the same machine detect %s death",
            format_hosts(missing, hosts),
            "its" if len(missing) == 1 else "their",
        )
    for rank in [*connections]:
        if (rank if is_server else comm.rank) in missing:
            connections.pop(rank).close()
    return PeerMonitor(connections, connected, hosts) if connections else None
