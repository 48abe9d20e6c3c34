"""MNIST and Fashion-MNIST: the idx files of their authors, plain or gzipped."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.base import ArraySource, find_file, name_file_in_errors
from fedgan_mpi.data.sizes import check_sizes
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_regular_file

_UINT8 = 0x08  # code of the idx format


class Mnist(ArraySource):
    """60,000 + 10,000 handwritten digits, 28×28: *-ubyte or *-ubyte.gz files."""

    name = "mnist"
    torchvision = "MNIST"
    channels = 1
    class_names = [str(digit) for digit in range(10)]  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        folders = ["", "raw", f"{self.torchvision}/raw"]
        images, labels = [], []
        for part in ("train", "t10k"):
            images_file = _find_idx(path, folders, f"{part}-images-idx3-ubyte")
            labels_file = _find_idx(path, folders, f"{part}-labels-idx1-ubyte")
            images.append(read_idx(images_file, dimensions=3))
            labels.append(read_idx(labels_file, dimensions=1))
            if len(images[-1]) != len(labels[-1]):
                raise UserError(
                    f"{labels_file} has {len(labels[-1])} labels, but {images_file} has "
                    f"{len(images[-1])} images"
                )
            if labels[-1].max(initial=0) >= len(self.class_names):
                raise UserError(
                    f"{labels_file} has the label {labels[-1].max()}, but labels of {self.name} "
                    f"must be from 0 to {len(self.class_names) - 1}"
                )
        self.images = np.concatenate(images)[:, None]
        self.labels = np.concatenate(labels).astype(np.int64)
        self.heldout = np.arange(len(images[0]), len(self.images))


class FashionMnist(Mnist):
    """60,000 + 10,000 images of clothes, 28×28: *-ubyte or *-ubyte.gz files."""

    name = "fashion_mnist"
    torchvision = "FashionMNIST"
    class_names = [  # noqa: RUF012
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Read the uint8 array of an idx file, plain or gzipped.

    Raises UserError if the format or size is wrong, before it reads more than the header announces.
    """
    with name_file_in_errors(path, "an idx file"), _open(path) as file:
        header = file.read(4 + 4 * dimensions)
        if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, _UINT8, dimensions]):
            raise UserError(f"{path} is not an idx file of uint8 in {dimensions} dimensions")
        shape = [int(n) for n in np.frombuffer(header, ">u4", dimensions, offset=4)]
        if 0 in shape[1:]:
            raise UserError(f"{path} announces images of {shape[1]}×{shape[2]} pixels")
        expected = math.prod(shape)
        found = path.stat().st_size - len(header)
        is_packed = isinstance(file, gzip.GzipFile)
        if is_packed:
            check_sizes(found, expected)
        if is_packed or found == expected:
            values = np.frombuffer(file.read(expected + 1), np.uint8)
            found = len(values)
    if found != expected:
        has = "more" if found > expected else found
        raise UserError(
            f"{path} has {has} values, but its header announces {expected}; is it truncated?"
        )
    return values.reshape(shape)


@contextmanager
def _open(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a regular file, plain or gzipped, by its content. Raises OSError for any other."""
    start = read_regular_file(path, nbytes=2)
    with gzip.open(path) if start == b"\x1f\x8b" else path.open("rb") as file:
        yield file


def _find_idx(path: Path, folders: list[str], name: str) -> Path:
    """Find a file of any of its usual names, plain or else gzipped.

    A plain file is faster to read. Raises UserError if there is none.
    """
    dotted = name.replace("-idx", ".idx")
    # Kaggle packs each file into a folder of its name.
    names = [name, dotted, f"{name}/{name}", f"{dotted}/{dotted}", f"{name}/{dotted}"]
    for candidate in [*names, *(f"{each}.gz" for each in names)]:
        for folder in folders:
            if (found := path / folder / candidate).is_file():
                return found
    return find_file(path, folders, f"{name}.gz")  # raises
