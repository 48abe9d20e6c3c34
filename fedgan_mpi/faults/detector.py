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

from fedgan_mpi.errors import AgreedError, UserError
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
        network: str,
        abort: Callable[[], None],
        *,
        survive: bool,
    ) -> None:
        """Collective, after every rank has its board. Start the watchdog.

        It calls `abort` if a rank has died, or if this rank makes no progress within the `limit`,
        which is infinite at first. network: `link.peer_monitor`. survive: ignore deaths. Raises
        AgreedError if the server's machine has no such network.
        """
        assert self.board is not None
        peer_monitor = connect_peers(comm, barrier, self._leader, network)
        atexit.register(self.sign_off)

        def end_job() -> None:
            exit_after(GRACE)  # under srun, MPI_Abort waits for the other ranks
            abort()

        self._watchdog = Watchdog(
            self.board,
            comm.rank,
            self._verbs,
            None,
            end_job,
            peer_monitor=peer_monitor,
            survive=survive,
            only_machine=self.board.ranks == comm.size,
        )
        self._watchdog.start()

    def limit(self, deadline: float | None) -> None:
        """End the job if a rank makes no progress for `deadline` seconds; None: no limit."""
        if self._watchdog is not None:
            self._watchdog.deadline = math.inf if deadline is None else deadline

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
        if self._leader != 0:
            self.limit(None)

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


def connect_peers(
    comm: MPI.Comm, barrier: Callable[[], None], leader: int, network: str = "on"
) -> PeerMonitor | None:
    """Collective. Connect the server with every rank on another machine, by TCP.

    leader: the lowest rank of this rank's machine. network: "on" for any network of the server,
    "off" for no connections, or one of its interfaces or addresses. Returns None on ranks without
    a connection. If a remote rank cannot connect, the server prints a warning, and the others are
    observed. Raises AgreedError if the server has no such network.
    """
    if network == "off":
        return None
    machines = comm.allgather((leader, platform.node()))
    remote_ranks = [rank for rank, (other, _) in enumerate(machines) if other != machines[0][0]]
    hosts = [host for _, host in machines]
    if not remote_ranks:
        return None
    is_server = comm.rank == 0
    listener: Listener | None = None
    problem = None
    if is_server:
        try:
            listener = Listener(remote_ranks, None if network == "on" else network)
        except UserError as error:
            problem = str(error)
        except OSError:  # no network: the ranks count as missing
            pass
    endpoint: Endpoint | None
    problem, endpoint = comm.bcast((problem, listener and listener.endpoint))
    if problem is not None:
        raise AgreedError(problem)
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
