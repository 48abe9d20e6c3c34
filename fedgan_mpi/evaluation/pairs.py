"""Measures that look at pairs of images rather than at sums: KID, and precision, recall, density
and coverage.

They need the features themselves, of `samples` real images drawn evenly from all devices, on every
rank; images stay where they are. Ranks share the work by rows and add up what they counted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.random_streams import Purpose, numpy_stream

Array = NDArray[np.float64]
Sum = Callable[[Array], Array]
"""Adds an array over ranks; Link.sum."""

NEAREST = 5
"""k of the k-th neighbour, as in Naeem et al. 2020."""
SUBSETS = 100
SUBSET = 1000
_ROWS = 512  # of a distance matrix, held at a time


def kernel_distance(
    real: Array, fake: Array, *, rank: int, size: int, sum: Sum
) -> dict[str, float]:
    """KID (Bińkowski et al. 2018, arXiv:1801.01401): the unbiased MMD² with the kernel
    (x·y/d + 1)³, mean and standard deviation over random subsets of at most 1,000.

    Collective; real, fake: (N, d), the same on every rank.
    """
    values = np.zeros(SUBSETS)
    # Of few images, half: subsets that are all alike would have no spread.
    count = min(SUBSET, len(real) // 2, len(fake) // 2)
    for subset in range(rank, SUBSETS, size):
        draw = numpy_stream(0, Purpose.SUBSET, subset)
        x = real[draw.choice(len(real), count, replace=False)]
        y = fake[draw.choice(len(fake), count, replace=False)]
        values[subset] = squared_discrepancy(x, y)
    values = sum(values)
    return {"kid": float(values.mean()), "kid_std": float(values.std())}


def squared_discrepancy(x: Array, y: Array) -> float:
    """MMD² between samples (m, d) and (n, d), without bias: no image is its own partner."""
    m, n = len(x), len(y)
    within_x = (_kernel(x, x).sum() - _kernel_diagonal(x).sum()) / (m * (m - 1))
    within_y = (_kernel(y, y).sum() - _kernel_diagonal(y).sum()) / (n * (n - 1))
    return float(within_x + within_y - 2 * _kernel(x, y).mean())


def _kernel(x: Array, y: Array) -> Array:
    values: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return values


def _kernel_diagonal(x: Array) -> Array:
    values: Array = ((x * x).sum(1) / x.shape[1] + 1) ** 3
    return values


def neighbour_measures(
    real: Array, fake: Array, *, rank: int, size: int, sum: Sum
) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), density and coverage
    (Naeem et al. 2020, arXiv:2002.09797), from balls that reach to an image's fifth neighbour.

    Collective; real, fake: (N, d), the same on every rank.
    """
    mine_real, mine_fake = (_blocks(len(points), rank, size) for points in (real, fake))
    radii = np.zeros(len(real) + len(fake))
    for rows in mine_real:
        radii[rows] = _radii(real[rows], real)
    for rows in mine_fake:
        radii[len(real) :][rows] = _radii(fake[rows], fake)
    radii = sum(radii)
    real_radii, fake_radii = radii[: len(real)], radii[len(real) :]

    # Real images whose ball holds a fake, and that lie in a fake's ball; for each fake, real balls.
    covered, recalled, around = 0.0, 0.0, np.zeros(len(fake))
    for rows in mine_real:
        distances = _distances(real[rows], fake)
        inside = distances < real_radii[rows, None]
        covered += inside.any(1).sum()
        recalled += (distances < fake_radii).any(1).sum()
        around += inside.sum(0)
    covered, recalled, *around_all = sum(np.array([covered, recalled, *around]))
    around = np.array(around_all)
    return {
        "precision": float((around > 0).mean()),
        "recall": recalled / len(real),
        "density": float(around.mean()) / NEAREST,
        "coverage": covered / len(real),
    }


def nearest(points: Array, others: Array) -> tuple[Array, NDArray[np.int64]]:
    """For each point the distance to the nearest of the others, and which that is."""
    distances = _distances(points, others)
    which = distances.argmin(1)
    return distances[np.arange(len(points)), which], which


def _blocks(count: int, rank: int, size: int) -> list[slice]:
    starts = range(rank * _ROWS, count, size * _ROWS)
    return [slice(start, min(start + _ROWS, count)) for start in starts]


def _radii(points: Array, all_points: Array) -> Array:
    # The nearest of all is the point itself.
    return np.partition(_distances(points, all_points), NEAREST, axis=1)[:, NEAREST]


def _distances(x: Array, y: Array) -> Array:
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)
    return np.sqrt(np.maximum(squares, 0))
