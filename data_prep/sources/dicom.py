"""Decodes a DICOM file to 8-bit gray with the window that a viewer would apply."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.sources.base import BadImage


def decode_dicom(name: str, content: bytes) -> Image.Image:
    """Decode a file to mode L.

    Inverts MONOCHROME1, and scales the file's window, or else its full bit range, to 0…255. Raises
    BadImage with the name.
    """
    import pydicom  # slow to import

    try:
        file = pydicom.dcmread(io.BytesIO(content))
        return Image.fromarray(to_gray(file, file.pixel_array))
    except Exception as error:  # pydicom's errors for damaged files have no common type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"{name}: {reason}") from None


def read_tag(content: bytes, tag: str) -> str:
    """Return a text from a DICOM header, or "unknown" if the tag is absent or empty."""
    import pydicom

    file = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=[tag])
    return str(file.get(tag) or "unknown")


def to_gray(file: Any, stored: NDArray) -> NDArray[np.uint8]:
    """Convert stored values (H, W) to uint8 according to the file's header.

    Raises ValueError if the file is not one gray image.
    """
    if stored.ndim != 2:
        raise ValueError(f"its pixels have shape {stored.shape}, but must be one gray image")
    kind = file.PhotometricInterpretation
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"its PhotometricInterpretation is {kind}, not MONOCHROME1 or 2")
    if file.BitsStored == 8 and "WindowCenter" not in file and file.PixelRepresentation == 0:
        gray = stored.astype(np.uint8, copy=False)
    else:
        gray = np.rint(255 * np.clip(_window_position(file, stored), 0, 1)).astype(np.uint8)
    return 255 - gray if kind == "MONOCHROME1" else gray


def _window_position(file: Any, stored: NDArray) -> NDArray[np.float64]:
    """Return each value's position in the window: 0 to 1 inside it (DICOM PS3.3, C.11.2.1.2)."""
    slope, intercept = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
    values = stored * slope + intercept
    if "WindowCenter" not in file:
        low = -(2 ** (file.BitsStored - 1)) if file.PixelRepresentation else 0
        ends = np.array([low, low + 2**file.BitsStored - 1]) * slope + intercept
        return (values - ends[0]) / (ends[1] - ends[0])
    # A file may have several windows; viewers show the first.
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
