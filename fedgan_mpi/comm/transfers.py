"""Transfers between ranks, below the verbs: which memory MPI reads, and how a vector crosses.

Owns the shared-memory channels, the GPU staging buffers and the wire; counts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from mpi4py import MPI

from fedgan_mpi.comm import point_to_point
from fedgan_mpi.comm.communicator import Communicator
from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.cuda_aware import device_memory_round_trip, is_cuda_aware
from fedgan_mpi.comm.gpu_staging import Accelerator, Cuda, Staging
from fedgan_mpi.comm.polling import wait_all
from fedgan_mpi.comm.shared_memory import Bytes, Channel
from fedgan_mpi.comm.transport import Transport
from fedgan_mpi.comm.verbs import verb
from fedgan_mpi.config import LinkConfig
from fedgan_mpi.errors import AgreedError
from fedgan_mpi.hardware.gpu import cuda_device_count

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["down", "up", "numbers"]


class Transfers(Communicator):
    """One rank's transfers."""

    def __init__(self, comm: MPI.Comm | None = None, *, transport: Transport | None = None) -> None:
        super().__init__(comm, transport=transport)
        self._channels: dict[str, Channel] = {}
        self._own_rows: list[tuple[Tensor, Channel]] = []
        self.wire = Wire("float32")
        self.in_order = False
        """Whether sums are taken device by device, in the order of devices."""
        self._configured_route: Literal["auto", "host", "cuda"] = "auto"
        self._any_gpu = False
        self._staging = Staging(None, direct=True)
        self._undelivered: list[tuple[Tensor, Tensor]] = []  # in a job of one rank

    # ---------------------------------------------------------------- configuration

    def configure(self, config: LinkConfig) -> None:
        """Apply the configured wire, route and sum. Raises AgreedError if a rank cannot."""
        problem = None
        if config.route == "cuda" and not cuda_device_count():
            problem = "link.route is 'cuda', but there is no GPU here; use 'host'"
        elif config.route == "cuda" and not is_cuda_aware(self._comm):
            problem = "link.route is 'cuda', but this MPI library is not CUDA-aware; use 'host'"
        elif config.survive and not can_survive():
            right = "an Open MPI of 5 or later, started as `mpirun --with-ft ulfm`"
            problem = f"link.survive needs {right}; leave it out here"
        self.agree(problem)
        self._configured_route, self.wire = config.route, Wire(config.wire_dtype)
        self.peer_monitor = config.peer_monitor
        self.in_order = config.average == "gather" or self.wire.is_lossy
        if config.survive:
            # A rank asleep in shared memory would not notice a death.
            self.transport = "mpi" if self.transport == "mpi" else "polling"
            self._doorbell, self._channels, self._own_rows, self.shared_cores = None, {}, [], []
            self._comm = self._comm.Dup()
            self.survives = True

    @verb
    def choose_route(self, torch_device: str, gpu: Accelerator | None = None) -> None:
        """Collective. Choose the memory that MPI reads, for vectors on `torch_device`. gpu: None
        for the real one.

        Raises AgreedError if the route `cuda` is configured but fails a round trip.
        """
        has_gpu = torch_device != "cpu"
        everyone = self._comm.allgather((has_gpu, has_gpu and is_cuda_aware(self._comm)))
        if not any(has for has, _ in everyone):
            return
        gpu = gpu or (Cuda() if has_gpu else None)
        direct = self._configured_route != "host" and all(aware for _, aware in everyone)
        if direct and gpu is not None:  # every rank has one
            direct = device_memory_round_trip(self._comm, gpu, torch_device)
        if self._configured_route == "cuda" and not direct:
            right = "a GPU and a CUDA-aware MPI on every rank, but a test vector did not arrive"
            raise AgreedError(f"link.route is 'cuda', which needs {right}; use 'host'")
        self._any_gpu, self._staging = True, Staging(gpu, direct=direct)

    @property
    def route(self) -> str:
        """The memory that MPI reads, in words."""
        if not self._any_gpu:
            return "host memory, where the vectors are"
        if self._staging.direct:
            return "cuda, the GPU's own memory"
        return "pinned host memory, in pieces"

    # ---------------------------------------------------------------- inside

    def _send_down(self, vector: Tensor, wire: Wire) -> None:
        vector = vector.detach()
        packed = wire.pack(vector, ("down", vector.numel()), load=self.is_server)
        if self.size == 1:
            self._undelivered.append((packed, vector))
            return
        channel = self._channel("down", packed.nbytes)
        if channel is not None:
            host = self._staging.mpi_buffer(packed, "down", load=self.is_server)
            channel.down(as_bytes(host))
            if not self.is_server:
                self._staging.copy_back(packed, host)
        else:
            self._arrive()
            pieces = self._staging.outgoing if self.is_server else self._staging.incoming
            for piece in pieces(packed):
                self._comm.Bcast(piece, root=0)
        if not self.is_server:
            wire.unpack(packed, vector)

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
        sends = self.is_server != to_server
        point_to_point.exchange(
            rows, partner, self._comm, self._staging, self.wire, self._complete, sends=sends
        )

    def _host_of(self, device: int) -> int:
        rank = self.rank_of(device)
        assert rank is not None, f"the rank of device {device} has died, so it cannot take part"
        return rank

    def _complete(self, requests: list[MPI.Request]) -> None:
        if self.transport == "mpi":
            MPI.Request.Waitall(requests)
        else:
            wait_all(requests)

    def _channel(self, direction: Direction, nbytes: int) -> Channel | None:
        """Return the shared-memory channel of a direction; None if vectors travel by MPI."""
        if self._doorbell is None or (self._any_gpu and self._staging.direct):
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


def can_survive() -> bool:
    """Whether MPI reports deaths as errors: Open MPI with ULFM, requested from its mpirun."""
    requested = os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112 - its own spelling
    return requested and Communicator.library().startswith("Open MPI")


def as_bytes(vector: Tensor) -> Bytes:
    """View a vector's memory as bytes."""
    return vector.numpy().reshape(-1).view(np.uint8)
