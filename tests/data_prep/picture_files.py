"""Encodes pictures that Pillow does not write, and runs them through data_prep."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from data_prep_helpers import SERIAL
from PIL import Image

from data_prep.__main__ import main
from data_prep.pictures.settings import PictureSettings
from data_prep.sources.image_file import decode_image_file
from fedgan_mpi.data import Manifest, read_shard


def png16(values: np.ndarray, extra: bytes = b"") -> bytes:
    """Encode uint16 (H, W), or (H, W, C) with C = 2, 3 or 4, as PNG. extra: chunks before IDAT."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def blank_png(side: int) -> bytes:
    """Encode a black square, without its pixels in memory."""
    rows = zlib.compressobj()
    packed = [rows.compress(bytes(side + 1)) for _ in range(side)] + [rows.flush()]
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", b"".join(packed))
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """Encode a chunk of a PNG file."""
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def tiff(values: np.ndarray, order: str = "<", alpha: bool = False, deflate: bool = False) -> bytes:
    """Encode (H, W) or (H, W, C) of any number type as a TIFF file."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if deflate else data
    data += b"\0" * (len(data) % 2)
    bits = values.dtype.itemsize * 8
    shorts = {258: [bits] * channels, 339: [kind] * channels}
    start = 8 + 4 * channels  # of the pixels
    tags: dict[int, tuple[int, int, int]] = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, channels, 8),
        259: (3, 1, 8 if deflate else 1),
        262: (3, 1, 2 if channels > 2 else 1),
        273: (4, 1, start),
        277: (3, 1, channels),
        278: (4, 1, height),
        279: (4, 1, len(data)),
        339: (3, channels, 8 + 2 * channels),
    }
    if alpha:
        tags[338] = (3, 1, 2)
    table = struct.pack(f"{order}H", len(tags))
    for tag, (type_, count, value) in sorted(tags.items()):
        table += struct.pack(f"{order}HHI", tag, type_, count)
        if tag in shorts and channels <= 2:
            table += struct.pack(f"{order}{channels}H", *shorts[tag]).ljust(4, b"\0")
        else:
            wide = type_ == 4 or count > 1
            table += struct.pack(
                f"{order}I" if wide else f"{order}HH", value, *([] if wide else [0])
            )
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start + len(data))
    arrays = b"".join(struct.pack(f"{order}{channels}H", *shorts[tag]) for tag in (258, 339))
    return head + arrays + data + table + b"\0\0\0\0"


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    """Encode a Pillow image."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg_with_exif(image: Image.Image, block: bytes) -> bytes:
    """Encode a JPEG file with this EXIF block, whatever it holds."""
    content = encode(image, "JPEG", quality=95)
    segment = b"Exif\0\0" + block
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]


def exif(orientation: int, type_: int = 3, count: int = 1, next_ifd: int = 0) -> bytes:
    """Return an EXIF block with an orientation."""
    entry = struct.pack("<HHIHH", 0x0112, type_, count, orientation, 0)
    return b"II*\0\x08\0\0\0\x01\0" + entry + struct.pack("<I", next_ifd)


RAMP = np.arange(256).reshape(16, 16)
"""Every shade once."""


def decode(content: bytes, name: str = "a.png", **settings: object) -> np.ndarray:
    return np.asarray(decode_image_file(name, content, PictureSettings(**settings)))


def shards_of(tmp_path: Path, contents: dict[str, bytes], *more: str) -> tuple[np.ndarray, dict]:
    """Prepare a folder of pictures. Return the images in the order of names, and the manifest."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    options = ["--devices=1", "--heldout-share=0", *SERIAL, *more]
    assert main(["imagefolder", "--source", str(folder), "--out", str(out), *options]) == 0
    manifest = Manifest.read(out)
    shape, dtype = manifest.image_shape, manifest.dtype
    shard = read_shard(out / "device_0001.h5", image_shape=shape, dtype=dtype)
    return shard.images, json.loads((out / "shards.json").read_text())
