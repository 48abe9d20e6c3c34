"""The classes that a conditional pair draws for its fakes."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedgan_mpi.config import Config, ModelConfig
from fedgan_mpi.federation.networks import build_networks


def test_classes_of_fakes_follow_the_pooled_histogram():
    config = replace(Config(), model=ModelConfig(conditional=True, width=4))
    pair = build_networks(config, (1, 16, 16), histogram=[600, 300, 0, 100])
    noise = pair.noise(20_000, torch.Generator().manual_seed(0))
    frequencies = noise.classes.mean(0)
    expected = torch.tensor([0.6, 0.3, 0.0, 0.1])
    assert frequencies[2] == 0
    standard_errors = (expected * (1 - expected) / 20_000).sqrt()
    assert ((frequencies - expected).abs() < 4 * standard_errors + 1e-9).all()
    assert torch.equal(noise.classes.sum(1), torch.ones(20_000))
