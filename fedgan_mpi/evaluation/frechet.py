"""Fréchet distance between two sets of features, from sums that ranks can add up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(kw_only=True)
class Moments:
    """Σ f, Σ f fᵀ and the count of features: all that the distance needs, and all that leaves a
    rank."""

    total: Array
    """(d,)"""
    products: Array
    """(d, d)"""
    count: float

    @staticmethod
    def zero(width: int) -> Moments:
        return Moments(total=np.zeros(width), products=np.zeros((width, width)), count=0.0)

    def add(self, features: Array) -> None:
        """features: (N, d), float64."""
        self.total += features.sum(0)
        self.products += features.T @ features
        self.count += len(features)

    def pack(self) -> Array:
        """(d + d² + 1,): what is added over ranks."""
        return np.concatenate([self.total, self.products.ravel(), [self.count]])

    @staticmethod
    def unpack(numbers: Array, width: int) -> Moments:
        return Moments(
            total=numbers[:width],
            products=numbers[width : width + width**2].reshape(width, width),
            count=float(numbers[width + width**2]),
        )

    @property
    def mean(self) -> Array:
        return self.total / self.count

    @property
    def covariance(self) -> Array:
        """Unbiased, as in the usual FID."""
        centred = self.products - self.count * np.outer(self.mean, self.mean)
        return centred / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½), Heusel et al. 2017 (arXiv:1706.08500), section
    3.

    The root's trace comes from eigenvalues of the symmetric Σ_a^½ Σ_b Σ_a^½, which stay real where
    a covariance is singular, as with fewer images than features.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    between = np.linalg.eigvalsh(root @ b.covariance @ root)
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(difference @ difference + traces - 2 * np.sqrt(np.clip(between, 0, None)).sum())
