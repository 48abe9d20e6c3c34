"""What the launcher says in the environment, before any MPI library is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping

# Ranks that each launcher announces. SLURM's number counts only where no MPI launcher speaks: under
# mpirun in an allocation, SLURM_STEP_NUM_TASKS is the number of nodes.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


def announced_size(environment: Mapping[str, str] = os.environ) -> int:
    """The number of ranks that the launcher started; 1 where none did."""
    return _first(environment, _SIZES, default=1)


def announced_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank as the launcher numbers it; 0 where none did."""
    return _first(environment, _RANKS, default=0)


def world_size_problem(size: int, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why an MPI world of one rank is not what the launcher started, or None.

    `srun` without the right --mpi, or an mpirun of another MPI, starts N worlds of one rank each,
    and every one of them would train alone and succeed.
    """
    announced = announced_size(environment)
    if size > 1 or announced <= 1:
        return None
    if "SLURM_STEP_NUM_TASKS" in environment and "OMPI_COMM_WORLD_SIZE" not in environment:
        cure = "start with `srun --mpi=pmi2` (MPICH) or `srun --mpi=pmix` (Open MPI)"
    else:
        cure = "use the mpirun that belongs to the MPI library which mpi4py loads"
    return f"the launcher started {announced} ranks, but MPI sees a world of 1: {cure}"


def _first(environment: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return default
