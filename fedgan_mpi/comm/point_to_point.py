"""Point-to-point messages: vectors of single devices, sent from rank to rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.gpu.staging import Staging
from fedgan_mpi.comm.gpu.torch_comm import VectorComm

if TYPE_CHECKING:
    from torch import Tensor

Message = tuple[int, int, "Tensor"]
"""(remote rank, receiving or sending device as the tag, buffer)."""
WaitAll = Callable[[list[Any]], None]
"""Returns after all requests have completed."""


def exchange(
    rows: Mapping[int, Tensor],
    partner_of: Callable[[int], int],
    comm: VectorComm,
    staging: Staging,
    wire: Wire,
    wait_all: WaitAll,
    *,
    sends: bool,
) -> None:
    """Send each device's row to its partner rank, or receive it from there.

    rows: device -> 1-D vector. sends: False overwrites every row with the received vector.
    """
    packed = {
        device: wire.pack(row, ("exchange", sends, device), load=sends)
        for device, row in rows.items()
    }
    buffers = {
        device: staging.mpi_buffer(row, ("exchange", sends, device), load=sends)
        for device, row in packed.items()
    }
    messages = [(partner_of(device), device, buffer) for device, buffer in buffers.items()]
    wait_all(_post(comm, messages if sends else [], [] if sends else messages))
    if not sends:
        for device, row in rows.items():
            staging.copy_back(packed[device], buffers[device])
            wire.unpack(packed[device], row)


def permute(
    vectors: Mapping[int, Tensor],
    to: Mapping[int, int],
    rank_of: Callable[[int], int],
    comm: VectorComm,
    staging: Staging,
    wire: Wire,
    wait_all: WaitAll,
) -> None:
    """Send each device's vector to the device `to[device]` and overwrite it with the received one.

    vectors: device -> 1-D vector, for the devices of `to` on this rank.
    """
    source = {receiver: sender for sender, receiver in to.items()}
    sends, receives, arriving = [], [], []
    for device, vector in vectors.items():
        # A copy, because the receive overwrites the vector.
        leaving = wire.pack_copy(vector, ("leaving", device))
        received = wire.pack(vector, ("received", device), load=False)
        buffer = staging.mpi_buffer(leaving, ("leaving", device), load=True)
        sends.append((rank_of(to[device]), to[device], buffer))
        buffer = staging.mpi_buffer(received, ("received", device), load=False)
        receives.append((rank_of(source[device]), device, buffer))
        arriving.append((received, vector, buffer))
    wait_all(_post(comm, sends, receives))
    for received, vector, buffer in arriving:
        staging.copy_back(received, buffer)
        wire.unpack(received, vector)


def _post(comm: VectorComm, sends: Sequence[Message], receives: Sequence[Message]) -> list[Any]:
    requests: list[Any] = [comm.Irecv(buffer, rank, tag) for rank, tag, buffer in receives]
    return requests + [comm.Isend(buffer, rank, tag) for rank, tag, buffer in sends]
