"""Transfers between ranks, below the verbs: how a vector crosses.

Owns the shared-memory channels, the GPU staging buffers and the wire; counts nothing. Which memory
MPI reads is decided in `routes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from mpi4py import MPI

from fedgan_mpi.comm import point_to_point
from fedgan_mpi.comm.communicator import Communicator
from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.gpu.staging import Staging
from fedgan_mpi.comm.gpu.torch_comm import TorchComm, VectorComm
from fedgan_mpi.comm.ordered_sum import ordered_sum, sum_rows
from fedgan_mpi.comm.polling import wait_all
from fedgan_mpi.comm.shared_memory import Bytes, Channel
from fedgan_mpi.comm.transport import Transport

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["down", "up", "numbers"]
Kind = Literal["down", "sum", "point_to_point"]
"""Kinds of transfers: each has its own route."""
KINDS: tuple[Kind, ...] = get_args(Kind)


class Transfers(Communicator):
    """One rank's transfers."""

    def __init__(self, comm: MPI.Comm | None = None, *, transport: Transport | None = None) -> None:
        super().__init__(comm, transport=transport)
        self._channels: dict[str, Channel] = {}
        self._own_rows: list[tuple[Tensor, Channel]] = []
        self.wire = Wire("float32")
        self.in_order = False
        """Whether sums are taken device by device, in the order of devices."""
        self._any_gpu = False
        self._torch_comm: TorchComm | None = None
        """Moves vectors in place of MPI (`link.route nccl`)."""
        self._roads = dict.fromkeys(KINDS, Staging(None, direct=True))
        self._sums_in_rank_order = False  # then both roads have the same sums
        self._undelivered: list[tuple[Tensor, Tensor]] = []  # in a job of one rank

    def _send_down(self, vector: Tensor, wire: Wire, staging: Staging) -> None:
        """Overwrite the vector on every other rank with the server's."""
        vector = vector.detach()
        packed = wire.pack(vector, ("down", vector.numel()), load=self.is_server)
        if self.size == 1:
            self._undelivered.append((packed, vector))
            return
        channel = self._channel("down", packed.nbytes, staging)
        if channel is not None:
            host = staging.mpi_buffer(packed, "down", load=self.is_server)
            channel.down(_as_bytes(host))
            if not self.is_server:
                staging.copy_back(packed, host)
        else:
            self._arrive()
            pieces = staging.outgoing if self.is_server else staging.incoming
            for piece in pieces(packed):
                self._carrier.Bcast(piece, root=0)
        if not self.is_server:
            wire.unpack(packed, vector)

    def _sum_up(self, rows: Tensor, into: Tensor, wire: Wire, staging: Staging) -> None:
        """Overwrite the server's `into` with the sum of all device ranks' rows."""
        has_rows = not self.is_server or self.size == 1
        packed = wire.pack(rows, "up", load=has_rows)
        channel = next((channel for own, channel in self._own_rows if own is rows), None)
        channel = channel or self._channel("up", packed.nbytes, staging)
        if channel is not None:
            host = staging.mpi_buffer(packed, "up", load=not self.is_server)
            total = staging.mpi_buffer(into, "total", load=False)
            channel.up(_as_bytes(host), lambda parts: sum_rows(_tables(parts, host), total, wire))
            if self.is_server:
                staging.copy_back(into, total)
        elif self.size == 1:
            wire.sum(list(packed), into)
        elif self.in_order or self._sums_in_rank_order:
            self._arrive()
            ordered_sum(packed, into, self._carrier, staging, wire)
        elif self.is_server:
            self._arrive()
            pieces = zip(staging.outgoing(rows.view(-1)), staging.incoming(into), strict=True)
            for own, total in pieces:
                self._comm.Reduce(own, total, MPI.SUM, root=0)
        else:
            self._arrive()
            for own in staging.outgoing(rows.view(-1)):
                self._comm.Reduce(own, None, MPI.SUM, root=0)

    def deliver(self) -> None:
        """Overwrite the vectors that were sent down with the devices' values, in a job of one rank.

        There the server's vector is also the devices' vector; a lossy wire makes them differ.
        """
        for packed, vector in self._undelivered:
            self.wire.unpack(packed, vector)
        self._undelivered.clear()

    def _exchange(self, rows: Mapping[int, Tensor], *, to_server: bool) -> None:
        """Move each device's row between the server and the device's rank."""
        if self.size == 1:
            for device, row in rows.items():
                self.wire.unpack(self.wire.pack(row, ("local", to_server, device)), row)
            return
        partner = self._host_of if self.is_server else lambda device: 0
        sends, staging = self.is_server != to_server, self._roads["point_to_point"]
        point_to_point.exchange(
            rows, partner, self._carrier, staging, self.wire, self._complete_messages, sends=sends
        )

    def _permute(
        self, vectors: Mapping[int, Tensor], to: Mapping[int, int], wire: Wire, staging: Staging
    ) -> None:
        """Move each device's vector to the device `to[device]`."""
        transfer = (self._carrier, staging, wire, self._complete_messages)
        point_to_point.permute(vectors, to, self._host_of, *transfer)

    def _host_of(self, device: int) -> int:
        rank = self.rank_of(device)
        assert rank is not None, f"the rank of device {device} has died, so it cannot take part"
        return rank

    @property
    def _carrier(self) -> VectorComm:
        """The communicator that moves vectors, except by MPI's own reduction."""
        return self._comm if self._torch_comm is None else self._torch_comm

    def _complete_messages(self, requests: list[Any]) -> None:
        """Return after the messages of the carrier have arrived."""
        if self._torch_comm is not None:
            self._torch_comm.complete(requests)
        else:
            self._complete(requests)

    def _complete(self, requests: list[MPI.Request]) -> None:
        if self.transport == "mpi":
            MPI.Request.Waitall(requests)
        else:
            wait_all(requests)

    def _channel(
        self, direction: Direction, nbytes: int, staging: Staging | None = None
    ) -> Channel | None:
        """Return the shared-memory channel of a direction; None if vectors travel by MPI."""
        is_direct = self._any_gpu and staging is not None and staging.direct
        if self._doorbell is None or is_direct:
            return None
        channel = self._channels.get(direction)
        if channel is None or channel.capacity < nbytes:
            channel = self._channels[direction] = self._new_channel(direction, nbytes)
        return channel

    def _new_channel(self, direction: Direction, nbytes: int) -> Channel:
        writers = {"down": range(1), "up": range(1, self.size), "numbers": range(self.size)}
        assert self._doorbell is not None
        self._arrive()
        return Channel(self._comm, self._doorbell, nbytes, writers[direction])


def _as_bytes(vector: Tensor) -> Bytes:
    """View a vector's memory as bytes."""
    return vector.numpy().reshape(-1).view(np.uint8)


def _tables(parts: Sequence[Bytes], like: Tensor) -> list[Tensor]:
    """View each rank's rows in shared memory as a tensor."""
    import torch

    return [torch.from_numpy(part).view(like.dtype).view_as(like) for part in parts]
