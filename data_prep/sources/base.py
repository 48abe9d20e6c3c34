"""The interface of a data set on disk. Knows neither partitions nor the size of output images.

A source reads its tables at construction and decodes pixels one image at a time. Memory therefore
does not grow with the pixels of a data set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.pictures.deep_image import DeepImage
from data_prep.pictures.samples import occurring_range
from data_prep.pictures.settings import PictureSettings
from fedgan_mpi.errors import UserError

Indices = NDArray[np.int64]
Picture = Image.Image | DeepImage | NDArray[Any]
"""An image of mode L or RGB, or an array of numbers, (H, W) or (H, W, C)."""
_LONGEST_REASON = 200  # characters


class BadImage(Exception):
    """An image is unreadable. The message names the image and the reason."""


class Source(ABC):
    """The images of a data set in a fixed order, with their classes if there are any."""

    name: ClassVar[str]
    """Name in shards.json, usable as a file name. Default: the name of the class."""
    torchvision: ClassVar[str | None] = None
    """Name of the class in torchvision.datasets that can download the data set."""
    default_size: int | None = None
    """Default output size in pixels. None: keep the original size, equal for all images."""

    channels: int
    """Channels of the original images."""
    class_names: list[str]
    """Empty without classes."""
    labels: NDArray[np.int64] | None = None
    """(N,), indices into class_names."""
    heldout: Indices | None = None
    """Indices outside the official training set. None without an official split."""
    reads_pictures: ClassVar[bool] = False
    """Whether `pictures` has an effect on `image`."""
    is_deep: bool = False
    """Whether `image` may return arrays of other numbers than uint8. Their range becomes shades."""
    pictures: PictureSettings = PictureSettings()
    """Range of values, depth and background, set before images are decoded."""
    rejected: Sequence[str] = ()
    """Files that are not images, each with the reason. They have no index."""
    warnings: Sequence[str] = ()
    """Harmless irregularities of the files, as sentences."""

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = cls.__name__

    @abstractmethod
    def __init__(self, path: Path) -> None:
        """Read everything but pixels. Raises UserError with the missing or invalid file.

        path: what --source names. Further parameters are the data set's own options,
        `--source-option KEY=VALUE`. A data set without files gives `path` the default None.
        """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Picture:
        """Decode an image at its original size. Raises BadImage."""

    def value_range(self, index: int) -> tuple[float, float] | None:
        """Return the least and the greatest value of an image of more than 8 bits; else None.

        Called for all images if one of them raises NeedsRange. May raise anything for a bad file.
        """
        image = self.image(index) if self.is_deep else None
        if isinstance(image, np.ndarray) and image.dtype != np.uint8:
            return occurring_range(image)
        return None

    @property
    @abstractmethod
    def keys(self) -> Sequence[str]:
        """Names of all images, as a `by_file` table refers to them."""

    @property
    def attributes(self) -> list[str]:
        """Names that `attribute` accepts besides "class"."""
        return []

    def attribute(self, name: str) -> Sequence[str]:
        """Return the attribute's value for each image. Raises UserError for an unknown name."""
        if name == "class" and self.labels is not None:
            return [self.class_names[label] for label in self.labels]
        known = ", ".join(["class"] * (self.labels is not None) + self.attributes)
        raise UserError(f"{self.name} has no attribute {name!r}; it has {known or 'none'}")


class ArraySource(Source):
    """A data set of equally shaped images in memory, (N, C, H, W)."""

    images: NDArray[Any]
    """uint8, or other numbers if `is_deep`."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1], self.images.shape[2], self.images.shape[3]

    @property
    def keys(self) -> Sequence[str]:
        return [str(index) for index in range(len(self))]

    def image(self, index: int) -> Picture:
        pixels = self.images[index].transpose(1, 2, 0)
        if pixels.dtype != np.uint8 or self.channels not in (1, 3):
            return pixels
        return Image.fromarray(
            np.ascontiguousarray(pixels[..., 0] if self.channels == 1 else pixels)
        )


def reason_of(error: BaseException) -> str:
    """Return an error's message in one line of bounded length, or its type if it has none.

    Libraries quote the content of damaged files.
    """
    reason = " ".join(str(error).split())
    if len(reason) > _LONGEST_REASON:
        reason = reason[:_LONGEST_REASON] + " …"
    return reason or type(error).__name__


@contextmanager
def name_file_in_errors(path: Path | str, kind: str) -> Iterator[None]:
    """Convert any exception in the body to a UserError that names the file and its kind.

    Libraries raise many types of exceptions for damaged files, from EOFError to struct.error.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read as {kind}: {error.strerror or error}") from None
    except Exception as error:
        raise UserError(f"{path} is not {kind}, or is damaged: {reason_of(error)}") from None


def find_file(directory: Path, folders: Sequence[str], name: str) -> Path:
    """Return the first existing directory/folder/name. Raises UserError if none exists."""
    for folder in folders:
        if (path := directory / folder / name).exists():
            return path
    searched = " or ".join(str(directory / folder) for folder in folders)
    raise UserError(f"{name} is missing from {searched}")
