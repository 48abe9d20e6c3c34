"""Draws images from a generator for scores and grids, independently of the number of ranks."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgan_mpi.data import Images, PixelType
from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.random_streams import Purpose, torch_stream
from fedgan_mpi.run.generator_file import to_pixels

CHUNK = 64
"""Generated images per random stream. Each chunk has its own stream, whichever rank draws it."""


class Generated(NamedTuple):
    """Generated images."""

    images: Images
    """(count, C, H, W)"""
    labels: NDArray[np.int64] | None = None
    """(count,); None for unconditional networks."""


class GenerateChunk(Protocol):
    """Returns a chunk of `count` images, equal on every rank."""

    def __call__(self, *, count: int, chunk: int) -> Generated: ...


@torch.no_grad()
def generate(
    pair: NetworkPair,
    generator: Tensor,
    *,
    seed: int,
    count: int,
    purpose: Purpose,
    chunk: int,
    dtype: PixelType,
) -> Generated:
    """Return images of G, equal on every rank.

    generator: G's parameters and BatchNorm statistics as one vector. The networks of `pair` hold
    them only during the call. dtype: of the pixels.
    """
    stream = torch_stream(seed, purpose, chunk)
    with pair.generator(generator):
        noise = pair.noise(count, stream)
        images = to_pixels(pair.fakes(noise).data, dtype)
    codes = noise.classes
    return Generated(images, None if codes is None else codes.argmax(1).cpu().numpy())
