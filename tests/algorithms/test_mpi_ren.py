"""Invariants of the paper's algorithm on toy networks in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rounds import UNEQUAL, assert_close, link_of, make_first, trained
from torch import nn
from toys import NZ, play, toy_algorithm, toy_config, toy_networks, toy_shards, vectors

from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Batches
from fedgan_mpi.random_streams import Purpose, torch_stream

pytestmark = pytest.mark.mpi(min_size=3)

# ---------------------------------------------------------------- one device


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_one_device_in_the_serial_schedule_is_centralized_training(comm, optimizer):
    """Bit for bit. The parallel schedule differs."""
    link = link_of(comm, 2)
    if link is None:
        return
    shards = toy_shards([13])
    training = {"optimizer": optimizer, "generator_steps": 2}
    serial = toy_config(training=training)
    central = toy_config(training=training, algorithm={"name": "centralized"})
    parallel = toy_config(training=training, algorithm={"schedule": "parallel"})
    results = [trained(link, config, shards, 5) for config in (serial, central, parallel)]
    if link.is_server:
        (theta, phi), (theta_central, phi_central), (theta_parallel, phi_parallel) = results
        assert torch.equal(theta, theta_central) and torch.equal(phi, phi_central)
        assert not torch.equal(theta, theta_parallel)
        assert not torch.equal(phi, phi_parallel)


def test_statistics_of_the_discriminator_equal_centralized_training(comm):
    link = link_of(comm, 2)
    if link is None:
        return
    shards = toy_shards([13])
    statistics = []
    for name in ("ren", "centralized"):
        algorithm = toy_algorithm(link, toy_config(algorithm={"name": name}), shards)
        play(algorithm, 3)
        statistics.append(algorithm.flat.statistics_of_discriminator.clone())
    if link.is_server:
        assert torch.equal(*statistics)


# ---------------------------------------------------------------- several devices


@pytest.mark.parametrize(
    "algorithm",
    [{"schedule": "serial"}, {"schedule": "parallel"}, {"name": "fedgan"}],
    ids=["serial", "parallel", "fedgan"],
)
def test_identical_devices_equal_one_device(comm, algorithm):
    """With equal shards, streams and moments, the average changes nothing."""
    link = Link(comm)
    config = toy_config(algorithm=algorithm)
    shards = toy_shards([11] * link.device_ranks, same=True)
    identical = toy_algorithm(link, config, shards)
    for device in identical.rank_state.devices:
        make_first(device, shards[1])
    play(identical, 4)
    pair_link = link_of(comm, 2)
    single = None
    if pair_link is not None:
        single = trained(pair_link, config, toy_shards([11], same=True), 4)
    if link.is_server:
        for actual, expected in zip(vectors(identical), single, strict=True):
            assert_close(actual, expected)
    # Devices with their own streams differ.
    different = trained(link, config, shards, 4)
    if link.is_server:
        assert not torch.allclose(different[1], single[1], rtol=1e-6, atol=0)


def union_step(G, D, shards, config):
    """Return φ after one gradient step on the concatenated batches and noise of all devices."""
    size, seed = config.training.batch_size, config.run.seed
    batches = {k: Batches(s, batch_size=size, seed=seed, device=k) for k, s in shards.items()}
    real = torch.cat([torch.from_numpy(b.draw()).double() / 127.5 - 1 for b in batches.values()])
    z = torch.cat(
        [
            torch.randn(b.size, NZ, generator=torch_stream(seed, Purpose.FAKE, k), dtype=real.dtype)
            for k, b in batches.items()
        ]
    )
    bce = nn.functional.binary_cross_entropy_with_logits
    logits, fake = D(real), D(G(z).detach())
    loss = bce(logits, torch.ones_like(logits)) + bce(fake, torch.zeros_like(fake))
    gradients = torch.autograd.grad(loss, list(D.parameters()))
    lr = config.training.discriminator_lr
    return torch.cat(
        [(p - lr * g).detach().flatten() for p, g in zip(D.parameters(), gradients, strict=True)]
    )


@pytest.mark.parametrize(
    ("change", "equal"),
    [
        ({}, True),
        ({"training": {"optimizer": "adam"}}, False),
        ({"training": {"discriminator_steps": 2}}, False),
        ({"algorithm": {"shares": "uniform"}}, False),
        ({"batchnorm": True}, False),
    ],
    ids=["sgd", "adam", "two steps", "wrong shares", "batchnorm"],
)
def test_one_averaged_gradient_step_is_a_step_on_the_union_batch(comm, change, equal):
    """If shares follow batch sizes, n_d = 1, SGD and no BatchNorm; not otherwise."""
    link = Link(comm)
    batchnorm = change.get("batchnorm", False)
    training = {
        "optimizer": "sgd",
        "discriminator_lr": 0.1,
        "discriminator_steps": 1,
        "generator_steps": 0,
        "batch_size": 8,
        **change.get("training", {}),
    }
    config = toy_config(
        training=training, algorithm={"shares": "batch", **change.get("algorithm", {})}
    )
    shards = toy_shards([9, 3, 5])
    result = trained(link, config, shards, 1, batchnorm=batchnorm)
    if link.is_server:
        expected = union_step(*toy_networks(batchnorm), shards, config)
        difference = (result[1] - expected).abs().max().item()
        assert (difference < 1e-14) == equal, difference
        assert equal or difference > 1e-6


# ---------------------------------------------------------------- seeds


def test_the_same_seed_gives_the_same_losses_on_all_ranks(comm):
    link = Link(comm)
    lines = [
        play(toy_algorithm(link, toy_config(run={"seed": seed}), toy_shards(UNEQUAL)), 3)
        for seed in (0, 0, 1)
    ]
    losses = [[(line["d_loss"], line["g_loss"]) for line in run] for run in lines]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    total = link.sum(np.array([losses[0][0][0]]))
    assert total[0] == pytest.approx(link.size * losses[0][0][0])
