"""Decodes a DICOM file to gray with the lookup tables or the window a viewer would apply."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.limits import TooSlow
from data_prep.pictures.deep_image import DeepImage, as_image
from data_prep.pictures.samples import occurring_range, to_shades
from data_prep.pictures.settings import Depth, NeedsRange, PictureSettings
from data_prep.sources.base import BadImage, reason_of
from fedgan_mpi.data import Images, white

_OPTIONAL = (
    "ModalityLUTSequence",
    "PixelPaddingValue",
    "PresentationLUTShape",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
)
"""Attributes that may be absent, and that are treated so if they are empty."""


def decode_dicom(
    name: str, content: bytes, settings: PictureSettings | None = None
) -> Image.Image | DeepImage:
    """Decode a file to mode L, or to a gray DeepImage of 16 bits.

    A declared range holds for the values after rescaling (Hounsfield units, say), and replaces the
    file's VOI table or window. Values of more than 8 bits without either are scaled by the range of
    the data set, or else by their full bit range. Raises BadImage with the name, and NeedsRange.
    """
    try:
        file = _read(content)
        return as_image(to_gray(file, file.pixel_array, settings or PictureSettings()))
    except (NeedsRange, MemoryError, TooSlow):
        raise
    except Exception as error:  # pydicom's errors for damaged files have no common type
        raise BadImage(f"{name}: {reason_of(error)}") from None


def range_of_dicom(content: bytes) -> tuple[float, float] | None:
    """Return the least and the greatest rescaled value, or None for a file that needs no range.

    Padding around the picture does not count.
    """
    file = _read(content)
    if _shades_are_known(file):
        return None
    stored = file.pixel_array
    if "PixelPaddingValue" in file and (stored != file.PixelPaddingValue).any():
        stored = stored[stored != file.PixelPaddingValue]
    return occurring_range(_rescale(file, stored))


def read_tag(content: bytes, tag: str) -> str:
    """Return a text from a DICOM header, or "unknown" if the tag is absent or empty."""
    import pydicom

    file = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=[tag])
    return str(file.get(tag) or "unknown")


def to_gray(file: Any, stored: NDArray, settings: PictureSettings) -> Images:
    """Convert stored values (H, W) to shades according to the file's header.

    Raises ValueError if the file is not one gray image, and NeedsRange.
    """
    if stored.ndim != 2:
        raise ValueError(f"its pixels have shape {stored.shape}, but must be one gray image")
    kind = file.PhotometricInterpretation
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"its PhotometricInterpretation is {kind}, not MONOCHROME1 or 2")
    gray = _to_shades(file, stored, settings)
    is_inverse = str(file.get("PresentationLUTShape", "")).upper() == "INVERSE"
    return white(gray.dtype) - gray if kind == "MONOCHROME1" or is_inverse else gray


def _read(content: bytes) -> Any:
    """Read a file without its empty attributes, and without half a window."""
    import pydicom  # slow to import

    file = pydicom.dcmread(io.BytesIO(content))
    for keyword in _OPTIONAL:
        if keyword in file and _is_empty(file[keyword].value):
            del file[keyword]
    if _window(file) is None:
        for keyword in ("WindowCenter", "WindowWidth"):
            if keyword in file:
                del file[keyword]
    if "RescaleSlope" in file or "RescaleIntercept" in file:
        file.RescaleSlope = file.get("RescaleSlope", 1)
        file.RescaleIntercept = file.get("RescaleIntercept", 0)
    return file


def _is_empty(value: Any) -> bool:
    return (
        value is None or (hasattr(value, "__len__") and len(value) == 0) or not str(value).strip()
    )


def _window(file: Any) -> tuple[float, float] | None:
    """Return centre and width of the first window, or None without a usable one.

    A file may have several windows; viewers show the first.
    """
    ends = [np.atleast_1d(file.get(keyword))[0] for keyword in ("WindowCenter", "WindowWidth")]
    if any(_is_empty(end) for end in ends):
        return None
    centre, width = map(float, ends)
    is_linear = _function(file) == "LINEAR"
    return (centre, width) if width >= 1 or (width > 0 and not is_linear) else None


def _function(file: Any) -> str:
    return str(file.get("VOILUTFunction", "LINEAR")).strip().upper()


def _shades_are_known(file: Any) -> bool:
    """Return whether the header says which values are black and white."""
    is_8_bits = file.get("BitsStored", 64) <= 8 and file.get("PixelRepresentation", 0) == 0
    is_stored = is_8_bits and "ModalityLUTSequence" not in file
    return is_stored or "VOILUTSequence" in file or "WindowCenter" in file


def _rescale(file: Any, stored: NDArray) -> NDArray:
    """Return the values in the file's units: its modality LUT, or its slope and intercept."""
    from pydicom.pixels import apply_modality_lut

    with contextlib.ExitStack() as stack:
        if "ModalityLUTSequence" in file:
            stack.enter_context(_entries_of_16_bits(file.ModalityLUTSequence[0]))
        return apply_modality_lut(stored, file)


@contextlib.contextmanager
def _entries_of_16_bits(table: Any) -> Iterator[int]:
    """Declare 16 bits for the entries of a lookup table, and yield the bits that they have.

    pydicom looks for a numpy type of as many bits, and finds none for 12. It also computes indices
    in the type of the entries, so that they overflow if the entries have 8 bits.
    """
    descriptor = list(table.LUTDescriptor)
    table.LUTDescriptor = [*descriptor[:2], 16]
    try:
        yield int(descriptor[2])
    finally:
        table.LUTDescriptor = descriptor


def _to_shades(file: Any, stored: NDArray, settings: PictureSettings) -> Images:
    depth = settings.depth
    if settings.is_declared and settings.value_range is not None:
        return to_shades(_rescale(file, stored), settings.value_range, depth)
    if "VOILUTSequence" in file:
        return _apply_voi_table(file, _rescale(file, stored), depth)
    if "WindowCenter" in file:
        return _apply_window(file, _rescale(file, stored), depth)
    if (
        not _shades_are_known(file)
        and (value_range := settings.range_for(is_deep=True)) is not None
    ):
        return to_shades(_rescale(file, stored), value_range, depth)
    values = _rescale(file, stored)
    if "ModalityLUTSequence" in file:
        most = 2 ** int(file.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
        return to_shades(values, (0, most), depth)
    if stored.dtype.kind == "f":
        return to_shades(values, occurring_range(values) or (0, 1), depth)
    bits = int(file.BitsStored)
    if bits == 8 and file.PixelRepresentation == 0 and file.get("RescaleSlope", 1) >= 0:
        return to_shades(stored.astype(np.uint8, copy=False), (0, 255), depth)
    low = -(2 ** (bits - 1)) if file.PixelRepresentation else 0
    ends = _rescale(file, np.array([low, low + 2**bits - 1]))
    return to_shades(values, (float(ends.min()), float(ends.max())), depth)


def _apply_voi_table(file: Any, values: NDArray, depth: Depth) -> Images:
    """Look values up in the first table of VOILUTSequence (DICOM PS3.3, C.11.2.1.1)."""
    from pydicom.pixels import apply_voi_lut

    with _entries_of_16_bits(file.VOILUTSequence[0]) as bits:
        looked_up = apply_voi_lut(np.rint(values).astype(np.int64), file, prefer_lut=True)
    return to_shades(looked_up, (0, 2**bits - 1), depth)


def _apply_window(file: Any, values: NDArray, depth: Depth) -> Images:
    """Apply the file's window (DICOM PS3.3, C.11.2.1.2)."""
    from pydicom import Dataset
    from pydicom.pixels import apply_voi_lut

    # With this header pydicom maps the window to 0…65535, whatever the bits of the file.
    header = Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsStored, header.PixelRepresentation = 16, 0
    header.WindowCenter, header.WindowWidth = _window(file) or (0, 1)
    header.VOILUTFunction = _function(file)
    return to_shades(apply_voi_lut(values, header), (0, 65535), depth)
