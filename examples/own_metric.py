"""Your own score: the energy distance, through your own feature extractor.

    mpirun -n 9 python -m fedgan_mpi --evaluation.extractor own_metric.py:brightness \
        --evaluation.metrics '["frechet", "own_metric.py:EnergyDistance"]'

Each value has a floor, as all scores have: the same metric of as many held-out real images.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgan_mpi.comm.link import Link
from fedgan_mpi.evaluation.feature_stats import ExtractorStats
from fedgan_mpi.evaluation.metrics import Metric


class EnergyDistance(Metric):
    """Energy distance between the features of generated and of real images (Székely 2003)."""

    needs_features = True  # of single images, not only their mean and covariance

    def __init__(self, *, power: float = 1.0) -> None:
        """power: exponent of the distances, above 0 and below 2."""
        self.power = power

    def compute(
        self, fake: ExtractorStats, real: ExtractorStats, link: Link
    ) -> Mapping[str, float]:
        x, y = real.rows, fake.rows  # (N, d) each, the same on every rank
        between, within = self._mean(x, y), self._mean(x, x) + self._mean(y, y)
        return {"energy": 2 * between - within}

    def _mean(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        return float((np.maximum(squares, 0) ** (self.power / 2)).mean())


class Brightness(nn.Module):
    """Maps uint8 images (B, C, H, W) to the mean brightness of cells of a grid, (B, C·cells²)."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(cells)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(images.float() / 255).flatten(1)


def brightness(image_shape: tuple[int, int, int], *, cells: int = 4) -> nn.Module:
    """Mean brightness of cells of a grid. cells: along either axis."""
    return Brightness(cells)
