"""All numbers of both networks in one contiguous vector; the networks become views of it.

The layout makes every transfer one slice, here in two lines:

    statistics of G | moments of G | controls of G | θ
    φ | controls of D | moments of D | statistics of D | fixed

Statistics are the floating-point buffers: BatchNorm's running means and variances, and the singular
vectors of spectral normalization. Integer counters stay in their modules. Sections of moments exist
only if they are averaged, those of control variates (controls) only with SCAFFOLD. Fixed parameters
of D, which need no gradient, are never sent in rounds. This file alone assigns `.data`: networks
are moved and cast first, then packed, and never moved again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Player = Literal["G", "D"]


class FlatParameters:
    """The vectors of one rank.

    gan, generator, discriminator: The 1-D slices that are sent. They include statistics if
        `with_statistics`.
    whole_generator, whole_discriminator: Slices that always include statistics.
    theta, phi: The parameters alone, as nn.Parameter with a flat gradient, for optimizers.
    fixed: The parameters of D that no step changes; they belong to no other slice.
    """

    def __init__(
        self,
        G: nn.Module,
        D: nn.Module,
        *,
        with_statistics: bool = True,
        with_moments_of: Collection[Player] = (),
        with_controls_of: Collection[Player] = (),
    ) -> None:
        trained = [p for p in D.parameters() if p.requires_grad]
        fixed = [p for p in D.parameters() if not p.requires_grad]
        parameters = [*G.parameters(), *trained]
        like = parameters[0]
        size_theta = sum(p.numel() for p in G.parameters())
        size_phi = sum(p.numel() for p in trained)
        size_fixed = sum(p.numel() for p in fixed)
        statistics_g, statistics_d = _statistics(G), _statistics(D)
        size_statistics_g = sum(b.numel() for b in statistics_g)
        size_statistics_d = sum(b.numel() for b in statistics_d)
        size_moments_g = 2 * size_theta if "G" in with_moments_of else 0
        size_moments_d = 2 * size_phi if "D" in with_moments_of else 0
        size_control_g = size_theta if "G" in with_controls_of else 0
        size_control_d = size_phi if "D" in with_controls_of else 0

        sizes_g = [size_statistics_g, size_moments_g, size_control_g, size_theta]
        sizes_d = [size_phi, size_control_d, size_moments_d, size_statistics_d]
        sizes = [*sizes_g, *sizes_d, size_fixed]
        self.vector = torch.zeros(sum(sizes), dtype=like.dtype, device=like.device)
        sections = self.vector.split(sizes)
        self.statistics_of_generator, self.moments_of_generator = sections[:2]
        self.control_of_generator, theta, phi, self.control_of_discriminator = sections[2:6]
        self.moments_of_discriminator, self.statistics_of_discriminator = sections[6:8]
        self.fixed = sections[8]
        self.gradient = torch.zeros(size_theta + size_phi, dtype=like.dtype, device=like.device)

        _place(statistics_g, self.statistics_of_generator)
        _place(list(G.parameters()), theta)
        _place(trained, phi)
        _place(statistics_d, self.statistics_of_discriminator)
        _place(fixed, self.fixed)
        gradient = self.gradient
        for parameter in parameters:
            parameter.grad, gradient = _head(gradient, parameter)

        self.theta = nn.Parameter(theta)
        self.theta.grad = self.gradient[:size_theta]
        self.phi = nn.Parameter(phi)
        self.phi.grad = self.gradient[size_theta:]

        middle = sum(sizes_g)
        start = 0 if with_statistics else size_statistics_g
        stop = sum(sizes_g + sizes_d) - (0 if with_statistics else size_statistics_d)
        self.gan = self.vector[start:stop]
        self.generator, self.discriminator = self.vector[start:middle], self.vector[middle:stop]
        self.whole_generator = self.vector[:middle]
        self.whole_discriminator = self.vector[middle : middle + sum(sizes_d)]
        # BatchNorm's part of the statistics: [means | variances].
        self.batchnorm_of_generator = self.statistics_of_generator[: _batchnorm_size(G)]
        self.batchnorm_of_discriminator = self.statistics_of_discriminator[: _batchnorm_size(D)]


def is_finite(vector: Tensor) -> bool:
    """Whether all numbers are finite. Numbers whose sum overflows count as not finite."""
    return math.isfinite(vector.sum())  # infinities and NaN propagate, and nothing is allocated


def _statistics(network: nn.Module) -> list[Tensor]:
    """Return the floating-point buffers: running means, running variances, then all others."""
    order = {"running_mean": 0, "running_var": 1}
    buffers = [(name, b) for name, b in network.named_buffers() if b.is_floating_point()]
    buffers.sort(key=lambda item: order.get(item[0].rpartition(".")[2], 2))
    return [buffer for _, buffer in buffers]


def _batchnorm_size(network: nn.Module) -> int:
    ends = ("running_mean", "running_var")
    return sum(b.numel() for name, b in network.named_buffers() if name.endswith(ends))


def _head(vector: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Split a vector: a view of its first numbers with the shape of `like`, and the rest.

    The view has the strides of `like`, so a kernel in channels_last keeps its memory order.
    """
    head, rest = vector.split([like.numel(), vector.numel() - like.numel()])
    return head.as_strided(like.shape, like.stride()), rest


def _place(tensors: Sequence[Tensor], vector: Tensor) -> None:
    """Copy tensors into the vector, one after the other, and make each a view of its slice."""
    for tensor in tensors:
        place, vector = _head(vector, tensor)
        place.copy_(tensor.data)
        tensor.data = place
