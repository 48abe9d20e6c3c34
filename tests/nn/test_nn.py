"""Networks, losses, steps and the flat vector they live in, on one rank."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toys import NZ, toy_networks

from fedgan_mpi.config import Config, ModelConfig
from fedgan_mpi.federation.flat_parameters import FlatParameters
from fedgan_mpi.nn.dcgan import Discriminator, Generator
from fedgan_mpi.nn.losses import LOSSES
from fedgan_mpi.nn.optimizers import make_optimizer
from fedgan_mpi.nn.registry import build, count_parameters, initialize
from fedgan_mpi.nn.steps import Batch, Penalty, discriminator_step, generator_step

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


def flat_of(G, D, **options) -> FlatParameters:
    return FlatParameters(G, D, **options)


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


# ------------------------------------------------------------ other losses


def test_losses_without_probabilities_are_their_papers():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    least, hinge, wasserstein = (LOSSES[name] for name in ("lsgan", "hinge", "wgan-gp"))
    for ours, theirs in (
        (least.real(x), 0.5 * (x - 1) ** 2),
        (least.fake(x), 0.5 * x**2),
        (least.generator(x), 0.5 * (x - 1) ** 2),
        (hinge.real(x), -torch.clamp(-1 + x, max=0)),
        (hinge.fake(x), -torch.clamp(-1 - x, max=0)),
        (hinge.generator(x), -x),
        (wasserstein.real(x), -x),
        (wasserstein.fake(x), x),
        (wasserstein.generator(x), -x),
    ):
        torch.testing.assert_close(ours, theirs)
    assert [name for name, loss in LOSSES.items() if loss.has_penalty] == ["wgan-gp"]


def test_gradient_penalty_and_its_gradient_by_finite_differences():
    _, D = toy_networks(batchnorm=False)
    stream = torch.Generator().manual_seed(0)
    real, fake = (torch.rand(5, 1, 4, 4, generator=stream, dtype=torch.float64) for _ in "rf")
    mix = torch.rand(7, 1, 1, 1, generator=stream, dtype=torch.float64)

    def numeric():
        """λ mean (‖∇D‖ - 1)², the slope of D pixel by pixel."""
        between = mix[:4] * real[:4] + (1 - mix[:4]) * fake[:4]
        input_gradients = torch.zeros(4, 16, dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            for pixel in range(16):
                shift = torch.zeros(16, dtype=torch.float64)
                shift[pixel] = step
                up, down = (D(between + s * shift.view(1, 4, 4)) for s in (1, -1))
                input_gradients[:, pixel] = (up - down) / (2 * step)
        return 3.0 * (input_gradients.norm(dim=1) - 1).square().mean()

    value = Penalty(3.0, mix).of(D, Batch(real), Batch(fake[:4]))
    torch.testing.assert_close(value.detach(), numeric(), rtol=1e-7, atol=0)
    value.backward()
    weight = D.first.weight
    for place in ((0, 0), (3, 7), (7, 15)):
        before = weight.data[place].item()
        ends = []
        for shift in (1e-4, -1e-4):
            weight.data[place] = before + shift
            ends.append(numeric())
        weight.data[place] = before
        expected = (ends[0] - ends[1]) / 2e-4
        torch.testing.assert_close(weight.grad[place], expected, rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------ the residual pair, and classes


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_residual_shapes_and_ranges(size, channels):
    G, D = build(ModelConfig(architecture="sngan", nz=5, width=4), (channels, size, size))
    images = G(torch.randn(3, 5))
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    assert D(images).shape == (3,)


def test_residual_parameter_counts():
    """Public implementations of Miyato et al. 2018, table 4, with nz = 128 have 4,276,739 in G;
    ours has no biases before BatchNorm, 256 a block."""
    G, _ = build(ModelConfig(architecture="sngan", nz=128), (3, 32, 32))
    assert count_parameters(G) == 4_276_739 - 3 * 256
    G, D = build(ModelConfig(architecture="sngan"), (3, 32, 32))
    assert (count_parameters(G), count_parameters(D)) == (4_161_283, 1_053_825)


def test_every_layer_of_the_residual_discriminator_has_spectral_norm_one():
    _, D = build(ModelConfig(architecture="sngan", width=4), (3, 32, 32), classes=3)
    initialize(D, "fan_in", torch.Generator().manual_seed(0))
    flat = FlatParameters(nn.Linear(2, 2), D)
    before = flat.statistics_of_discriminator.clone()
    images, classes = torch.rand(2, 3, 32, 32), torch.eye(3)[:2]
    for _ in range(200):
        D(images, classes)
    layers = [m for m in D.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 4 * 2 + 2 + 2  # of four blocks, two shortcuts, the last and the classes
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item()
        assert norm == pytest.approx(1, abs=2e-3)
    # Its singular vectors live in the vector that travels, behind BatchNorm's statistics.
    assert not torch.equal(flat.statistics_of_discriminator, before)
    assert flat.batchnorm_of_discriminator.numel() == 0


def test_the_start_of_spectral_norm_is_the_streams_alone():
    def start(seed):
        torch.manual_seed(torch.initial_seed() + 1)
        _, D = build(ModelConfig(architecture="sngan", width=4), (1, 32, 32))
        initialize(D, "fan_in", torch.Generator().manual_seed(seed))
        return torch.cat([value.flatten() for value in D.state_dict().values()])

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


@pytest.mark.parametrize(("architecture", "size"), [("dcgan", 16), ("dcgan", 64), ("sngan", 32)])
def test_both_networks_listen_to_the_class(architecture, size):
    model = ModelConfig(architecture=architecture, nz=5, width=4, conditional=True)
    G, D = build(model, (1, size, size), classes=3)
    G.eval()
    D.eval()
    z, y = torch.randn(2, 5), torch.eye(3)
    images = [G(z, y[[k, k]]) for k in range(3)]
    assert not torch.allclose(images[0], images[1])
    logits = torch.stack([D(images[0], y[[k, k]]) for k in range(3)])
    assert not torch.allclose(logits[0], logits[1])
    # What the class adds is linear in it: the projection of the features on its vector.
    half = D(images[0], (y[[0, 0]] + y[[1, 1]]) / 2)
    torch.testing.assert_close(half, (logits[0] + logits[1]) / 2, rtol=1e-4, atol=1e-5)
    count = sum(p.numel() for p in D.parameters())
    _, plain = build(ModelConfig(architecture=architecture, nz=5, width=4), (1, size, size))
    assert count - count_parameters(plain) == 3 * D.projection.weight.shape[0]


def test_classes_of_fakes_follow_the_histogram():
    from dataclasses import replace

    from fedgan_mpi.federation.networks import build_networks

    config = Config()
    config = replace(config, model=ModelConfig(conditional=True, width=4))
    pair = build_networks(config, (1, 16, 16), histogram=[600, 300, 0, 100])
    noise = pair.noise(20_000, torch.Generator().manual_seed(0))
    shares = noise.classes.mean(0)
    expected = torch.tensor([0.6, 0.3, 0.0, 0.1])
    assert shares[2] == 0
    assert (
        (shares - expected).abs() < 4 * (expected * (1 - expected) / 20_000).sqrt() + 1e-9
    ).all()
    assert torch.equal(noise.classes.sum(1), torch.ones(20_000))
