"""The pairs of networks. Plain torch; never hears of ranks, shards or configuration files."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from fedgan_mpi.config import NETWORK_SIZES, ModelConfig


class Generator(nn.Module):
    """DCGAN's G (Radford et al. 2016): z (B, nz) to images (B, channels, size, size) in [-1, 1].

    Transposed convolutions double 4×4 up to the size while their feature maps halve down to
    `width`.
    """

    def __init__(self, *, size: int, channels: int, nz: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = nz
        for step, after in enumerate(_maps(size, width)):
            stride, padding = (1, 0) if step == 0 else (2, 1)
            # No bias: BatchNorm would subtract it again.
            layers += [nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            before = after
        layers += [nn.ConvTranspose2d(before, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.nz, self.width = nz, width

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """DCGAN's D: images (B, channels, size, size) to logits (B,), the mirror image of the
    generator."""

    def __init__(self, *, size: int, channels: int, width: int, batchnorm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for after in reversed(_maps(size, width)):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False)]
            if batchnorm and after != width:  # none on the layer that sees pixels
                layers += [nn.BatchNorm2d(after)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
            before = after
        layers += [nn.Conv2d(before, 1, 4, 1, 0, bias=False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten()


def _maps(size: int, width: int) -> list[int]:
    """Feature maps at 4×4, 8×8, … size/2: for 64 pixels 8, 4, 2 and 1 times the width."""
    if size not in NETWORK_SIZES:
        raise ValueError(f"networks exist for {NETWORK_SIZES} pixels, not for {size}")
    return [width * size // 8 // 2**step for step in range((size // 4).bit_length() - 1)]


def build(model: ModelConfig, image_shape: tuple[int, int, int]) -> tuple[Generator, Discriminator]:
    """The configured pair for images of a shape (C, H, W), H = W."""
    channels, size, _ = image_shape
    small = size == 16
    width = model.width or (32 if small else 64)
    norm = model.discriminator_norm or ("none" if small else "batch")
    G = Generator(size=size, channels=channels, nz=model.nz, width=width)
    D = Discriminator(size=size, channels=channels, width=width, batchnorm=norm == "batch")
    return G, D


def initialize(
    network: nn.Module, kind: Literal["fan_in", "dcgan"], stream: torch.Generator
) -> None:
    """Draw a network's start from a stream.

    fan_in: torch's own for convolutions, uniform with a variance of 1/(3 · fan-in). dcgan: N(0,
    0.02) for convolutions and N(1, 0.02) for BatchNorm's scales (Radford et al. 2016), which suits
    wide networks: next to the pixels of narrow ones it is so small that nothing is learned for some
    hundred rounds.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if kind == "dcgan":
                nn.init.normal_(module.weight, 0.0, 0.02, generator=stream)
            else:
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=stream)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            if kind == "dcgan":
                nn.init.normal_(module.weight, 1.0, 0.02, generator=stream)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
