"""Partitions with Dirichlet-distributed shares: of each class, or of the number of images.

Sources: Hsu et al. 2019 (arXiv:1909.06335) and NIID-Bench (Li et al. 2022, arXiv:2102.02079).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from data_prep.partitions.base import Partition, split_by_class
from data_prep.sources.base import Indices, Source
from fedgan_mpi.errors import UserError

_MAX_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class _MinimumSize(Partition):
    """Repeats a random draw until each device has at least `min_images` images."""

    alpha: float = 0.5
    min_images: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise UserError(f"--alpha is {self.alpha:g}, but must be above 0")
        if self.min_images < 1:
            raise UserError(f"--min-images is {self.min_images}, but must be at least 1")

    def assign(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        if len(train) < devices * self.min_images:
            raise UserError(
                f"{len(train)} images are too few for {devices} devices with at least "
                f"{self.min_images} each; use fewer --devices or a smaller --min-images"
            )
        for _ in range(_MAX_DRAWS):
            parts = self._draw(source, train, devices, stream)
            if min(len(part) for part in parts) >= self.min_images:
                return parts
        raise UserError(
            f"in each of {_MAX_DRAWS} draws with --alpha {self.alpha:g}, one of {devices} devices "
            f"had fewer than {self.min_images} images; use a larger --alpha, fewer --devices or "
            "a smaller --min-images"
        )

    @abstractmethod
    def _draw(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        """Draw one candidate partition."""


@dataclass(frozen=True, kw_only=True)
class Dirichlet(_MinimumSize):
    """Split each class over the devices by a draw from Dir(alpha).

    A device with N/K images receives nothing from later classes (NIID-Bench).
    """

    name = "dirichlet"

    def _draw(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        parts = [np.empty(0, np.int64)] * devices
        for members in split_by_class(self, source, train):
            shares = stream.dirichlet(np.full(devices, self.alpha))
            shares *= [len(part) < len(train) / devices for part in parts]
            if not shares.sum() > 0:  # a small alpha gave the whole class to full devices
                return [np.empty(0, np.int64)] * devices
            cuts = (np.cumsum(shares / shares.sum())[:-1] * len(members)).astype(int)
            pieces = np.split(stream.permutation(members), cuts)
            parts = [np.concatenate(pair) for pair in zip(parts, pieces, strict=True)]
        return parts


@dataclass(frozen=True, kw_only=True)
class Quantity(_MinimumSize):
    """Draw the devices' sizes from Dir(alpha) and fill them with random images."""

    name = "quantity"

    def _draw(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        shares = stream.dirichlet(np.full(devices, self.alpha))
        cuts = (np.cumsum(shares)[:-1] * len(train)).astype(int)
        return np.split(stream.permutation(train), cuts)
