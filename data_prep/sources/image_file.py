"""Decodes an image file in any format that Pillow supports."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from data_prep.sources.base import BadImage


def decode_image_file(name: str, content: bytes) -> Image.Image:
    """Decode a file to mode L or RGB and apply its EXIF orientation. Raises BadImage."""
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as error:  # Pillow's errors range from struct.error to SyntaxError
        reason = " ".join(str(error).replace(repr(content), "").split())
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is not an image"
        raise BadImage(f"{name}: {reason or type(error).__name__}") from None
    image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):  # 16 bits; convert() would clip the values
        return Image.fromarray((np.asarray(image, np.uint32) // 257).astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")
