"""Writes an extractor's file: its arrays, and what is needed to build it again. Does without torch,
whose import alone takes half a gigabyte where it brings CUDA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fedgan_mpi.files import write_complete

ABOUT = "extractor"


def write_arrays(
    path: Path,
    arrays: dict[str, NDArray[np.float32]],
    *,
    kind: str,
    image_shape: tuple[int, ...],
    width: int,
    classes: int = 0,
    accuracy: float | None = None,
) -> None:
    """Complete or not at all, and byte for byte the same for the same content.

    width: features of an image. accuracy: a classifier's, on held-out images, for the reader.
    """
    about = {"kind": kind, "image_shape": image_shape, "width": width}
    about |= {"classes": classes, "accuracy": accuracy}
    # One key: safetensors writes several in an order that changes, and the file's hash with it.
    write_complete(path, save(arrays, {ABOUT: json.dumps(about)}))
