"""The two types of pixels, uint8 and uint16. In both, 0 is black and the largest value is white."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

PixelType = Literal["uint8", "uint16"]
Images = NDArray[np.unsignedinteger[Any]]
"""uint8 or uint16, (N, C, H, W)."""


def white(dtype: PixelType | np.dtype[Any]) -> int:
    """Return the largest value of a type of pixels."""
    return int(np.iinfo(dtype).max)


def to_8_bits(pixels: Images) -> NDArray[np.uint8]:
    """Return pixels of 16 bits as the nearest of 8 bits, and pixels of 8 bits as they are."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
