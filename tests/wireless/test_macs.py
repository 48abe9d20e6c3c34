"""Multiply-accumulates of training steps, against products counted layer by layer."""

from __future__ import annotations

import pytest

from fedgan_mpi.config import ModelConfig
from fedgan_mpi.nn.losses import LOSSES
from fedgan_mpi.nn.registry import build, count_parameters
from fedgan_mpi.wireless.macs import count_macs


def count_products(size: int, width: int, channels: int) -> tuple[list[int], list[int]]:
    """Return the products per image of each convolution of G and of D, for nz = 100.

    A layer has inputs × outputs × 16 × positions of its smaller feature map, from 4×4 up.
    """
    widths = [width * 2**n for n in range(size.bit_length() - 4, -1, -1)]  # at 4×4, 8×8, … size/2
    positions = [16 * 4**n for n in range(len(widths))]
    pairs = list(zip(widths, [*widths[1:], channels], strict=True))
    inner = [16 * a * b * n for (a, b), n in zip(pairs, positions, strict=True)]
    return [16 * 100 * widths[0], *inner], [*inner[::-1], 16 * widths[0]]


@pytest.mark.parametrize(("size", "width", "channels"), [(64, 64, 3), (32, 16, 1)])
def test_steps_cost_the_products_of_their_layers(size, width, channels):
    """A layer's products count once forward, once for its parameters' gradient and once for its
    input's gradient, if that is needed."""
    shape = (channels, size, size)
    G, D = build(ModelConfig(width=width), shape)
    macs = count_macs(G, D, LOSSES["nonsaturating"], shape, nz=100, classes=0)
    g, d = count_products(size, width, channels)
    assert macs.generator_forward == sum(g)
    assert macs.feedback == 2 * sum(d)
    assert macs.generator_backward == 2 * sum(g) - g[0]  # noise needs no gradient
    assert macs.discriminator_step == 2 * (3 * sum(d) - d[0])  # given images need none either
    parts = macs.generator_forward + macs.feedback + macs.generator_backward
    assert macs.generator_step == parts


def test_the_64_pixel_pair_matches_an_independent_estimate():
    """728 million multiply-accumulates per step on D with its fake, 522 million per step on G."""
    shape = (3, 64, 64)
    G, D = build(ModelConfig(width=64), shape)
    assert (count_parameters(G), count_parameters(D)) == (3_576_704, 2_765_568)
    macs = count_macs(G, D, LOSSES["nonsaturating"], shape, nz=100, classes=0)
    assert macs.generator_forward + macs.discriminator_step == pytest.approx(728e6, rel=0.01)
    assert macs.generator_step == pytest.approx(522e6, rel=0.01)


def test_a_gradient_penalty_is_counted_and_the_networks_stay_unchanged():
    shape = (1, 16, 16)
    model = ModelConfig(width=8, discriminator_norm="none", conditional=True)
    G, D = build(model, shape, 10)
    before = [parameter.clone() for parameter in D.parameters()]
    plain, penalty = (
        count_macs(G, D, LOSSES[loss], shape, nz=100, classes=10)
        for loss in ("nonsaturating", "wgan-gp")
    )
    assert penalty.discriminator_step > 1.5 * plain.discriminator_step
    assert penalty.generator_step == plain.generator_step
    assert all((a == b).all() for a, b in zip(before, D.parameters(), strict=True))
