"""Invariants of FESS-GDA: without smoothing it is FedGAN; z is a part of every checkpoint."""

from __future__ import annotations

import pytest
import torch
from rounds import UNEQUAL, trained
from toys import toy_algorithm, toy_config, toy_shards

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)

FEW = {"policy": "random", "count": 3}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_without_smoothing_it_is_fedgan_bitwise(comm, optimizer):
    """With SGD, this is Local SGDA."""
    link, results = Link(comm), []
    for algorithm in ({"name": "fedgan"}, {"name": "fess_gda", "smoothing": 0.0}):
        config = toy_config(
            algorithm=algorithm, participation=FEW, training={"optimizer": optimizer}
        )
        results.append(trained(link, config, toy_shards(UNEQUAL), 4))
    if link.is_server:
        assert all(map(torch.equal, *results))


def test_smoothing_changes_the_generator_from_the_second_round_on(comm):
    """In the first round x is z. D changes one round later, by the other G."""
    link, differences = Link(comm), []
    for rounds in (1, 2, 3):
        results = [
            trained(
                link,
                toy_config(algorithm={"name": "fess_gda", "smoothing": p}),
                toy_shards(UNEQUAL),
                rounds,
            )
            for p in (0.0, 100.0)
        ]
        if link.is_server:
            differences.append([not torch.equal(*pair) for pair in zip(*results, strict=True)])
    if link.is_server:
        assert differences == [[False, False], [True, False], [True, True]]


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_pull_follows_the_learning_rate(comm, warmup):
    """x ← x - η p (x - z) without local steps on equal networks; η rises in the warm-up."""
    link = Link(comm)
    lr = 0.1
    config = toy_config(
        algorithm={"name": "fess_gda", "smoothing": 2.0, "smoothing_rate": 1.0},
        training={
            "generator_lr": lr,
            "discriminator_lr": 1e-30,
            "discriminator_steps": 1,
            "warmup_rounds": warmup,
        },
    )
    algorithm = toy_algorithm(link, config, toy_shards([8, 8]), batchnorm=False)
    algorithm.train = lambda device, t: (None, None)  # the average is x itself
    x = algorithm.flat.theta
    if link.is_server:
        algorithm.server.kept["z"].sub_(1.0)
    before = x.detach().clone()
    algorithm.round(0)
    factor = 1 / warmup if warmup else 1.0
    if link.is_server:
        expected = before - lr * factor * 2.0  # x - z = 1
        torch.testing.assert_close(x.detach(), expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(algorithm.server.kept["z"], x.detach())  # β = 1


def test_checkpoints_hold_z(comm):
    link = Link(comm)
    for smoothing in (0.0, 1.0):
        config = toy_config(algorithm={"name": "fess_gda", "smoothing": smoothing})
        algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
        if link.is_server:
            assert ("z" in algorithm.server.state().get("kept", {})) == (smoothing > 0)
