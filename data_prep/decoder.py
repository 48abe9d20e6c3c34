"""Decodes one block of images. Knows nothing of processes and ranks."""

from __future__ import annotations

import contextlib
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from data_prep.limits import DEFAULT_LIMITS, Limits, TooSlow, limit_time
from data_prep.pictures.deep_image import DeepImage
from data_prep.pictures.samples import full_range, to_shades
from data_prep.pictures.settings import NeedsRange
from data_prep.plugins import describe_error, load
from data_prep.resize import Fit, fit_image
from data_prep.sources.base import ArraySource, BadImage, Indices, Source
from data_prep.sources.image_file import SEVERAL_FRAMES
from fedgan_mpi import plugins
from fedgan_mpi.data import Images, PixelType, white
from fedgan_mpi.errors import UserError
from fedgan_mpi.plugins.built_in import SOURCE_KEY

_BLOCK_BYTES = 2**20
_MAX_BLOCK_IMAGES = 256
_NARROW = 0.05
"""Share of all shades below which an image has few of them."""
_Started = Callable[[int], None] | None


@dataclass(frozen=True, kw_only=True)
class DecodedBlock:
    """The readable images of a block, and one error message for each unreadable image."""

    images: Images
    indices: Indices
    """Index of each readable image in the source."""
    errors: list[str] = field(default_factory=list)
    several_frames: int = 0
    """Number of images whose files have more frames or pages, which are not used."""
    narrow: list[tuple[int, int, int]] = field(default_factory=list)
    """Index, darkest and brightest shade of the images with few shades."""
    needs_range: bool = False
    """Whether the block cannot be decoded before the range of the data set's values is known."""
    value_range: tuple[float, float] | None = None
    """Least and greatest value, if they were asked for and an image has more than 8 bits."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Decodes the images of a source to one shape."""

    source: Source
    size: int | tuple[int, int] | None
    """Pixels of a square, or height and width. None: keep the source's size."""
    image_shape: tuple[int, int, int]
    fit: Fit = "crop"
    measures: bool = False
    """Find the range of values instead of decoding."""
    limits: Limits = DEFAULT_LIMITS
    plugin: str | None = None
    """Name under which the source's class is loaded in another process. None: it is importable."""

    @property
    def dtype(self) -> PixelType:
        """Type of the pixels."""
        return "uint8" if self.source.pictures.depth == 8 else "uint16"

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            state = pickle.dumps(
                {
                    "source": self.source,
                    "size": self.size,
                    "fit": self.fit,
                    "measures": self.measures,
                    "limits": self.limits,
                }
            )
        except Exception as error:
            name = self.plugin or self.source.name
            raise UserError(
                f"DATASET {name!r} cannot be sent to another process: {describe_error(error)}; "
                "open files in image() instead"
            ) from None
        return _rebuild, (self.plugin, state, self.image_shape)

    def __call__(
        self, indices: Indices, started: Callable[[int], None] | None = None
    ) -> DecodedBlock:
        """Decode one block of images, or measure it.

        started: called with the index of each image before it is decoded. If it is given, an image
        that takes too long may end this process.
        """
        with warnings.catch_warnings():
            # After a warning, a library reads the image correctly or raises an error.
            warnings.simplefilter("ignore")
            process = self._measure if self.measures else self._decode_all
            with self._limited(started) as begin:
                return process(indices, begin)

    @contextlib.contextmanager
    def _limited(self, started: _Started) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the index of each image before it is decoded."""
        if type(self.source).image is ArraySource.image:  # cannot take long, and is quick itself
            yield started or _ignore
            return
        with limit_time(self.limits.seconds, may_end_process=started is not None) as begin_time:

            def begin(index: int) -> None:
                if started is not None:
                    started(index)
                begin_time()

            yield begin

    def _decode_all(self, indices: Indices, begin: Callable[[int], None]) -> DecodedBlock:
        images = np.empty((len(indices), *self.image_shape), self.dtype)
        readable: list[int] = []
        errors: list[str] = []
        several_frames = 0
        for index in indices.tolist():
            try:
                begin(index)
                images[len(readable)], several = self._decode(index)
            except BadImage as error:
                errors.append(str(error))
                continue
            except NeedsRange:
                return DecodedBlock(images=images[:0], indices=indices[:0], needs_range=True)
            readable.append(index)
            several_frames += several
        images = images[: len(readable)]
        return DecodedBlock(
            images=images,
            indices=np.array(readable, np.int64),
            errors=errors,
            several_frames=several_frames,
            narrow=_find_narrow(images, readable),
        )

    def _measure(self, indices: Indices, begin: Callable[[int], None]) -> DecodedBlock:
        """Return the range of values alone. A bad file is named when it is decoded."""
        found: list[tuple[float, float]] = []
        for index in indices.tolist():
            with contextlib.suppress(Exception):
                begin(index)
                if (ends := self.source.value_range(index)) is not None:
                    found.append((float(ends[0]), float(ends[1])))
        lows, highs = [low for low, _ in found], [high for _, high in found]
        return DecodedBlock(
            images=np.empty((0, *self.image_shape), self.dtype),
            indices=indices,
            value_range=(min(lows), max(highs)) if found else None,
        )

    def _decode(self, index: int) -> tuple[Images, bool]:
        """Return one image, (C, H, W), and whether its file has more frames.

        Raises BadImage for whatever is raised on the way, and NeedsRange.
        """
        try:
            image: Any = self.source.image(index)
            if isinstance(image, np.ndarray):
                image = self._to_image(index, image)
            if not isinstance(image, DeepImage):
                if not isinstance(image, Image.Image) or image.mode not in ("L", "RGB"):
                    kind = getattr(image, "mode", type(image).__name__)
                    wrong = f"it is {kind}, but must be a PIL image of mode L or RGB, or an array"
                    raise self._bad_image(index, wrong)
                if self.dtype == "uint16":
                    image = self._to_image(index, np.asarray(image))
            several = SEVERAL_FRAMES in image.info
            channels, *size = self.image_shape
            target = None if self.size is None else (size[0], size[1])
            return fit_image(image, target, channels, self.fit), several
        except (BadImage, NeedsRange, UserError):
            raise
        except MemoryError:
            raise BadImage(
                f"{self._key(index)}: decoding takes more than {self.limits.memory:,} MiB; "
                "--decode-memory allows more"
            ) from None
        except TooSlow as error:
            raise BadImage(f"{self._key(index)}: {error}; --decode-seconds allows more") from None
        except (Exception, SystemExit) as error:
            problem = f"{self._key(index)}: {describe_error(error)}"
            where = plugins.blame(error)
            raise BadImage(f"{problem}. {where}" if where else problem) from None

    def describe_kill(self, index: int) -> str:
        """Return the error message of an image whose decoding ended its process."""
        return (
            f"{self._key(index)}: a decoding process was killed by it, through a fault of the "
            f"decoder, or more than {self.limits.seconds:g} s (--decode-seconds) or "
            f"{self.limits.memory:,} MiB (--decode-memory)"
        )

    def _to_image(self, index: int, values: Any) -> DeepImage:
        """Return an array in the shades of the shards. Raises BadImage and NeedsRange."""
        if values.ndim not in (2, 3) or values.dtype.kind not in "uif":
            found = f"it is an array {values.dtype} {values.shape}"
            raise self._bad_image(index, f"{found}, but must be numbers (H, W) or (H, W, C)")
        is_deep = values.dtype != np.uint8
        if is_deep and not self.source.is_deep:
            raise self._bad_image(index, f"it is an array of {values.dtype}, but is_deep is False")
        pictures = self.source.pictures
        limits = pictures.range_for(is_deep=is_deep) or full_range(values.dtype)
        return DeepImage(to_shades(values, limits, pictures.depth))

    def _bad_image(self, index: int, problem: str) -> BadImage:
        origin = f" (from DATASET {self.plugin!r})" if self.plugin else ""
        return BadImage(f"{self._key(index)}: {problem}{origin}")

    def _key(self, index: int) -> str:
        try:
            return str(self.source.keys[index])
        except Exception:
            return f"image {index}"

    def blocks(self, indices: Indices) -> list[Indices]:
        """Split indices into consecutive blocks of about 1 MiB of pixels."""
        images = _BLOCK_BYTES // (math.prod(self.image_shape) * np.dtype(self.dtype).itemsize)
        size = min(max(images, 1), _MAX_BLOCK_IMAGES)
        return [indices[start : start + size] for start in range(0, len(indices), size)]


def _rebuild(plugin: str | None, state: bytes, image_shape: tuple[int, int, int]) -> Decoder:
    """Make a Decoder in another process, after the module of its source has been imported."""
    if plugin is not None:
        load(SOURCE_KEY, plugin)
    return Decoder(**pickle.loads(state), image_shape=image_shape, plugin=plugin)


def _ignore(index: int) -> None:
    """Take no notice of the image that begins."""


def _find_narrow(images: Images, indices: list[int]) -> list[tuple[int, int, int]]:
    """Return index, darkest and brightest shade of the images with few shades."""
    if not len(images):
        return []
    flat = images.reshape(len(images), -1)
    low, high = flat.min(1).astype(int), flat.max(1).astype(int)
    narrow = np.flatnonzero(high - low < _NARROW * white(images.dtype)).tolist()
    return [(indices[n], int(low[n]), int(high[n])) for n in narrow]
