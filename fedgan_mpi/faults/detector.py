"""Sees to it that the job ends where a rank dies or hangs: this rank's line on its machine's board,
its connections to other machines, and the thread that looks at both."""

from __future__ import annotations

import atexit
import contextlib
import platform
import sys
from collections.abc import Callable, Sequence

from mpi4py import MPI

from fedgan_mpi.comm.shared_memory import shared_file
from fedgan_mpi.errors import AgreedError
from fedgan_mpi.faults.peer_monitor import Endpoint, Listener, PeerMonitor, connect
from fedgan_mpi.faults.watchdog import GRACE, Board, Watchdog, exit_soon, ranks_on_hosts


class FailureDetector:
    """One rank's; it looks from `begin` to `stop`."""

    def __init__(self, verbs: Sequence[str]) -> None:
        """verbs: names of exchanges, by the number that the board has for them; 0 is none."""
        self._verbs = verbs
        self.board: Board | None = None
        """Where this rank says which exchange it is in; None where nobody looks."""
        self._watchdog: Watchdog | None = None
        self._leader = 0  # the lowest rank of this machine

    def find_board(self, comm: MPI.Comm) -> tuple[Board | None, str | None]:
        """Collective of each machine's ranks. One for this rank to write on from now on, or why
        there is none."""
        machine = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self._leader = machine.bcast(comm.rank)
        try:
            file = shared_file(machine, Board.length(machine.size))
            return Board(file, machine.rank, comm.rank), None
        except (AgreedError, OSError) as error:  # of one machine, whose file system has no locks
            return None, str(error)
        finally:
            machine.Free()

    def begin(
        self,
        comm: MPI.Comm,
        meet: Callable[[], None],
        deadline: float | None,
        abort: Callable[[], None],
        *,
        survives: bool,
    ) -> None:
        """Collective, once all have a board. From now on `abort` is called where a rank has died,
        unless deaths are survived, or makes no progress for `deadline` seconds; None: it may take
        as long as it likes. meet: waits for all ranks."""
        assert self.board is not None
        lifeline = None if survives else connect_machines(comm, meet, self._leader)
        atexit.register(self.sign_off)

        def end() -> None:
            exit_soon(GRACE)  # under srun Abort waits for the others
            abort()

        self._watchdog = Watchdog(
            self.board,
            comm.rank,
            self._verbs,
            deadline,
            end,
            lifeline=lifeline,
            survives=survives,
        )
        self._watchdog.start()

    def stop(self) -> None:
        """Look no more."""
        if self._watchdog is not None:
            self._watchdog.stop()

    def sign_off(self, *, ends_job: bool = False) -> None:
        """This process ends, which is no death; or the whole job does."""
        if self._watchdog is not None:
            self._watchdog.sign_off(ends_job=ends_job)

    def by_itself(self, act: Callable[[], None]) -> None:
        """What a rank does in the middle of an exchange, and counts as none."""
        if self.board is None:
            act()
        else:
            verb = self.board.stamp[1]
            self.board.leave(0)
            act()
            self.board.leave(verb)


def connect_machines(comm: MPI.Comm, meet: Callable[[], None], leader: int) -> PeerMonitor | None:
    """Collective. The server's and each far rank's, where there are other machines than the
    server's and all their ranks can connect to it.

    meet: waits for all ranks. leader: the lowest rank of this rank's machine.
    """
    everyone = comm.allgather((leader, platform.node()))
    far = [rank for rank, (theirs, _) in enumerate(everyone) if theirs != everyone[0][0]]
    hosts = [host for _, host in everyone]
    if not far:
        return None
    is_server = comm.rank == 0
    listener: Listener | None = None
    if is_server:
        with contextlib.suppress(OSError):
            listener = Listener(far)
    invitation: Endpoint | None = comm.bcast(listener and listener.invitation)
    lines = {}
    if listener is not None:
        lines = listener.accept()
    elif invitation is not None and comm.rank in far:
        lines = connect(invitation, comm.rank)
    meet()
    connected = comm.allgather(bool(lines))
    missing = [rank for rank in far if not connected[rank]]
    if missing and is_server:
        print(
            f"[rank 0 on {hosts[0]}] {ranks_on_hosts(missing, hosts)} cannot connect to this "
            "host by TCP: a death is noticed by ranks of the same machine only",
            file=sys.stderr,
            flush=True,
        )
    if missing:
        for line in lines.values():
            line.close()
        return None
    return PeerMonitor(lines, far, hosts) if lines else None
