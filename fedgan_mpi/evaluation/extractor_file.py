"""Writes the file of a feature extractor, without torch.

Importing torch costs half a gigabyte of memory if it brings CUDA.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fedgan_mpi.files import write_complete

METADATA_KEY = "extractor"


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
    """Write an extractor, complete or not at all. Equal content gives equal bytes.

    arrays: the state_dict. width: features per image. accuracy: of a classifier on held-out images;
    for the reader only.
    """
    metadata = {"kind": kind, "image_shape": image_shape, "width": width}
    metadata |= {"classes": classes, "accuracy": accuracy}
    # Safetensors writes several metadata keys in random order, which would change the file's hash.
    write_complete(path, save(arrays, {METADATA_KEY: json.dumps(metadata)}))
