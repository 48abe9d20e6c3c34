"""Crops, pads, resizes and converts decoded images."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Fit = Literal["crop", "pad", "stretch"]
_MODES = {1: "L", 3: "RGB"}


def fit_image(
    image: Image.Image, size: tuple[int, int] | None, channels: int, fit: Fit = "crop"
) -> NDArray[np.uint8]:
    """Return an image at (height, width) pixels, uint8 (C, H, W).

    fit: how an image of another aspect ratio becomes (height, width). "crop": keep the largest
    centered part. "pad": add black bars. "stretch": scale height and width independently. Resizes
    with bicubic interpolation and antialiasing. Keeps the size if `size` is None. An image that
    already has the size and channels is returned bit for bit.
    """
    if size is not None and image.size != (size[1], size[0]):
        target = (size[1], size[0])
        if fit == "pad":
            if image.mode != _MODES[channels]:
                image = image.convert(_MODES[channels])
            image = ImageOps.pad(image, target, Image.Resampling.BICUBIC, color=0)
        else:
            box = _middle(image.size, target) if fit == "crop" else None
            image = image.resize(target, Image.Resampling.BICUBIC, box=box)
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _middle(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest box in the middle of an image with the aspect ratio of the target."""
    width, height = size
    across = min(width, height * target[0] / target[1])
    down = min(height, width * target[1] / target[0])
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
