"""Sentences of FedGAN's paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle_trainers import Trainer
from rounds import assert_close, link_of, trained
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
    """n = 1, SGD, shares by batch size, no BatchNorm; and not otherwise."""
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
    players = [Trainer(G, D, config, k, s, None, NZ) for k, s in shards.items()]
    real = torch.cat([p.draw_real()[0] for p in players])
    z = torch.cat([p.draw_noise(p.batches.size)[0] for p in players])
    bce = nn.functional.binary_cross_entropy_with_logits
    fake = G(z)
    ones, zeros = torch.ones(len(real)).double(), torch.zeros(len(real)).double()
    d_loss = bce(D(real), ones) + bce(D(fake.detach()), zeros)
    d = torch.autograd.grad(d_loss, list(D.parameters()))
    g = torch.autograd.grad(bce(D(fake), ones), list(G.parameters()))
    gaps = []
    for vector, network, gradient in ((result[0], G, g), (result[1], D, d)):
        expected = [p - 0.1 * v for p, v in zip(network.parameters(), gradient, strict=True)]
        gaps.append((vector - torch.cat([e.flatten() for e in expected])).abs().max().item())
    assert (max(gaps) < 1e-14) == equal, gaps
    assert equal or max(gaps) > 1e-6


def test_averaged_moments_of_one_device_equal_persistent_ones(comm):
    link = link_of(comm, 2)
    if link is None:
        return
    results = [
        trained(
            link, toy_config(algorithm={"name": "fedgan", "moments": moments}), toy_shards([9]), 4
        )
        for moments in ("persistent", "averaged", "reset")
    ]
    if link.is_server:
        persistent, averaged, reset = results
        assert torch.equal(persistent[0], averaged[0]) and torch.equal(persistent[1], averaged[1])
        assert not torch.equal(persistent[0], reset[0])


def test_recalibrate_keeps_the_variance_between_devices_in_both_networks(comm):
    """Against the definition: mean of variances plus variance of means / a, from local runs."""
    link = Link(comm)
    shards = toy_shards([8, 8, 8])
    steps = 2
    algorithm_options = {"name": "fedgan", "shares": "uniform"}
    local = toy_config(algorithm={**algorithm_options, "batchnorm": "local"})
    own = toy_algorithm(link, local, shards)
    play(own, 1)
    found = {}
    for choice in ("average", "recalibrate"):
        config = toy_config(algorithm={**algorithm_options, "batchnorm": choice})
        algorithm = toy_algorithm(link, config, shards)
        play(algorithm, 1)
        flat = algorithm.flat
        found[choice] = [
            flat.statistics_of_generator.chunk(2)[1].clone(),
            flat.statistics_of_discriminator.chunk(2)[1].clone(),
        ]
    for place, size, passes in ((1, 16, steps), (0, 8, 3 * steps)):  # own: of D, then of G
        kept = np.zeros((3, 2 * size))
        for device in own.rank_state.devices:
            kept[device.index - 1] = device.local.own[place].numpy()
        kept = torch.from_numpy(link.sum(kept.ravel()).reshape(kept.shape))
        means, variances = kept[:, :size], kept[:, size:]
        a = 1 - 0.9**passes
        network = 1 - place
        if link.is_server:
            between = means.var(0, correction=0)
            assert_close(found["average"][network], variances.mean(0))
            assert_close(found["recalibrate"][network], variances.mean(0) + between / a)
            assert between.max() > 1e-6
