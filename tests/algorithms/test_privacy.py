"""ε against the closed form of the Gaussian mechanism, and the refusal of overspent budgets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedgan_mpi.algorithms.privacy import check_privacy, epsilon
from fedgan_mpi.config import AlgorithmConfig, Config, ParticipationConfig, TrainingConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.participation import Participation

pytest.importorskip("dp_accounting")


def experiment(rounds=100, devices=10, policy="all", count=None, **algorithm):
    participation = ParticipationConfig(policy=policy, count=count)
    config = Config(
        algorithm=AlgorithmConfig(name="dp_fedavg_gan", **algorithm),
        training=TrainingConfig(rounds=rounds),
        participation=participation,
    )
    images = [10] * devices
    return config, Participation(
        participation, images=images, batch_sizes=images, shares="uniform", seed=0
    )


def closed_form(multiplier: float, times: int, delta: float) -> float:
    """Return ε: Rényi divergence of order a is times · a/(2 z²).

    Converted to (ε, δ) by Canonne et al. 2020, proposition 12.
    """
    a = np.linspace(1.01, 200, 200_000)
    rdp = times * a / (2 * multiplier**2)
    return float((rdp + np.log1p(-1 / a) - np.log(delta * a) / (a - 1)).min())


@pytest.mark.parametrize("noise", [20.0, 60.0])
@pytest.mark.parametrize("rounds", [1, 100])
def test_epsilon_of_full_participation_is_that_of_the_gaussian_mechanism(noise, rounds):
    """Replacing a device changes the sum by 2 C, which halves the multiplier."""
    config, participation = experiment(rounds, noise=noise)
    expected = closed_form(noise / 2, rounds, 1e-5)
    # The accountant tries fewer orders: its bound may be slightly larger, never smaller.
    assert expected * (1 - 1e-6) <= epsilon(config, participation, rounds) <= 1.02 * expected


def test_partial_participation_spends_less():
    config, participation = experiment(100, noise=20.0, policy="round_robin", count=2)
    assert epsilon(config, participation, 100) == pytest.approx(
        closed_form(10.0, 20, 1e-5), rel=0.01
    )
    config, participation = experiment(100, devices=200, noise=4.0, policy="random", count=2)
    assert epsilon(config, participation, 100) < closed_form(2.0, 100, 1e-5) / 2


def test_epsilon_grows_with_rounds_and_falls_with_noise():
    def spent(rounds, noise):
        config, participation = experiment(max(1, rounds), noise=noise)
        return epsilon(config, participation, rounds)

    assert spent(0, 10.0) == 0
    assert spent(10, 10.0) < spent(20, 10.0) < spent(20, 5.0)
    assert spent(10, 0.0) == math.inf


def test_a_run_beyond_its_budget_is_refused_before_it_starts():
    config, participation = experiment(100, noise=20.0, epsilon_budget=8.0)
    spent = epsilon(config, participation, 100)
    assert spent < 8.0
    check_privacy(config, participation)
    config, participation = experiment(100, noise=5.0, epsilon_budget=8.0)
    with pytest.raises(UserError, match=r"epsilon_budget is 8, but 100 rounds .*noise 5 spend"):
        check_privacy(config, participation)
    config, participation = experiment(100, noise=0.0, epsilon_budget=8.0)
    with pytest.raises(UserError, match="spend inf"):
        check_privacy(config, participation)
