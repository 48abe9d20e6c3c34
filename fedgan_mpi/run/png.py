"""Encodes pictures of 8 and 16 bits as PNG."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from fedgan_mpi.data import Images

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB = 2  # the colour type


def encode_png(pixels: Images) -> bytes:
    """Encode gray pixels (H, W), or colours (H, W, 3), with the depth of their type."""
    if pixels.ndim == 3 and pixels.dtype == np.uint16:
        return _encode_deep_colours(pixels)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")
    return file.getvalue()


def _encode_deep_colours(pixels: Images) -> bytes:
    """Encode uint16 (H, W, 3), which Pillow cannot hold. See the PNG specification, section 11."""
    height, width, _ = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    unfiltered = np.zeros((height, 1), np.uint8)  # the filter of each row: none
    header = struct.pack(">IIBBBBB", width, height, 16, _RGB, 0, 0, 0)
    data = zlib.compress(np.hstack([unfiltered, rows]).tobytes())
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
