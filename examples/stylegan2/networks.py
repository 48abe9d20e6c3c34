"""StyleGAN2 as networks of your own (Karras et al. 2020, arXiv:1912.04958), in plain torch.

    mpirun -n 9 python -m fedgan_mpi --model.architecture examples/stylegan2/networks.py:build

README.md has the options that suit it. Three parts of the paper are left out. Steps draw no random
numbers, so there are no noise inputs and no style mixing: an image depends on z and the class
alone. Path length regularization is a term of G's loss, not of the networks.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, leaky_relu, linear, pad

Shape = tuple[int, int, int]
_MOST_MAPS = 8  # feature maps, as a multiple of those next to the image


def build(
    image_shape: Shape,
    nz: int,
    classes: int,
    *,
    width: int = 32,
    latent: int = 128,
    mapping_layers: int = 8,
    minibatch_std: bool = True,
) -> tuple[nn.Module, nn.Module]:
    """StyleGAN2 without noise inputs, for images of any size from 8 pixels.

    width: feature maps next to the image; they double with each halving, up to 8 times. latent:
    length of w. minibatch_std: give D the variation between the images of a batch. Set it to false
    for algorithms that need the logit of each image alone (`uagan`, `ensemble`).
    """
    G = Generator(image_shape, nz, classes, width=width, latent=latent, layers=mapping_layers)
    return G, Discriminator(image_shape, classes, width=width, minibatch_std=minibatch_std)


class Generator(nn.Module):
    """Maps z (B, nz) and one-hot classes to images (B, C, H, W) in [-1, 1]: skip architecture."""

    def __init__(
        self, image_shape: Shape, nz: int, classes: int, *, width: int, latent: int, layers: int
    ) -> None:
        super().__init__()
        channels, *self.size = image_shape
        steps = doublings(*self.size)
        grid = [-(-side // 2**steps) for side in self.size]  # rounded up; the image is cropped
        maps = [width * min(2**n, _MOST_MAPS) for n in reversed(range(steps + 1))]
        self.mapping = Mapping(nz, classes, latent, layers)
        self.start = nn.Parameter(torch.randn(1, maps[0], *grid))
        self.first = StyledLayer(maps[0], maps[0], latent)
        self.blocks = nn.ModuleList(
            nn.ModuleList([StyledLayer(a, b, latent), StyledLayer(b, b, latent)])
            for a, b in pairwise(maps)
        )
        self.to_rgb = nn.ModuleList(
            ModulatedConv(each, channels, 1, latent, demodulate=False) for each in maps
        )

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        w = self.mapping(z, classes)
        x = self.first(self.start.expand(len(z), -1, -1, -1), w)
        image = self.to_rgb[0](x, w)
        for (one, two), to_rgb in zip(self.blocks, self.to_rgb[1:], strict=True):
            x = two(one(upsample(x), w), w)
            image = upsample(image) + to_rgb(x, w)
        top, left = ((s - side) // 2 for s, side in zip(image.shape[2:], self.size, strict=True))
        return torch.tanh(image[:, :, top : top + self.size[0], left : left + self.size[1]])


class Discriminator(nn.Module):
    """Maps images (B, C, H, W) and one-hot classes to logits (B,): residual architecture."""

    def __init__(
        self, image_shape: Shape, classes: int, *, width: int, minibatch_std: bool
    ) -> None:
        super().__init__()
        channels, height, columns = image_shape
        steps = doublings(height, columns)
        maps = [width * min(2**n, _MOST_MAPS) for n in range(steps + 1)]
        self.minibatch_std = minibatch_std
        self.from_rgb = EqualizedConv(channels, maps[0], 1)
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(maps)))
        self.conv = EqualizedConv(maps[-1] + minibatch_std, maps[-1], 3)
        positions = (height >> steps) * (columns >> steps)
        self.dense = EqualizedLinear(maps[-1] * positions, maps[-1])
        self.last = EqualizedLinear(maps[-1], maps[-1] if classes else 1)
        self.embedding = Mapping(0, classes, maps[-1], 2) if classes else None

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        x = self.blocks(activate(self.from_rgb(images)))
        if self.minibatch_std:
            x = torch.cat([x, deviation(x)], 1)
        x = activate(self.conv(x))
        x = self.last(activate(self.dense(x.flatten(1))))
        if self.embedding is None:
            return x.flatten()
        # The projection of StyleGAN2-ADA (Karras et al. 2020, arXiv:2006.06676).
        return (x * self.embedding(x[:, :0], classes)).sum(1) / math.sqrt(x.shape[1])


# -------------------------------------------------------------------- layers


class EqualizedLinear(nn.Module):
    """A linear layer whose parameters have variance 1 at the start (Karras et al. 2018).

    Its weight is scaled in each pass, so that all layers learn at the same speed.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        """bias: initial value. rate: factor of the learning rate."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualizedConv(nn.Module):
    """A convolution of stride 1 with equalized learning rate."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.padding = 1 / math.sqrt(inputs * kernel**2), kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class ModulatedConv(nn.Module):
    """A convolution whose input maps are scaled by a style, for each image.

    Demodulation divides each output map by the norm of its scaled kernel, so that it keeps its
    variance. Both scale feature maps here instead of kernels, which gives the same result: one
    convolution serves the whole batch.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, latent: int, *, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.style = EqualizedLinear(latent, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.padding = 1 / math.sqrt(inputs * kernel**2), kernel // 2
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style, weight = self.style(w), self.weight * self.scale
        x = conv2d(x * style[:, :, None, None], weight, padding=self.padding)
        if self.demodulate:
            squares = style.square() @ weight.square().sum((2, 3)).T  # (B, outputs)
            x = x * torch.rsqrt(squares + 1e-8)[:, :, None, None]
        return x + self.bias[:, None, None]


class StyledLayer(nn.Module):
    """A modulated convolution and its activation."""

    def __init__(self, inputs: int, outputs: int, latent: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, latent)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return activate(self.conv(x, w))


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut; halves height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one, self.two = EqualizedConv(inputs, inputs, 3), EqualizedConv(inputs, outputs, 3)
        self.shortcut = EqualizedConv(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = downsample(activate(self.two(activate(self.one(x)))))
        return (hidden + self.shortcut(downsample(x))) / math.sqrt(2)


class Mapping(nn.Module):
    """Maps z (B, nz) and the class to w (B, latent), with a hundredth of the learning rate."""

    def __init__(self, nz: int, classes: int, latent: int, layers: int) -> None:
        super().__init__()
        self.embedding = EqualizedLinear(classes, latent) if classes else None
        sizes = [nz + (latent if classes else 0)] + [latent] * layers
        self.layers = nn.ModuleList(EqualizedLinear(a, b, rate=0.01) for a, b in pairwise(sizes))

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        parts = [normalize(z)] if z.shape[1] else []
        if self.embedding is not None:
            parts += [normalize(self.embedding(classes))]
        w = torch.cat(parts, 1)
        for layer in self.layers:
            w = activate(layer(w))
        return w


# -------------------------------------------------------------------- operations


def doublings(height: int, width: int) -> int:
    """Return how often the start is doubled; its shorter side has 4 to 8 pixels."""
    return max(0, (min(height, width) // 4).bit_length() - 1)


def activate(x: Tensor) -> Tensor:
    return leaky_relu(x, 0.2) * math.sqrt(2)


def normalize(x: Tensor) -> Tensor:
    """Scale each row to a mean square of 1."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def deviation(x: Tensor) -> Tensor:
    """Return the mean standard deviation over the batch, as a map (B, 1, H, W)."""
    deviations = (x.var(0, unbiased=False) + 1e-8).sqrt()
    return deviations.mean().expand(len(x), 1, *x.shape[2:])


def upsample(x: Tensor) -> Tensor:
    """Double height and width with the filter [1, 3, 3, 1]: pixels are repeated, then blurred."""
    return blur(interpolate(x, scale_factor=2))


def downsample(x: Tensor) -> Tensor:
    """Halve height and width with the filter [1, 3, 3, 1]."""
    return avg_pool2d(blur(x), 2)


def blur(x: Tensor) -> Tensor:
    """Filter with [1, 2, 1] in both directions. Sums of slices need no buffer, which would travel
    between ranks."""
    x = pad(x, (1, 1, 1, 1))
    x = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    return (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 16
