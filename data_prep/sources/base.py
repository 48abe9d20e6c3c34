"""What a data set on disk must offer. Knows neither how it is cut nor in which size it is wanted.

Everything but the pixels is known once a source is made; pixels are decoded one image at a time,
so that a source of any size fits in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedgan_mpi.errors import UserError

Indices = NDArray[np.int64]


class BadImage(Exception):
    """An image that cannot be read; the message names it and the reason."""


class Source(ABC):
    """All images of a data set in one order, with their classes where it has any."""

    name: ClassVar[str]
    torchvision: ClassVar[str | None] = None
    """The class of torchvision.datasets that can download it."""
    default_size: int | None = None
    """Pixels; None where all images are alike, and may stay as they are."""

    channels: int
    """Of the original images."""
    class_names: list[str]
    """Empty where there are no classes."""
    labels: NDArray[np.int64] | None = None
    """(N,), places in class_names."""
    heldout: Indices | None = None
    """What the data set's authors did not give for training; None where they leave it to us."""
    rejected: Sequence[str] = ()
    """Files that are no images, each with the reason; they are not counted among the images."""
    warnings: Sequence[str] = ()
    """Oddities of the files that harm nothing, as sentences."""

    @abstractmethod
    def __init__(self, path: Path) -> None:
        """Read all but the pixels. Raises UserError naming the file that is missing or wrong."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """An image in its original size, mode L or RGB. Raises BadImage."""

    @property
    @abstractmethod
    def keys(self) -> Sequence[str]:
        """Every image's name, by which a table of the user's refers to it."""

    @property
    def attributes(self) -> list[str]:
        """Names that `attribute` takes, beside "class"."""
        return []

    def attribute(self, name: str) -> Sequence[str]:
        """Every image's value of an attribute. Raises UserError where there is no such one."""
        if name == "class" and self.labels is not None:
            return [self.class_names[label] for label in self.labels]
        known = ", ".join(["class"] * (self.labels is not None) + self.attributes)
        raise UserError(f"{self.name} has no attribute {name!r}; it has {known or 'none'}")


class ArraySource(Source):
    """A data set of equal images that fits in memory: uint8 (N, C, H, W)."""

    images: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1], self.images.shape[2], self.images.shape[3]

    @property
    def keys(self) -> Sequence[str]:
        return [str(index) for index in range(len(self))]

    def image(self, index: int) -> Image.Image:
        pixels = self.images[index]
        if self.channels == 1:
            return Image.fromarray(pixels[0])
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@contextmanager
def named(path: Path | str, what: str) -> Iterator[None]:
    """Turn whatever a damaged file makes a library raise into a UserError that names the file.

    Libraries raise anything from EOFError to struct.error on damaged files, and each means the
    same to the user.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read as {what}: {error.strerror or error}") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not {what}, or is damaged: {reason}") from None


def find(directory: Path, places: Sequence[str], name: str) -> Path:
    """The first of directory/place/name that is there. Raises UserError naming them all."""
    for place in places:
        if (path := directory / place / name).exists():
            return path
    where = " or ".join(str(directory / place) for place in places)
    raise UserError(f"{name} is missing; it was looked for in {where}")
