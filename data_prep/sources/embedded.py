"""The handwritten digits embedded in fedgan_mpi."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

from data_prep.sources.base import ArraySource


class Digits(ArraySource):
    """1,797 embedded digits, 8×8, resized with interpolation; needs no --source."""

    name = "digits"
    channels = 1
    class_names = [str(digit) for digit in range(10)]  # noqa: RUF012

    def __init__(self, path: Path | None = None, size: int = 16) -> None:
        with resources.files("fedgan_mpi.data").joinpath("digits.npz").open("rb") as file:
            arrays = np.load(file)
            small, self.labels = arrays["images"], arrays["labels"].astype(np.int64)
        self.images = np.rint(small * (255 / 16)).astype(np.uint8)[:, None]
        self.default_size = size
