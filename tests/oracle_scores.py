"""Scores by their definitions, image by image or by numpy's own routines.

Shares no code with the package.
"""

from __future__ import annotations

import numpy as np

from fedgan_mpi.evaluation.frechet import FeatureSums


def sums_of(features: np.ndarray) -> FeatureSums:
    """Return the package's sums of features, (N, d)."""
    sums = FeatureSums.zero(features.shape[1])
    sums.accumulate(features)
    return sums


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance by the eigenvalues of the unsymmetric product Σ_a Σ_b."""
    difference = a.mean(0) - b.mean(0)
    left, right = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(left @ right).astype(complex)).real.sum()
    return float(difference @ difference + np.trace(left) + np.trace(right) - 2 * root)


def prdc(real: np.ndarray, fake: np.ndarray, *, k: int) -> dict[str, float]:
    """Return precision, recall, density and coverage by loops over images."""

    def radius(points: np.ndarray, n: int) -> float:
        return sorted(np.linalg.norm(points - points[n], axis=1))[k]

    real_radii = [radius(real, n) for n in range(len(real))]
    fake_radii = [radius(fake, n) for n in range(len(fake))]
    distances = [[np.linalg.norm(x - y) for y in fake] for x in real]
    rows, columns = range(len(real)), range(len(fake))
    inside = [[distances[i][j] < real_radii[i] for j in columns] for i in rows]
    return {
        "precision": np.mean([any(inside[i][j] for i in rows) for j in columns]),
        "recall": np.mean([any(distances[i][j] < fake_radii[j] for j in columns) for i in rows]),
        "density": np.sum(inside) / k / len(fake),
        "coverage": np.mean([any(row) for row in inside]),
    }


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased MMD² by means over pairs of different points."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    def within(points: np.ndarray) -> float:
        pairs = [kernel(points[i], points[j]) for i in range(len(points)) for j in range(i)]
        return float(np.mean(pairs))

    return within(x) + within(y) - 2 * float(np.mean([[kernel(a, b) for b in y] for a in x]))
