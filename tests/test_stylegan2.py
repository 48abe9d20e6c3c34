"""The example of StyleGAN2: its layers against plain definitions, and a job."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import fedgan_mpi
from fedgan_mpi.config.io import read_values
from fedgan_mpi.federation.flat_parameters import FlatParameters
from fedgan_mpi.nn.losses import nonsaturating
from fedgan_mpi.nn.optimizers import Adam
from fedgan_mpi.nn.regularizers import ZeroCenteredPenalty
from fedgan_mpi.nn.steps import Batch, discriminator_step, generator_step
from fedgan_mpi.testing.checks import check_networks
from fedgan_mpi.testing.runs import losses

FOLDER = Path(__file__).parents[1] / "examples" / "stylegan2"
NETWORKS = f"{FOLDER / 'networks.py'}:build"
SMALL = {"width": 2, "latent": 8, "mapping_layers": 2}


@pytest.fixture(scope="module")
def example():
    """The module, imported as a file."""
    specification = importlib.util.spec_from_file_location(
        "stylegan2_example", FOLDER / "networks.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 20, 33), (2, 8, 8), (1, 256, 256)], ids=str)
def test_the_networks_are_what_the_program_expects(shape):
    check_networks(NETWORKS, image_shape=shape, classes=3, options=SMALL)


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolutions_equal_a_convolution_for_each_image(example, kernel, demodulate):
    torch.manual_seed(0)
    layer = example.ModulatedConv(5, 4, kernel, 6, demodulate=demodulate).double()
    nn.init.normal_(layer.bias)
    nn.init.normal_(layer.style.bias)
    x, w = torch.randn(3, 5, 7, 6).double(), torch.randn(3, 6).double()
    expected = []
    for image, latent in zip(x, w, strict=True):
        style = layer.style.weight @ latent / math.sqrt(6) + layer.style.bias
        weight = layer.weight / math.sqrt(5 * kernel * kernel)
        weight = torch.stack([weight[:, i] * style[i] for i in range(5)], dim=1)
        if demodulate:
            weight = torch.stack([each / (each.square().sum() + 1e-8).sqrt() for each in weight])
        expected.append(nn.functional.conv2d(image[None], weight, layer.bias, padding="same"))
    torch.testing.assert_close(layer(x, w), torch.cat(expected), rtol=1e-12, atol=1e-12)


def test_demodulated_maps_keep_their_variance(example):
    """For any style; without demodulation, the variance grows with it."""
    torch.manual_seed(0)
    x, w = torch.randn(2, 64, 32, 32), torch.randn(2, 8)
    for demodulate in (True, False):
        layer = example.ModulatedConv(64, 16, 3, 8, demodulate=demodulate)
        nn.init.constant_(layer.style.bias, 10.0)
        variance = layer(x, w)[..., 1:-1, 1:-1].var().item()
        assert (variance == pytest.approx(1, rel=0.1)) == demodulate


def test_modulated_convolutions_have_second_derivatives(example):
    torch.manual_seed(0)
    layer = example.ModulatedConv(2, 2, 3, 3).double()
    x, w = (torch.randn(*s).double().requires_grad_() for s in ((2, 2, 3, 3), (2, 3)))
    assert torch.autograd.gradgradcheck(layer, (x, w))


def test_resampling_has_the_filter_of_the_paper(example):
    """A point becomes the outer product of [1, 3, 3, 1]; a constant stays constant."""
    filter_ = torch.tensor([1.0, 3.0, 3.0, 1.0])
    point = torch.zeros(1, 1, 5, 5)
    point[..., 2, 2] = 1
    expected = torch.outer(filter_, filter_) / 16
    torch.testing.assert_close(example.upsample(point)[0, 0, 3:7, 3:7], expected)
    assert example.upsample(point).sum().item() == pytest.approx(4)
    weights = torch.zeros(1, 1, 8, 8, requires_grad=True)
    (seen,) = torch.autograd.grad(example.downsample(weights)[0, 0, 1, 1], weights)
    torch.testing.assert_close(seen[0, 0, 1:5, 1:5], expected / 4)
    ones = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(example.downsample(ones)[..., 1:-1, 1:-1], ones[..., :2, :2])


def test_the_minibatch_deviation_is_zero_for_equal_images(example):
    x = torch.randn(1, 3, 4, 5).expand(6, -1, -1, -1)
    assert example.deviation(x).max() < 2e-4
    x = torch.randn(6, 3, 4, 5)
    expected = x.numpy().std(axis=0).mean()
    assert example.deviation(x).shape == (6, 1, 4, 5)
    torch.testing.assert_close(example.deviation(x).numpy().max(), expected, rtol=1e-5, atol=0)


def test_logits_depend_on_other_images_only_with_the_minibatch_deviation(example):
    for minibatch_std in (True, False):
        _, D = example.build((1, 16, 16), 4, 0, minibatch_std=minibatch_std, width=2, latent=8)
        images = torch.randn(3, 1, 16, 16)
        same = torch.allclose(D(images)[:2], D(images[:2]), rtol=1e-4, atol=1e-6)
        assert same == (not minibatch_std)


def test_equalized_layers_start_with_variance_one(example):
    """Outputs for any rate; parameters for rate 1, else larger ones, which learn more slowly."""
    torch.manual_seed(0)
    x = torch.randn(256, 128)
    for rate in (1.0, 0.01):
        layer = example.EqualizedLinear(128, 64, rate=rate)
        assert layer.weight.std().item() == pytest.approx(1 / rate, rel=0.05)
        assert layer(x).std().item() == pytest.approx(1, rel=0.1)


# ---------------------------------------------------------------- steps and jobs


@pytest.mark.parametrize("classes", [0, 3])
def test_steps_with_r1_change_every_parameter(example, classes):
    torch.manual_seed(0)
    G, D = example.build((3, 16, 16), 4, classes, **SMALL)
    flat = FlatParameters(G, D)
    assert len(flat.statistics_of_generator) == len(flat.statistics_of_discriminator) == 0
    networks = nn.ModuleDict({"G": G, "D": D})
    before = {name: p.clone() for name, p in networks.named_parameters()}
    labels = torch.eye(classes)[[0, 1, 2, 0]] if classes else None
    z, real = Batch(torch.randn(4, 4), labels), Batch(torch.randn(4, 3, 16, 16), labels)
    fake = Batch(z.through(G).detach(), labels)
    optimizers = [Adam(each, lr=0.01, betas=(0.0, 0.99)) for each in (flat.theta, flat.phi)]
    penalty = ZeroCenteredPenalty(1.0)
    discriminator_step(D, nonsaturating, optimizers[1], real, fake, penalty)
    generator_step(G, D, nonsaturating, optimizers[0], z)
    same = [name for name, p in networks.named_parameters() if torch.equal(p, before[name])]
    assert same == [] and flat.vector.isfinite().all()


def test_a_short_job(tmp_path, monkeypatch):
    """With the options of run.toml, and classes; only the user's own name loads the networks."""
    monkeypatch.chdir(FOLDER.parents[1])
    options = read_values(FOLDER / "run.toml")
    assert options["model.architecture"] == "examples/stylegan2/networks.py:build"
    config = {
        "run": {"directory": str(tmp_path), "name": "a"},
        "data": {"devices": 2},
        "model": {"conditional": True, "nz": 8, "options": SMALL},
        "evaluation": {"samples": 60},
        "training": {
            "rounds": 2, "batch_size": 8, "regularizer": "r1", "regularizer_interval": 2,
            "betas": options["training.betas"], "generator_lr": options["training.generator_lr"],
        },
    }  # fmt: skip
    run = fedgan_mpi.train(config, networks=NETWORKS).path
    assert len(losses(run)) == 2
    images = fedgan_mpi.load_generator(run, networks=NETWORKS)(3, seed=1)
    assert images.shape == (3, 1, 16, 16) and images.std() > 0
