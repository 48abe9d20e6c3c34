"""Invariants of FedGAN on toy networks in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle_trainers import Trainer
from rounds import assert_close, trained
from torch import nn
from toys import NZ, play, toy_algorithm, toy_config, toy_networks, toy_shards

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)


@pytest.mark.parametrize(
    ("change", "equal"),
    [
        ({}, True),
        ({"algorithm": {"local_update": "alternating"}}, False),
        ({"training": {"optimizer": "adam"}}, False),
        ({"training": {"discriminator_steps": 2}}, False),
        ({"algorithm": {"shares": "uniform"}}, False),
    ],
    ids=["sgd", "alternating", "adam", "two steps", "wrong shares"],
)
def test_one_averaged_step_is_a_simultaneous_step_on_the_union_batch(comm, change, equal):
    """If n = 1, SGD, shares follow batch sizes and no BatchNorm; not otherwise."""
    link = Link(comm)
    config = toy_config(
        algorithm={"name": "fedgan", "shares": "batch", **change.get("algorithm", {})},
        training={
            "optimizer": "sgd",
            "discriminator_lr": 0.1,
            "generator_lr": 0.1,
            "discriminator_steps": 1,
            "batch_size": 8,
            **change.get("training", {}),
        },
    )
    shards = toy_shards([9, 3, 5])
    result = trained(link, config, shards, 1, batchnorm=False)
    if not link.is_server:
        return
    G, D = toy_networks(batchnorm=False)
    trainers = [Trainer(G, D, config, k, shard, None, NZ) for k, shard in shards.items()]
    real = torch.cat([trainer.draw_real()[0] for trainer in trainers])
    z = torch.cat([trainer.draw_noise(trainer.batches.size)[0] for trainer in trainers])
    bce = nn.functional.binary_cross_entropy_with_logits
    fake = G(z)
    ones, zeros = torch.ones(len(real)).double(), torch.zeros(len(real)).double()
    d_loss = bce(D(real), ones) + bce(D(fake.detach()), zeros)
    d_gradient = torch.autograd.grad(d_loss, list(D.parameters()))
    g_gradient = torch.autograd.grad(bce(D(fake), ones), list(G.parameters()))
    differences = []
    for vector, network, gradient in ((result[0], G, g_gradient), (result[1], D, d_gradient)):
        expected = [p - 0.1 * g for p, g in zip(network.parameters(), gradient, strict=True)]
        expected_vector = torch.cat([e.flatten() for e in expected])
        differences.append((vector - expected_vector).abs().max().item())
    assert (max(differences) < 1e-14) == equal, differences
    assert equal or max(differences) > 1e-6


def test_recalibrate_adds_the_variance_between_devices_to_both_networks(comm):
    """mean(v_k) + var(μ_k) / a, with the statistics of devices that keep their own."""
    link = Link(comm)
    shards = toy_shards([8, 8, 8])
    steps = 2
    options = {"name": "fedgan", "shares": "uniform"}
    local = toy_algorithm(link, toy_config(algorithm={**options, "batchnorm": "local"}), shards)
    play(local, 1)
    averaged = {}
    for rule in ("average", "recalibrate"):
        config = toy_config(algorithm={**options, "batchnorm": rule})
        algorithm = toy_algorithm(link, config, shards)
        play(algorithm, 1)
        averaged[rule] = {
            "G": algorithm.flat.statistics_of_generator.chunk(2)[1].clone(),
            "D": algorithm.flat.statistics_of_discriminator.chunk(2)[1].clone(),
        }
    # (network, place among a device's own sections, features, forward passes)
    for network, place, size, passes in (("G", 1, 16, steps), ("D", 0, 8, 3 * steps)):
        own = np.zeros((3, 2 * size))
        for device in local.rank_state.devices:
            own[device.index - 1] = device.local.own[place].numpy()
        own = torch.from_numpy(link.sum(own.ravel()).reshape(own.shape))
        means, variances = own[:, :size], own[:, size:]
        a = 1 - 0.9**passes
        if link.is_server:
            between = means.var(0, correction=0)
            assert_close(averaged["average"][network], variances.mean(0))
            assert_close(averaged["recalibrate"][network], variances.mean(0) + between / a)
            assert between.max() > 1e-6
