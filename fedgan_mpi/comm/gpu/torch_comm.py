"""Vectors by torch.distributed and NCCL, in place of MPI: the route `nccl`.

Torch's ranks find each other in a store. Here it is torch's own TCP store on the server, whose
address goes over MPI: NCCL's threads read the store at any time, which a store made of MPI
messages could not serve.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

from fedgan_mpi.errors import AgreedError
from fedgan_mpi.faults.handshake import Listener, connect

if TYPE_CHECKING:
    from torch import Tensor

BACKEND = "nccl"
_NO_LIMIT = timedelta(days=365)  # `link.deadline` limits the time

Parts = tuple[Sequence[int], Sequence[int]]
"""(lengths, starts) of each rank's part of a vector. The parts follow each other from the start."""


@dataclass(frozen=True)
class Message:
    """A vector to be sent to a rank, or to be received from it."""

    vector: Tensor
    rank: int
    tag: int
    is_sent: bool


class TorchComm:
    """Has the methods of an MPI communicator that move the link's vectors in GPU memory.

    Each method returns after the values have arrived. Numbers of every dtype travel as bytes: NCCL
    has no int16.
    """

    def __init__(
        self, comm: MPI.Comm, store: Any, device: str, synchronize: Callable[[], None]
    ) -> None:
        """Collective. store: from `connect_store`. device: this rank's GPU. synchronize: waits
        for it."""
        import torch
        import torch.distributed

        self.rank, self.size = comm.rank, comm.size
        self._torch, self._synchronize = torch.distributed, synchronize
        self._torch.init_process_group(
            BACKEND,
            store=store,
            rank=comm.rank,
            world_size=comm.size,
            timeout=_NO_LIMIT,
            # Then NCCL connects all ranks now, not in the first round.
            device_id=torch.device(device) if BACKEND == "nccl" else None,
        )
        atexit.register(self.free)  # before MPI ends

    def Bcast(self, vector: Tensor, root: int = 0) -> None:
        """Overwrite the vector with the root's."""
        self._torch.broadcast(_as_bytes(vector), root)
        self._synchronize()

    def Alltoallv(self, sends: tuple[Tensor, Parts], receives: tuple[Tensor, Parts]) -> None:
        """Send one part of a vector to each rank, and receive one from each."""
        (vector, (lengths, _)), (into, (into_lengths, _)) = sends, receives
        self._exchange(vector, lengths, into, into_lengths)

    def Gatherv(self, vector: Tensor, target: tuple[Tensor, Parts] | None, root: int = 0) -> None:
        """Collect a part from each rank in the root's target."""
        into, (into_lengths, _) = target or (vector[:0], ([0] * self.size, []))
        lengths = [len(vector) if rank == root else 0 for rank in range(self.size)]
        self._exchange(vector, lengths, into, into_lengths)

    def Isend(self, vector: Tensor, rank: int, tag: int) -> Message:
        """Prepare a message. It travels in `complete`."""
        return Message(vector, rank, tag, is_sent=True)

    def Irecv(self, vector: Tensor, rank: int, tag: int) -> Message:
        """Prepare a message. It travels in `complete`."""
        return Message(vector, rank, tag, is_sent=False)

    def complete(self, messages: Sequence[Message]) -> None:
        """Send and receive all messages at once: one after the other, they would wait for each
        other."""
        to_self = {m.tag: m.vector for m in messages if m.is_sent and m.rank == self.rank}
        operations = []
        # Torch has no tags here. Messages between two ranks match in this order.
        for message in sorted(messages, key=lambda message: message.tag):
            if message.rank != self.rank:
                send_or_receive = self._torch.isend if message.is_sent else self._torch.irecv
                vector = _as_bytes(message.vector)
                operations.append(self._torch.P2POp(send_or_receive, vector, message.rank))
            elif not message.is_sent:
                message.vector.copy_(to_self[message.tag])
        if operations:
            for request in self._torch.batch_isend_irecv(operations):
                request.wait()
        self._synchronize()

    def free(self) -> None:
        """End the use of NCCL in this process. Collective."""
        atexit.unregister(self.free)
        self._torch.destroy_process_group()

    def _exchange(
        self, vector: Tensor, lengths: Sequence[int], into: Tensor, into_lengths: Sequence[int]
    ) -> None:
        nbytes = vector.element_size()
        self._torch.all_to_all_single(
            _as_bytes(into),
            _as_bytes(vector[: sum(lengths)]),
            [length * nbytes for length in into_lengths],
            [length * nbytes for length in lengths],
        )
        self._synchronize()


VectorComm = MPI.Comm | TorchComm
"""A communicator that moves vectors."""


def problem_of_nccl(comm: MPI.Comm, gpu: str) -> str | None:
    """Collective. Return why NCCL cannot connect the ranks; None if it can. gpu: its identity."""
    import torch.distributed

    everyone = comm.allgather(gpu)
    sharing = [rank for rank, each in enumerate(everyone) if everyone.count(each) > 1]
    if sharing:
        first = everyone[sharing[0]]
        ranks = [str(rank) for rank in sharing if everyone[rank] == first]
        return f"ranks {' and '.join(ranks)} share a GPU, which NCCL refuses"
    available = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    if not comm.allreduce(available or BACKEND != "nccl", MPI.LAND):
        return f"torch {torch.__version__} is built without NCCL"
    if comm.allreduce(available and torch.distributed.is_initialized(), MPI.LOR):
        return "this program has opened a process group of torch.distributed before"
    return None


def connect_store(comm: MPI.Comm) -> Any:
    """Collective. Return the store of all ranks, which the server keeps.

    Raises AgreedError if a rank cannot reach the server by TCP.
    """
    from torch.distributed import TCPStore

    listener = Listener(range(1, comm.size)) if comm.rank == 0 else None
    endpoint = comm.bcast(listener and listener.endpoint)
    assert endpoint is not None
    # The handshake finds the address of the server by which this rank reaches it.
    connections = connect(endpoint, comm.rank) if listener is None else listener.accept()
    address = "127.0.0.1" if listener is not None else ""
    for connection in connections.values():
        address = address or connection.getpeername()[0]
        connection.close()
    unreachable = [rank for rank, each in enumerate(comm.allgather(address)) if not each]
    if unreachable:
        raise AgreedError(
            f"link.route is 'nccl', but rank {unreachable[0]} cannot reach the server by TCP; "
            "use 'auto'"
        )
    store = None
    if comm.rank == 0:
        store = TCPStore(address, 0, comm.size, is_master=True, wait_for_workers=False)
    port = comm.bcast(store and store.port)
    return store or TCPStore(address, port, comm.size, is_master=False, wait_for_workers=False)


def _as_bytes(vector: Tensor) -> Tensor:
    import torch

    return vector.detach().reshape(-1).view(torch.uint8)
