"""Crops, resizes and converts decoded images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MODES = {1: "L", 3: "RGB"}


def crop_and_resize(image: Image.Image, size: int | None, channels: int) -> NDArray[np.uint8]:
    """Return the central square at size×size pixels, uint8 (C, size, size).

    Resizes with bicubic interpolation and antialiasing. Keeps the size if `size` is None. An image
    that already has the size and channels is returned bit for bit.
    """
    if size is not None and image.size != (size, size):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        square = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=square)
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
