"""Averages of moments and of BatchNorm statistics."""

from __future__ import annotations

import pytest
import torch
from rounds import assert_close, link_of, trained
from torch import nn
from toys import play, toy_algorithm, toy_config, toy_shards

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)

# ---------------------------------------------------------------- moments


@pytest.mark.parametrize("name", ["ren", "fedgan"])
def test_averaged_moments_of_one_device_equal_persistent_ones(comm, name):
    link = link_of(comm, 2)
    if link is None:
        return
    persistent, averaged, reset = (
        trained(link, toy_config(algorithm={"name": name, "moments": rule}), toy_shards([9]), 4)
        for rule in ("persistent", "averaged", "reset")
    )
    if link.is_server:
        assert torch.equal(persistent[0], averaged[0]) and torch.equal(persistent[1], averaged[1])
        changed = 1 if name == "ren" else 0
        assert not torch.equal(persistent[changed], reset[changed])


def test_averaged_moments_are_the_weighted_mean_over_devices(comm):
    """After one round from zero, against moments of devices that keep their own."""
    link = Link(comm)
    shards = toy_shards([6, 9])
    averaged = toy_algorithm(link, toy_config(algorithm={"moments": "averaged"}), shards)
    persistent = toy_algorithm(link, toy_config(), shards)
    play(averaged, 1)
    play(persistent, 1)
    weighted = torch.zeros_like(averaged.flat.moments_of_discriminator)
    for device in persistent.rank_state.devices:
        state = device.optimizer.state()
        share = {1: 6 / 15, 2: 9 / 15}[device.index]
        weighted += share * torch.cat([state["first"], state["second"]])
    total = link.sum(weighted.numpy())
    if link.is_server:
        assert_close(averaged.flat.moments_of_discriminator, torch.from_numpy(total))


# ---------------------------------------------------------------- BatchNorm


class OnePass(nn.Module):
    """A discriminator that normalizes real images, also in its pass over fakes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16).double()
        self.real: torch.Tensor | None = None

    def forward(self, images):
        if images.shape[1] == 1:  # fakes have two channels
            self.real = images.flatten(1)
        assert self.real is not None
        return self.norm(self.real).sum(1)


class TwoChannelGenerator(nn.Module):
    """Returns images that `OnePass` recognizes as fakes by their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z):
        return torch.zeros(len(z), 2, 4, 4, dtype=z.dtype)


def test_recalibrate_adds_the_variance_between_devices(comm):
    """Against the variance of the union of equally large batches, which the average misses."""
    link = Link(comm)
    devices, batch, momentum = 3, 50, 0.1
    shards = toy_shards([batch] * devices)
    for k, shard in shards.items():
        shard.images[:] = shard.images // 4 + 50 * k  # devices with different means
    variances_of = {}
    for rule in ("average", "recalibrate"):
        config = toy_config(
            training={"batch_size": batch, "discriminator_steps": 1, "generator_steps": 0},
            algorithm={"batchnorm": rule},
        )
        networks = (TwoChannelGenerator(), OnePass())
        algorithm = toy_algorithm(link, config, shards, networks=networks)
        play(algorithm, 1)
        variances_of[rule] = algorithm.flat.statistics_of_discriminator.chunk(2)[1].clone()
    if link.is_server:
        pixels = [
            torch.from_numpy(s.images).double().flatten(1) / 127.5 - 1 for s in shards.values()
        ]
        means = torch.stack([p.mean(0) for p in pixels])
        # BatchNorm's running variance is unbiased.
        variances = torch.stack([p.var(0) for p in pixels]).mean(0)
        between = means.var(0, correction=0)
        # Both passes normalize the same images, so the running mean moves twice.
        moved = 1 - (1 - momentum) ** 2
        assert_close(variances_of["average"], (1 - moved) + moved * variances)
        assert_close(variances_of["recalibrate"], (1 - moved) + moved * (variances + between))
        assert between.min() > 0.01


def test_integer_counters_are_not_averaged(comm):
    """BatchNorm's num_batches_tracked counts the passes on each rank."""
    link = Link(comm)
    algorithm = toy_algorithm(link, toy_config(training={"rounds": 2}), toy_shards([8, 8]))
    play(algorithm, 2)
    counter = algorithm.rank_state.pair.D.norm.num_batches_tracked
    assert counter.dtype == torch.int64
    # Per round: one pass of G's step on the server, two passes in two steps on a device.
    expected = 2 * 1 if link.is_server else 2 * 2 * 2 * len(algorithm.rank_state.devices)
    assert counter.item() == expected
