"""Decodes an image file: its range of values, transparency, and orientation."""

from __future__ import annotations

import numpy as np
from PIL import Image

from data_prep.limits import TooSlow
from data_prep.pictures.deep_image import DeepImage, as_image
from data_prep.pictures.formats import NotAPicture, is_dicom, open_picture
from data_prep.pictures.samples import (
    Samples,
    full_range,
    is_deep,
    occurring_range,
    read_samples,
    to_shades,
)
from data_prep.pictures.settings import NeedsRange, PictureSettings
from data_prep.sources.base import BadImage, reason_of
from data_prep.sources.dicom import decode_dicom, range_of_dicom
from fedgan_mpi.data import white

SEVERAL_FRAMES = "several_frames"
"""Key in `image.info` of a decoded image whose file has more frames or pages."""
_ORIENTATION = 0x0112  # tag of EXIF
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GRAY_MODES = ("1", "L", "LA", "La")


def decode_image_file(
    name: str, content: bytes, settings: PictureSettings | None = None
) -> Image.Image | DeepImage:
    """Decode a picture or a DICOM file to mode L or RGB, upright, without transparency.

    With a depth of 16 bits, decodes it to a DeepImage of 1 or 3 channels.

    Raises BadImage, whatever the file makes a library raise, and NeedsRange.
    """
    settings = settings or PictureSettings()
    if is_dicom(content):
        return decode_dicom(name, content, settings)
    try:
        image = open_picture(name, content)
        several = _has_several_frames(image)
        upright = _decode(image, content, settings)
        orientation = _orientation(image)  # loads the image, which discards the layout of its file
        if orientation in _TRANSPOSE:
            upright = upright.transpose(_TRANSPOSE[orientation])
    except NotAPicture as error:
        raise BadImage(f"{name}: {error}") from None
    except (NeedsRange, MemoryError, TooSlow):
        raise
    except Exception as error:  # Pillow's errors range from struct.error to SyntaxError
        raise BadImage(f"{name}: {reason_of(error)}") from None
    if several:
        upright.info[SEVERAL_FRAMES] = True
    return upright


def range_of_image_file(name: str, content: bytes) -> tuple[float, float] | None:
    """Return the least and the greatest value of a deep image, or None for one of 8 bits."""
    if is_dicom(content):
        return range_of_dicom(content)
    image = open_picture(name, content)
    return occurring_range(read_samples(image, content).values) if is_deep(image) else None


def _decode(
    image: Image.Image, content: bytes, settings: PictureSettings
) -> Image.Image | DeepImage:
    if not is_deep(image):
        image.load()
        if settings.depth == 8:
            return _decode_8_bits(image, settings)
        value_range = None if image.mode == "1" else settings.range_for(is_deep=False)
        samples = _samples_of_8_bits(image)
    else:
        value_range = settings.range_for(is_deep=True)
        samples = read_samples(image, content)
    limits = value_range or full_range(samples.values.dtype)
    shades = to_shades(samples.values, limits, settings.depth)
    if samples.alpha is None:
        return as_image(shades)
    background = np.array(settings.background, np.float32) * (white(shades.dtype) // 255)
    if shades.ndim == 2 and len(set(settings.background)) == 1:
        alpha, background = samples.alpha, background[0]
    else:
        shades = np.repeat(shades[..., None], 3, 2) if shades.ndim == 2 else shades
        alpha = samples.alpha[..., None]
    composed = np.rint(alpha * shades + (1 - alpha) * background)
    return as_image(composed.astype(shades.dtype))


def _samples_of_8_bits(image: Image.Image) -> Samples:
    """Return the samples of a loaded image of at most 8 bits a channel."""
    mode = "L" if image.mode in _GRAY_MODES else "RGB"
    if not image.has_transparency_data:
        return Samples(np.asarray(image.convert(mode)))
    layers = np.asarray(image.convert("RGBA"))
    values = layers[..., 0] if mode == "L" else layers[..., :3]
    return Samples(values, (layers[..., 3] / np.float32(255)).astype(np.float32))


def _decode_8_bits(image: Image.Image, settings: PictureSettings) -> Image.Image:
    """Return a loaded image of at most 8 bits a channel in mode L or RGB."""
    mode = "L" if image.mode in _GRAY_MODES else "RGB"
    value_range = None if image.mode == "1" else settings.range_for(is_deep=False)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        colours, alpha = layers.convert("RGB"), layers.getchannel("A")
        if mode == "L":
            colours = colours.getchannel("R")
        colours = _stretch(colours, value_range)
        if alpha.getextrema()[0] == 255:
            return colours
        if mode == "L" and len(set(settings.background)) > 1:
            colours = colours.convert("RGB")
        background = settings.background if colours.mode == "RGB" else settings.background[0]
        return Image.composite(colours, Image.new(colours.mode, colours.size, background), alpha)
    return _stretch(image if image.mode == mode else image.convert(mode), value_range)


def _stretch(image: Image.Image, value_range: tuple[float, float] | None) -> Image.Image:
    if value_range is None:
        return image
    table = to_shades(np.arange(256, dtype=np.uint8), value_range).tolist()
    return image.point(table * len(image.getbands()))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 if the EXIF block is damaged or absent."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except TooSlow:
        raise
    except Exception:  # a damaged EXIF block raises anything, but the picture is whole
        return 1


def _has_several_frames(image: Image.Image) -> bool:
    """Return whether only a part of the file is used. MPO's second image is a preview."""
    try:
        return bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except TooSlow:
        raise
    except Exception:
        return False  # decoding the first frame finds damage
