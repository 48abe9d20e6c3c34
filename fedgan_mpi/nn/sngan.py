"""The residual networks of SNGAN (Miyato et al. 2018, arXiv:1802.05957, tables 4 and 5).

The discriminator uses spectral normalization. Both networks are unconditional or
class-conditional.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, relu

from fedgan_mpi.nn.resolution import MOST_MAPS, base_grid, crop, doublings

_FEW = 3  # doublings of networks with the same number of feature maps throughout


def build(
    image_shape: tuple[int, int, int], nz: int, classes: int, *, width: int | None = None
) -> tuple[nn.Module, nn.Module]:
    """Residual networks with spectral normalization in D, for images of any size from 8 pixels.

    width: feature maps next to the image; None: 64.
    """
    width = width or 64
    G = Generator(image_shape, nz=nz, width=width, classes=classes)
    return G, Discriminator(image_shape, width=width, classes=classes)


class Generator(nn.Module):
    """Maps z (B, nz) to images (B, C, H, W) in [-1, 1].

    A conditional generator takes z concatenated with the one-hot class.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, nz: int, width: int, classes: int = 0
    ) -> None:
        super().__init__()
        channels, *self.size = image_shape
        self.grid, steps = base_grid(*self.size), doublings(*self.size)
        # Up to 32 pixels, table 4: 256 = 4 · width maps throughout. Larger ones, table 5 for 64
        # pixels: from 1024 down to 64 = width.
        maps = [4 * width] * (steps + 1)
        if steps > _FEW:
            maps = [width * min(2**n, MOST_MAPS) for n in reversed(range(steps + 1))]
        self.first = nn.Linear(nz + classes, self.grid[0] * self.grid[1] * maps[0])
        self.blocks = nn.Sequential(*(_GeneratorBlock(*channels) for channels in pairwise(maps)))
        self.norm = nn.BatchNorm2d(maps[-1])
        self.last = nn.Conv2d(maps[-1], channels, 3, padding=1)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        if classes is not None:
            z = torch.cat([z, classes], dim=1)
        hidden = self.blocks(self.first(z).unflatten(1, (-1, *self.grid)))
        return crop(torch.tanh(self.last(relu(self.norm(hidden)))), *self.size)


class Discriminator(nn.Module):
    """Maps images (B, C, H, W) to logits (B,); each layer has spectral norm 1.

    A conditional discriminator adds the inner product of its features with a class embedding
    (projection discriminator, Miyato and Koyama 2018, arXiv:1802.05637).
    """

    def __init__(self, image_shape: tuple[int, int, int], *, width: int, classes: int = 0) -> None:
        super().__init__()
        channels, steps = image_shape[0], doublings(*image_shape[1:])
        # Up to 32 pixels, table 4: 128 = 2 · width maps throughout, two blocks downsample. Larger
        # ones, table 5 for 64 pixels: from 64 = width up to 1024, all blocks downsample.
        maps, downsamples = [2 * width] * 4, [n < min(steps, 2) for n in range(4)]
        if steps > _FEW:
            maps = [width * min(2**n, MOST_MAPS) for n in range(steps + 1)]
            downsamples = [True] * len(maps)
        self.blocks = nn.Sequential(
            *(
                DiscriminatorBlock(inputs, outputs, downsample=downsample, is_first=n == 0)
                for n, (inputs, outputs, downsample) in enumerate(
                    zip([channels, *maps[:-1]], maps, downsamples, strict=True)
                )
            )
        )
        self.last = spectral_norm(nn.Linear(maps[-1], 1))
        self.projection = (
            spectral_norm(nn.Linear(classes, maps[-1], bias=False)) if classes else None
        )

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        features = relu(self.blocks(images)).sum((2, 3))
        logits: Tensor = self.last(features).flatten()
        if self.projection is not None:
            logits = logits + (self.projection(classes) * features).sum(1)
        return logits


class _GeneratorBlock(nn.Module):
    """A residual block that doubles height and width, with a 1×1 convolution as shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        # BatchNorm would cancel a bias of the first convolution.
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(interpolate(relu(self.norm1(x)), scale_factor=2))
        hidden = self.conv2(relu(self.norm2(hidden)))
        # A 1×1 convolution commutes with nearest-neighbour upsampling; before it, it costs a
        # quarter.
        return hidden + interpolate(self.shortcut(x), scale_factor=2)


class DiscriminatorBlock(nn.Module):
    """A residual block. It optionally halves height and width by average pooling."""

    def __init__(self, inputs: int, outputs: int, *, downsample: bool, is_first: bool) -> None:
        super().__init__()
        self.pool: Callable[[Tensor], Tensor] = _average_pool if downsample else nn.Identity()
        self.activate: Callable[[Tensor], Tensor] = nn.Identity() if is_first else relu
        self.conv1 = spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1))
        is_identity = inputs == outputs and not downsample
        self.shortcut = (
            nn.Identity() if is_identity else spectral_norm(nn.Conv2d(inputs, outputs, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(relu(self.conv1(self.activate(x))))
        return self.pool(hidden) + self.shortcut(self.pool(x))


def _average_pool(x: Tensor) -> Tensor:
    return avg_pool2d(x, 2)


def spectral_norm(layer: nn.Module) -> nn.Module:
    """Divide a layer's weight by its largest singular value, in place."""
    return nn.utils.parametrizations.spectral_norm(layer)
