"""The picture formats that are read, decided by content and never by a file's name.

Formats that are programs or documents (EPS, PDF, SVG, WMF) are refused before a decoder sees them.
"""

from __future__ import annotations

import io
from functools import cache

from PIL import Image

# Pillow's EPS decoder runs Ghostscript on the file.
FORMATS = [
    "JPEG",
    "PNG",
    "GIF",
    "WEBP",
    "AVIF",
    "BMP",
    "DIB",
    "TIFF",
    "JPEG2000",
    "PPM",
    "ICO",
    "PCX",
    "QOI",
    "SGI",
]
"""Names in Pillow; JPEG includes MPO. TGA has no signature: it is recognized by its extension."""
EXTENSIONS = frozenset(
    f".{name}"
    for line in (
        "apng avif avifs bmp dcm dib dicom gif ico j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo",
        "pbm pcx pfm pgm png pnm ppm qoi rgb rgba sgi tga tif tiff webp",
    )
    for name in line.split()
)
"""Names of files that are taken for images without a look at their content."""
START_BYTES = 160
"""Number of bytes that identify a format."""
_UNREADABLE = {
    b"%!PS": "PostScript, a program that is not run; convert it to PNG",
    b"\xc5\xd0\xd3\xc6": "PostScript, a program that is not run; convert it to PNG",
    b"%PDF": "a PDF document; convert its pages to PNG",
    b"8BPS": "a Photoshop file; export it as PNG",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile; convert it to PNG",
    b"<svg": "an SVG drawing; convert it to PNG",
    b"<?xml": "an XML file; convert drawings to PNG",
    b"<!DOCTYPE": "a web page, perhaps of a failed download",
    b"<!doctype": "a web page, perhaps of a failed download",
    b"<html": "a web page, perhaps of a failed download",
    b"version https://git-lfs": "a pointer of Git LFS; run git lfs pull",
    b"\x89HDF": "an HDF5 file",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\x1f\x8b": "a gzip archive; unpack it",
}
"""First bytes -> what the file is."""
_PHOTO_OF_PHONE = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc")


class NotAPicture(Exception):
    """A file has none of the formats that are read. The message names its type."""


def is_dicom(start: bytes) -> bool:
    """Return whether a file begins as DICOM files do."""
    return start[128:132] == b"DICM"


def is_picture(start: bytes) -> bool:
    """Return whether a file begins as one of the formats that are read. start: START_BYTES."""
    if is_dicom(start):
        return True
    prefix = start[:16]
    accepting = (Image.OPEN[name][1] for name in _available())
    return any(accept is not None and accept(prefix) is True for accept in accepting)


def open_picture(name: str, content: bytes) -> Image.Image:
    """Open a picture without decoding it.

    Raises NotAPicture, and whatever Pillow raises for a damaged file.
    """
    allowed = [*_available(), "TGA"] if name.lower().endswith(".tga") else _available()
    try:
        return Image.open(io.BytesIO(content), formats=allowed)
    except Image.UnidentifiedImageError:
        raise NotAPicture(describe(content[:START_BYTES])) from None


@cache
def _available() -> list[str]:
    """Return the formats that this build of Pillow decodes."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def describe(start: bytes) -> str:
    """Return what a file is that is no picture, as a clause. start: its first bytes."""
    if not start:
        return "it is empty"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, kind in _UNREADABLE.items():
        if text.startswith(signature):
            return f"it is {kind}"
    if start[4:12] in _PHOTO_OF_PHONE:
        return "it is a HEIC photograph; convert it to JPEG"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return (
            "it is a damaged TIFF file, or has samples that Pillow cannot read; convert it to 8 or "
            "16 bits, or to one channel of 32-bit floats"
        )
    return "it is not an image"
