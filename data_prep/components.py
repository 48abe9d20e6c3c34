"""The principal components of images, for scores where there are no classes. Without torch, and
with a few pixels of each image as floats at a time, so that it needs little memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COMPONENTS = 64
_PIXELS = 1024  # at once


def find_components(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """`mean` (pixels,) and `directions` (pixels, width) of uint8 images (N, C, H, W) in [-1, 1].

    width is 64, or N - 1 where that is less. Takes N² numbers of memory.
    """
    rows = images.reshape(len(images), -1)
    width = min(COMPONENTS, max(len(rows) - 1, 1))
    mean = np.empty(rows.shape[1], np.float32)
    directions = np.empty((rows.shape[1], width), np.float32)
    parts = [slice(start, start + _PIXELS) for start in range(0, rows.shape[1], _PIXELS)]

    # With fewer images than pixels, the images' products are the smaller matrix of the two.
    products = np.zeros((len(rows), len(rows)))
    for part in parts:
        block = _scale(rows[:, part])
        mean[part] = block.mean(0)
        block -= mean[part]
        products += block @ block.T
    vectors = np.linalg.eigh(products)[1][:, : -width - 1 : -1].astype(np.float32)
    for part in parts:
        directions[part] = (_scale(rows[:, part]) - mean[part]).T @ vectors
    directions /= np.maximum(np.linalg.norm(directions, axis=0), 1e-12)
    return {"mean": mean, "directions": directions}


def _scale(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(127.5) - 1
