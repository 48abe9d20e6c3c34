"""Draws images from a generator for scores and grids, independently of the number of ranks."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.random_streams import Purpose, torch_stream
from fedgan_mpi.run.generator_file import to_pixels

CHUNK = 64
"""Generated images per random stream. Each chunk has its own stream, whichever rank draws it."""


class GenerateChunk(Protocol):
    """Returns a chunk of images, uint8 (count, C, H, W), equal on every rank."""

    def __call__(self, *, count: int, chunk: int) -> NDArray[np.uint8]: ...


@torch.no_grad()
def generate(
    pair: NetworkPair, generator: Tensor, *, seed: int, count: int, purpose: Purpose, chunk: int
) -> NDArray[np.uint8]:
    """Return images of G, uint8 (count, C, H, W), equal on every rank.

    generator: G's parameters and BatchNorm statistics as one vector. The networks of `pair` hold
    them only during the call.
    """
    stream = torch_stream(seed, purpose, chunk)
    with pair.generator(generator):
        return to_pixels(pair.fakes(pair.noise(count, stream)).data)
