"""What an algorithm's formulas are made of: sizes for its payload, work and air for its time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgan_mpi.config import Config

if TYPE_CHECKING:
    from fedgan_mpi.wireless.macs import Macs


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers that a round's payload is made of."""

    theta: int
    """Parameters of G, |G|."""
    phi: int
    """Parameters of D, |D|."""
    fakes: int
    """Numbers in a batch of images, b·d."""
    batch: int
    """Images in a batch, b."""


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Numbers that travel in a round, per participant, by the algorithm's formula."""

    down: int
    up: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """Multiply-accumulates of a round."""

    device: Sequence[float]
    """Of device 1, 2, …, where it takes part."""
    server: float
    """Apart from averaging."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An experiment as its times see it: no parameter, no image, no rank."""

    config: Config
    sizes: Sizes
    macs: Macs
    images: Sequence[int]
    """Of device 1, 2, …"""

    @property
    def batches(self) -> list[int]:
        """Images in a batch of device 1, 2, …"""
        return [min(self.config.training.batch_size, n) for n in self.images]


def payload_sizes(config: Config, image_shape: tuple[int, int, int], theta: int, phi: int) -> Sizes:
    """What an algorithm's payload is computed from; theta, phi: parameters of G and D."""
    batch = config.training.batch_size
    return Sizes(theta=theta, phi=phi, batch=batch, fakes=batch * math.prod(image_shape))
