"""The part of the link that every program of several ranks needs: agreement, deadlines, ending.

Rank 0 is the server; the others are device ranks. Every rank calls the same verbs in the same
order. Small Python objects travel pickled; vectors are the business of `link.py`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedgan_mpi.comm.launcher import world_size_problem
from fedgan_mpi.comm.polling import barrier
from fedgan_mpi.comm.shared_memory import Doorbell
from fedgan_mpi.comm.transport import Transport, choose_transport
from fedgan_mpi.comm.verbs import VERBS, verb
from fedgan_mpi.errors import AgreedError, UserError, sentence_of
from fedgan_mpi.faults.detector import FailureDetector
from fedgan_mpi.faults.launcher_watch import watch_launcher
from fedgan_mpi.faults.watchdog import GRACE, exit_after
from fedgan_mpi.hardware.topology import survey

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Communicator:
    """One rank's end of an MPI world with a server.

    transport: `mpi` uses plain collectives, for machines with a core per rank. `shared_memory`
    exchanges vectors in memory and sleeps in the kernel, for one machine with more ranks than
    cores. `polling` enters plain collectives after a barrier that sleeps, for all other cases.
    None: the fastest that this world allows.
    """

    def __init__(self, comm: MPI.Comm | None = None, *, transport: Transport | None = None) -> None:
        self._comm = MPI.COMM_WORLD if comm is None else comm
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size
        self.is_server = self.rank == 0
        self.device_ranks = self.size - 1

        machine = survey(self._comm)
        self.local_size, self.local_rank = machine.local_size, machine.local_rank
        self.local_cores = machine.cores
        self.transport: Transport = choose_transport(machine) if transport is None else transport
        self.shared_cores: list[int] = []
        """Cores that every rank may use, if all ranks are on one machine with fewer cores than
        ranks; otherwise empty."""
        if self.transport == "shared_memory" and len(machine.common_cores) > 1:
            self.shared_cores = machine.common_cores

        self._doorbell = Doorbell(self._comm) if self.transport == "shared_memory" else None
        self.detector = FailureDetector(VERBS)
        self.subscribers: list[Callable[[str], None]] = []
        """Called with the name of each verb that this rank enters."""
        self.survives = False
        """Whether the death of a device rank is survived (`link.survive`)."""
        self.lost: list[int] = []
        """Ranks that have died, by their numbers at the start."""
        self.peer_monitor = "on"
        """`link.peer_monitor`: how ranks of other machines are watched."""
        self._deadline: float | None = None
        self._deadline_required = True
        self._hosts = self.device_ranks  # device ranks at the start; devices are assigned to them
        self._origin = list(range(self.size))  # current rank -> rank at the start
        watch_launcher(self._end_without_launcher)

    # ---------------------------------------------------------------- agreement

    @verb
    def agree(self, problem: str | None) -> None:
        """Raise AgreedError on every rank if any rank has a problem. The message is the problem of
        the lowest such rank."""
        self._arrive()
        everyone = dict.fromkeys(self._comm.allgather(problem))  # equal sentences count once
        problems = [problem for problem in everyone if problem is not None]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise AgreedError(problems[0] + more)

    def on_every_rank(self, act: Callable[[], T]) -> T:
        """Run `act` and return its result on this rank. Raises AgreedError on every rank if it
        raises UserError on any, or OSError for a file."""
        problem = None
        try:
            result = act()
        except (UserError, OSError) as error:
            problem = sentence_of(error)
        self.agree(problem)
        return result

    @verb
    def from_server(self, make: Callable[[], T]) -> T:
        """Run `make` on the server and return its result on every rank. Its UserError, its
        OSError for a file or its SystemExit is raised on every rank.

        The result is pickled: for configurations and paths, not for tensors.
        """
        outcome: tuple[str, Any] = ("", None)
        if self.is_server:
            try:
                outcome = ("result", self.detector.run_outside_exchange(make))
            except (UserError, OSError) as error:
                outcome = ("problem", sentence_of(error))
            except SystemExit as exit:
                outcome = ("exit", exit.code)
        self._arrive()
        kind, value = self._comm.bcast(outcome)
        if kind == "problem":
            raise AgreedError(value)
        if kind == "exit":
            raise SystemExit(value)
        result: T = value
        return result

    @verb
    def allreduce_min(self, number: int) -> int:
        """Return the minimum over ranks on every rank."""
        return self._comm.allreduce(number, MPI.MIN)

    @verb
    def minima(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """All-reduce: return the elementwise minimum over ranks, on every rank."""
        self._arrive()
        found = np.empty_like(numbers)
        self._comm.Allreduce(numbers, found, MPI.MIN)
        return found

    @verb
    def allgather(self, value: T) -> list[T]:
        """Return every rank's value on every rank; pickled, for small objects."""
        self._arrive()
        return self._comm.allgather(value)

    @verb
    def any(self, flag: bool) -> bool:
        """Return the logical OR over ranks on every rank."""
        self._arrive()
        return bool(self._comm.allreduce(flag, MPI.LOR))

    def check_world(self) -> None:
        """Raise AgreedError if the launcher started more ranks than this world has."""
        problem = world_size_problem(self.size)
        if problem:
            raise AgreedError(problem)

    @verb
    def check_lengths(self, *vectors: Tensor) -> None:
        """Raise AgreedError unless the vectors have the same lengths and types on every rank.

        MPI does not check this: a receiver with a shorter vector fails, its sender does not notice.
        """
        local = [(v.numel(), str(v.dtype)) for v in vectors]
        self._arrive()
        everyone = self._comm.allgather(local)
        different = [rank for rank, remote in enumerate(everyone) if remote != everyone[0]]
        if different:
            rank = different[0]
            raise AgreedError(
                f"rank {rank} has vectors {everyone[rank]}, but the server {everyone[0]}"
            )

    @verb
    def barrier(self) -> None:
        """Return after every rank has called it."""
        self._arrive()
        self._comm.Barrier()

    @verb
    def final_barrier(self) -> None:
        """Exchange the last message of a run: all ranks finish, or all learn of a death."""
        self._arrive()
        if self.survives:
            self._comm.Agree(1)
        else:
            self._comm.Barrier()

    # ---------------------------------------------------------------- failures and endings

    def watch(self, deadline: float | None, *, required: bool = True) -> None:
        """Collective. Start the failure detector: it ends the job if a rank dies and, after
        `watch_for_hangs`, if a rank shows no activity for `deadline` seconds. None: no time limit.

        Raises AgreedError if a required deadline cannot be enforced on this machine, or if
        `peer_monitor` names no interface of the server's; a deadline that is not required is
        dropped with a warning.
        """
        self._deadline, self._deadline_required = deadline, required
        self.detector.stop()
        if deadline is None and (self.size == 1 or self.survives):
            return
        board, problem = self.detector.create_board(self._comm)
        if deadline is not None and required:
            self.agree(problem)
        elif self.any(problem is not None):
            if problem is not None:
                logger.warning("this job is not watched for deaths and hangs: %s", problem)
            return
        self.detector.board = board
        self.barrier()  # every rank holds its lock and starts to count
        network = "off" if self.survives else self.peer_monitor
        self.detector.start(self._comm, self._arrive, network, self.abort, survive=self.survives)

    def watch_for_hangs(self) -> None:
        """Let the deadline of `watch` apply from now on: ranks exchange numbers from here on."""
        self.detector.limit(self._deadline)

    def _end_without_launcher(self, sentence: str) -> None:
        exit_after(GRACE)  # MPI_Abort may wait for the launcher
        logger.error("%s", sentence)
        self.abort()

    def heartbeat(self) -> None:
        """Show activity to the failure detector, inside a long computation without exchanges."""
        if self.detector.board is not None:
            self.detector.board.beat()

    def shows_activity(self) -> AbstractContextManager[None]:
        """Show activity to the failure detector for as long as the block runs.

        For drawing and writing, whose time depends on the disk.
        """
        return self.detector.shows_activity()

    def shrink(self) -> None:
        """Collective over the survivors. Continue without the dead ranks, and add them to `lost`.

        Ranks are renumbered; the server, if alive, stays rank 0.
        """
        self._comm.Revoke()  # ends the verbs of ranks that still wait for the dead
        smaller = self._comm.Shrink()
        places = MPI.Group.Translate_ranks(self._comm.group, None, smaller.group)
        dead = [origin for origin, place in zip(self._origin, places, strict=True) if place < 0]
        if not dead:
            raise RuntimeError("a verb failed, but no rank has died")
        self.lost = sorted([*self.lost, *dead])
        self._origin = [origin for origin in self._origin if origin not in dead]
        self._comm, self.rank, self.size = smaller, smaller.rank, smaller.size
        self.is_server, self.device_ranks = self.rank == 0, self.size - 1
        self.watch(self._deadline, required=self._deadline_required)
        self.watch_for_hangs()

    def rank_of(self, device: int) -> int | None:
        """Return the rank that hosts a device; None if that rank has died."""
        if self._hosts == 0:  # a job of one rank
            return 0
        origin = (device - 1) % self._hosts + 1
        return self._origin.index(origin) if origin in self._origin else None

    def abort(self, code: int = 1) -> None:
        """End the whole job at once, after a bug on this rank. With `link.survive` a device rank
        ends alone."""
        self.detector.sign_off(ends_job=True)
        if self.survives and not self.is_server:
            os._exit(code)
        self._comm.Abort(code)

    def leave(self, status: int) -> NoReturn:
        """End this process; every rank calls it at the same point.

        A launcher kills the other processes when the first one ends with a status other than 0.
        Python's own shutdown takes so long that such a kill would change a rank's status.
        """
        self.detector.sign_off()
        if not self.lost:  # Finalize may wait for dead ranks
            MPI.Finalize()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def close(self) -> None:
        """Free the communicator, a duplicate, and end the use of the link. Collective."""
        self.detector.stop()
        self.subscribers.clear()
        self._comm.Free()

    @staticmethod
    def library() -> str:
        """Return the MPI library's name and version."""
        return MPI.Get_library_version().strip("\x00 \n").splitlines()[0]

    def _arrive(self) -> None:
        """Wait until every rank has called the same verb, without spinning on a shared core."""
        if self.transport != "mpi":
            barrier(self._comm)
