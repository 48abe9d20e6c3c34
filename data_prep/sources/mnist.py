"""MNIST and Fashion-MNIST: idx files, plain or gzipped, as their authors distribute them."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.base import ArraySource, find, named
from fedgan_mpi.errors import UserError

_UINT8 = 0x08  # the idx format's code


class Mnist(ArraySource):
    """60,000 + 10,000 handwritten digits, 28×28: *-ubyte or *-ubyte.gz files."""

    name = "mnist"
    torchvision = "MNIST"
    channels = 1
    class_names = [str(digit) for digit in range(10)]  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        places = ["", "raw", f"{self.torchvision}/raw"]
        images, labels = [], []
        for part in ("train", "t10k"):
            images_file = _either(path, places, f"{part}-images-idx3-ubyte")
            labels_file = _either(path, places, f"{part}-labels-idx1-ubyte")
            images.append(read_idx(images_file, dimensions=3))
            labels.append(read_idx(labels_file, dimensions=1))
            if len(images[-1]) != len(labels[-1]):
                raise UserError(
                    f"{labels_file} has {len(labels[-1])} labels, but {images_file} has "
                    f"{len(images[-1])} images"
                )
            if labels[-1].max(initial=0) >= len(self.class_names):
                raise UserError(
                    f"{labels_file} has the label {labels[-1].max()}, but the classes of "
                    f"{self.name} are 0 to {len(self.class_names) - 1}"
                )
        self.images = np.concatenate(images)[:, None]
        self.labels = np.concatenate(labels).astype(np.int64)
        self.heldout = np.arange(len(images[0]), len(self.images))


class FashionMnist(Mnist):
    """60,000 + 10,000 pictures of clothes, 28×28: *-ubyte or *-ubyte.gz files."""

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
    """The uint8 array of an idx file. Raises UserError where it is damaged or of another kind."""
    with named(path, "an idx file"):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    if len(content) < 4 + 4 * dimensions or content[:4] != bytes([0, 0, _UINT8, dimensions]):
        raise UserError(f"{path} is not an idx file of bytes in {dimensions} dimensions")
    shape = [int(n) for n in np.frombuffer(content, ">u4", dimensions, offset=4)]
    wanted = math.prod(shape)
    pixels = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if len(pixels) != wanted:
        raise UserError(
            f"{path} holds {len(pixels)} bytes, but its header promises {wanted}; is it truncated?"
        )
    return pixels.reshape(shape)


def _either(path: Path, places: list[str], name: str) -> Path:
    """The file as it is or gzipped; an unpacked one first, as it is read faster."""
    try:
        return find(path, places, name)
    except UserError:
        return find(path, places, f"{name}.gz")
