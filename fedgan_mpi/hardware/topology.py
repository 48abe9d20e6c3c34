"""Which ranks share a machine with this one, and its cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpi4py import MPI

from fedgan_mpi.comm.shared_memory import Doorbell
from fedgan_mpi.hardware.cpu import core_quota, usable_cores

Transport = Literal["mpi", "polling", "shared_memory"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This rank's machine, and what all ranks know of all machines."""

    ranks: int
    rank: int
    """This rank's number among those of its machine."""
    cores: int
    """As many as its ranks together may use."""
    common_cores: list[int]
    """Their numbers, where each rank may use every one of them; empty otherwise."""
    is_crowded: bool
    """Whether some machine has more ranks than cores."""
    is_alone: bool
    """Whether all ranks share this machine."""

    @property
    def transport(self) -> Transport:
        """The way between ranks that takes least time, the same on all of them."""
        if not self.is_crowded:
            return "mpi"
        return "shared_memory" if self.is_alone and Doorbell.works_here() else "polling"


def survey(comm: MPI.Comm) -> Machine:
    """Collective. See who is where."""
    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    everyones = here.allgather(usable_cores())
    numbers = sorted(set().union(*everyones))
    cores = min(len(numbers), here.allreduce(core_quota(), MPI.MIN))
    alike = all(theirs == everyones[0] for theirs in everyones) and cores == len(numbers)
    machine = Machine(
        ranks=here.size,
        rank=here.rank,
        cores=cores,
        common_cores=numbers if alike else [],
        is_crowded=comm.allreduce(here.size > cores, MPI.LOR),
        is_alone=comm.allreduce(here.size == comm.size, MPI.LAND),
    )
    here.Free()
    return machine
