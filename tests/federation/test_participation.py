"""Participants and shares: policies without a radio channel, removed devices, fractions."""

from __future__ import annotations

import math

import pytest
from policies import IMAGES, make_participation, make_policy

from fedgan_mpi.config import ParticipationConfig
from fedgan_mpi.errors import UserError

POLICIES = ["all", "random", "round_robin", "balanced"]
CHANNEL_POLICIES = ["best_channel", "proportional_fair", "importance"]


# ---------------------------------------------------------------- policies


def test_round_robin_takes_devices_in_turn():
    chosen = [make_policy("round_robin").participants(t) for t in range(5)]
    assert chosen == [[1, 2], [3, 4], [1, 5], [2, 3], [4, 5]]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_round_robin_visits_all_devices_in_the_fewest_rounds(count):
    policy = make_policy("round_robin", count)
    rounds = math.ceil(len(IMAGES) / count)
    visited = [device for t in range(rounds) for device in policy.participants(t)]
    assert set(visited) == {1, 2, 3, 4, 5}


def test_random_draws_depend_on_the_seed_alone_and_are_uniform():
    policy, same_seed, other_seed = (make_policy("random", seed=seed) for seed in (0, 0, 1))
    rounds = range(2000)
    chosen = [policy.participants(t) for t in rounds]
    assert chosen == [same_seed.participants(t) for t in rounds]
    assert chosen != [other_seed.participants(t) for t in rounds]
    assert all(len(set(devices)) == 2 and devices == sorted(devices) for devices in chosen)
    counts = [sum(device in devices for devices in chosen) for device in range(1, 6)]
    assert all(700 < count < 900 for count in counts)  # 800 expected, 4.6 standard deviations


# ---------------------------------------------------------------- shares


def test_shares_follow_images_batches_or_are_uniform():
    by_images = make_policy("all", None).shares(0)
    assert by_images == {1: 1 / 16, 2: 1 / 4, 3: 3 / 16, 4: 1 / 8, 5: 3 / 8}
    uniform = make_policy("all", None, shares="uniform").shares(0)
    assert uniform == dict.fromkeys(range(1, 6), 0.2)
    assert make_policy("all", None, shares="batch").shares(0)[1] == 10 / 124


def test_shares_of_the_participants_sum_to_one():
    assert make_policy("round_robin").shares(2) == {1: 1 / 7, 5: 6 / 7}
    for t in range(20):
        assert math.isclose(sum(make_policy("random", 3).shares(t).values()), 1.0)


# ---------------------------------------------------------------- removed devices


@pytest.mark.parametrize("policy", [*POLICIES, *CHANNEL_POLICIES])
def test_a_removed_device_never_participates_again(policy):
    count = None if policy == "all" else 3
    complete, reduced = make_policy(policy, count), make_policy(policy, count)
    reduced.participants(9)  # computed too early: rounds after a removal must be computed again
    reduced.remove([2], 3)
    reduced.remove([2, 4, 5], 6)
    for t in range(3):
        assert reduced.participants(t) == complete.participants(t)
    for t in range(3, 30):
        present = reduced.participants(t)
        removed = {2} if t < 6 else {2, 4, 5}
        assert present == sorted(set(present)) and not removed & set(present)
        assert len(present) == min(complete.count, 5 - len(removed))
        assert sum(reduced.shares(t).values()) == pytest.approx(1)
    assert any(2 in complete.participants(t) for t in range(3, 30))
    assert reduced.inverse_probability(20) == pytest.approx({1: 1.0, 3: 1.0})


# ---------------------------------------------------------------- number of participants


@pytest.mark.parametrize(
    ("fraction", "devices", "count"),
    [(0.5, 10, 5), (0.5, 5, 3), (0.25, 10, 3), (0.01, 10, 1), (1.0, 7, 7), (0.3, 10, 3)],
)
def test_a_fraction_is_rounded_to_a_number_of_devices(fraction, devices, count):
    assert ParticipationConfig(policy="random", fraction=fraction).participants(devices) == count


def test_a_fraction_draws_the_same_devices_as_its_count():
    by_fraction = make_participation(ParticipationConfig(policy="random", fraction=0.4))
    by_count = make_policy("random", 2)
    assert by_fraction.count == 2
    for t in range(20):
        assert by_fraction.participants(t) == by_count.participants(t)


def test_more_participants_than_devices_are_refused():
    with pytest.raises(UserError, match=r"participation\.count is 6, but must be at most 5"):
        make_policy("random", 6)
