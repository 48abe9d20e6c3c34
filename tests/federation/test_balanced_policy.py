"""The policy balanced (FeGAN): all classes are seen equally often."""

from __future__ import annotations

import numpy as np
from policies import make_policy

ONE_CLASS_EACH = (7 * np.eye(6, dtype=int)).tolist()


def make_balanced(histograms):
    return make_policy("balanced", 2, shares="uniform", histograms=histograms)


def test_devices_of_one_class_each_take_turns():
    policy = make_balanced(ONE_CLASS_EACH)
    chosen = [k for t in range(6) for k in policy.participants(t)]
    assert sorted(chosen[:6]) == sorted(chosen[6:]) == [1, 2, 3, 4, 5, 6]


def test_a_later_round_can_be_computed_first():
    """As after a resume."""
    policy, resumed = make_balanced(ONE_CLASS_EACH), make_balanced(ONE_CLASS_EACH)
    expected = [policy.participants(t) for t in range(5)]
    assert resumed.participants(4) == expected[4]


def test_the_only_device_with_a_class_is_in_every_round():
    policy = make_balanced([[10, 0]] * 4 + [[0, 10]])
    images_seen = np.zeros(2)
    for t in range(8):
        chosen = policy.participants(t)
        assert len(set(chosen)) == 2 and 5 in chosen
        for k in chosen:
            images_seen += np.array([0, 10]) if k == 5 else np.array([10, 0])
    assert abs(images_seen[0] - images_seen[1]) <= 10
