"""Formulas of the algorithms' papers: swaps, mixtures of logits, shares, payloads."""

from __future__ import annotations

import itertools
import math

import numpy as np
import oracle_algorithms as oracle
import pytest
import torch
from rounds import assert_close

from fedgan_mpi.algorithms.aggregation.discrepancy import mean_discrepancy
from fedgan_mpi.algorithms.fegan import kl_weights
from fedgan_mpi.algorithms.mdgan import derangement
from fedgan_mpi.algorithms.mixture import odds, softmax_weights
from fedgan_mpi.algorithms.registry import ALGORITHMS
from fedgan_mpi.wireless.cost import Sizes

# ---------------------------------------------------------------- mdgan


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_a_swap_moves_every_discriminator_to_another_device(count):
    devices = list(range(3, 3 + count))
    stream = np.random.default_rng(0)
    for _ in range(50):
        receivers = derangement(devices, stream)
        assert sorted(receivers) == sorted(receivers.values()) == devices
        assert all(sender != receiver for sender, receiver in receivers.items())
    if count == 2:
        assert receivers == {3: 4, 4: 3}


def test_all_derangements_are_equally_likely():
    """By a chi-square test over the nine derangements of four devices."""
    stream, draws = np.random.default_rng(1), 9000
    drawn = [tuple(derangement([1, 2, 3, 4], stream).values()) for _ in range(draws)]
    derangements = [
        permutation
        for permutation in itertools.permutations([1, 2, 3, 4])
        if all(a != b for a, b in zip(permutation, [1, 2, 3, 4], strict=True))
    ]
    counts = np.array([drawn.count(each) for each in derangements])
    assert counts.sum() == draws and len(counts) == 9
    assert ((counts - draws / 9) ** 2 / (draws / 9)).sum() < 26.1  # 99.9 % of chi-square(8)


# ---------------------------------------------------------------- mixtures


def test_odds_of_optimal_discriminators_are_the_odds_of_the_mixture():
    """D_k = p_k/(p_k + q) gives p/(p + q), p = Σ π_k p_k. A mean of the D_k does not."""
    x = np.linspace(-4, 4, 81)
    pi = np.array([0.2, 0.5, 0.3])
    p = np.exp(-((x - np.array([[-2], [0.5], [3]])) ** 2) / 2) / math.sqrt(2 * math.pi)
    q = np.exp(-(x**2) / 8) / math.sqrt(8 * math.pi)
    logits = torch.from_numpy(np.log(p / q))
    D = torch.sigmoid(odds(logits, torch.from_numpy(pi)[:, None].log())).numpy()
    mixture = pi @ p
    assert np.abs(D - mixture / (mixture + q)).max() < 1e-12
    assert np.abs(pi @ (p / (p + q)) - mixture / (mixture + q)).max() > 0.1


def test_odds_are_between_the_logits_and_do_not_overflow():
    stream = torch.Generator().manual_seed(0)
    logits = 300 * torch.randn(5, 100, generator=stream, dtype=torch.float64)
    pi = torch.rand(5, 1, generator=stream, dtype=torch.float64)
    log_pi = (pi / pi.sum()).log()
    value = odds(logits, log_pi)
    assert value.isfinite().all()
    assert (value <= logits.amax(0) + 1e-9).all() and (value >= logits.amin(0) - 1e-9).all()
    assert (value >= (logits + log_pi).amax(0) - 1e-9).all()


def test_softmax_weights_range_from_mean_to_max():
    logits = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    assert_close(softmax_weights(logits, 0.0), torch.full((2, 2), 0.5, dtype=torch.float64))
    sharp = softmax_weights(logits, 1e4)
    assert_close(sharp, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))


# ---------------------------------------------------------------- fegan


def test_equal_histograms_give_equal_shares():
    for sign in (-1, 1):
        weights = kl_weights([[4, 2, 2], [8, 4, 4], [400, 200, 200]], sign)
        assert weights == pytest.approx([1.0, 1.0, 1.0], abs=1e-12)


def test_shares_follow_the_divergence_and_its_sign():
    histograms = [[10, 10, 10], [30, 0, 0], [0, 20, 20]]
    down, up = kl_weights(histograms, -1), kl_weights(histograms, 1)
    assert np.argmax(down) == 0 and np.argmin(down) == 1
    assert np.argmax(up) == 1 and np.argmin(up) == 0
    reordered = kl_weights([histograms[2], histograms[0], histograms[1]], -1)
    assert reordered == pytest.approx([down[2], down[0], down[1]])
    shares = oracle.kl_shares({k: np.array(h) for k, h in enumerate(histograms)}, -1, [0, 1, 2])
    assert list(shares.values()) == pytest.approx([weight / sum(down) for weight in down])


def test_discrepancy_grows_with_the_distance_of_two_samples():
    stream = torch.Generator().manual_seed(0)
    one = torch.randn(40, 16, generator=stream, dtype=torch.float64)
    other = torch.randn(30, 16, generator=stream, dtype=torch.float64)
    assert mean_discrepancy(one, one) < 1e-7
    assert mean_discrepancy(one, other) < 0.3 < mean_discrepancy(one, other + 2)
    assert mean_discrepancy(one, other) == pytest.approx(oracle.mmd(one.numpy(), other.numpy()))


# ---------------------------------------------------------------- payloads


def test_the_uplink_of_fedgan_is_larger_by_the_generator():
    """The ratio to ren's uplink is 1 + |G|/|D|: 2.2933 for the 64 px pair."""
    sizes = Sizes(theta=3_576_704, phi=2_765_568, fakes=64 * 12288, batch=64)
    payloads = {name: algorithm.payload(sizes) for name, algorithm in ALGORITHMS.items()}
    ratio = payloads["fedgan"].up / payloads["ren"].up
    assert ratio == pytest.approx(1 + 3_576_704 / 2_765_568) and round(ratio, 4) == 2.2933
    assert payloads["fedgan"].down == payloads["ren"].down
    assert (payloads["mdgan"].down, payloads["mdgan"].up) == (2 * 64 * 12288, 64 * 12288)
