"""Residual networks with self-attention, after SAGAN (Zhang et al. 2019, arXiv:1805.08318) and
BigGAN (Brock et al. 2019, arXiv:1809.11096).

D uses spectral normalization. Both networks are unconditional or class-conditional.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, relu

from fedgan_mpi.nn.resolution import MOST_MAPS, base_grid, crop, doublings
from fedgan_mpi.nn.sngan import DiscriminatorBlock, spectral_norm


def build(
    image_shape: tuple[int, int, int], nz: int, classes: int, *, width: int | None = None
) -> tuple[nn.Module, nn.Module]:
    """Residual networks with self-attention, for images of any size from 8 pixels.

    width: feature maps next to the image; None: 64.
    """
    width = width or 64
    G = Generator(image_shape, nz=nz, width=width, classes=classes)
    return G, Discriminator(image_shape, width=width, classes=classes)


def attention_level(height: int, width: int) -> int | None:
    """Return the number of doublings after which G's feature maps are about 32 pixels.

    Their shorter side is then 24 to 40 pixels. None if the image itself is about as small: up to 40
    pixels.
    """
    shorter = min(base_grid(height, width))
    levels = range(1, doublings(height, width))
    return next((level for level in levels if 24 <= shorter * 2**level <= 40), None)


class Generator(nn.Module):
    """Maps z (B, nz) to images (B, C, H, W) in [-1, 1].

    The class of a conditional generator sets the scales and shifts of BatchNorm in each block.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, nz: int, width: int, classes: int = 0
    ) -> None:
        super().__init__()
        channels, *self.size = image_shape
        self.grid, steps = base_grid(*self.size), doublings(*self.size)
        maps = [width * min(2**n, MOST_MAPS) for n in reversed(range(steps + 1))]
        level = attention_level(*self.size)
        self.first = nn.Linear(nz, self.grid[0] * self.grid[1] * maps[0])
        self.blocks = nn.ModuleList(
            _GeneratorBlock(*inputs_and_outputs, classes=classes, attends=n == level)
            for n, inputs_and_outputs in enumerate(pairwise(maps), start=1)
        )
        self.norm = nn.BatchNorm2d(maps[-1])
        self.last = nn.Conv2d(maps[-1], channels, 3, padding=1)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        hidden = self.first(z).unflatten(1, (-1, *self.grid))
        for block in self.blocks:
            hidden = block(hidden, classes)
        return crop(torch.tanh(self.last(relu(self.norm(hidden)))), *self.size)


class Discriminator(nn.Module):
    """Maps images (B, C, H, W) to logits (B,); each layer has spectral norm 1.

    It has the generator's feature maps and attention in reverse order, and one more block. A
    conditional discriminator adds the inner product of its features with a class embedding
    (projection discriminator, Miyato and Koyama 2018, arXiv:1802.05637).
    """

    def __init__(self, image_shape: tuple[int, int, int], *, width: int, classes: int = 0) -> None:
        super().__init__()
        inputs, steps = image_shape[0], doublings(*image_shape[1:])
        level = attention_level(*image_shape[1:])
        layers: list[nn.Module] = []
        for n in range(steps + 1):
            outputs = width * min(2**n, MOST_MAPS)
            layers += [DiscriminatorBlock(inputs, outputs, downsample=n < steps, is_first=n == 0)]
            if level is not None and n + 1 == steps - level:
                layers += [SelfAttention(outputs, spectral_norm)]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.last = spectral_norm(nn.Linear(inputs, 1))
        self.projection = spectral_norm(nn.Linear(classes, inputs, bias=False)) if classes else None

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        features = relu(self.layers(images)).sum((2, 3))
        logits: Tensor = self.last(features).flatten()
        if self.projection is not None:
            logits = logits + (self.projection(classes) * features).sum(1)
        return logits


class SelfAttention(nn.Module):
    """Adds to each position a mean over all positions, weighted by similarity (Zhang et al. 2019).

    Keys and values are pooled to a quarter of the positions, as in the authors' program. The sum
    has a trained factor that starts at 0.
    """

    def __init__(
        self, maps: int, wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer
    ) -> None:
        """wrap: applied to each convolution, for spectral normalization."""
        super().__init__()
        few, half = max(1, maps // 8), max(1, maps // 2)
        self.factor = nn.Parameter(torch.zeros(1))
        self.query = wrap(nn.Conv2d(maps, few, 1, bias=False))
        self.key = wrap(nn.Conv2d(maps, few, 1, bias=False))
        self.value = wrap(nn.Conv2d(maps, half, 1, bias=False))
        self.out = wrap(nn.Conv2d(half, maps, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        queries = self.query(x).flatten(2)  # (B, maps, positions)
        keys = max_pool2d(self.key(x), 2).flatten(2)
        values = max_pool2d(self.value(x), 2).flatten(2)
        weights = torch.softmax(queries.transpose(1, 2) @ keys, dim=2)  # (B, positions, pooled)
        means = (values @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.factor * self.out(means)


class _GeneratorBlock(nn.Module):
    """A residual block that doubles height and width, with a 1×1 convolution as shortcut."""

    def __init__(self, inputs: int, outputs: int, *, classes: int, attends: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = _ClassNorm(inputs, classes), _ClassNorm(outputs, classes)
        # BatchNorm, here and in the blocks that follow, would cancel biases.
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.attention = SelfAttention(outputs) if attends else nn.Identity()

    def forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        hidden = self.conv1(interpolate(relu(self.norm1(x, classes)), scale_factor=2))
        hidden = self.conv2(relu(self.norm2(hidden, classes)))
        # A 1×1 convolution commutes with nearest-neighbour upsampling; before it, it costs a
        # quarter.
        out: Tensor = self.attention(hidden + interpolate(self.shortcut(x), scale_factor=2))
        return out


class _ClassNorm(nn.Module):
    """BatchNorm whose scales and shifts depend on the class, if there are classes."""

    def __init__(self, maps: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(maps, affine=not classes)
        self.scale = nn.Linear(classes, maps, bias=False) if classes else None
        self.shift = nn.Linear(classes, maps, bias=False) if classes else None

    def forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        x = self.norm(x)
        if self.scale is None or self.shift is None:
            return x
        scale, shift = (layer(classes)[:, :, None, None] for layer in (self.scale, self.shift))
        return x * (1 + scale) + shift
