"""Images that Pillow has no mode for: colours of 16 bits, and other channels than 1 or 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedgan_mpi.data import Images

_LUMA = np.array([19595, 38470, 7471])
"""Weights of red, green and blue in gray, in 65536ths: ITU-R 601-2, as Pillow rounds them."""


class DeepImage:
    """Pixels, with the attributes `info` and `transpose` of Pillow's images."""

    def __init__(self, pixels: Images) -> None:
        """pixels: uint8 or uint16, (H, W) or (H, W, C)."""
        self.pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        self.info: dict[Any, Any] = {}

    def transpose(self, method: Image.Transpose) -> DeepImage:
        """Return the flipped or rotated image."""
        return self.map_channels(lambda channel: channel.transpose(method))

    def with_channels(self, channels: int) -> DeepImage:
        """Return the image in gray (1) or RGB (3).

        Raises ValueError for a conversion between other numbers of channels.
        """
        own = self.pixels.shape[2]
        if own == channels:
            return self
        if own == 1 and channels == 3:
            return DeepImage(self.pixels.repeat(3, 2))
        if own == 3 and channels == 1:
            gray = (self.pixels.astype(np.int64) @ _LUMA + 2**15) >> 16
            return DeepImage(gray.astype(self.pixels.dtype))
        raise ValueError(f"it has {own} channels, but must have {channels}")

    def map_channels(self, function: Callable[[Image.Image], Image.Image]) -> DeepImage:
        """Apply a function of Pillow's images to each channel, in floating point."""
        white = np.iinfo(self.pixels.dtype).max
        channels = [
            np.asarray(function(Image.fromarray(channel.astype(np.float32))))
            for channel in np.moveaxis(self.pixels, 2, 0)
        ]
        values: NDArray[np.float32] = np.stack(channels, 2)
        return DeepImage(np.rint(values.clip(0, white)).astype(self.pixels.dtype))


def as_image(shades: Images) -> Image.Image | DeepImage:
    """Return shades (H, W) or (H, W, 3) as Pillow's image if they have 8 bits."""
    return Image.fromarray(shades) if shades.dtype == np.uint8 else DeepImage(shades)
