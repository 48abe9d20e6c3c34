"""Writes a shard, complete or not at all."""

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

from fedgan_mpi.data.shard import FORMAT_VERSION, Images, Labels, slices
from fedgan_mpi.files import complete_or_absent

_CHECKED = ("v108", "latest")
"""HDF5's formats whose headers have checksums: of one that is damaged without, HDF5 may never come
back."""
_ROOM = 2**20  # bytes of a file beside its arrays: names and attributes


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of a shard on their way to its file."""

    images: Images
    labels: Labels | None
    indices: NDArray[np.int64]
    """Where in the source each image stands."""


def write_shard(
    path: Path,
    images: Images,
    labels: Labels | None,
    indices: NDArray[np.int64],
    attributes: dict[str, Any],
) -> str:
    """Write one shard, complete or not at all; gives the SHA-256 of its pixels.

    images: uint8 (N, C, H, W); labels and indices (into the source): int64 (N,).
    """
    block = Block(images=images, labels=labels, indices=indices)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    return write_blocks(path, [block], rows=len(images), image_shape=shape, attributes=attributes)


def write_blocks(
    path: Path,
    blocks: Iterable[Block],
    *,
    rows: int,
    image_shape: tuple[int, int, int],
    attributes: dict[str, Any],
) -> str:
    """Write one shard from blocks in order, holding one at a time; complete or not at all. Gives
    the SHA-256 of its pixels.

    rows: at least as many as the blocks bring together. attributes: written last, so whoever makes
    the blocks may still add to them.
    """
    with complete_or_absent(path) as temporary:
        written, sha256 = _fill(temporary, blocks, rows, image_shape)
        if written < rows:
            _shrink(temporary, written, image_shape)
        with h5py.File(temporary, "r+", locking=False, libver=_CHECKED) as file:
            file.attrs["format_version"] = FORMAT_VERSION
            for key, value in {"pixels_sha256": sha256, **attributes}.items():
                _describe(file, key, value)
    return sha256


def _describe(file: h5py.File, key: str, value: Any) -> None:
    """Add an attribute: an integer, a text, or anything else as JSON."""
    if isinstance(value, int):
        file.attrs[key] = value
        return
    text = (value if isinstance(value, str) else json.dumps(value)).encode()
    # Texts of variable length lie in a heap without checksums, in which HDF5 can lose its way for
    # ever once it is damaged; those of a length are part of a header with one, which has limits.
    length = len(text) if 0 < len(text) < 2**15 else None
    file.attrs.create(key, text, dtype=h5py.string_dtype("utf-8", length))


def _fill(
    path: Path, blocks: Iterable[Block], rows: int, image_shape: tuple[int, int, int]
) -> tuple[int, str]:
    """Number and SHA-256 of the images that the blocks brought."""
    digest, written = hashlib.sha256(), 0
    labels: list[Labels] = []
    indices = [np.empty(0, np.int64)]
    _reserve(path, rows * (math.prod(image_shape) + 16) + _ROOM)
    # No lock: the name is ours alone, and a process forked meanwhile would go on holding it.
    with h5py.File(path, "r+", locking=False, libver=_CHECKED) as file:
        # Contiguous, as no chunks are asked for.
        images = file.create_dataset("images", (rows, *image_shape), np.uint8)
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
    """Make an empty file that owns the disk space it will need; HDF5 gives back what is too much.

    Raises OSError where there is not enough. HDF5 itself may crash when it cannot write.
    """
    h5py.File(path, "w", locking=False, libver=_CHECKED).close()
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _shrink(path: Path, rows: int, image_shape: tuple[int, int, int]) -> None:
    """Write a shard anew with its first images only: a contiguous data set cannot shrink."""
    less = path.with_suffix(".less")
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
            _fill(less, blocks, rows, image_shape)
        os.replace(less, path)
    finally:
        less.unlink(missing_ok=True)
