"""Crops, pads, resizes and converts decoded images."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from data_prep.pictures.deep_image import DeepImage
from fedgan_mpi.data import Images

Fit = Literal["crop", "pad", "stretch"]
_MODES = {1: "L", 3: "RGB"}


def fit_image(
    image: Image.Image | DeepImage,
    size: tuple[int, int] | None,
    channels: int,
    fit: Fit = "crop",
) -> Images:
    """Return an image at (height, width) pixels, (C, H, W), uint8 or uint16 as it is.

    fit: how an image of another aspect ratio becomes (height, width). "crop": keep the largest
    centered part. "pad": add black bars. "stretch": scale height and width independently. Resizes
    with bicubic interpolation and antialiasing. Keeps the size if `size` is None. An image that
    already has the size and channels is returned bit for bit. Raises ValueError if the channels
    are neither the image's nor gray or RGB.
    """
    if isinstance(image, DeepImage):
        return _fit_deep(image, size, channels, fit)
    if channels not in _MODES:
        raise ValueError(f"it is of mode {image.mode}, but must have {channels} channels")
    if size is not None and image.size != (size[1], size[0]):
        if fit == "pad" and image.mode != _MODES[channels]:
            image = image.convert(_MODES[channels])
        image = _resize(image, size, fit)
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _fit_deep(image: DeepImage, size: tuple[int, int] | None, channels: int, fit: Fit) -> Images:
    """Fit an image in floating point, so that it keeps its depth."""
    image = image.with_channels(channels)
    if size is not None and image.pixels.shape[:2] != size:
        image = image.map_channels(lambda channel: _resize(channel, size, fit))
    return image.pixels.transpose(2, 0, 1)


def _resize(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    target = (size[1], size[0])
    if fit == "pad":
        return ImageOps.pad(image, target, Image.Resampling.BICUBIC, color=0)
    box = _middle(image.size, target) if fit == "crop" else None
    return image.resize(target, Image.Resampling.BICUBIC, box=box)


def _middle(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest box in the middle of an image with the aspect ratio of the target."""
    width, height = size
    across = min(width, height * target[0] / target[1])
    down = min(height, width * target[1] / target[0])
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
