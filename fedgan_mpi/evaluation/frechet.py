"""Fréchet distance between two sets of features, from sums that add up over ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(kw_only=True)
class FeatureSums:
    """Σ f, Σ f fᵀ and the number of feature vectors f. The distance needs nothing else."""

    total: Array
    """(d,)"""
    products: Array
    """(d, d)"""
    count: float

    @staticmethod
    def zero(width: int) -> FeatureSums:
        return FeatureSums(total=np.zeros(width), products=np.zeros((width, width)), count=0.0)

    def accumulate(self, features: Array) -> None:
        """Add features, (N, d), float64."""
        self.total += features.sum(0)
        self.products += features.T @ features
        self.count += len(features)

    def pack(self) -> Array:
        """Return all sums as one vector, (d + d² + 1,)."""
        return np.concatenate([self.total, self.products.ravel(), [self.count]])

    @staticmethod
    def unpack(numbers: Array, width: int) -> FeatureSums:
        """Return the sums of a packed vector, with d = `width`."""
        return FeatureSums(
            total=numbers[:width],
            products=numbers[width : width + width**2].reshape(width, width),
            count=float(numbers[width + width**2]),
        )

    @property
    def mean(self) -> Array:
        return self.total / self.count

    @property
    def covariance(self) -> Array:
        """The unbiased covariance, as FID uses it."""
        centred = self.products - self.count * np.outer(self.mean, self.mean)
        return centred / (self.count - 1)

    @property
    def spread(self) -> float:
        """The mean squared distance of the features to their mean."""
        centred = np.trace(self.products) - self.count * (self.mean @ self.mean)
        return max(0.0, float(centred / (self.count - 1)))  # rounding may make 0 negative


def frechet_distance(a: FeatureSums, b: FeatureSums) -> float:
    """Return |μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½).

    The trace of the root comes from the eigenvalues of the symmetric matrix Σ_a^½ Σ_b Σ_a^½. They
    stay real if a covariance is singular, for example with fewer images than features. Source:
    Heusel et al. 2017 (arXiv:1706.08500), section 3.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root)
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    trace_of_root = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    return float(difference @ difference + traces - 2 * trace_of_root)
