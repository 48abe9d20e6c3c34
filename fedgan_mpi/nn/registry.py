"""Builds and initializes the configured pair of networks, in plain torch."""

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
    """Return the configured (G, D) for square images of shape (C, H, W).

    classes: number of classes; 0 for unconditional networks.
    """
    channels, size, _ = image_shape
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
    norm = model.discriminator_norm or ("none" if size == 16 else "batch")
    return G, dcgan.Discriminator(
        size=size, channels=channels, width=width, batchnorm=norm == "batch", classes=classes
    )


def build_generator(
    *, architecture: str, size: int, channels: int, nz: int, width: int, classes: int
) -> nn.Module:
    """Return a generator built from the keys of its generator.json. Raises KeyError for an unknown
    architecture."""
    make = {"dcgan": dcgan.Generator, "sngan": sngan.Generator}[architecture]
    return make(size=size, channels=channels, nz=nz, width=width, classes=classes)


def default_width(model: ModelConfig, size: int) -> int:
    """Return `model.width`, or the default for this image size if it is None."""
    return model.width or (32 if size == 16 else 64)


def initialize(
    network: nn.Module, kind: Literal["fan_in", "dcgan"], stream: torch.Generator
) -> None:
    """Draw a network's initial parameters from `stream`, in place.

    fan_in: torch's default for convolutions, uniform with variance 1/(3 · fan-in). dcgan: N(0,
    0.02) for convolutions and N(1, 0.02) for BatchNorm scales (Radford et al. 2016). The latter
    suits wide networks. In narrow ones it makes activations so small that training stagnates for
    some hundred rounds.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            # With spectral normalization, `weight` is computed from the trained parameter.
            parametrizations = getattr(module, "parametrizations", None)
            weight = parametrizations.weight.original if parametrizations else module.weight
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
    # Torch drew the singular vectors of spectral normalization from its global stream.
    for name, buffer in network.named_buffers():
        if name.endswith((".0._u", ".0._v")):
            nn.init.normal_(buffer, generator=stream)
            buffer.copy_(normalize(buffer, dim=0))


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
