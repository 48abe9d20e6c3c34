"""World size and rank from the launcher's environment variables."""

from __future__ import annotations

import pytest

from fedgan_mpi.comm.launcher import announced_rank, announced_size, world_size_problem


@pytest.mark.parametrize(
    ("environment", "size", "rank"),
    [
        ({}, 1, 0),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, 4, 3),
        ({"PMI_SIZE": "4", "PMI_RANK": "2"}, 4, 2),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, 4, 1),
        # In a mpirun inside an allocation of two nodes, SLURM counts the nodes.
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "PMI_SIZE": "6", "PMI_RANK": "5"},
            6,
            5,
        ),
        # A batch script sets only SLURM_NTASKS; it runs a single process.
        ({"SLURM_NTASKS": "4"}, 1, 0),
        ({"PMI_SIZE": "what"}, 1, 0),
    ],
)
def test_size_and_rank_are_read_from_the_environment(environment, size, rank):
    assert (announced_size(environment), announced_rank(environment)) == (size, rank)


def test_a_world_of_one_is_a_problem_if_the_launcher_started_more():
    slurm = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}
    assert "--mpi=pmi2" in str(world_size_problem(1, slurm))
    assert "mpirun that belongs to the MPI library" in str(world_size_problem(1, {"PMI_SIZE": "3"}))
    assert world_size_problem(4, slurm) is None
    assert world_size_problem(1, {}) is None
    assert world_size_problem(1, {"SLURM_NTASKS": "4"}) is None
