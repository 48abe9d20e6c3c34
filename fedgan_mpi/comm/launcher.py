"""World size and rank as the launcher announces them in the environment, before MPI is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping

# SLURM's size is used last: in a mpirun inside an allocation, SLURM_STEP_NUM_TASKS counts nodes.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


def announced_size(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks that the launcher started; 1 without a launcher."""
    return _first(environment, _SIZES, default=1)


def announced_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this process's rank according to the launcher; 0 without a launcher."""
    return _first(environment, _RANKS, default=0)


def world_size_problem(size: int, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return an error message if the launcher started several ranks but MPI sees one.

    `srun` with the wrong --mpi, or the mpirun of another MPI library, starts N worlds of one rank
    each. Without this check every rank would train alone and succeed. Returns None otherwise.
    """
    announced = announced_size(environment)
    if size > 1 or announced <= 1:
        return None
    if "SLURM_STEP_NUM_TASKS" in environment and "OMPI_COMM_WORLD_SIZE" not in environment:
        remedy = "start with `srun --mpi=pmi2` (MPICH) or `srun --mpi=pmix` (Open MPI)"
    else:
        remedy = "use the mpirun that belongs to the MPI library which mpi4py loads"
    return f"the launcher started {announced} ranks, but MPI sees a world of 1: {remedy}"


def _first(environment: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return default
