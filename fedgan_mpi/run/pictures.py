"""Grids of images as PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_GAP = 2  # pixels of the enlarged picture between images, and around them
_BACKGROUND = 40
_SMALLEST = 64  # images are enlarged by a whole factor to at least this many pixels


def grid(images: NDArray[np.uint8], *, columns: int | None = None) -> Image.Image:
    """uint8 (N, C, H, W) with C = 1 or 3, row by row; as square as it gets unless columns are
    given."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    factor = max(1, math.ceil(_SMALLEST / max(height, width)))
    large = images.repeat(factor, axis=2).repeat(factor, axis=3)
    down, right = height * factor + _GAP, width * factor + _GAP
    canvas = np.full((channels, rows * down + _GAP, columns * right + _GAP), _BACKGROUND, np.uint8)
    for n, image in enumerate(large):
        y, x = (n // columns) * down + _GAP, (n % columns) * right + _GAP
        canvas[:, y : y + height * factor, x : x + width * factor] = image
    return Image.fromarray(canvas[0] if channels == 1 else canvas.transpose(1, 2, 0))


def write_grid(path: Path, images: NDArray[np.uint8], *, columns: int | None = None) -> None:
    grid(images, columns=columns).save(path, format="PNG")
