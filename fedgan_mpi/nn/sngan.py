"""The residual pair of SNGAN (Miyato et al. 2018, arXiv:1802.05957, tables 4 and 5), with spectral
normalization in D, and with classes where asked for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, relu


class Generator(nn.Module):
    """z (B, nz) to images (B, channels, size, size) in [-1, 1]; classes lengthen z."""

    def __init__(self, *, size: int, channels: int, nz: int, width: int, classes: int = 0) -> None:
        super().__init__()
        # Table 4: always 256 = 4 · width feature maps; table 5: 1024 down to 64 = width.
        maps = [4 * width] * 4 if size == 32 else [16 * width, 8 * width, 4 * width, 2 * width]
        maps += [] if size == 32 else [width]
        self.first = nn.Linear(nz + classes, 16 * maps[0])
        blocks = [_GeneratorBlock(*pair) for pair in pairwise(maps)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(maps[-1])
        self.last = nn.Conv2d(maps[-1], channels, 3, padding=1)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        if classes is not None:
            z = torch.cat([z, classes], dim=1)
        hidden = self.blocks(self.first(z).unflatten(1, (-1, 4, 4)))
        return torch.tanh(self.last(relu(self.norm(hidden))))


class Discriminator(nn.Module):
    """Images (B, channels, size, size) to logits (B,), every layer of spectral norm 1.

    With classes, the projection of the features on the class's vector is added (Miyato and Koyama
    2018, arXiv:1802.05637).
    """

    def __init__(self, *, size: int, channels: int, width: int, classes: int = 0) -> None:
        super().__init__()
        # Table 4: always 128 = 2 · width, two halvings; table 5: 64 = width up to 1024.
        maps = [2 * width] * 4 if size == 32 else [width * 2**step for step in range(5)]
        halves = [True, True, False, False] if size == 32 else [True] * 5
        before = [channels, *maps]
        blocks = [
            _DiscriminatorBlock(*pair, halve=halve, sees_pixels=step == 0)
            for step, (*pair, halve) in enumerate(zip(before, maps, halves, strict=False))
        ]
        self.blocks = nn.Sequential(*blocks)
        self.last = _spectral(nn.Linear(maps[-1], 1))
        self.projection = _spectral(nn.Linear(classes, maps[-1], bias=False)) if classes else None

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        features = relu(self.blocks(images)).sum((2, 3))
        logits: Tensor = self.last(features).flatten()
        if self.projection is not None:
            logits = logits + (self.projection(classes) * features).sum(1)
        return logits


class _GeneratorBlock(nn.Module):
    """Doubles height and width; the shortcut is a 1×1 convolution."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        # No bias before BatchNorm, which would subtract it again.
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(interpolate(relu(self.norm1(x)), scale_factor=2))
        hidden = self.conv2(relu(self.norm2(hidden)))
        # A 1×1 convolution and copying pixels commute; before it there are a quarter of them.
        return hidden + interpolate(self.shortcut(x), scale_factor=2)


class _DiscriminatorBlock(nn.Module):
    def __init__(self, before: int, after: int, *, halve: bool, sees_pixels: bool) -> None:
        super().__init__()
        self.halve: Callable[[Tensor], Tensor] = _halve if halve else nn.Identity()
        self.activate: Callable[[Tensor], Tensor] = nn.Identity() if sees_pixels else relu
        self.conv1 = _spectral(nn.Conv2d(before, after, 3, padding=1))
        self.conv2 = _spectral(nn.Conv2d(after, after, 3, padding=1))
        straight = before == after and not halve
        self.shortcut = nn.Identity() if straight else _spectral(nn.Conv2d(before, after, 1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(relu(self.conv1(self.activate(x))))
        return self.halve(hidden) + self.shortcut(self.halve(x))


def _halve(x: Tensor) -> Tensor:
    return avg_pool2d(x, 2)


def _spectral(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(layer)
