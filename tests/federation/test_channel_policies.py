"""The policies best_channel and proportional_fair against their rules in plain loops."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from policies import NO_FADING, make_policy, remove_distance


def participations(policy, rounds: int) -> Counter[int]:
    """Return device -> number of rounds with it."""
    return Counter(k for t in range(rounds) for k in policy.participants(t))


# ---------------------------------------------------------------- best_channel


def test_best_channel_takes_the_largest_rates_of_the_round():
    policy = make_policy("best_channel")
    for t in range(50):
        rates = policy.cell.faded_uplink_rates(0, t, 2)
        chosen = policy.participants(t)
        assert {rates[k - 1] for k in chosen} == set(sorted(rates, reverse=True)[:2])
        assert chosen == sorted(chosen)
    assert len({tuple(policy.participants(t)) for t in range(50)}) > 2
    assert policy.participants(7) != make_policy("best_channel", seed=5).participants(7)


def test_without_fading_the_best_channels_are_those_of_the_nearest_devices():
    policy = make_policy("best_channel", wireless=NO_FADING)
    nearest = sorted(np.argsort(policy.cell.distances_m)[:2] + 1)
    assert all(policy.participants(t) == nearest for t in range(20))


def test_the_seed_of_the_cell_places_the_devices():
    cells = [replace(NO_FADING, seed=seed) for seed in range(4)]
    chosen = [make_policy("best_channel", wireless=cell).participants(0) for cell in cells]
    assert len(set(map(tuple, chosen))) > 1


@pytest.mark.parametrize("name", ["best_channel", "proportional_fair"])
def test_ties_go_to_the_lowest_index(name):
    policy = make_policy(name, wireless=NO_FADING)
    remove_distance(policy)
    assert policy.participants(0) == [1, 2]


# ---------------------------------------------------------------- proportional_fair


def test_proportional_fair_divides_the_rate_by_its_average():
    """Take the N largest r/R. Then R = 19/20 R + 1/20 r for participants and 19/20 R for others."""
    policy = make_policy("proportional_fair")
    average = list(policy.cell.uplink_rates(2))
    for t in range(200):
        rates = list(policy.cell.faded_uplink_rates(0, t, 2))
        order = sorted(range(5), key=lambda k: -rates[k] / average[k])
        expected = sorted(k + 1 for k in order[:2])
        assert policy.participants(t) == expected
        for k in range(5):
            average[k] = 19 / 20 * average[k] + (rates[k] / 20 if k + 1 in expected else 0.0)


def test_a_later_round_can_be_computed_first():
    in_order, late = make_policy("proportional_fair"), make_policy("proportional_fair")
    expected = [in_order.participants(t) for t in range(4)]
    assert late.participants(3) == expected[3]


def test_proportional_fair_is_fair_and_best_channel_is_not():
    fair = participations(make_policy("proportional_fair"), 1000)
    greedy = participations(make_policy("best_channel"), 1000)
    assert all(300 < fair[k] < 500 for k in range(1, 6))  # 400 each
    assert min(greedy[k] for k in range(1, 6)) < 100 and max(greedy.values()) > 700


def test_proportional_fair_without_fading_takes_equal_devices_in_turn():
    policy = make_policy("proportional_fair", wireless=NO_FADING)
    remove_distance(policy)
    times = participations(policy, 500)
    assert max(times.values()) - min(times.values()) <= 2
