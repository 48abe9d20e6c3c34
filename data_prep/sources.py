"""Where images come from: one class a data set, each giving all its images in one order."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set in memory: uint8 images (N, C, H, W) and their classes, int64 (N,)."""

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: list[str]


def digits(size: int = 16) -> Source:
    """The 1,797 handwritten digits that come with fedgan_mpi, 8×8, enlarged smoothly to
    size×size."""
    with resources.files("fedgan_mpi").joinpath("digits.npz").open("rb") as file:
        arrays = np.load(file)
        small, labels = arrays["images"], arrays["labels"]
    pixels = np.rint(small * (255 / 16)).astype(np.uint8)
    images = [
        Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in pixels
    ]
    return Source(
        name="digits",
        images=np.stack([np.asarray(image) for image in images])[:, None],
        labels=labels.astype(np.int64),
        class_names=[str(digit) for digit in range(10)],
    )


SOURCES = {"digits": digits}
