"""DCGAN (Radford et al. 2016, arXiv:1511.06434), with classes where asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedgan_mpi.config import NETWORK_SIZES


class Generator(nn.Module):
    """z (B, nz) to images (B, channels, size, size) in [-1, 1].

    Transposed convolutions double 4×4 up to the size while their feature maps halve down to
    `width`. With classes, their one-hot vector lengthens z.
    """

    def __init__(self, *, size: int, channels: int, nz: int, width: int, classes: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = nz + classes
        for step, after in enumerate(_maps(size, width)):
            stride, padding = (1, 0) if step == 0 else (2, 1)
            # No bias: BatchNorm would subtract it again.
            layers += [nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            before = after
        layers += [nn.ConvTranspose2d(before, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        if classes is not None:
            z = torch.cat([z, classes], dim=1)
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """Images (B, channels, size, size) to logits (B,), the mirror image of the generator.

    With classes, the projection of the features on the class's vector is added (Miyato and Koyama
    2018, arXiv:1802.05637).
    """

    def __init__(
        self, *, size: int, channels: int, width: int, batchnorm: bool = True, classes: int = 0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for after in reversed(_maps(size, width)):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False)]
            if batchnorm and after != width:  # none on the layer that sees pixels
                layers += [nn.BatchNorm2d(after)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
            before = after
        self.features = nn.Sequential(*layers)
        self.last = nn.Conv2d(before, 1, 4, 1, 0, bias=False)
        self.projection = nn.Linear(classes, before, bias=False) if classes else None

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        features = self.features(images)
        logits: Tensor = self.last(features).flatten()
        if self.projection is not None:
            logits = logits + (self.projection(classes) * features.sum((2, 3))).sum(1)
        return logits


def _maps(size: int, width: int) -> list[int]:
    """Feature maps at 4×4, 8×8, … size/2: for 64 pixels 8, 4, 2 and 1 times the width."""
    if size not in NETWORK_SIZES:
        raise ValueError(f"networks exist for {NETWORK_SIZES} pixels, not for {size}")
    return [width * size // 8 // 2**step for step in range((size // 4).bit_length() - 1)]
