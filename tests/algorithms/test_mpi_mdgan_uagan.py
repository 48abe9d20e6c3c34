"""Invariants of MD-GAN and UA-GAN, whose discriminators never leave the devices."""

from __future__ import annotations

import pytest
import torch
from rounds import UNEQUAL, assert_close, link_of
from toys import NZ, play, toy_algorithm, toy_config, toy_networks, toy_shards

from fedgan_mpi.algorithms.mixture import generator_loss
from fedgan_mpi.comm.link import Link
from fedgan_mpi.nn.steps import Batch, feedback, logits_and_input_gradients

pytestmark = pytest.mark.mpi(min_size=3)


def test_a_single_device_never_swaps(comm):
    link = link_of(comm, 2)
    if link is None:
        return
    config = toy_config(algorithm={"name": "mdgan"})
    lines = play(toy_algorithm(link, config, toy_shards([8])), 4)
    assert len({line["bytes_up"] for line in lines}) == 1


def test_equal_discriminators_give_the_generator_gradient_of_one(comm):
    """In all modes of uagan and from mdgan's feedback, against back-propagation through D."""
    config = toy_config(algorithm={"name": "uagan"})
    algorithm = toy_algorithm(Link(comm), config, toy_shards(UNEQUAL), batchnorm=False)
    G, D = toy_networks(batchnorm=False)
    loss = algorithm.rank_state.pair.loss
    z = torch.randn(6, NZ, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss.generator(D(G(z))).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in G.parameters()])

    def back_propagate(gradient):
        G.zero_grad()
        G(z).backward(gradient)
        return torch.cat([p.grad.flatten() for p in G.parameters()])

    fake = Batch(G(z).detach())
    _, gradient = feedback(D, loss, fake)
    assert_close(back_propagate(gradient), expected)
    logits, input_gradients = logits_and_input_gradients(D, fake)
    log_pi = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)[:, None].log()
    for mode in ("mean", "max", "softmax", "odds"):
        choices = toy_config(algorithm={"name": "uagan", "mode": mode}).algorithm
        table = logits.repeat(5, 1).requires_grad_()
        value = generator_loss(choices, loss, table, log_pi)
        (weights,) = torch.autograd.grad(value, table)
        mixture = (weights[..., None, None, None] * input_gradients).sum(0)
        assert_close(back_propagate(mixture), expected)
