"""Networks, losses, steps and the flat vector they live in, on one rank."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toys import NZ, toy_networks

from fedgan_mpi.cluster.flat import Flat
from fedgan_mpi.config import Config, ModelConfig
from fedgan_mpi.learning.dcgan import Discriminator, Generator
from fedgan_mpi.learning.losses import LOSSES
from fedgan_mpi.learning.networks import build, count_parameters, initialize
from fedgan_mpi.learning.optimizers import make_optimizer
from fedgan_mpi.learning.steps import Batch, discriminator_step, generator_step

COUNTS = {
    # size, channels, nz, width: parameters of G and D; the first is the paper's pair.
    (64, 3, 100, 64): (3_576_704, 2_765_568),
    (64, 1, 100, 64): (3_574_656, 2_763_520),
    (32, 3, 100, 64): (1_068_928, 663_296),
    (32, 3, 100, 32): (370_624, 167_808),
    (16, 1, 64, 32): (99_008, 34_432),
}


@pytest.mark.parametrize("shape", COUNTS)
def test_parameter_counts(shape):
    size, channels, nz, width = shape
    G = Generator(size=size, channels=channels, nz=nz, width=width)
    D = Discriminator(size=size, channels=channels, width=width)
    assert (count_parameters(G), count_parameters(D)) == COUNTS[shape]


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_ranges(size, channels):
    G, D = build(ModelConfig(nz=5, width=4), (channels, size, size))
    images = G(torch.randn(3, 5))
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    assert D(images).shape == (3,)


def test_the_papers_pair_is_what_64_pixels_give_by_default():
    G, D = build(ModelConfig(), (3, 64, 64))
    assert (count_parameters(G), count_parameters(D)) == (3_576_704, 2_765_568)


def test_initialization_is_the_streams_alone():
    def parameters(kind, seed):
        G, _ = build(ModelConfig(width=8), (1, 16, 16))
        initialize(G, kind, torch.Generator().manual_seed(seed))
        return nn.utils.parameters_to_vector(G.parameters())

    for kind in ("fan_in", "dcgan"):
        assert torch.equal(parameters(kind, 1), parameters(kind, 1))
        assert not torch.equal(parameters(kind, 1), parameters(kind, 2))
    G, _ = build(ModelConfig(width=64), (3, 64, 64))
    initialize(G, "dcgan", torch.Generator().manual_seed(0))
    assert G.layers[3].weight.std().item() == pytest.approx(0.02, rel=0.01)


def test_losses_are_the_papers_logarithms():
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64)
    D = torch.sigmoid(logits)
    saturating, usual = LOSSES["saturating"], LOSSES["nonsaturating"]
    for loss in (saturating, usual):
        torch.testing.assert_close(loss.real(logits), -torch.log(D))
        torch.testing.assert_close(loss.fake(logits), -torch.log(1 - D))
    torch.testing.assert_close(usual.generator(logits), -torch.log(D))
    torch.testing.assert_close(saturating.generator(logits), torch.log(1 - D))
    extreme = torch.tensor([-1e4, 1e4])
    assert all(f(extreme).isfinite().all() for f in (usual.real, usual.fake, usual.generator))


def flat_of(G, D, **options) -> Flat:
    return Flat(G, D, **options)


@pytest.mark.parametrize("moments", [False, True])
def test_the_networks_are_views_of_the_vector(moments):
    G, D = toy_networks()
    before = [copy.deepcopy(n.state_dict()) for n in (G, D)]
    flat = flat_of(G, D, with_moments_of=("G", "D") if moments else ())
    for network, state in zip((G, D), before, strict=True):
        for name, value in network.state_dict().items():
            assert torch.equal(value, state[name])  # packing changes nothing
    flat.vector.fill_(0.25)
    for network in (G, D):
        for value in network.state_dict().values():
            assert not value.is_floating_point() or (value == 0.25).all()
    G.first.weight.data.fill_(3.0)
    assert (flat.theta == 3.0).sum() == G.first.weight.numel()
    sections = [flat.statistics_of_generator, flat.moments_of_generator, flat.theta, flat.phi]
    sections += [flat.moments_of_discriminator, flat.statistics_of_discriminator]
    assert sum(s.numel() for s in sections) == flat.vector.numel() == flat.gan.numel()


def test_what_travels():
    sizes = {}
    for statistics in (True, False):
        G, D = toy_networks()
        flat = flat_of(G, D, with_statistics=statistics)
        theta, phi = count_parameters(G), count_parameters(D)
        of_g, of_d = (32, 16) if statistics else (0, 0)
        assert flat.gan.numel() == theta + phi + of_g + of_d
        assert flat.generator.numel() == theta + of_g
        assert flat.discriminator.numel() == phi + of_d
        assert flat.whole_generator.numel() == theta + 32
        assert flat.gan.is_contiguous() and flat.discriminator.is_contiguous()
        flat.vector.zero_()
        flat.discriminator.fill_(1.0)
        assert (flat.theta == 0).all() and (flat.phi == 1).all()
        sizes[statistics] = flat.vector.numel()
    assert sizes[True] == sizes[False]


def test_means_stand_before_variances():
    G, D = toy_networks()
    flat = flat_of(G, D)
    D.norm.running_mean.fill_(5.0)
    D.norm.running_var.fill_(7.0)
    means, variances = flat.statistics_of_discriminator.chunk(2)
    assert (means == 5).all() and (variances == 7).all()


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_flat_steps_equal_steps_of_each_parameter(kind):
    """Three steps of either player on the vector, against torch's optimizer on a list of
    parameters."""
    G, D = toy_networks()
    plain_g, plain_d = copy.deepcopy(G), copy.deepcopy(D)
    flat = flat_of(G, D)
    settings = {"lr": 0.01, "betas": (0.5, 0.9)}
    flat_d = make_optimizer(flat.phi, kind=kind, **settings)
    flat_g = make_optimizer(flat.theta, kind=kind, **settings)
    make = torch.optim.SGD if kind == "sgd" else torch.optim.Adam
    options = {"lr": 0.01} if kind == "sgd" else settings
    each_d, each_g = make(plain_d.parameters(), **options), make(plain_g.parameters(), **options)
    loss = LOSSES["nonsaturating"]
    stream = torch.Generator().manual_seed(5)
    bce = nn.functional.binary_cross_entropy_with_logits
    for _ in range(3):
        real = torch.rand(6, 1, 4, 4, generator=stream, dtype=torch.float64)
        z = torch.randn(6, NZ, generator=stream, dtype=torch.float64)
        d_loss = discriminator_step(D, loss, flat_d, Batch(real), Batch(G(z).detach()))
        fake = plain_g(z).detach()
        one, zero = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        expected = bce(plain_d(real), one) + bce(plain_d(fake), zero)
        each_d.zero_grad()
        expected.backward()
        each_d.step()
        torch.testing.assert_close(d_loss, expected.detach())

        g_loss = generator_step(G, D, loss, flat_g, Batch(z))
        expected = bce(plain_d(plain_g(z)), one)
        each_g.zero_grad()
        expected.backward()
        each_g.step()
        torch.testing.assert_close(g_loss, expected.detach())
    for network, plain in ((G, plain_g), (D, plain_d)):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-10, atol=1e-12)


def test_a_step_moves_one_player_only():
    G, D = toy_networks()
    flat = flat_of(G, D)
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


def test_warm_steps_keep_the_gradient_where_it_was():
    G, D = toy_networks()
    flat = flat_of(G, D)
    optimizer = make_optimizer(flat.phi, kind="adam", lr=0.1, betas=(0.5, 0.9))
    z = torch.randn(4, NZ, dtype=torch.float64)
    for _ in range(2):
        zeros = Batch(torch.zeros(4, 1, 4, 4).double())
        loss = LOSSES["nonsaturating"]
        discriminator_step(D, loss, optimizer, zeros, Batch(G(z).detach()))
        start = flat.gradient.data_ptr()
        end = start + flat.gradient.nbytes
        assert all(start <= p.grad.data_ptr() < end for p in D.parameters())


def test_default_learning_rates_are_the_designs():
    training = Config().training
    assert (training.generator_lr, training.discriminator_lr) == (2e-4, 2e-4)
    assert training.betas == (0.5, 0.999)
