"""Machine topology: which ranks share a machine, and which cores they may use."""

from __future__ import annotations

from dataclasses import dataclass

from mpi4py import MPI

from fedgan_mpi.hardware.cpu import core_quota, usable_cores


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This rank's machine, and two facts about all machines of the job."""

    local_size: int
    """Number of ranks on this machine."""
    local_rank: int
    """This rank's number among them."""
    cores: int
    """Number of cores that the ranks of this machine may use together."""
    common_cores: list[int]
    """Numbers of these cores if every rank may use each of them; otherwise empty."""
    oversubscribed: bool
    """Whether some machine has more ranks than cores; the same on every rank."""
    is_only_machine: bool
    """Whether all ranks of the job share this machine; the same on every rank."""


def survey(comm: MPI.Comm) -> Machine:
    """Collective. Describe the machine of this rank."""
    local = comm.Split_type(MPI.COMM_TYPE_SHARED)
    allowed = local.allgather(usable_cores())
    numbers = sorted(set().union(*allowed))
    cores = min(len(numbers), local.allreduce(core_quota(), MPI.MIN))
    all_equal = all(each == allowed[0] for each in allowed) and cores == len(numbers)
    machine = Machine(
        local_size=local.size,
        local_rank=local.rank,
        cores=cores,
        common_cores=numbers if all_equal else [],
        oversubscribed=comm.allreduce(local.size > cores, MPI.LOR),
        is_only_machine=comm.allreduce(local.size == comm.size, MPI.LAND),
    )
    local.Free()
    return machine
