"""[θ | φ] in one contiguous vector; the two networks go on as views of it.

Layout, so that whatever travels is one slice:

    statistics of G | moments of G | θ | φ | moments of D | statistics of D

Statistics are BatchNorm's running means and variances; integer counters stay in their modules. A
section of moments exists only where an algorithm averages them. This file alone assigns `.data`:
networks are placed on their device and cast first, packed last, and never moved again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Flat:
    """The vectors of one rank.

    gan, generator, discriminator: slices that travel, 1-D; `with_statistics` says whether
    BatchNorm's are in them. theta, phi: the parameters alone, as nn.Parameter with a flat gradient,
    for optimizers.
    """

    def __init__(
        self,
        G: nn.Module,
        D: nn.Module,
        *,
        with_statistics: bool = True,
        with_moments_of_discriminator: bool = False,
    ) -> None:
        parameters = [*G.parameters(), *D.parameters()]
        like = parameters[0]
        size_theta = sum(p.numel() for p in G.parameters())
        size_phi = sum(p.numel() for p in D.parameters())
        statistics_g, statistics_d = _statistics(G), _statistics(D)
        size_statistics_g = sum(b.numel() for b in statistics_g)
        size_statistics_d = sum(b.numel() for b in statistics_d)
        size_moments_d = 2 * size_phi if with_moments_of_discriminator else 0

        sizes = [size_statistics_g, size_theta, size_phi, size_moments_d, size_statistics_d]
        self.vector = torch.zeros(sum(sizes), dtype=like.dtype, device=like.device)
        statistics_of_g, theta, phi, moments, statistics_of_d = self.vector.split(sizes)
        self.gradient = torch.zeros(size_theta + size_phi, dtype=like.dtype, device=like.device)

        _place(statistics_g, statistics_of_g)
        _place(list(G.parameters()), theta)
        _place(list(D.parameters()), phi)
        _place(statistics_d, statistics_of_d)
        gradient = self.gradient
        for parameter in parameters:
            parameter.grad, gradient = _head(gradient, parameter)

        self.theta = nn.Parameter(theta)
        self.theta.grad = self.gradient[:size_theta]
        self.phi = nn.Parameter(phi)
        self.phi.grad = self.gradient[size_theta:]
        self.moments_of_discriminator = moments
        self.statistics_of_discriminator = statistics_of_d
        self.statistics_of_generator = statistics_of_g

        start = 0 if with_statistics else size_statistics_g
        stop = self.vector.numel() - (0 if with_statistics else size_statistics_d)
        self.gan = self.vector[start:stop]
        self.generator = self.vector[start : size_statistics_g + size_theta]
        self.discriminator = self.vector[size_statistics_g + size_theta : stop]
        self.whole_generator = self.vector[: size_statistics_g + size_theta]


def _statistics(network: nn.Module) -> list[Tensor]:
    """Floating-point buffers, running means before running variances."""
    buffers = [(name, b) for name, b in network.named_buffers() if b.is_floating_point()]
    return [
        buffer for _, buffer in sorted(buffers, key=lambda item: item[0].endswith("running_var"))
    ]


def _head(vector: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    head, rest = vector.split([like.numel(), vector.numel() - like.numel()])
    return head.view_as(like), rest


def _place(tensors: list[Tensor], vector: Tensor) -> None:
    """Copy the tensors into the vector, one after the other, and make each a view of its place."""
    for tensor in tensors:
        place, vector = _head(vector, tensor)
        place.copy_(tensor.data)
        tensor.data = place
