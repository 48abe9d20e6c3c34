"""DCGAN (Radford et al. 2016, arXiv:1511.06434), unconditional or class-conditional.

With nz = 100 and width = 64, the pair for 64-pixel RGB images has 3,576,704 and 2,765,568
parameters. As far as we know, these are the counts of Ren et al. 2021 (arXiv:2107.08681).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fedgan_mpi.config.model import default_discriminator_norm, default_width
from fedgan_mpi.nn.resolution import MOST_MAPS, base_grid, crop, doublings


def build(
    image_shape: tuple[int, int, int],
    nz: int,
    classes: int,
    *,
    width: int | None = None,
    discriminator_norm: Literal["batch", "none"] | None = None,
) -> tuple[nn.Module, nn.Module]:
    """DCGAN for images of any size from 8 pixels.

    width: feature maps next to the image; None: 32 up to 16 pixels, else 64. discriminator_norm:
    None: "batch", but "none" up to 16 pixels.
    """
    smallest = min(image_shape[1:])
    width = width or default_width("dcgan", smallest)
    norm = discriminator_norm or default_discriminator_norm(smallest)
    G = Generator(image_shape, nz=nz, width=width, classes=classes)
    return G, Discriminator(image_shape, width=width, batchnorm=norm == "batch", classes=classes)


class Generator(nn.Module):
    """Maps z (B, nz) to images (B, C, H, W) in [-1, 1].

    Transposed convolutions double the resolution from a base grid of 4 to 7 rows or columns. Each
    halves the number of feature maps, down to `width`. The last one is cropped to the image. A
    conditional generator takes z concatenated with the one-hot class.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, nz: int, width: int, classes: int = 0
    ) -> None:
        super().__init__()
        channels, *self.size = image_shape
        grid = base_grid(*self.size)
        layers: list[nn.Module] = []
        inputs = nz + classes
        for n, outputs in enumerate(_feature_maps(image_shape, width)):
            # BatchNorm would cancel a bias.
            kernel, stride, padding = (grid, 1, 0) if n == 0 else (4, 2, 1)
            layers += [nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        layers += [nn.ConvTranspose2d(inputs, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        if classes is not None:
            z = torch.cat([z, classes], dim=1)
        return crop(self.layers(z[:, :, None, None]), *self.size)


class Discriminator(nn.Module):
    """Maps images (B, C, H, W) to logits (B,), mirroring the generator.

    A conditional discriminator adds the inner product of its features with a class embedding
    (projection discriminator, Miyato and Koyama 2018, arXiv:1802.05637).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        width: int,
        batchnorm: bool = True,
        classes: int = 0,
    ) -> None:
        super().__init__()
        inputs, height, columns = image_shape
        layers: list[nn.Module] = []
        for outputs in reversed(_feature_maps(image_shape, width)):
            height, columns = height // 2, columns // 2
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)]
            if batchnorm and outputs != width:  # DCGAN omits it in the first layer
                layers += [nn.BatchNorm2d(outputs)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.last = nn.Conv2d(inputs, 1, (height, columns), bias=False)
        self.projection = nn.Linear(classes, inputs, bias=False) if classes else None

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        features = self.features(images)
        logits: Tensor = self.last(features).flatten()
        if self.projection is not None:
            logits = logits + (self.projection(classes) * features.sum((2, 3))).sum(1)
        return logits


def _feature_maps(image_shape: tuple[int, int, int], width: int) -> list[int]:
    """Return the feature maps from the base grid on; for 64 pixels: 8, 4, 2, 1 times `width`."""
    steps = range(doublings(*image_shape[1:]))
    return [width * min(2**n, MOST_MAPS) for n in reversed(steps)]
