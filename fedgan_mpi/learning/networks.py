"""The pairs of networks. Plain torch; never hears of ranks, shards or configuration files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZES = (16, 32, 64, 128)


class Generator(nn.Module):
    """DCGAN's G (Radford et al. 2016): z (B, nz) to images (B, channels, size, size) in [-1, 1].

    Transposed convolutions double 4×4 up to the size while their feature maps halve down to `width`.
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
        self.nz = nz

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """DCGAN's D: images (B, channels, size, size) to logits (B,), the mirror image of the generator."""

    def __init__(self, *, size: int, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for after in reversed(_maps(size, width)):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False)]
            if before != channels:  # none on the layer that sees pixels
                layers += [nn.BatchNorm2d(after)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
            before = after
        layers += [nn.Conv2d(before, 1, 4, 1, 0, bias=False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten()


def _maps(size: int, width: int) -> list[int]:
    """Feature maps at 4×4, 8×8, … size/2: for 64 pixels 8, 4, 2 and 1 times the width."""
    if size not in SIZES:
        raise ValueError(f"networks exist for {SIZES} pixels, not for {size}")
    return [width * size // 8 // 2**step for step in range((size // 4).bit_length() - 1)]


def initialize(network: nn.Module, stream: torch.Generator) -> None:
    """DCGAN's start: convolutions N(0, 0.02), BatchNorm scales N(1, 0.02) and shifts 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02, generator=stream)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02, generator=stream)
            nn.init.zeros_(module.bias)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
