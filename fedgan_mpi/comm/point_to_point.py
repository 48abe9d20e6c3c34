"""Vectors of single devices, from the rank that has one to the rank that is to have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mpi4py import MPI

from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.gpu_staging import Staging

if TYPE_CHECKING:
    from torch import Tensor

Parcel = tuple[int, int, "Tensor"]
"""The other rank, the device that it is for or from, as its tag, and the vector."""
Complete = Callable[[list[MPI.Request]], None]
"""Returns once all of them are done."""


def carry(
    rows: Mapping[int, Tensor],
    partner: Callable[[int], int],
    comm: MPI.Comm,
    staging: Staging,
    wire: Wire,
    complete: Complete,
    *,
    sends: bool,
) -> None:
    """Each device's row to or from its partner's rank. sends: all leave; else all are
    overwritten."""
    packed = {
        device: wire.pack(row, ("carried", sends, device), load=sends)
        for device, row in rows.items()
    }
    hosts = {
        device: staging.whole(row, ("carried", sends, device), load=sends)
        for device, row in packed.items()
    }
    point_to_point = [(partner(device), device, host) for device, host in hosts.items()]
    complete(_post(comm, point_to_point if sends else [], [] if sends else point_to_point))
    if not sends:
        for device, row in rows.items():
            staging.copy_back(packed[device], hosts[device])
            wire.unpack(packed[device], row)


def permute(
    vectors: Mapping[int, Tensor],
    to: Mapping[int, int],
    rank_of: Callable[[int], int],
    comm: MPI.Comm,
    staging: Staging,
    wire: Wire,
    complete: Complete,
) -> None:
    """Each listed device's vector to the device that gets it, from rank to rank; overwritten with
    the one that comes in."""
    source = {receiver: sender for sender, receiver in to.items()}
    sends, receives, arriving = [], [], []
    for device, vector in vectors.items():
        leaves = wire.copy(vector, ("leaves", device))  # another comes into its place
        comes = wire.pack(vector, ("comes", device), load=False)
        host = staging.whole(leaves, ("leaves", device), load=True)
        sends.append((rank_of(to[device]), to[device], host))
        host = staging.whole(comes, ("comes", device), load=False)
        receives.append((rank_of(source[device]), device, host))
        arriving.append((comes, vector, host))
    complete(_post(comm, sends, receives))
    for comes, vector, host in arriving:
        staging.copy_back(comes, host)
        wire.unpack(comes, vector)


def _post(comm: MPI.Comm, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> list[MPI.Request]:
    requests = [comm.Irecv(host, rank, tag) for rank, tag, host in receives]
    return requests + [comm.Isend(host, rank, tag) for rank, tag, host in sends]
