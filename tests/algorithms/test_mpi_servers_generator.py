"""Sentences of the papers whose D's stay with the devices: MD-GAN and UA-GAN."""

from __future__ import annotations

import pytest
import torch
from rounds import UNEQUAL, assert_close, link_of
from toys import NZ, play, toy_algorithm, toy_config, toy_networks, toy_shards

from fedgan_mpi.comm.link import Link
from fedgan_mpi.nn.steps import Batch, feedback, logits_and_input_gradients

pytestmark = pytest.mark.mpi(min_size=3)


def test_one_device_swaps_with_nobody(comm):
    link = link_of(comm, 2)
    if link is None:
        return
    config = toy_config(algorithm={"name": "mdgan"})
    lines = play(toy_algorithm(link, config, toy_shards([8])), 4)
    assert len({line["bytes_up"] for line in lines}) == 1


def test_equal_discriminators_give_every_algorithm_the_same_generator_gradient(comm):
    """All modes of uagan, mdgan's feedback, and a plain step through D."""
    config = toy_config(algorithm={"name": "uagan"})
    algorithm = toy_algorithm(Link(comm), config, toy_shards(UNEQUAL), batchnorm=False)
    G, D = toy_networks(batchnorm=False)
    loss = algorithm.rank_state.pair.loss
    z = torch.randn(6, NZ, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss.generator(D(G(z))).mean().backward()
    plain = torch.cat([p.grad.flatten() for p in G.parameters()])

    def through(gradient):
        G.zero_grad()
        G(z).backward(gradient)
        return torch.cat([p.grad.flatten() for p in G.parameters()])

    fake = Batch(G(z).detach())
    _, gradient = feedback(D, loss, fake)
    assert_close(through(gradient), plain)
    logits, input_gradients = logits_and_input_gradients(D, fake)
    pi = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)[:, None].log()
    for mode in ("mean", "max", "softmax", "odds"):
        algorithm.config = toy_config(algorithm={"name": "uagan", "mode": mode}).algorithm
        table = logits.repeat(5, 1).requires_grad_()
        (weights,) = torch.autograd.grad(algorithm.generator_loss(table, pi), table)
        mixed = (weights[..., None, None, None] * input_gradients).sum(0)
        assert_close(through(mixed), plain)
