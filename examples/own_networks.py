"""Your own networks: plain modules and a function that builds them.

    mpirun -n 9 python -m fedgan_mpi --model.architecture own_networks.py:build \
        --model.options.width 128
    python -m fedgan_mpi sample runs/RUN --model.architecture own_networks.py:build

The second line names the file again because a run directory may come from anywhere, and never
chooses what code runs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Maps z (B, nz), and one-hot classes if any, to images (B, C, H, W) in [-1, 1]."""

    def __init__(self, image_shape: tuple[int, int, int], inputs: int, width: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.layers = nn.Sequential(
            nn.Linear(inputs, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Linear(2 * width, math.prod(image_shape)),
            nn.Tanh(),
        )

    def forward(self, z: Tensor, *classes: Tensor) -> Tensor:
        return self.layers(torch.cat([z, *classes], 1)).view(-1, *self.image_shape)


class Discriminator(nn.Module):
    """Maps images, and one-hot classes if any, to one logit each, (B,)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Linear(2 * width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def forward(self, images: Tensor, *classes: Tensor) -> Tensor:
        return self.layers(torch.cat([images.flatten(1), *classes], 1)).flatten()


def build(
    image_shape: tuple[int, int, int], nz: int, classes: int, *, width: int = 64
) -> tuple[nn.Module, nn.Module]:
    """Fully connected networks.

    classes: number of classes of conditional networks; 0 for unconditional ones. What follows the
    star are your own options: [model.options] in a TOML file.
    """
    G = Generator(image_shape, nz + classes, width)
    D = Discriminator(math.prod(image_shape) + classes, width)
    return G, D
