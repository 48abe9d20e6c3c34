"""The policy importance: inclusion probabilities by hand, draws, and unbiased averages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from policies import IMAGES, fix_fading, make_policy

from fedgan_mpi.federation.participation import Participation


def expected_probabilities(
    policy: Participation, t: int, norms: Sequence[float], count: int
) -> dict[int, float]:
    """Return device -> inclusion probability by the definition.

    It is proportional to 0.9 p_k + 0.1/K, p_k ∝ images · norm · rate. Values above 1 become 1 and
    the other devices share the rest.
    """
    rates = policy.cell.faded_uplink_rates(0, t, count)
    weights = {k: IMAGES[k - 1] * norms[k - 1] * rates[k - 1] for k in range(1, 6)}
    total = sum(weights.values())
    weights = {k: 0.9 * weight / total + 0.1 / 5 for k, weight in weights.items()}
    certain: set[int] = set()
    while True:
        uncertain = {k: weight for k, weight in weights.items() if k not in certain}
        scale = (count - len(certain)) / sum(uncertain.values())
        above_one = {k for k, weight in uncertain.items() if scale * weight > 1}
        if not above_one:
            return {k: 1.0 if k in certain else scale * weights[k] for k in weights}
        certain |= above_one


def fraction_of_images(policy: Participation, t: int) -> float:
    """Return the participants' fraction of all images."""
    return sum(IMAGES[k - 1] for k in policy.participants(t)) / sum(IMAGES)


@pytest.mark.parametrize(("norms", "count"), [([3, 1, 2, 5, 1], 2), ([1, 900, 1, 1, 800], 3)])
def test_devices_are_drawn_with_their_inclusion_probability(norms, count):
    """Over 20,000 draws from one channel."""
    policy = make_policy("importance", count)
    policy.set_update_norms(dict(enumerate(map(float, norms), start=1)))
    expected = expected_probabilities(policy, 0, norms, count)
    assert sum(expected.values()) == pytest.approx(count)
    fix_fading(policy)
    rounds = 20_000
    draws = [policy.participants(t) for t in range(rounds)]
    assert all(len(set(chosen)) == count for chosen in draws)
    times = Counter(k for chosen in draws for k in chosen)
    for k, probability in expected.items():
        deviation = (probability * (1 - probability) / rounds) ** 0.5
        assert abs(times[k] / rounds - probability) <= 5 * deviation + 1e-12
    for t, chosen in enumerate(draws[:20]):
        factors = {k: fraction_of_images(policy, t) / expected[k] for k in chosen}
        assert policy.inverse_probability(t) == pytest.approx(factors)


def test_weighted_averages_are_unbiased_over_draws():
    """The mean of Σ share · factor · update is Σ w_k update_k. Without the factor it is not."""
    policy = make_policy("importance")
    policy.set_update_norms({1: 4.0, 2: 1.0, 3: 1.0, 4: 9.0, 5: 0.5})
    fix_fading(policy)
    updates = np.array([5.0, -2.0, 7.0, 1.0, 3.0])
    expected = float(np.dot(IMAGES, updates) / sum(IMAGES))
    weighted, plain = [], []
    for t in range(20_000):
        factor, shares = policy.inverse_probability(t), policy.shares(t).items()
        weighted.append(sum(share * factor[k] * updates[k - 1] for k, share in shares))
        plain.append(sum(share * updates[k - 1] for k, share in shares))
    (unbiased, error), (biased, plain_error) = (
        (np.mean(sums), np.std(sums) / len(sums) ** 0.5) for sums in (weighted, plain)
    )
    assert abs(unbiased - expected) < 4 * error and error < 0.05
    assert abs(biased - expected) > 10 * plain_error


def test_norms_are_equal_in_the_first_round():
    policy = make_policy("importance")
    expected = expected_probabilities(policy, 0, [1] * 5, 2)
    part = fraction_of_images(policy, 0)
    factors = {k: part / expected[k] for k in policy.participants(0)}
    assert policy.inverse_probability(0) == pytest.approx(factors)


def test_a_new_device_counts_with_the_largest_norm_and_none_is_excluded():
    policy = make_policy("importance")
    policy.set_update_norms({1: 1e-9, 2: 5.0})
    expected = expected_probabilities(policy, 1, [1e-9, 5, 5, 5, 5], 2)
    assert expected[1] >= 2 * 0.1 / 5
    for k, factor in policy.inverse_probability(1).items():
        assert factor == pytest.approx(fraction_of_images(policy, 1) / expected[k])


def test_factors_are_one_if_all_devices_participate():
    policy = make_policy("importance", 5)
    policy.set_update_norms({1: 4.0, 2: 100.0})
    assert policy.participants(0) == [1, 2, 3, 4, 5]
    assert policy.inverse_probability(0) == pytest.approx(dict.fromkeys(range(1, 6), 1.0))


def test_factors_of_other_policies_are_one():
    policy = make_policy("random")
    assert policy.inverse_probability(0) == dict.fromkeys(policy.participants(0), 1.0)
