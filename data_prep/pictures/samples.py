"""Images with other samples than unsigned ones of 8 bits: 12 and 16 bits, signed, 32 bits, floats.

Pillow keeps such values for gray images. It cuts the channels of colour images to their high bytes,
so that these are decoded twice here, once for the high bytes and once for the low ones.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.pictures.settings import Depth
from fedgan_mpi.data import Images, PixelType, white

_LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B" if sys.byteorder == "little" else "RGBA;16L",
    "RGBX;16B": "RGBX;16L",
    "RGBX;16L": "RGBX;16B",
}
"""Pillow's name of a file's layout -> the layout whose high bytes are the file's low ones."""
_GRAY_AND_ALPHA = "LA;16B"
_SAMPLE_FORMAT, _BITS = 339, 258  # tags of TIFF
_UNSIGNED, _SIGNED = 1, 2


@dataclass(frozen=True)
class Samples:
    """The values of an image, before they become shades."""

    values: NDArray[Any]
    """(H, W) or (H, W, 3), in the file's own type."""
    alpha: NDArray[np.float32] | None = None
    """(H, W), 0 transparent to 1 opaque. None: opaque."""


def is_deep(image: Image.Image) -> bool:
    """Return whether an opened image has other samples than unsigned ones of 8 bits."""
    return (
        image.mode.startswith(("I", "F"))
        or _layout(image) in (*_LOW_BYTES, _GRAY_AND_ALPHA)
        or _tag(image, _SAMPLE_FORMAT) == _SIGNED
    )


def read_samples(image: Image.Image, content: bytes) -> Samples:
    """Decode a deep image. content: its file, to decode it a second time."""
    layout = _layout(image)
    transparent = image.info.get("transparency")
    if layout == _GRAY_AND_ALPHA:
        high_low = np.asarray(_with_layout(content, image.format, "RGBA")).astype(np.uint16)
        values, alpha = (high_low[..., n] << 8 | high_low[..., n + 1] for n in (0, 2))
        return Samples(values, _opacity(alpha))
    if layout in _LOW_BYTES:
        low = np.asarray(_with_layout(content, image.format, _LOW_BYTES[layout]))
        values = np.asarray(image).astype(np.uint16) << 8 | low
        if values.shape[2] == 4 and image.mode == "RGBA":
            return Samples(values[..., :3], _opacity(values[..., 3]))
        values = values[..., :3]
    else:
        values = np.asarray(image)
        if values.dtype == np.int32 and _tag(image, _SAMPLE_FORMAT) == _UNSIGNED:
            values = values.view(np.uint32) if _tag(image, _BITS) == 32 else values
        if values.dtype == np.uint8:
            values = values.view(np.int8)
    if transparent is None or isinstance(transparent, bytes):
        return Samples(values)
    matches = values == np.asarray(transparent)
    opaque = ~(matches.all(-1) if values.ndim == 3 else matches)
    return Samples(values, opaque.astype(np.float32))


def full_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the least and the greatest value of a type; 0 to 1 for floats."""
    if dtype.kind == "f":
        return 0.0, 1.0
    limits = np.iinfo(dtype)
    return float(limits.min), float(limits.max)


def occurring_range(values: NDArray[Any]) -> tuple[float, float] | None:
    """Return the least and the greatest finite value, or None if there is none."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        return None
    return float(values.min()), float(values.max())


def to_shades(values: NDArray[Any], value_range: tuple[float, float], depth: Depth = 8) -> Images:
    """Map a range of values to all shades, uint8 or uint16, and values beyond it to its ends.

    NaN becomes 0.
    """
    low, high = value_range
    dtype: PixelType = "uint8" if depth == 8 else "uint16"
    if values.dtype == dtype and value_range == full_range(values.dtype):
        return values
    most = white(dtype)
    is_short = values.dtype.itemsize <= 2 and values.dtype.kind != "f" and depth == 8
    kind = np.float32 if is_short else np.float64
    shades: NDArray[Any] = values.astype(kind)
    shades -= kind(low)
    shades *= kind(most / (high - low) if high > low else 0)
    np.nan_to_num(shades, copy=False, nan=0, posinf=most, neginf=0)
    return np.rint(np.clip(shades, 0, most, out=shades), out=shades).astype(dtype)


def _opacity(alpha: NDArray[Any]) -> NDArray[np.float32]:
    return (alpha / np.float32(65535)).astype(np.float32)


def _layout(image: Image.Image) -> str:
    """Return Pillow's name of the layout of an opened file's samples."""
    tiles: Any = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return layout if isinstance(layout, str) else ""


def _with_layout(content: bytes, format: str | None, layout: str) -> Image.Image:
    """Decode a file as if its samples had another layout of the same size."""
    image = Image.open(io.BytesIO(content), formats=[str(format)])
    tiles: list[Any] = []
    for tile in image.tile:
        arguments = tile[3]
        changed = (layout, *arguments[1:]) if isinstance(arguments, tuple) else layout
        tiles.append((*tile[:3], changed))
    kind = type(image.tile[0])  # a named tuple from Pillow 11 on
    image.tile = [kind._make(tile) if hasattr(kind, "_make") else tile for tile in tiles]
    image.load()
    return image


def _tag(image: Image.Image, number: int) -> int | None:
    """Return the first value of a TIFF tag, or None."""
    tags: Any = getattr(image, "tag_v2", None)
    value: Any = tags.get(number) if tags is not None else None
    return value[0] if isinstance(value, tuple) and value else value
