"""Principal components of images, the feature extractor for data without classes.

Uses neither torch nor a float copy of all images: it converts a few pixels of each image at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.data import Images, white

MAX_COMPONENTS = 64
_PIXELS_AT_ONCE = 1024


def fit_pca(images: Images) -> dict[str, NDArray[np.float32]]:
    """Fit principal components to images (N, C, H, W), scaled to [-1, 1].

    Returns `mean` (pixels,) and `directions` (pixels, width), whose columns have unit norm. The
    width is 64, or N - 1 if that is smaller. Needs memory for an N×N matrix.
    """
    rows = images.reshape(len(images), -1)
    width = min(MAX_COMPONENTS, max(len(rows) - 1, 1))
    mean = np.empty(rows.shape[1], np.float32)
    directions = np.empty((rows.shape[1], width), np.float32)
    starts = range(0, rows.shape[1], _PIXELS_AT_ONCE)
    parts = [slice(start, start + _PIXELS_AT_ONCE) for start in starts]

    # The Gram matrix of N images is smaller than the covariance of their pixels.
    gram = np.zeros((len(rows), len(rows)))
    for part in parts:
        block = _scale(rows[:, part])
        mean[part] = block.mean(0)
        block -= mean[part]
        gram += block @ block.T
    vectors = np.linalg.eigh(gram)[1][:, : -width - 1 : -1].astype(np.float32)
    for part in parts:
        directions[part] = (_scale(rows[:, part]) - mean[part]).T @ vectors
    directions /= np.maximum(np.linalg.norm(directions, axis=0), 1e-12)
    return {"mean": mean, "directions": directions}


def _scale(pixels: Images) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(white(pixels.dtype) / 2) - 1
