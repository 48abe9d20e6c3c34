"""Writes shards. A shard's file appears complete or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.data.pixels import Images, PixelType
from fedgan_mpi.data.shard import FORMAT_VERSION, Labels, slices
from fedgan_mpi.files import complete_or_absent

_LIBVER = ("v108", "latest")
"""HDF5 file formats with checksums in headers. HDF5 may loop forever on a damaged header without
a checksum."""
_METADATA_BYTES = 2**20  # disk space for names and attributes
_MAX_INLINE_TEXT = 2**15  # bytes; longer attributes exceed the size of an object header


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive rows of a shard."""

    images: Images
    labels: Labels | None
    indices: NDArray[np.int64]
    """Index of each image in the source data set."""


def write_shard(
    path: Path,
    images: Images,
    labels: Labels | None,
    indices: NDArray[np.int64],
    attributes: dict[str, Any],
) -> str:
    """Write one shard and return the SHA-256 of its pixels.

    `images`: uint8 or uint16, (N, C, H, W). `labels` and `indices` into the source: int64 (N,).
    """
    block = Block(images=images, labels=labels, indices=indices)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    return write_blocks(
        path,
        [block],
        rows=len(images),
        image_shape=shape,
        dtype="uint16" if images.dtype == np.uint16 else "uint8",
        attributes=attributes,
    )


def write_blocks(
    path: Path,
    blocks: Iterable[Block],
    *,
    rows: int,
    image_shape: tuple[int, int, int],
    dtype: PixelType = "uint8",
    attributes: dict[str, Any],
) -> str:
    """Write one shard from consecutive blocks and return the SHA-256 of its pixels.

    Holds one block in memory at a time. `rows` is an upper bound on the number of images.
    `attributes` are written last, so the producer of the blocks may still change them.
    """
    with complete_or_absent(path) as temporary:
        written, sha256 = _write_arrays(temporary, blocks, rows, image_shape, dtype)
        if written < rows:
            _truncate(temporary, written, image_shape, dtype)
        with h5py.File(temporary, "r+", locking=False, libver=_LIBVER) as file:
            file.attrs["format_version"] = FORMAT_VERSION
            for key, value in {"pixels_sha256": sha256, **attributes}.items():
                _write_attribute(file, key, value)
    return sha256


def _write_attribute(file: h5py.File, key: str, value: Any) -> None:
    """Write an attribute as an integer, a text, or JSON for any other type."""
    if isinstance(value, int):
        file.attrs[key] = value
        return
    text = (value if isinstance(value, str) else json.dumps(value)).encode()
    # HDF5 stores fixed-length texts in a header with a checksum. It stores variable-length texts
    # in a heap without one, and may loop forever on a damaged heap.
    length = len(text) if 0 < len(text) < _MAX_INLINE_TEXT else None
    file.attrs.create(key, text, dtype=h5py.string_dtype("utf-8", length))


def _write_arrays(
    path: Path,
    blocks: Iterable[Block],
    rows: int,
    image_shape: tuple[int, int, int],
    dtype: PixelType,
) -> tuple[int, str]:
    """Write the blocks to a new file. Return the number of images and the SHA-256 of the pixels."""
    digest, written = hashlib.sha256(), 0
    labels: list[Labels] = []
    indices = [np.empty(0, np.int64)]
    _reserve(
        path, rows * (math.prod(image_shape) * np.dtype(dtype).itemsize + 16) + _METADATA_BYTES
    )
    # No lock: the temporary name is unique, and a process forked now would keep holding the lock.
    with h5py.File(path, "r+", locking=False, libver=_LIBVER) as file:
        # Without a `chunks` argument the dataset is contiguous.
        images = file.create_dataset("images", (rows, *image_shape), dtype)
        for block in blocks:
            images[written : written + len(block.images)] = block.images
            digest.update(np.ascontiguousarray(block.images).data)
            written += len(block.images)
            indices.append(block.indices)
            if block.labels is not None:
                labels.append(block.labels)
        if labels:
            file.create_dataset("labels", data=np.concatenate(labels).astype(np.int64))
        file.create_dataset("indices", data=np.concatenate(indices).astype(np.int64))
    return written, digest.hexdigest()


def _reserve(path: Path, size: int) -> None:
    """Create an empty HDF5 file of at least `size` bytes. HDF5 frees unused space on closing.

    Raises OSError if the disk is too small. HDF5 itself may crash on a full disk.
    """
    h5py.File(path, "w", locking=False, libver=_LIBVER).close()
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _truncate(path: Path, rows: int, image_shape: tuple[int, int, int], dtype: PixelType) -> None:
    """Rewrite a shard with only its first rows, because a contiguous dataset cannot shrink."""
    shorter = path.with_name(f"{path.name}.less")
    try:
        with h5py.File(path, "r", locking=False) as file:
            labels = file.get("labels")
            blocks = (
                Block(
                    images=file["images"][part],
                    labels=None if labels is None else labels[part],
                    indices=file["indices"][part],
                )
                for part in slices(rows)
            )
            _write_arrays(shorter, blocks, rows, image_shape, dtype)
        os.replace(shorter, path)
    finally:
        shorter.unlink(missing_ok=True)
