"""How the values of image files become the shades of a shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WHITE = (255, 255, 255)
Depth = Literal[8, 16]


class NeedsRange(Exception):
    """An image has more than 8 bits, and the range of the data set's values is not yet known."""


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """Range of values and background of a data set's images."""

    value_range: tuple[float, float] | None = None
    """Values that become black and white. None: 0 to 255 for images of 8 bits, the whole range of
    the sample format for others."""
    is_declared: bool = False
    """Whether the user named the range. It then applies to all images, including 8-bit ones."""
    needs_range: bool = False
    """Whether an image of more than 8 bits raises NeedsRange instead, if there is no range."""
    background: tuple[int, int, int] = WHITE
    """Colour below transparent pixels, of 8 bits."""
    depth: Depth = 8
    """Bits of a shade."""

    def range_for(self, *, is_deep: bool) -> tuple[float, float] | None:
        """Return the range of an image's values, or None for the range of its format.

        is_deep: whether the samples are anything but unsigned 8-bit integers. Raises NeedsRange.
        """
        if self.is_declared or (is_deep and self.value_range is not None):
            return self.value_range
        if is_deep and self.needs_range:
            raise NeedsRange
        return None
