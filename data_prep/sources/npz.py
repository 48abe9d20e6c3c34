"""Data sets in one .npz file with the keys of MedMNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.base import ArraySource, name_file_in_errors
from fedgan_mpi.data.npz import open_npz
from fedgan_mpi.errors import UserError

_PARTS = ("train", "val", "test")


class Npz(ArraySource):
    """Any .npz file like MedMNIST's: {train,val,test}_images, N×H×W or N×H×W×C, and _labels."""

    name = "npz"

    def __init__(self, path: Path) -> None:
        """Read all arrays. The images of val and test are held out."""
        if path.is_dir():
            raise UserError(f"{path} is a folder, but npz needs the .npz file")
        with name_file_in_errors(path, "an npz file"), open_npz(path) as arrays:
            names = arrays.names
            parts = [part for part in _PARTS if f"{part}_images" in names]
            if parts[:1] != ["train"]:
                has = ", ".join(names[:10]) or "none"
                raise UserError(f"{path} has no train_images; it has {has}")
            images = [
                _images(path, f"{part}_images", arrays.read(f"{part}_images")) for part in parts
            ]
            labels = [
                _labels(path, f"{part}_labels", arrays.read(f"{part}_labels"), len(part_images))
                for part, part_images in zip(parts, images, strict=True)
                if f"{part}_labels" in names
            ]
        if labels and len(labels) < len(parts):
            raise UserError(
                f"{path} has labels for only some of {', '.join(parts)}; add the others"
            )
        if len({(part.shape[1:], part.dtype) for part in images}) > 1:
            raise UserError(f"{path}: the images of {', '.join(parts)} differ in shape or type")
        self.images = np.concatenate(images)
        self.channels = self.images.shape[1]
        self.is_deep = self.images.dtype != np.uint8
        self.class_names = []
        if labels:
            # Labels may be identifiers with gaps of millions. The classes are those that occur.
            originals, numbers = np.unique(np.concatenate(labels), return_inverse=True)
            self.labels = numbers.reshape(-1).astype(np.int64)
            self.class_names = [str(original) for original in originals.tolist()]
        self.heldout = np.arange(len(images[0]), len(self.images)) if len(parts) > 1 else None


def _images(path: Path, key: str, images: NDArray) -> NDArray[Any]:
    """Convert an array to (N, C, H, W). Raises UserError if its dtype or shape is wrong."""
    if images.dtype.kind not in "uif":
        raise UserError(f"{path}: {key} are {images.dtype}, but must be integers or floats")
    if 0 in images.shape[1:]:
        raise UserError(f"{path}: {key} have shape {images.shape}, so the images have no pixels")
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[2] == images.shape[3] != images.shape[1]:
        raise UserError(
            f"{path}: {key} have shape {images.shape}, which looks like N×C×H×W, but must be "
            "N×H×W×C; transpose them"
        )
    if images.ndim == 4:
        return images.transpose(0, 3, 1, 2)
    raise UserError(f"{path}: {key} have shape {images.shape}, but must be N×H×W or N×H×W×C")


def _labels(path: Path, key: str, labels: NDArray, images: int) -> NDArray[Any]:
    """Return integers (N,) of any size. Raises UserError if they are not one label per image."""
    if labels.shape not in {(images,), (images, 1)} or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {key} are {labels.dtype} {labels.shape}, but must be one integer for each "
            f"of {images} images"
        )
    if labels.min(initial=0) < 0:
        raise UserError(f"{path}: {key} contain {labels.min()}, but must be at least 0")
    return labels.reshape(-1).astype(np.uint64)
