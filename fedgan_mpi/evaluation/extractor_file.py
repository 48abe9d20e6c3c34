"""Writes the file of a feature extractor and reads its header, without torch.

Importing torch costs half a gigabyte of memory if it brings CUDA.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from safetensors.numpy import save

from fedgan_mpi.files import write_complete
from fedgan_mpi.schema import check, parse_json

METADATA_KEY = "extractor"
_Size = Annotated[int, Meta(ge=1, le=2**16)]


class Metadata(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The header of an extractor's file."""

    kind: Literal["classifier", "pca"]
    image_shape: tuple[_Size, _Size, _Size]
    width: _Size
    """Features per image."""
    classes: Annotated[int, Meta(ge=0, le=2**20)] = 0
    accuracy: float | None = None
    """Of a classifier on held-out images."""


def read_metadata(text: str) -> Metadata:
    """Return the header in its text. Raises SchemaError if it is damaged."""
    return check(parse_json(text), Metadata)


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
