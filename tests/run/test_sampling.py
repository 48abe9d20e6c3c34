"""Truncated noise and standing statistics of trained generators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fedgan_mpi.errors import UserError
from fedgan_mpi.run.generator_file import TrainedGenerator

ABOUT = {"nz": 16, "image_shape": [1, 4, 4], "class_shares": None}


class Passes(nn.Module):
    """A generator whose images are its noise, divided by 4."""

    def forward(self, z):
        return (z / 4).view(-1, 1, 4, 4)


class Normalizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(16, 16, bias=False)
        self.norm = nn.BatchNorm1d(16)
        with torch.no_grad():
            self.scale.weight.copy_(3 * torch.eye(16))

    def forward(self, z):
        return (self.norm(self.scale(z) + 5) / 4).view(-1, 1, 4, 4)


def noise_of(truncation, count=4000):
    """Return the z of a generator, up to the rounding of pixels."""
    generator = TrainedGenerator(network=Passes(), about=ABOUT, truncation=truncation)
    return (generator(count, seed=3).astype(float) / 127.5 - 1).ravel() * 4


@pytest.mark.parametrize("truncation", [0.3, 1.0, 2.0])
def test_truncated_noise_is_the_part_of_the_normal_distribution_between_the_bounds(truncation):
    z = noise_of(truncation)
    assert np.abs(z).max() <= truncation + 0.016
    expected = stats.truncnorm(-truncation, truncation)
    assert z.std() == pytest.approx(expected.std(), rel=0.02)
    assert z.mean() == pytest.approx(0, abs=0.02)
    for quantile in (0.1, 0.25, 0.5, 0.9):
        assert np.quantile(z, quantile) == pytest.approx(expected.ppf(quantile), abs=0.04)


def test_a_wide_truncation_changes_little_and_none_changes_nothing():
    assert noise_of(3.9).std() == pytest.approx(1, rel=0.02)
    plain = TrainedGenerator(network=Passes(), about=ABOUT)
    assert (plain(8, seed=3) == TrainedGenerator(network=Passes(), about=ABOUT)(8, seed=3)).all()


def test_interpolations_are_truncated_too():
    generator = TrainedGenerator(network=Passes(), about=ABOUT, truncation=0.5)
    ends = generator.interpolate(6, 5).reshape(6, 5, 16)[:, [0, -1]]
    assert np.abs((ends.astype(float) / 127.5 - 1) * 4).max() <= 0.5 + 0.016


def test_standing_statistics_are_those_of_generated_batches():
    network = Normalizes().eval()
    generator = TrainedGenerator(network=network, about=ABOUT)
    standing = generator.with_standing_statistics(20)
    norm = standing.network.norm
    torch.testing.assert_close(norm.running_mean, torch.full((16,), 5.0), rtol=0, atol=0.15)
    torch.testing.assert_close(norm.running_var, torch.full((16,), 9.0), rtol=0.1, atol=0)
    assert not standing.network.training
    # The original keeps the statistics of its training, and images differ.
    assert network.norm.running_mean.abs().max() == 0
    assert (standing(4) != generator(4)).any()
    assert (standing(4) == generator.with_standing_statistics(20)(4)).all()


def test_a_generator_without_batchnorm_has_no_statistics():
    with pytest.raises(UserError, match="has no BatchNorm"):
        TrainedGenerator(network=Passes(), about=ABOUT).with_standing_statistics(2)
