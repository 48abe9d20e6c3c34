"""The residual networks with self-attention: parameter counts, attention, conditioning, 256 px."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from fedgan_mpi.config import ModelConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.flat_parameters import FlatParameters
from fedgan_mpi.nn.losses import nonsaturating
from fedgan_mpi.nn.optimizers import Adam
from fedgan_mpi.nn.registry import build, count_parameters, initialize
from fedgan_mpi.nn.regularizers import ZeroCenteredPenalty
from fedgan_mpi.nn.resnet import SelfAttention, attention_level
from fedgan_mpi.nn.steps import Batch, discriminator_step, generator_step


def make(shape, *, nz=8, width=4, classes=0, kind="orthogonal"):
    model = ModelConfig(architecture="resnet", nz=nz, width=width, conditional=classes > 0)
    networks = build(model, shape, classes)
    for network in networks:
        initialize(network, kind, torch.Generator().manual_seed(0))
    return networks


# ---------------------------------------------------------------- parameters


def count_by_hand(maps_g, maps_d, attended, grid, channels, nz, classes):
    """Return |G| and |D| from the tables of layers."""
    attention = 2 * attended * (attended // 8) + 2 * attended * (attended // 2) + 1
    G = (nz + 1) * grid * maps_g[0]  # the linear layer
    for a, b in pairwise(maps_g):
        norms = 2 * classes * (a + b) if classes else 2 * (a + b)
        G += norms + 9 * a * b + 9 * b * b + a * b
    G += 2 * maps_g[-1] + (9 * maps_g[-1] * channels + channels)
    D = 0
    for n, (a, b) in enumerate(pairwise([channels, *maps_d])):
        has_shortcut = a != b or n + 2 < len(maps_d)
        D += (9 * a * b + b) + (9 * b * b + b) + (a * b + b) * has_shortcut
    D += maps_d[-1] + 1 + classes * maps_d[-1]
    return (G + attention, D + attention) if attended else (G, D)


COUNTS = {
    # (channels, size, nz, classes): feature maps of G, of D, where attention is, base grid.
    (3, 32, 100, 0): ([512, 256, 128, 64], [64, 128, 256, 512], 0, 16),
    (3, 64, 128, 0): ([1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024], 128 , 16),
    (1, 128, 64, 10): (
        [1024, 1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024, 1024], 256, 16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTS, ids=str)
def test_parameter_counts(case):
    channels, size, nz, classes = case
    maps_g, maps_d, attended, grid = COUNTS[case]
    model = ModelConfig(architecture="resnet", nz=nz)
    with torch.device("meta"):
        networks = build(model, (channels, size, size), classes)
    at_d = attended // 2  # before the block that doubles the maps at this scale
    expected_g, _ = count_by_hand(maps_g, maps_d, attended, grid, channels, nz, classes)
    _, expected_d = count_by_hand(maps_g, maps_d, at_d, grid, channels, nz, classes)
    assert tuple(map(count_parameters, networks)) == (expected_g, expected_d)


def test_initial_matrices_are_orthogonal():
    G, D = make((3, 64, 64))
    for weight in (G.first.weight, G.blocks[0].conv1.weight, G.blocks[2].attention.out.weight):
        matrix = weight.detach().flatten(1)
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), rtol=0, atol=1e-5)
    original = D.last.parametrizations.weight.original
    assert original.norm().item() == pytest.approx(1)


def test_initial_parameters_do_not_depend_on_threads():
    threads = torch.get_num_threads()
    states = []
    for number in (1, 2):
        torch.set_num_threads(number)
        states.append(make((3, 64, 64), width=16)[0].state_dict())
        assert torch.get_num_threads() == number
    torch.set_num_threads(threads)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_discriminator_norm_is_refused():
    with pytest.raises(UserError, match="left out for resnet, whose D has spectral normalization"):
        ModelConfig(architecture="resnet", discriminator_norm="batch")


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ((32, 32), None), ((40, 40), None), ((40, 400), None), ((41, 41), 24), ((48, 64), 24),
        ((56, 56), 28), ((63, 64), 32), ((64, 64), 32), ((100, 80), 40), ((128, 128), 32),
        ((200, 256), 28), ((256, 256), 32),
    ],
)  # fmt: skip
def test_attention_is_at_about_32_pixels(size, side):
    """In G at maps of this shorter side, in D at the same scale; not in small images."""
    level = attention_level(*size)
    G, D = make((1, *size))
    seen = []
    for network in (G, D):
        for module in network.modules():
            if isinstance(module, SelfAttention):
                module.register_forward_hook(
                    lambda module, inputs, output: seen.append(min(output.shape[2:]))
                )
    D(G(torch.randn(1, 8)))
    if side is None:
        assert level is None and seen == []
        return
    in_g, in_d = seen
    assert in_g == side and side // 2 < in_d <= side


def attend(x, query, key, value, out, factor):
    """Return self-attention of one image (C, H, W) by loops over positions."""
    _, height, width = x.shape
    pooled = [(i, j) for i in range(height // 2) for j in range(width // 2)]

    def greatest(matrix, i, j):
        block = [matrix @ x[:, 2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1)]
        return torch.stack(block).amax(0)

    keys = [greatest(key, i, j) for i, j in pooled]
    values = [greatest(value, i, j) for i, j in pooled]
    result = x.clone()
    for i in range(height):
        for j in range(width):
            weights = torch.stack([(query @ x[:, i, j]) @ k for k in keys]).exp()
            mean = sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))
            result[:, i, j] += factor * (out @ mean)
    return result


def test_attention_equals_a_naive_loop():
    torch.manual_seed(0)
    attention = SelfAttention(16).double()
    nn.init.constant_(attention.factor, 0.7)
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    matrices = [
        getattr(attention, name).weight.detach().flatten(1)
        for name in ("query", "key", "value", "out")
    ]
    expected = torch.stack([attend(image, *matrices, 0.7) for image in x])
    with torch.no_grad():
        torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)
    assert (attention(x) - x).abs().max() > 0.01
    nn.init.zeros_(attention.factor)  # as new networks have it
    assert torch.equal(attention(x), x)


def test_every_layer_of_the_discriminator_has_spectral_norm_one():
    _, D = make((3, 48, 48), classes=3)
    for _ in range(200):
        D(torch.rand(2, 3, 48, 48), torch.eye(3)[:2])
    layers = [m for m in D.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 4 * 2 + 3 + 4 + 2 + 1  # blocks, shortcuts, attention, both ends
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item()
        assert norm == pytest.approx(1, abs=5e-3)


# ---------------------------------------------------------------- classes and steps


def test_the_class_sets_scale_and_shift_of_each_map():
    G, _ = make((1, 16, 16), classes=3)
    norm = G.blocks[0].norm1
    x, y = torch.randn(6, 16, 4, 4), torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    plain = nn.functional.batch_norm(x, None, None, training=True)
    scale, shift = norm.scale.weight.T[[0, 1, 2, 0, 1, 2]], norm.shift.weight.T[[0, 1, 2] * 2]
    expected = plain * (1 + scale)[..., None, None] + shift[..., None, None]
    torch.testing.assert_close(norm(x, y), expected)
    assert not torch.allclose(norm(x, y), norm(x, y.roll(1, 0)))


@pytest.mark.parametrize(("shape", "classes"), [((3, 256, 256), 0), ((2, 41, 60), 3)], ids=str)
def test_a_step_of_both_networks(shape, classes):
    """Finite losses and a change of every parameter tensor, also with a penalty."""
    G, D = make(shape, classes=classes, width=2)
    flat = FlatParameters(G, D)
    optimizers = [Adam(each, lr=0.01, betas=(0.0, 0.9)) for each in (flat.theta, flat.phi)]
    networks = nn.ModuleDict({"G": G, "D": D})
    before = {name: p.clone() for name, p in networks.named_parameters()}
    labels = torch.eye(classes)[:2] if classes else None
    torch.manual_seed(0)
    for _ in range(2):  # the factor of attention is 0 at first, so that its layers stay
        z, real = Batch(torch.randn(2, 8), labels), Batch(torch.rand(2, *shape) * 2 - 1, labels)
        fake = Batch(z.through(G).detach(), labels)
        assert fake.data.shape == (2, *shape)
        losses = [
            discriminator_step(
                D, nonsaturating, optimizers[1], real, fake, ZeroCenteredPenalty(1.0)
            ),
            generator_step(G, D, nonsaturating, optimizers[0], z),
        ]
        assert all(loss.isfinite() for loss in losses)
    same = [name for name, p in networks.named_parameters() if torch.equal(p, before[name])]
    assert same == [] and flat.vector.isfinite().all()
