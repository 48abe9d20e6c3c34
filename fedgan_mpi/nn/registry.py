"""Builds the configured pair of networks. Plain torch; never hears of ranks, shards or
configuration files."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import normalize

from fedgan_mpi.config import ModelConfig
from fedgan_mpi.nn import dcgan, sngan


def build(
    model: ModelConfig, image_shape: tuple[int, int, int], classes: int = 0
) -> tuple[nn.Module, nn.Module]:
    """The configured pair (G, D) for images of a shape (C, H, W), H = W. classes: 0 where
    unconditional."""
    channels, size, _ = image_shape
    small = size == 16
    width = default_width(model, size)
    G = build_generator(
        architecture=model.architecture,
        size=size,
        channels=channels,
        nz=model.nz,
        width=width,
        classes=classes,
    )
    if model.architecture == "sngan":
        return G, sngan.Discriminator(size=size, channels=channels, width=width, classes=classes)
    norm = model.discriminator_norm or ("none" if small else "batch")
    batchnorm = norm == "batch"
    return G, dcgan.Discriminator(
        size=size, channels=channels, width=width, batchnorm=batchnorm, classes=classes
    )


def build_generator(
    *, architecture: str, size: int, channels: int, nz: int, width: int, classes: int
) -> nn.Module:
    """A generator by what its exported description says of it."""
    make = {"dcgan": dcgan.Generator, "sngan": sngan.Generator}[architecture]
    return make(size=size, channels=channels, nz=nz, width=width, classes=classes)


def default_width(model: ModelConfig, size: int) -> int:
    """`model.width`, with None resolved."""
    return model.width or (32 if size == 16 else 64)


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
            # Where the norm is controlled, `weight` is computed from the one that is trained.
            controlled = getattr(module, "parametrizations", None)
            weight = controlled.weight.original if controlled else module.weight
            if kind == "dcgan":
                nn.init.normal_(weight, 0.0, 0.02, generator=stream)
            else:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=stream)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            if kind == "dcgan":
                nn.init.normal_(module.weight, 1.0, 0.02, generator=stream)
    # The singular vectors of spectral normalization, which torch draws from its global stream.
    for name, buffer in network.named_buffers():
        if name.endswith((".0._u", ".0._v")):
            nn.init.normal_(buffer, generator=stream)
            buffer.copy_(normalize(buffer, dim=0))


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
