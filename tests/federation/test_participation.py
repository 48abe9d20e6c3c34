"""Who joins a round by channel and by update: rules written once more, and what must hold on
average."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fedgan_mpi.cli.parser import parse_train
from fedgan_mpi.config import ParticipationConfig, WirelessConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.participation import Participation

IMAGES = [10, 40, 30, 20, 60]
STILL = WirelessConfig(fading="none")


def people(policy: str, count: int = 2, seed: int = 0, **options) -> Participation:
    config = options.pop("config", None) or ParticipationConfig(policy=policy, count=count)
    return Participation(
        config,
        **{"images": IMAGES, "batch_sizes": IMAGES, "shares": "data", "seed": seed,
           "histograms": [[n] for n in IMAGES], **options},
    )  # fmt: skip


def equal_cell(participation: Participation) -> None:
    """Put all devices at one place."""
    participation.cell.path_loss_db[:] = 110.0


# ------------------------------------------------------------ best_channel


def test_best_channel_takes_the_largest_rates_of_the_round():
    policy = people("best_channel")
    for t in range(50):
        rates = policy.cell.faded_uplink_rates(0, t, 2)
        best, second = sorted(rates, reverse=True)[:2]
        chosen = policy.participants(t)
        assert {rates[k - 1] for k in chosen} == {best, second} and chosen == sorted(chosen)
    assert len({tuple(policy.participants(t)) for t in range(50)}) > 2
    assert policy.participants(7) != people("best_channel", seed=5).participants(7)


def test_without_fading_the_best_are_always_the_nearest():
    policy = people("best_channel", wireless=STILL)
    nearest = sorted(np.argsort(policy.cell.distances_m)[:2] + 1)
    assert all(policy.participants(t) == nearest for t in range(20))


@pytest.mark.parametrize("chooses", ["best_channel", "proportional_fair"])
def test_ties_go_to_the_lowest_index(chooses):
    policy = people(chooses, wireless=STILL)
    equal_cell(policy)
    assert policy.participants(0) == [1, 2]


# ------------------------------------------------------------ proportional_fair


def test_proportional_fair_weighs_the_rate_by_what_was_had():
    """The rule in plain loops: N largest r/R, then R ← 19/20 R + 1/20 r · [took part]."""
    policy = people("proportional_fair")
    had = list(policy.cell.uplink_rates(2))
    for t in range(200):
        rates = list(policy.cell.faded_uplink_rates(0, t, 2))
        order = sorted(range(5), key=lambda k: -rates[k] / had[k])
        expected = sorted(k + 1 for k in order[:2])
        assert policy.participants(t) == expected
        for k in range(5):
            had[k] = 19 / 20 * had[k] + (rates[k] / 20 if k + 1 in expected else 0.0)
    assert policy.participants(3) == people("proportional_fair").participants(3)  # in any order


def test_proportional_fair_is_fair_where_best_channel_is_not():
    """Whatever the distances; best_channel starves the far ones."""
    fair, best = people("proportional_fair"), people("best_channel")
    times = [
        Counter(k for t in range(1000) for k in policy.participants(t)) for policy in (fair, best)
    ]
    assert all(300 < times[0][k] < 500 for k in range(1, 6))  # 400 each
    assert min(times[1][k] for k in range(1, 6)) < 100 and max(times[1].values()) > 700


def test_without_fading_proportional_fair_takes_turns():
    """Which is what an equal mean rate over time asks for."""
    policy = people("proportional_fair", wireless=STILL)
    equal_cell(policy)
    times = Counter(k for t in range(500) for k in policy.participants(t))
    assert max(times.values()) - min(times.values()) <= 2


# ------------------------------------------------------------ importance


def chances_by_hand(policy: Participation, t: int, norms, there, count) -> dict[int, float]:
    rates = policy.cell.faded_uplink_rates(0, t, count)
    wanted = {k: IMAGES[k - 1] * norms[k - 1] * rates[k - 1] for k in there}
    total = sum(wanted.values())
    wanted = {k: 0.9 * each / total + 0.1 / len(there) for k, each in wanted.items()}
    certain: set[int] = set()
    while True:
        free = {k: each for k, each in wanted.items() if k not in certain}
        scale = (count - len(certain)) / sum(free.values())
        above = {k for k, each in free.items() if scale * each > 1}
        if not above:
            return {k: 1.0 if k in certain else scale * free[k] for k in there}
        certain |= above


@pytest.mark.parametrize(("norms", "count"), [([3, 1, 2, 5, 1], 2), ([1, 900, 1, 1, 800], 3)])
def test_importance_draws_by_norm_and_channel(norms, count):
    """In one round's channel, over many seeds of the draw: each device as often as its chance."""
    policy = people("importance", count)
    policy.set_update_norms(dict(enumerate(map(float, norms), start=1)))
    expected = chances_by_hand(policy, 0, norms, range(1, 6), count)
    assert sum(expected.values()) == pytest.approx(count)
    rates = policy.cell.faded_uplink_rates(0, 0, count)
    policy._rates = lambda t: rates  # type: ignore[method-assign] - one channel for all draws
    rounds = 20_000
    drawn = [policy.participants(t) for t in range(rounds)]
    assert all(len(set(chosen)) == count for chosen in drawn)
    times = Counter(k for chosen in drawn for k in chosen)
    for k, chance in expected.items():
        deviation = (chance * (1 - chance) / rounds) ** 0.5
        assert abs(times[k] / rounds - chance) <= 5 * deviation + 1e-12
    for t, chosen in enumerate(drawn[:20]):
        part = sum(IMAGES[k - 1] for k in chosen) / 160
        assert policy.inverse_probability(t) == pytest.approx(
            {k: part / expected[k] for k in chosen}
        )


def test_lengthened_updates_average_to_that_of_all_devices():
    """Unbiased: the mean over draws of Σ share · stretch · update is Σ w_k update_k; with shares
    alone it is not."""
    policy = people("importance")
    policy.set_update_norms({1: 4.0, 2: 1.0, 3: 1.0, 4: 9.0, 5: 0.5})
    rates = policy.cell.faded_uplink_rates(0, 0, 2)
    policy._rates = lambda t: rates  # type: ignore[method-assign]
    updates = np.array([5.0, -2.0, 7.0, 1.0, 3.0])
    whole = float(np.dot(IMAGES, updates) / sum(IMAGES))
    lengthened, plain = [], []
    for t in range(20_000):
        factor, shares = policy.inverse_probability(t), policy.shares(t).items()
        lengthened.append(sum(share * factor[k] * updates[k - 1] for k, share in shares))
        plain.append(sum(share * updates[k - 1] for k, share in shares))
    (unbiased, error), (biased, other_error) = (
        (np.mean(sums), np.std(sums) / len(sums) ** 0.5) for sums in (lengthened, plain)
    )
    assert abs(unbiased - whole) < 4 * error and error < 0.05
    assert abs(biased - whole) > 10 * other_error


def test_nobody_is_shut_out_and_the_first_round_knows_no_norms():
    policy = people("importance")
    first = chances_by_hand(policy, 0, [1] * 5, range(1, 6), 2)
    assert policy.inverse_probability(0) == pytest.approx(
        {
            k: sum(IMAGES[j - 1] for j in policy.participants(0)) / 160 / first[k]
            for k in policy.participants(0)
        }
    )
    policy.set_update_norms({1: 1e-9, 2: 5.0})
    # 3, 4 and 5 have not taken part and count with the longest update known.
    expected = chances_by_hand(policy, 1, [1e-9, 5, 5, 5, 5], range(1, 6), 2)
    assert expected[1] >= 2 * 0.1 / 5
    for k, factor in policy.inverse_probability(1).items():
        part = sum(policy.sizes[j - 1] for j in policy.participants(1)) / 160
        assert factor == pytest.approx(part / expected[k])


def test_where_everyone_takes_part_nothing_is_lengthened():
    policy = people("importance", 5)
    policy.set_update_norms({1: 4.0, 2: 100.0})
    assert policy.participants(0) == [1, 2, 3, 4, 5]
    assert policy.inverse_probability(0) == pytest.approx(dict.fromkeys(range(1, 6), 1.0))
    assert people("random", 2).inverse_probability(0) == dict.fromkeys(
        people("random", 2).participants(0), 1.0
    )


# ------------------------------------------------------------ all of them


@pytest.mark.parametrize("policy", ["best_channel", "proportional_fair", "importance"])
def test_who_has_left_takes_no_part(policy):
    whole, smaller = people(policy, 3), people(policy, 3)
    smaller.participants(9)
    smaller.remove([2], 3)
    smaller.remove([2, 4, 5], 6)
    for t in range(3):
        assert smaller.participants(t) == whole.participants(t)
    for t in range(3, 30):
        present = smaller.participants(t)
        assert present == sorted(set(present)) and 2 not in present
        assert len(present) == (3 if t < 6 else 2) and (4 in present) <= (t < 6)
        assert sum(smaller.shares(t).values()) == pytest.approx(1)
    assert any(2 in whole.participants(t) for t in range(3, 30))
    assert smaller.inverse_probability(20) == pytest.approx({1: 1.0, 3: 1.0})


@pytest.mark.parametrize(
    ("fraction", "devices", "count"),
    [(0.5, 10, 5), (0.5, 5, 3), (0.25, 10, 3), (0.01, 10, 1), (1.0, 7, 7), (0.3, 10, 3)],
)
def test_a_fraction_is_a_number_of_devices(fraction, devices, count):
    assert ParticipationConfig(policy="random", fraction=fraction).participants(devices) == count


def test_a_fraction_draws_as_its_number_does():
    by_share = people("", config=ParticipationConfig(policy="random", fraction=0.4))
    assert by_share.count == 2
    rounds = range(20)
    assert [by_share.participants(t) for t in rounds] == [
        people("random").participants(t) for t in rounds
    ]


def test_the_cell_is_the_sections_own():
    cells = [replace(STILL, seed=seed) for seed in range(4)]
    chosen = [people("best_channel", wireless=cell).participants(0) for cell in cells]
    assert len({tuple(each) for each in chosen}) > 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("policy=random fraction=1.5", "participation.fraction is 1.5, but must be above 0 and"),
        ("policy=random fraction=0.5 count=2", "participation.count is 2, but must be left out"),
        ("fraction=0.5", "participation.fraction is 0.5, but must be left out when participation."),
        ("policy=best_channel", "participation.count is None, but must be at least 1 when"),
    ],
)
def test_impossible_numbers_of_participants_are_refused(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_train([f"--participation.{flag}" for flag in flags.split()])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["name=mdgan"], "'importance', but must be another policy for mdgan, whose devices"),
        (["name=uagan"], "'importance', but must be another policy for uagan, whose devices"),
        (["name=dp_fedavg_gan"], "another policy for dp_fedavg_gan, because the choice"),
        (["name=fegan", "preset=ifl"], "another policy for the preset ifl, whose shares are known"),
    ],
)
def test_importance_is_for_averages_of_models(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_train(
            ["--participation.policy=importance", "--participation.count=2"]
            + [f"--algorithm.{flag}" for flag in flags]
        )


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        (
            "nearest_m=600",
            "wireless.nearest_m is 600.*, but must be at most wireless.radius_m, 500",
        ),
        ("bandwidth_hz=0", "wireless.bandwidth_hz is 0.*, but must be above 0 and finite"),
        ("shadowing_db=-1", "wireless.shadowing_db is -1.*, but must be at least 0 and finite"),
        ("bits_per_parameter=0", "wireless.bits_per_parameter is 0, but must be from 1 to 64"),
        ("device_macs_per_second=[1e9,0]", r"\[1000000000.0, 0.0\], but must be numbers above 0"),
    ],
)
def test_impossible_cells_are_refused(flag, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_train([f"--wireless.{flag}"])
