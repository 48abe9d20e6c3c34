"""Losses, optimizer steps and the gradient penalty against their definitions."""

from __future__ import annotations

import copy

import pytest
import torch
from allocations import torch_allocations
from finite_differences import assert_weight_gradients, input_gradients
from torch import nn
from toys import NZ, toy_networks

from fedgan_mpi.config import Config, ModelConfig
from fedgan_mpi.federation.flat_parameters import FlatParameters
from fedgan_mpi.nn.losses import LOSSES
from fedgan_mpi.nn.optimizers import Adam, make_optimizer
from fedgan_mpi.nn.registry import build
from fedgan_mpi.nn.regularizers import GradientPenalty
from fedgan_mpi.nn.steps import Batch, discriminator_step, generator_step

# ------------------------------------------------------------ losses


def test_logarithmic_losses_equal_their_definitions():
    """Goodfellow et al. 2014: the minimax loss and its nonsaturating variant."""
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64)
    D = torch.sigmoid(logits)
    saturating, nonsaturating = LOSSES["saturating"], LOSSES["nonsaturating"]
    for loss in (saturating, nonsaturating):
        torch.testing.assert_close(loss.real(logits), -torch.log(D))
        torch.testing.assert_close(loss.fake(logits), -torch.log(1 - D))
    torch.testing.assert_close(nonsaturating.generator(logits), -torch.log(D))
    torch.testing.assert_close(saturating.generator(logits), torch.log(1 - D))
    extreme = torch.tensor([-1e4, 1e4])
    functions = (nonsaturating.real, nonsaturating.fake, nonsaturating.generator)
    assert all(function(extreme).isfinite().all() for function in functions)


def test_other_losses_equal_their_definitions():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    lsgan, hinge, wasserstein = (LOSSES[name] for name in ("lsgan", "hinge", "wgan-gp"))
    for values, expected in (
        (lsgan.real(x), 0.5 * (x - 1) ** 2),
        (lsgan.fake(x), 0.5 * x**2),
        (lsgan.generator(x), 0.5 * (x - 1) ** 2),
        (hinge.real(x), -torch.clamp(-1 + x, max=0)),
        (hinge.fake(x), -torch.clamp(-1 - x, max=0)),
        (hinge.generator(x), -x),
        (wasserstein.real(x), -x),
        (wasserstein.fake(x), x),
        (wasserstein.generator(x), -x),
    ):
        torch.testing.assert_close(values, expected)
    assert [name for name, loss in LOSSES.items() if loss.has_penalty] == ["wgan-gp"]


# ------------------------------------------------------------ steps


def test_default_betas():
    assert Config().training.betas == (0.5, 0.999)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_steps_on_the_flat_vector_equal_torchs_optimizers(kind):
    """Three steps of both networks, against torch.optim on a list of parameters."""
    G, D = toy_networks()
    torch_g, torch_d = copy.deepcopy(G), copy.deepcopy(D)
    flat = FlatParameters(G, D)
    settings = {"lr": 0.01, "betas": (0.5, 0.9)}
    flat_optimizer_d = make_optimizer(flat.phi, kind=kind, **settings)
    flat_optimizer_g = make_optimizer(flat.theta, kind=kind, **settings)
    make = torch.optim.SGD if kind == "sgd" else torch.optim.Adam
    options = {"lr": 0.01} if kind == "sgd" else settings
    torch_optimizer_d = make(torch_d.parameters(), **options)
    torch_optimizer_g = make(torch_g.parameters(), **options)
    loss = LOSSES["nonsaturating"]
    stream = torch.Generator().manual_seed(5)
    bce = nn.functional.binary_cross_entropy_with_logits
    one, zero = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for _ in range(3):
        real = torch.rand(6, 1, 4, 4, generator=stream, dtype=torch.float64)
        z = torch.randn(6, NZ, generator=stream, dtype=torch.float64)
        d_loss = discriminator_step(D, loss, flat_optimizer_d, Batch(real), Batch(G(z).detach()))
        fake = torch_g(z).detach()
        expected = bce(torch_d(real), one) + bce(torch_d(fake), zero)
        torch_optimizer_d.zero_grad()
        expected.backward()
        torch_optimizer_d.step()
        torch.testing.assert_close(d_loss, expected.detach())

        g_loss = generator_step(G, D, loss, flat_optimizer_g, Batch(z))
        expected = bce(torch_d(torch_g(z)), one)
        torch_optimizer_g.zero_grad()
        expected.backward()
        torch_optimizer_g.step()
        torch.testing.assert_close(g_loss, expected.detach())
    for network, expected in ((G, torch_g), (D, torch_d)):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-10, atol=1e-12)


def test_a_step_updates_one_network_only():
    G, D = toy_networks()
    flat = FlatParameters(G, D)
    optimizer_d = make_optimizer(flat.phi, kind="sgd", lr=0.1, betas=(0, 0))
    optimizer_g = make_optimizer(flat.theta, kind="sgd", lr=0.1, betas=(0, 0))
    theta, phi = flat.theta.detach().clone(), flat.phi.detach().clone()
    z = torch.randn(4, NZ, dtype=torch.float64)
    loss = LOSSES["saturating"]
    zeros = Batch(torch.zeros(4, 1, 4, 4).double())
    discriminator_step(D, loss, optimizer_d, zeros, Batch(G(z).detach()))
    assert torch.equal(flat.theta, theta) and not torch.equal(flat.phi, phi)
    phi = flat.phi.detach().clone()
    generator_step(G, D, loss, optimizer_g, Batch(z))
    assert torch.equal(flat.phi, phi) and not torch.equal(flat.theta, theta)
    assert all(p.requires_grad for p in D.parameters())


def test_steps_keep_gradients_in_the_flat_gradient():
    G, D = toy_networks()
    flat = FlatParameters(G, D)
    optimizer = make_optimizer(flat.phi, kind="adam", lr=0.1, betas=(0.5, 0.9))
    z = torch.randn(4, NZ, dtype=torch.float64)
    for _ in range(2):
        zeros = Batch(torch.zeros(4, 1, 4, 4).double())
        loss = LOSSES["nonsaturating"]
        discriminator_step(D, loss, optimizer, zeros, Batch(G(z).detach()))
        start = flat.gradient.data_ptr()
        end = start + flat.gradient.nbytes
        assert all(start <= p.grad.data_ptr() < end for p in D.parameters())


def test_adam_counts_steps_in_one_tensor():
    """A CUDA graph would replay a Python number unchanged, and with it the bias correction."""
    flat = FlatParameters(*toy_networks())
    optimizer = make_optimizer(flat.phi, kind="adam", lr=0.1, betas=(0.5, 0.9))
    assert isinstance(optimizer, Adam)
    steps = optimizer.steps
    optimizer.step()
    optimizer.step()
    assert optimizer.steps is steps and steps.item() == 2
    optimizer.set_steps(7)
    assert steps.item() == 7 and optimizer.state()["steps"] == 7
    optimizer.reset()
    assert steps.item() == 0


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_second_step_allocates_no_memory(kind):
    flat = FlatParameters(*build(ModelConfig(width=16), (1, 32, 32)))
    optimizer = make_optimizer(flat.phi, kind=kind, lr=1e-3, betas=(0.5, 0.9))
    assert flat.phi.nbytes > 100_000

    def take_step():
        optimizer.zero_gradient()
        optimizer.step()

    take_step()
    assert torch_allocations(take_step) < 1000


# ------------------------------------------------------------ gradient penalty


def test_the_gradient_penalty_and_its_gradient_equal_finite_differences():
    _, D = toy_networks(batchnorm=False)
    stream = torch.Generator().manual_seed(0)
    real, fake = (torch.rand(5, 1, 4, 4, generator=stream, dtype=torch.float64) for _ in range(2))
    eps = torch.rand(7, 1, 1, 1, generator=stream, dtype=torch.float64)

    def numeric_penalty():
        """λ mean (‖∇D‖ - 1)², with ∇D pixel by pixel."""
        interpolates = eps[:4] * real[:4] + (1 - eps[:4]) * fake[:4]
        return 3.0 * (input_gradients(D, interpolates).norm(dim=1) - 1).square().mean()

    value = GradientPenalty(3.0, eps).loss(D, Batch(real), Batch(fake[:4]))
    torch.testing.assert_close(value.detach(), numeric_penalty(), rtol=1e-7, atol=0)
    value.backward()
    assert_weight_gradients(D.first.weight, numeric_penalty)
