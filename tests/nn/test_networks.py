"""DCGAN and SNGAN: shapes, parameter counts, initialization, conditioning, spectral norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedgan_mpi.config import ModelConfig
from fedgan_mpi.config.model import default_width
from fedgan_mpi.federation.flat_parameters import FlatParameters
from fedgan_mpi.nn.dcgan import Discriminator, Generator
from fedgan_mpi.nn.registry import build, count_parameters, initialize
from fedgan_mpi.nn.resolution import base_grid, crop, doublings

COUNTS = {
    # (size, channels, nz, width): parameters of G and of D. The first row has, as far as we know,
    # the counts of Ren et al. 2021.
    (64, 3, 100, 64): (3_576_704, 2_765_568),
    (64, 1, 100, 64): (3_574_656, 2_763_520),
    (32, 3, 100, 64): (1_068_928, 663_296),
    (32, 3, 100, 32): (370_624, 167_808),
    (16, 1, 64, 32): (99_008, 34_432),
}


@pytest.mark.parametrize("shape", COUNTS)
def test_dcgan_parameter_counts(shape):
    size, channels, nz, width = shape
    G = Generator((channels, size, size), nz=nz, width=width)
    D = Discriminator((channels, size, size), width=width)
    assert (count_parameters(G), count_parameters(D)) == COUNTS[shape]


def test_the_default_pair_for_64_pixels_has_the_first_rows_counts():
    G, D = build(ModelConfig(), (3, 64, 64))
    assert (count_parameters(G), count_parameters(D)) == (3_576_704, 2_765_568)


def test_sngan_parameter_counts():
    """Public implementations of Miyato et al. 2018, table 4, have 4,276,739 in G for nz = 128.

    Ours has no biases before BatchNorm, 256 per block.
    """
    G, _ = build(ModelConfig(architecture="sngan", nz=128), (3, 32, 32))
    assert count_parameters(G) == 4_276_739 - 3 * 256
    G, D = build(ModelConfig(architecture="sngan"), (3, 32, 32))
    assert (count_parameters(G), count_parameters(D)) == (4_161_283, 1_053_825)


@pytest.mark.parametrize("architecture", ["dcgan", "sngan", "resnet"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 16, 16), (1, 20, 16), (1, 17, 17)], ids=str)
def test_the_default_width_is_the_one_that_is_recorded(architecture, shape):
    """Generator files record it, because the default may change."""
    width = default_width(architecture, min(shape[1:]))
    counts = [
        [count_parameters(n) for n in build(ModelConfig(architecture=architecture, width=w), shape)]
        for w in (None, width)
    ]
    assert counts[0] == counts[1]


SHAPES = [
    (1, 8, 8), (1, 16, 16), (3, 16, 16), (1, 28, 28), (1, 32, 32), (2, 33, 9), (3, 48, 64),
    (4, 50, 37), (3, 64, 64), (5, 8, 100), (1, 128, 128), (3, 256, 256),
]  # fmt: skip


@pytest.mark.parametrize("architecture", ["dcgan", "sngan", "resnet"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_ranges(architecture, shape):
    """Pixels depend on the noise, and count for D, also near the borders."""
    torch.manual_seed(0)
    G, D = build(ModelConfig(architecture=architecture, nz=5, width=4), shape)
    z = torch.randn(3, 5)
    images = G(z)
    assert images.shape == (3, *shape) and images.abs().max() <= 1
    assert (images.std(0) > 0).float().mean() > 0.99
    inputs = images.detach().requires_grad_()
    logits = D(inputs)
    assert logits.shape == (3,)
    used = torch.autograd.grad(logits.sum(), inputs)[0].abs().sum((0, 1)) > 0
    # Halving a side of odd length ignores its last line.
    assert used[: shape[1] // 2 * 2 - 6, : shape[2] // 2 * 2 - 6].all()


@pytest.mark.parametrize(
    ("size", "doubled", "grid"),
    [
        ((8, 8), 1, (4, 4)),
        ((15, 15), 1, (8, 8)),
        ((16, 16), 2, (4, 4)),
        ((28, 28), 2, (7, 7)),
        ((33, 33), 3, (5, 5)),
        ((48, 64), 3, (6, 8)),
        ((64, 48), 3, (8, 6)),
        ((255, 256), 5, (8, 8)),
        ((256, 256), 6, (4, 4)),
    ],
)
def test_the_base_grid_covers_the_image(size, doubled, grid):
    assert doublings(*size) == doubled and base_grid(*size) == grid
    covered = [side * 2**doubled for side in grid]
    assert all(side <= whole < side + 2**doubled for side, whole in zip(size, covered, strict=True))


def test_images_are_the_middle_of_what_covers_them():
    whole = torch.arange(30.0).view(1, 1, 5, 6)
    assert torch.equal(crop(whole, 3, 6), whole[:, :, 1:4])
    assert torch.equal(crop(whole, 5, 3), whole[..., 1:4])


# ------------------------------------------------------------ initialization


def test_initial_parameters_depend_on_the_stream_alone():
    def parameters(kind, seed):
        G, _ = build(ModelConfig(width=8), (1, 16, 16))
        initialize(G, kind, torch.Generator().manual_seed(seed))
        return nn.utils.parameters_to_vector(G.parameters())

    for kind in ("fan_in", "dcgan", "orthogonal"):
        assert torch.equal(parameters(kind, 1), parameters(kind, 1))
        assert not torch.equal(parameters(kind, 1), parameters(kind, 2))
    G, _ = build(ModelConfig(width=64), (3, 64, 64))
    initialize(G, "dcgan", torch.Generator().manual_seed(0))
    assert G.layers[3].weight.std().item() == pytest.approx(0.02, rel=0.01)


def test_initial_singular_vectors_depend_on_the_stream_alone():
    def initial_state(seed):
        torch.manual_seed(torch.initial_seed() + 1)
        _, D = build(ModelConfig(architecture="sngan", width=4), (1, 32, 32))
        initialize(D, "fan_in", torch.Generator().manual_seed(seed))
        return torch.cat([value.flatten() for value in D.state_dict().values()])

    assert torch.equal(initial_state(1), initial_state(1))
    assert not torch.equal(initial_state(1), initial_state(2))


# ------------------------------------------------------------ spectral norm and classes


def test_every_layer_of_the_sngan_discriminator_has_spectral_norm_one():
    _, D = build(ModelConfig(architecture="sngan", width=4), (3, 32, 32), classes=3)
    initialize(D, "fan_in", torch.Generator().manual_seed(0))
    flat = FlatParameters(nn.Linear(2, 2), D)
    before = flat.statistics_of_discriminator.clone()
    images, classes = torch.rand(2, 3, 32, 32), torch.eye(3)[:2]
    for _ in range(200):
        D(images, classes)
    layers = [m for m in D.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 4 * 2 + 2 + 2  # four blocks, two shortcuts, the last layer, the classes
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item()
        assert norm == pytest.approx(1, abs=2e-3)
    # The singular vectors are part of the flat vector, but not of its BatchNorm section.
    assert not torch.equal(flat.statistics_of_discriminator, before)
    assert flat.batchnorm_of_discriminator.numel() == 0


CONDITIONAL = [("dcgan", 16), ("dcgan", 64), ("sngan", 32), ("resnet", 48)]


@pytest.mark.parametrize(("architecture", "size"), CONDITIONAL)
def test_conditional_networks_depend_on_the_class(architecture, size):
    model = ModelConfig(architecture=architecture, nz=5, width=4, conditional=True)
    G, D = build(model, (1, size, size), classes=3)
    G.eval()
    D.eval()
    z, y = torch.randn(2, 5), torch.eye(3)
    images = [G(z, y[[k, k]]) for k in range(3)]
    assert not torch.allclose(images[0], images[1])
    logits = torch.stack([D(images[0], y[[k, k]]) for k in range(3)])
    assert not torch.allclose(logits[0], logits[1])
    # The projection is linear in the class vector.
    mixed = D(images[0], (y[[0, 0]] + y[[1, 1]]) / 2)
    torch.testing.assert_close(mixed, (logits[0] + logits[1]) / 2, rtol=1e-4, atol=1e-5)
    count = sum(p.numel() for p in D.parameters())
    _, plain = build(ModelConfig(architecture=architecture, nz=5, width=4), (1, size, size))
    assert count - count_parameters(plain) == 3 * D.projection.weight.shape[0]
