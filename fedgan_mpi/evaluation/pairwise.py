"""Metrics from distances between single images: KID, precision, recall, density, coverage.

They need the features of `samples` real images, drawn evenly from all devices, on every rank. Ranks
share the work by rows and all-reduce their counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.evaluation.frechet import Array
from fedgan_mpi.random_streams import Purpose, numpy_stream

Allreduce = Callable[[Array], Array]
"""Returns the elementwise sum of an array over ranks."""

K_NEAREST = 5
"""The k of precision, recall, density and coverage, as in Naeem et al. 2020."""
SUBSETS = 100
SUBSET_SIZE = 1000
_BLOCK_ROWS = 512  # rows of a distance matrix in memory


def kernel_distance(
    real: Array, fake: Array, *, rank: int, size: int, allreduce: Allreduce
) -> dict[str, float]:
    """Return KID: the mean and standard deviation of the unbiased MMD² over random subsets.

    Collective; `size` ranks share the subsets. real, fake: (N, d), equal on every rank. The kernel
    is (x·y/d + 1)³; a subset has at most 1,000 images. Source: Bińkowski et al. 2018
    (arXiv:1801.01401).
    """
    values = np.zeros(SUBSETS)
    # At most half of the images, so that subsets differ and the deviation means something.
    count = min(SUBSET_SIZE, len(real) // 2, len(fake) // 2)
    for subset in range(rank, SUBSETS, size):
        stream = numpy_stream(0, Purpose.SUBSET, subset)
        x = real[stream.choice(len(real), count, replace=False)]
        y = fake[stream.choice(len(fake), count, replace=False)]
        values[subset] = squared_mmd(x, y)
    values = allreduce(values)
    return {"kid": float(values.mean()), "kid_std": float(values.std())}


def squared_mmd(x: Array, y: Array) -> float:
    """Return the unbiased MMD² of samples (m, d) and (n, d), which omits the diagonal terms."""
    m, n = len(x), len(y)
    within_x = (_kernel(x, x).sum() - _kernel_diagonal(x).sum()) / (m * (m - 1))
    within_y = (_kernel(y, y).sum() - _kernel_diagonal(y).sum()) / (n * (n - 1))
    return float(within_x + within_y - 2 * _kernel(x, y).mean())


def mean_squared_mmd(x: Array, y: Array) -> float:
    """Return the mean of the unbiased MMD² between x, (m, d), and each block of at most 1,000 rows
    of y, (n, d)."""
    blocks = np.array_split(y, -(-len(y) // SUBSET_SIZE))
    return float(np.mean([squared_mmd(x, block) for block in blocks]))


def _kernel(x: Array, y: Array) -> Array:
    values: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return values


def _kernel_diagonal(x: Array) -> Array:
    values: Array = ((x * x).sum(1) / x.shape[1] + 1) ** 3
    return values


def prdc(
    real: Array, fake: Array, *, rank: int, size: int, allreduce: Allreduce
) -> dict[str, float]:
    """Return precision, recall, density and coverage.

    Collective; `size` ranks share the rows. real, fake: (N, d), equal on every rank. The ball of an
    image reaches to its fifth nearest neighbour in the same set. Sources: Kynkäänniemi et al. 2019
    (arXiv:1904.06991), Naeem et al. 2020 (arXiv:2002.09797).
    """
    real_blocks, fake_blocks = (_blocks(len(points), rank, size) for points in (real, fake))
    radii = np.zeros(len(real) + len(fake))
    for rows in real_blocks:
        radii[rows] = _radii(real[rows], real)
    for rows in fake_blocks:
        radii[len(real) :][rows] = _radii(fake[rows], fake)
    radii = allreduce(radii)
    real_radii, fake_radii = radii[: len(real)], radii[len(real) :]

    covered = 0.0  # real images with a fake in their ball
    recalled = 0.0  # real images in the ball of a fake
    balls = np.zeros(len(fake))  # for each fake, the number of real images' balls that contain it
    for rows in real_blocks:
        distances = _distances(real[rows], fake)
        inside = distances < real_radii[rows, None]
        covered += inside.any(1).sum()
        recalled += (distances < fake_radii).any(1).sum()
        balls += inside.sum(0)
    covered, recalled, *balls_of_all = allreduce(np.array([covered, recalled, *balls]))
    balls = np.array(balls_of_all)
    return {
        "precision": float((balls > 0).mean()),
        "recall": recalled / len(real),
        "density": float(balls.mean()) / K_NEAREST,
        "coverage": covered / len(real),
    }


def nearest(points: Array, others: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return each point's distance to its nearest row of `others`, and the index of that row."""
    distances = _distances(points, others)
    indices = distances.argmin(1)
    return distances[np.arange(len(points)), indices], indices


def _blocks(count: int, rank: int, size: int) -> list[slice]:
    """Return this rank's rows out of `count`, in blocks."""
    starts = range(rank * _BLOCK_ROWS, count, size * _BLOCK_ROWS)
    return [slice(start, min(start + _BLOCK_ROWS, count)) for start in starts]


def _radii(points: Array, all_points: Array) -> Array:
    """Return each point's distance to its fifth nearest neighbour."""
    # Index 0 is the point itself.
    return np.partition(_distances(points, all_points), K_NEAREST, axis=1)[:, K_NEAREST]


def _distances(x: Array, y: Array) -> Array:
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)
    return np.sqrt(np.maximum(squares, 0))
