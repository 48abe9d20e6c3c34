"""Decodes one DICOM file to 8-bit gray as a radiologist would see it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.sources.base import BadImage


def decode_dicom(name: str, content: bytes) -> Image.Image:
    """Mode L; MONOCHROME1 inverted, the file's window or its whole range of bits scaled to 0…255.
    Raises BadImage naming the file."""
    import pydicom  # only RSNA needs it, and it is slow to import

    try:
        file = pydicom.dcmread(io.BytesIO(content))
        return Image.fromarray(to_gray(file, file.pixel_array))
    except Exception as error:  # a damaged file fails in pydicom in any of a dozen ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"{name}: {reason}") from None


def read_tag(content: bytes, tag: str) -> str:
    """One text of a DICOM file's header; "unknown" where it has none."""
    import pydicom

    file = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=[tag])
    return str(file.get(tag) or "unknown")


def to_gray(file: Any, stored: NDArray) -> NDArray[np.uint8]:
    """Stored values (H, W) to uint8, by the file's own description of them."""
    if stored.ndim != 2:
        raise ValueError(f"it has {stored.shape} values, but one gray picture is wanted")
    kind = file.PhotometricInterpretation
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"its PhotometricInterpretation is {kind}, not MONOCHROME1 or 2")
    if file.BitsStored == 8 and "WindowCenter" not in file and file.PixelRepresentation == 0:
        gray = stored.astype(np.uint8, copy=False)
    else:
        gray = np.rint(255 * np.clip(_share(file, stored), 0, 1)).astype(np.uint8)
    return 255 - gray if kind == "MONOCHROME1" else gray


def _share(file: Any, stored: NDArray) -> NDArray[np.float64]:
    """Where in the window each value lies, 0…1 inside of it (DICOM PS3.3, C.11.2.1.2)."""
    slope, intercept = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
    values = stored * slope + intercept
    if "WindowCenter" not in file:
        low = -(2 ** (file.BitsStored - 1)) if file.PixelRepresentation else 0
        ends = np.array([low, low + 2**file.BitsStored - 1]) * slope + intercept
        return (values - ends[0]) / (ends[1] - ends[0])
    # Several windows may be given; the first is the one to show.
    centre = float(np.atleast_1d(file.WindowCenter)[0])
    width = float(np.atleast_1d(file.WindowWidth)[0])
    function = file.get("VOILUTFunction", "LINEAR")
    if function == "LINEAR":
        return (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    raise ValueError(f"its VOILUTFunction is {function}, which DICOM does not define")
