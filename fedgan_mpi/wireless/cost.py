"""The cost model of a round: message sizes, multiply-accumulates, and compute rates.

An algorithm computes its payload, compute cost and wireless seconds from these values. Knows no
algorithm, no parameter values and no ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fedgan_mpi.config import Config, WirelessConfig
from fedgan_mpi.errors import UserError

if TYPE_CHECKING:
    from fedgan_mpi.wireless.cell import RadioRound
    from fedgan_mpi.wireless.macs import Macs


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of networks and batches, counted in numbers."""

    theta: int
    """Parameters of G, |G|."""
    phi: int
    """Parameters of D, |D|."""
    fakes: int
    """Numbers in a batch of images, b·d."""
    batch: int
    """Images in a batch, b."""
    vectors: int = 1
    """Vectors that travel for each network that is averaged: 2 with control variates, else 1."""


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Numbers that travel per participant and round, by the algorithm's formula."""

    down: int
    up: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Numbers that an algorithm keeps besides the networks and optimizers of a rank."""

    server: int
    """On the server, or on its GPU if it has one."""
    shared: int
    """In memory that the ranks of one machine share, if they outnumber its cores."""


@dataclass(frozen=True, kw_only=True)
class ComputeCost:
    """Multiply-accumulates of a round."""

    device: Sequence[float]
    """For device 1, 2, …, if it takes part."""
    server: float
    """Without averaging."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The inputs of an algorithm's cost functions."""

    config: Config
    sizes: Sizes
    macs: Macs
    images: Sequence[int]
    """Number of images of device 1, 2, …"""

    @property
    def batch_sizes(self) -> list[int]:
        """Images in a batch of device 1, 2, …"""
        return [min(self.config.training.batch_size, n) for n in self.images]


class CostFunctions(Protocol):
    """The part of an algorithm class that the clock calls."""

    @staticmethod
    def compute_cost(cost_model: CostModel) -> ComputeCost:
        """Return the multiply-accumulates of a round."""

    @staticmethod
    def wireless_seconds(cost_model: CostModel, radio: RadioRound, t: int) -> float:
        """Return the duration of round t in the simulated cell."""


def payload_sizes(config: Config, image_shape: tuple[int, int, int], theta: int, phi: int) -> Sizes:
    """Return the sizes for networks of theta (G) and phi (D) parameters."""
    batch = config.training.batch_size
    vectors = 2 if config.algorithm.control_variates else 1
    fakes = batch * math.prod(image_shape)
    return Sizes(theta=theta, phi=phi, batch=batch, fakes=fakes, vectors=vectors)


def macs_per_second(config: WirelessConfig, devices: int) -> list[float]:
    """Return the compute rate of device 1, 2, …

    Raises UserError unless the option has one value, or one value per device.
    """
    rates = config.device_macs_per_second
    if len(rates) not in (1, devices):
        raise UserError(
            f"wireless.device_macs_per_second has {len(rates)} values, but must have one, or one "
            f"for each of the {devices} devices"
        )
    return [*rates] if len(rates) == devices else [*rates] * devices
