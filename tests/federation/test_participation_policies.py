"""Participation policies and shares, which every rank derives without a message."""

from __future__ import annotations

import math

import pytest

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
