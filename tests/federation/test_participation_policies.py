"""Participation and the launcher's variables: what every rank knows without a message."""

from __future__ import annotations

import math

import pytest

from fedgan_mpi.comm.launcher import announced_rank, announced_size, world_size_problem
from fedgan_mpi.config import ParticipationConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.participation import Participation

IMAGES = [10, 40, 30, 20, 60]


def participation(policy="all", count=None, shares="data", seed=0):
    return Participation(
        ParticipationConfig(policy=policy, count=count),
        images=IMAGES,
        batch_sizes=[10, 32, 30, 20, 32],
        shares=shares,
        seed=seed,
    )


def test_round_robin_visits_everyone_in_turn():
    chosen = [participation("round_robin", 2).participants(t) for t in range(5)]
    assert chosen == [[1, 2], [3, 4], [1, 5], [2, 3], [4, 5]]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_round_robin_visits_all_in_the_fewest_rounds(count):
    policy = participation("round_robin", count)
    rounds = math.ceil(len(IMAGES) / count)
    seen = [device for t in range(rounds) for device in policy.participants(t)]
    assert set(seen) == {1, 2, 3, 4, 5}


def test_random_draws_are_the_seeds_and_fair():
    policy, same, other = (participation("random", 2, seed=s) for s in (0, 0, 1))
    rounds = range(2000)
    chosen = [policy.participants(t) for t in rounds]
    assert chosen == [same.participants(t) for t in rounds]
    assert chosen != [other.participants(t) for t in rounds]
    assert all(len(set(devices)) == 2 and devices == sorted(devices) for devices in chosen)
    counts = [sum(device in devices for devices in chosen) for device in range(1, 6)]
    assert all(700 < count < 900 for count in counts)  # 800 expected, six standard deviations


def test_shares():
    assert participation().shares(0) == {1: 1 / 16, 2: 1 / 4, 3: 3 / 16, 4: 1 / 8, 5: 3 / 8}
    assert participation(shares="uniform").shares(0) == dict.fromkeys(range(1, 6), 0.2)
    assert participation(shares="batch").shares(0)[1] == 10 / 124
    two = participation("round_robin", 2)
    assert two.shares(2) == {1: 1 / 7, 5: 6 / 7}
    for t in range(20):
        assert math.isclose(sum(participation("random", 3).shares(t).values()), 1.0)


def test_more_participants_than_devices_are_refused():
    with pytest.raises(UserError, match=r"participation\.count is 6, but must be at most 5"):
        participation("random", 6)


@pytest.mark.parametrize(
    ("environment", "size", "rank"),
    [
        ({}, 1, 0),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, 4, 3),
        ({"PMI_SIZE": "4", "PMI_RANK": "2"}, 4, 2),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, 4, 1),
        # Under mpirun in an allocation of two nodes, SLURM counts the nodes.
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "PMI_SIZE": "6", "PMI_RANK": "5"},
            6,
            5,
        ),
        # In the batch shell only SLURM_NTASKS is set: one process is what was meant.
        ({"SLURM_NTASKS": "4"}, 1, 0),
        ({"PMI_SIZE": "what"}, 1, 0),
    ],
)
def test_what_launchers_announce(environment, size, rank):
    assert (announced_size(environment), announced_rank(environment)) == (size, rank)


def test_a_world_of_one_where_more_were_started_is_a_problem():
    slurm = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}
    assert "--mpi=pmi2" in str(world_size_problem(1, slurm))
    assert "mpirun that belongs to the MPI library" in str(world_size_problem(1, {"PMI_SIZE": "3"}))
    assert world_size_problem(4, slurm) is None
    assert world_size_problem(1, {}) is None
    assert world_size_problem(1, {"SLURM_NTASKS": "4"}) is None
