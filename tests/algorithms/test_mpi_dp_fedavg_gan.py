"""Invariants of DP-FedAvg-GAN on toy networks in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rounds import UNEQUAL, assert_close, trained
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)


@pytest.mark.parametrize("moments", ["persistent", "reset"])
def test_without_clipping_and_noise_it_is_the_serial_schedule(comm, moments):
    """With uniform shares; not with shares by data."""
    link = Link(comm)
    off = {"name": "dp_fedavg_gan", "clip": 0.0, "noise": 0.0, "batchnorm": "average"}
    shards = toy_shards(UNEQUAL)
    private = toy_config(algorithm={**off, "moments": moments})
    serial = toy_config(algorithm={"shares": "uniform", "moments": moments})
    by_data = toy_config(algorithm={"moments": moments})
    clipped = toy_config(algorithm={**off, "clip": 1e-3, "moments": moments})
    results = [trained(link, config, shards, 4) for config in (private, serial, by_data, clipped)]
    if link.is_server:
        for actual, expected in zip(results[0], results[1], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-13)
        assert (results[0][1] - results[2][1]).abs().max() > 1e-6
        assert (results[0][1] - results[3][1]).abs().max() > 1e-6


def test_no_update_is_longer_than_the_clip(comm):
    link = Link(comm)
    clip = 1e-3
    config = toy_config(
        algorithm={"name": "dp_fedavg_gan", "clip": clip, "noise": 0.0},
        participation={"policy": "round_robin", "count": 1},  # the mean is one update
    )
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    before = vectors(algorithm)[1]
    for t in range(5):
        play(algorithm, 1, start=t)
        after = vectors(algorithm)[1]
        if link.is_server:
            assert (after - before).norm().item() == pytest.approx(clip, rel=1e-9)
        before = after


def test_noise_has_the_configured_deviation(comm):
    """z C / N on D. The average adds no noise to G."""
    link = Link(comm)
    results = []
    clip, noise, count = 0.5, 2.0, 3
    for z in (0.0, noise):
        config = toy_config(
            algorithm={"name": "dp_fedavg_gan", "clip": clip, "noise": z, "batchnorm": "local"},
            training={"generator_steps": 0},
            participation={"policy": "round_robin", "count": count},
        )
        results.append(trained(link, config, toy_shards(UNEQUAL), 1))
    if link.is_server:
        difference = results[1][1] - results[0][1]
        assert torch.equal(results[0][0], results[1][0])
        expected = noise * clip / count
        bound = 4 / math.sqrt(2 * len(difference))
        assert difference.std().item() == pytest.approx(expected, rel=bound)
        assert abs(difference.mean().item()) < 4 * expected / math.sqrt(len(difference))


def test_a_device_with_a_non_finite_update_counts_as_absent(comm):
    """The sum of the other updates is still divided by N, and training continues."""
    link = Link(comm)
    config = toy_config(algorithm={"name": "dp_fedavg_gan", "clip": 0.0, "noise": 0.0})
    shards = toy_shards([8, 8, 8, 8])
    broken = toy_algorithm(link, config, shards)
    intact = toy_algorithm(link, config, shards)
    start = vectors(intact)[1]
    for device in broken.rank_state.devices:
        if device.index == 2:
            device.optimizer.first.fill_(math.nan)
    line = play(broken, 1)[0]
    assert math.isfinite(line["d_loss"])
    updates = np.zeros((4, len(start)))
    for device in intact.rank_state.devices:
        intact.flat.phi.data.copy_(start)
        device.train_discriminator(0)
        updates[device.index - 1] = vectors(intact)[1].numpy() - start.numpy()
    updates = link.sum(updates.ravel()).reshape(updates.shape)
    if link.is_server:
        expected = start.numpy() + (updates[0] + updates[2] + updates[3]) / 4
        assert_close(vectors(broken)[1], torch.from_numpy(expected))
    assert play(broken, 1, start=1)[0]["d_loss"] is not None
    if link.is_server:
        assert broken.flat.vector.isfinite().all()
