"""The only road between ranks: what moves models, what moves a few numbers, agreement on errors.

How each is best done stands beside it: in shared memory (mailbox), in order (ordered), from device
to device (parcels), with GPUs (route, staging), rounded (wire), watched (guard).

Rank 0 is the server; the others are device ranks. Every rank calls the same verbs in the same
order; only contiguous 1-D vectors of one dtype travel, as they are or rounded to 16 bits. The link
counts the bytes that one participant sends or receives, and its own seconds.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, cast

# MPICH's ranks yield their core while they spin; must be set before the library starts.
os.environ.setdefault("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedgan_mpi.comm import point_to_point as point_to_point
from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.cuda_aware import cuda_aware, numbers_travel
from fedgan_mpi.comm.gpu_staging import Accelerator, Cuda, Staging
from fedgan_mpi.comm.launcher import world_size_problem
from fedgan_mpi.comm.ordered_sum import ordered_sum, sum_rows
from fedgan_mpi.comm.polling import barrier, wait_all
from fedgan_mpi.comm.shared_memory import Bytes, Channel, Doorbell, shared_memory
from fedgan_mpi.config import LinkConfig
from fedgan_mpi.errors import AgreedError, UserError
from fedgan_mpi.faults.detector import FailureDetector
from fedgan_mpi.hardware.gpu import cuda_devices
from fedgan_mpi.hardware.topology import Transport, survey

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Verb = TypeVar("Verb", bound=Callable[..., Any])
Way = Literal["down", "up", "numbers"]

_VERBS = [""]  # names of the link's verbs, by number; 0 is none


def _verb(method: Verb) -> Verb:
    """A method that waits for other ranks: it says so on the board where there is one."""
    number = len(_VERBS)
    _VERBS.append(method.__name__)

    @functools.wraps(method)
    def told(self: Link, *arguments: Any, **named: Any) -> Any:
        board = self._guard.board
        outer = 0 if board is None else board.enter(number)
        try:
            return method(self, *arguments, **named)
        except MPI.Exception as error:
            if self._survives:
                raise RankLost from error
            raise
        finally:
            if board is not None:
                board.leave(outer)

    return cast(Verb, told)


class RankLost(Exception):
    """Under `link.survive`: an exchange failed, as it does when a rank has died."""


class Link:
    """One rank's end of the road.

    road: None chooses. `mpi`: plain collectives, where each rank has a core to wait on. `mailbox`:
    shared memory and sleep, where the ranks of one machine share cores. `naps`: plain collectives
    entered after a napping barrier, where neither holds.
    """

    def __init__(self, comm: MPI.Comm | None = None, *, transport: Transport | None = None) -> None:
        self._comm = MPI.COMM_WORLD if comm is None else comm
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size
        self.is_server = self.rank == 0
        self.device_ranks = self.size - 1

        machine = survey(self._comm)
        self.ranks_here, self.rank_here = machine.ranks, machine.rank
        self.cores_here = machine.cores
        self.transport: Transport = machine.transport if transport is None else transport
        self.shared_cores: list[int] = []
        """Those that each rank may use, where all share one machine that has fewer of them."""
        if self.transport == "shared_memory" and len(machine.common_cores) > 1:
            self.shared_cores = machine.common_cores

        self._bell = Doorbell(self._comm) if self.transport == "shared_memory" else None
        self._mailboxes: dict[str, Channel] = {}
        self._own_rows: list[tuple[Tensor, Channel]] = []
        self._guard = FailureDetector(_VERBS)
        self._survives = False
        self._deadline: float | None = None
        self._hosts = self.device_ranks  # ranks that devices were dealt out to
        self._origin = list(range(self.size))  # rank -> the one it began as
        self.lost: list[int] = []
        """Ranks of the world that have died, by the number they began with."""
        self.wire = Wire("float32")
        self.in_order = False
        """Whether an average adds device by device."""
        self._asked_route: Literal["auto", "host", "cuda"] = "auto"
        self._any_gpu = False
        self._staging = Staging(None, direct=True)
        self.reset_counters()

    # ---------------------------------------------------------------- verbs that move models

    @_verb
    def broadcast(
        self,
        vector: Tensor,
        *,
        traffic: Literal["method", "ahead", "other"] = "method",
        ahead: Tensor | None = None,
    ) -> None:
        """Overwrite every other rank's vector with the server's, as the wire carries it; its own
        stays.

        traffic: the method's, counted now; the method's of the next round, counted with it; or no
        part of it, which travels as it is. ahead: a vector that came down ahead, counted now.
        """
        start = time.perf_counter()
        wire = _AS_IT_IS if traffic == "other" else self.wire
        packed = wire.pack(vector.detach(), ("down", vector.numel()), load=self.is_server)
        box = self._mailbox("down", packed.nbytes)
        if box is not None:
            host = self._staging.whole(packed, "down", load=self.is_server)
            box.down(_bytes(host))
            if not self.is_server:
                self._staging.copy_back(packed, host)
        else:
            self._arrive()
            pieces = self._staging.outgoing if self.is_server else self._staging.incoming
            for piece in pieces(packed):
                self._comm.Bcast(piece, root=0)
        if not self.is_server:
            wire.unpack(packed, vector.detach())
        if traffic == "method":
            self.bytes_down += wire.nbytes(vector) + (0 if ahead is None else wire.nbytes(ahead))
            self.seconds_down += time.perf_counter() - start

    def rows(self, count: int, like: Tensor) -> Tensor:
        """Collective. Zeros (count, n) of that type and on that device, for every rank to give to
        `average` as they are.

        Where ranks share memory they lie in it, and the server reads them there: nobody may write
        into them between an average and the next broadcast.
        """
        import torch

        rows = torch.zeros(count, like.numel(), dtype=like.dtype, device=like.device)
        if self._bell is None or self._any_gpu or self.wire.rounds:
            return rows
        box = self._new_mailbox("up", rows.nbytes)
        if not self.is_server:
            rows = torch.from_numpy(box.mine[: rows.nbytes]).view(rows.dtype).view_as(rows)
        self._own_rows.append((rows, box))
        return rows

    @_verb
    def average(self, uplink: Tensor, into: Tensor) -> None:
        """Overwrite the server's `into` with the sum of all device ranks' uplinks.

        uplink: (rows, n), equal on all ranks; each row already multiplied by its device's
        share, and zero where nobody takes part. The server's own must be zero.
        into: (n,); untouched on device ranks. Several rows are added row by row and in each by
        rank, which is the order of the hosted devices, so the result does not depend on how many
        ranks there are. With one row, MPI adds in an order of its own, unless the wire rounds: then
        rows are added here, in the type of `into`.
        """
        start, staging = time.perf_counter(), self._staging
        packed = self.wire.pack(uplink, "up", load=not self.is_server)
        box = next((box for rows, box in self._own_rows if rows is uplink), None)
        box = box or self._mailbox("up", packed.nbytes)
        if box is not None:
            host = staging.whole(packed, "up", load=not self.is_server)
            total = staging.whole(into, "total", load=False)
            box.up(_bytes(host), lambda parts: sum_rows(_tables(parts, host), total, self.wire))
            if self.is_server:
                staging.copy_back(into, total)
        elif self.in_order:
            self._arrive()
            ordered_sum(packed, into, self._comm, staging, self.wire)
        elif self.is_server:
            self._arrive()
            pieces = zip(staging.outgoing(uplink.view(-1)), staging.incoming(into), strict=True)
            for mine, sum_of_all in pieces:
                self._comm.Reduce(mine, sum_of_all, MPI.SUM, root=0)
        else:
            self._arrive()
            for mine in staging.outgoing(uplink.view(-1)):
                self._comm.Reduce(mine, None, MPI.SUM, root=0)
        self.bytes_up += self.wire.nbytes(into)
        self.seconds_up += time.perf_counter() - start

    # ---------------------------------------------------------------- a device's own, to and fro

    @_verb
    def scatter(self, rows: Mapping[int, Tensor]) -> None:
        """Overwrite each listed device's row on its rank with the server's row for that device.

        rows: device -> 1-D vector; on the server of all participants, on a device rank of those
        that it hosts.
        """
        start = time.perf_counter()
        self._carry(rows, to_server=False)
        self.bytes_down += self._largest(rows)
        self.seconds_down += time.perf_counter() - start

    @_verb
    def gather(self, rows: Mapping[int, Tensor]) -> None:
        """Overwrite the server's row for each listed device with that device's own; the reverse of
        `scatter`."""
        start = time.perf_counter()
        self._carry(rows, to_server=True)
        self.bytes_up += self._largest(rows)
        self.seconds_up += time.perf_counter() - start

    @_verb
    def permute(self, vectors: Mapping[int, Tensor], to: Mapping[int, int]) -> None:
        """Move vectors between devices, from rank to rank and not by the server.

        vectors: device -> 1-D vector, of those in `to` that this rank hosts; overwritten with the
        one that comes in. to: device -> the device that gets its vector, a permutation, the same on
        every rank.
        """
        start = time.perf_counter()
        how = (self._comm, self._staging, self.wire, self._complete)
        point_to_point.permute(vectors, to, self._place_of, *how)
        self.bytes_up += self._largest(vectors)
        self.seconds_up += time.perf_counter() - start

    def rank_of(self, device: int) -> int | None:
        """The rank that hosts a device; None where it has died."""
        origin = (device - 1) % self._hosts + 1
        return self._origin.index(origin) if origin in self._origin else None

    def _place_of(self, device: int) -> int:
        rank = self.rank_of(device)
        assert rank is not None, f"device {device} has died, and takes no part"
        return rank

    # ---------------------------------------------------------------- a few numbers

    @_verb
    def sum(
        self, numbers: NDArray[np.float64], *, meanwhile: Callable[[], None] = lambda: None
    ) -> NDArray[np.float64]:
        """The elementwise sum over ranks, the same on every rank; exact where one rank alone has a
        number. meanwhile: what a rank does once its own are on their way."""
        total = np.zeros_like(numbers)
        box = self._mailbox("numbers", max(numbers.nbytes, 4096))
        if box is not None:

            def add(parts: list[Bytes]) -> None:
                np.sum([numbers, *(part.view(np.float64) for part in parts)], 0, out=total)

            if self.is_server:  # its own lie where they are added up
                self._guard.by_itself(meanwhile)
            box.up(numbers.view(np.uint8), add)
            if not self.is_server:
                self._guard.by_itself(meanwhile)
            box.down(total.view(np.uint8))
        else:
            request = self._comm.Iallreduce(numbers, total, MPI.SUM)
            self._guard.by_itself(meanwhile)
            self._complete([request])
        return total

    def shared_lines(self) -> NDArray[np.int64]:
        """Collective, where all ranks share one machine. A line of zeros for each, (size, 8), that
        all read and write."""
        memory = shared_memory(self._comm, 64 * self.size)  # a cache line each
        return np.frombuffer(memory, np.int64).reshape(self.size, 8)

    def shared_rooms(self, nbytes: int) -> tuple[memoryview, list[slice]]:
        """Collective, where all ranks share one machine. Memory that all read and write, and where
        in it each rank's room is, of so many bytes of this rank's own wish. Raises AgreedError
        where there is none."""
        sizes = self._comm.allgather(nbytes)
        starts = list(accumulate((-(-size // 64) * 64 for size in sizes), initial=0))  # cache lines
        memory = memoryview(shared_memory(self._comm, starts[-1]))
        return memory, [
            slice(start, start + size) for start, size in zip(starts, sizes, strict=False)
        ]

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.sum(np.array([float(flag)]))[0] > 0)

    # ---------------------------------------------------------------- agreement

    @_verb
    def agree(self, problem: str | None) -> None:
        """Raise AgreedError on every rank where any has a problem; the lowest rank's is the one
        told."""
        self._arrive()
        everyone = dict.fromkeys(self._comm.allgather(problem))  # the same sentence counts once
        problems = [problem for problem in everyone if problem is not None]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise AgreedError(problems[0] + more)

    def on_every_rank(self, act: Callable[[], T]) -> T:
        """What `act` gives on this rank. Raises AgreedError on every rank where it is a UserError
        on any."""
        problem = None
        try:
            result = act()
        except UserError as error:
            problem = str(error)
        self.agree(problem)
        return result

    @_verb
    def from_server(self, make: Callable[[], T]) -> T:
        """What `make` gives on the server, on every rank; its UserError or SystemExit too.

        The result is pickled: for configurations and paths, not for tensors.
        """
        outcome: tuple[str, Any] = ("", None)
        if self.is_server:
            try:
                outcome = ("made", make())
            except UserError as error:
                outcome = ("wrong", str(error))
            except SystemExit as leave:
                outcome = ("left", leave.code)
        self._arrive()
        kind, value = self._comm.bcast(outcome)
        if kind == "wrong":
            raise AgreedError(value)
        if kind == "left":
            raise SystemExit(value)
        result: T = value
        return result

    def check_world(self) -> None:
        """Raise AgreedError where the launcher started more ranks than this world has."""
        problem = world_size_problem(self.size)
        if problem:
            raise AgreedError(problem)

    def check_lengths(self, *vectors: Tensor) -> None:
        """Raise AgreedError unless every rank has vectors of the same lengths and types.

        Asked once before the first round: a shorter receiver raises, but its sender notices
        nothing.
        """
        mine = [(v.numel(), str(v.dtype)) for v in vectors]
        self._arrive()
        everyone = self._comm.allgather(mine)
        different = [rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]]
        if different:
            rank = different[0]
            raise AgreedError(
                f"rank {rank} has vectors {everyone[rank]}, but the server {everyone[0]}"
            )

    def configure(self, config: LinkConfig) -> None:
        """Take the configured wire, route and way of averaging. Raises AgreedError where a rank
        cannot."""
        problem = None
        if config.route == "cuda" and not cuda_devices():
            problem = "link.route is 'cuda', but there is no GPU here; use 'host'"
        elif config.route == "cuda" and not cuda_aware(self._comm):
            problem = "link.route is 'cuda', but this MPI library is not CUDA-aware; use 'host'"
        elif config.survive and not _can_survive():
            right = "an Open MPI of 5 or later, started as `mpirun --with-ft ulfm`"
            problem = f"link.survive needs {right}; leave it out here"
        self.agree(problem)
        self._asked_route, self.wire = config.route, Wire(config.wire_dtype)
        self.in_order = config.average == "gather" or self.wire.rounds
        if config.survive:
            # A sleeper in shared memory would not be told of a death.
            self.transport = "mpi" if self.transport == "mpi" else "polling"
            self._bell, self._mailboxes, self._own_rows, self.shared_cores = None, {}, [], []
            self._comm = self._comm.Dup()
            self._survives = True

    @_verb
    def choose_route(self, torch_device: str, gpu: Accelerator | None = None) -> None:
        """Collective. Settle which memory MPI reads where vectors lie on that device. gpu: None for
        the real one.

        Raises AgreedError where the route `cuda` was asked for and numbers do not come through.
        """
        has_gpu = torch_device != "cpu"
        everyone = self._comm.allgather((has_gpu, has_gpu and cuda_aware(self._comm)))
        if not any(has for has, _ in everyone):
            return
        gpu = gpu or (Cuda() if has_gpu else None)
        direct = self._asked_route != "host" and all(aware for _, aware in everyone)
        if direct and gpu is not None:  # all have one
            direct = numbers_travel(self._comm, gpu, torch_device)
        if self._asked_route == "cuda" and not direct:
            right = "a GPU and a CUDA-aware MPI on every rank, but numbers do not come through"
            raise AgreedError(f"link.route is 'cuda', which needs {right}; use 'host'")
        self._any_gpu, self._staging = True, Staging(gpu, direct=direct)

    @property
    def route(self) -> str:
        """Which memory MPI reads, in words."""
        if not self._any_gpu:
            return "host memory, where vectors lie"
        if self._staging.direct:
            return "cuda, the GPU's own memory"
        return "host memory, pinned, a piece at a time"

    def shrink(self) -> None:
        """Collective of those that are alive: go on without the dead, whom it adds to `lost`.
        Ranks are counted anew; the server, if alive, stays 0."""
        self._comm.Revoke()  # whoever still waits for the dead is told
        smaller = self._comm.Shrink()
        places = MPI.Group.Translate_ranks(self._comm.group, None, smaller.group)
        dead = [origin for origin, place in zip(self._origin, places, strict=True) if place < 0]
        if not dead:
            raise RuntimeError("an exchange failed, but no rank has died")
        self.lost = sorted([*self.lost, *dead])
        self._origin = [origin for origin in self._origin if origin not in dead]
        self._comm, self.rank, self.size = smaller, smaller.rank, smaller.size
        self.is_server, self.device_ranks = self.rank == 0, self.size - 1
        self.watch(self._deadline)

    @_verb
    def allreduce_min(self, number: int) -> int:
        """The lowest of all ranks' numbers, on every rank."""
        return self._comm.allreduce(number, MPI.MIN)

    @_verb
    def final_barrier(self) -> None:
        """The last exchange of a run: either all ranks end it, or all learn that one has died."""
        self._arrive()
        if self._survives:
            self._comm.Agree(1)
        else:
            self._comm.Barrier()

    def watch(self, deadline: float | None) -> None:
        """Collective. From now on the job ends where a rank dies, or makes no progress for so many
        seconds; None: it may take as long as it likes.

        Raises AgreedError where a deadline cannot be kept.
        """
        self._deadline = deadline
        self._guard.stop()
        if deadline is None and (self.size == 1 or self._survives):
            return
        board, problem = self._guard.find_board(self._comm)
        if deadline is not None:
            self.agree(problem)
        elif self.any(problem is not None):
            return  # whoever asked for nothing is refused nothing
        self._guard.board = board
        self.barrier()  # from here on all count alike, and have their locks
        self._guard.begin(self._comm, self._arrive, deadline, self.abort, survives=self._survives)

    @staticmethod
    def library() -> str:
        """The MPI library's own name and version."""
        return MPI.Get_library_version().strip("\x00 \n").splitlines()[0]

    @_verb
    def barrier(self) -> None:
        """Return once all ranks have come here."""
        self._arrive()
        self._comm.Barrier()

    def abort(self, code: int = 1) -> None:
        """End the whole job at once; for a bug on this rank, which the others cannot be told of.
        Where deaths are survived, a device rank ends alone."""
        self._guard.sign_off(ends_job=True)
        if self._survives and not self.is_server:
            os._exit(code)
        self._comm.Abort(code)

    def leave(self, status: int) -> NoReturn:
        """End this process, as all ranks do now.

        A launcher ends the others when the first process with a status other than 0 ends. Python's
        own farewell would take a while, and a SIGTERM in it would end a rank with another status.
        """
        self._guard.sign_off()
        if not self.lost:  # Finalize may wait for the dead
            MPI.Finalize()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def reset_counters(self) -> None:
        """Begin to count a round's bytes and seconds."""
        self.bytes_down = self.bytes_up = 0
        self.seconds_down = self.seconds_up = 0.0

    # ---------------------------------------------------------------- inside

    def _arrive(self) -> None:
        """Wait for all ranks without taking the core that they compute on; the payload comes
        after."""
        if self.transport != "mpi":
            barrier(self._comm)

    def _carry(self, rows: Mapping[int, Tensor], *, to_server: bool) -> None:
        """Each device's row between the server and the device's rank."""
        partner = self._place_of if self.is_server else lambda device: 0
        sends = self.is_server != to_server
        point_to_point.carry(
            rows, partner, self._comm, self._staging, self.wire, self._complete, sends=sends
        )

    def _complete(self, requests: list[MPI.Request]) -> None:
        if self.transport == "mpi":
            MPI.Request.Waitall(requests)
        else:
            wait_all(requests)

    def _mailbox(self, way: Way, nbytes: int) -> Channel | None:
        """What vectors cross in where they go by shared memory; made on first use, and anew for
        longer ones."""
        if self._bell is None or (self._any_gpu and self._staging.direct):
            return None
        box = self._mailboxes.get(way)
        if box is None or box.capacity < nbytes:
            box = self._mailboxes[way] = self._new_mailbox(way, nbytes)
        return box

    def _new_mailbox(self, way: Way, nbytes: int) -> Channel:
        writers = {"down": range(1), "up": range(1, self.size), "numbers": range(self.size)}
        assert self._bell is not None
        self._arrive()
        return Channel(self._comm, self._bell, nbytes, writers[way])

    def _largest(self, rows: Mapping[int, Tensor]) -> int:
        """Bytes that one participant sends or receives; 0 on a rank without one."""
        return max((self.wire.nbytes(row) for row in rows.values()), default=0)


_AS_IT_IS = Wire("float32")


def _bytes(vector: Tensor) -> Bytes:
    return vector.numpy().reshape(-1).view(np.uint8)


def _tables(parts: Sequence[Bytes], like: Tensor) -> list[Tensor]:
    """Everyone's rows as they lie in shared memory."""
    import torch

    return [torch.from_numpy(part).view(like.dtype).view_as(like) for part in parts]


def _can_survive() -> bool:
    """Whether deaths are told as errors: ULFM, which mpirun must have been asked for."""
    asked = os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112 - its own spelling
    return asked and Link.library().startswith("Open MPI")
