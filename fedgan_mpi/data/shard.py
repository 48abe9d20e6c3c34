"""Opens and verifies one shard, the HDF5 file of one device or of the held-out images."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.data.on_disk import OnDisk, identity_of
from fedgan_mpi.data.pixels import Images, PixelType
from fedgan_mpi.data.sizes import check_sizes
from fedgan_mpi.errors import UserError

FORMAT_VERSION = 1

Labels = NDArray[np.int64]


def shard_name(device: int) -> str:
    """Return the file name of a device's shard."""
    return f"device_{device:04d}.h5"


@dataclass(kw_only=True)
class Shard:
    """The images of one device, in memory or on disk."""

    path: Path
    images: Images | OnDisk | h5py.Dataset
    """Array: in memory. OnDisk: contiguous on disk. Dataset: chunked, in a file that stays open."""
    labels: Labels | None
    sha256: str
    indices: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Index of each image in the source data set."""

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def take(self, indices: NDArray[np.int64]) -> Images:
        """Return images by index, (len(indices), C, H, W). Indices may repeat."""
        if not isinstance(self.images, h5py.Dataset):
            return self.images[indices]
        # HDF5 requires strictly increasing indices.
        unique, inverse = np.unique(indices, return_inverse=True)
        return self.images[unique][inverse]

    def even_indices(self, count: int) -> NDArray[np.int64]:
        """Return the indices of `count` images at equal distances in the file.

        A file may be sorted by class, so its first images may be of a few classes only.
        """
        return np.arange(count) * len(self) // count


def read_shard(
    path: Path,
    *,
    image_shape: tuple[int, int, int],
    dtype: PixelType = "uint8",
    in_memory: bool = True,
    rows: int | None = None,
) -> Shard:
    """Open a shard and check its format, shapes, dtypes and sizes.

    rows: the number of images that shards.json describes. With `in_memory`, also read the pixels
    and compare them with their recorded hash. Raises UserError with the file and the reason.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path} is not a regular file")
        file = open_hdf5(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        reason = "truncated" if "truncated" in str(error) else "not a readable HDF5 file"
        if isinstance(error, PermissionError) or not os.access(path, os.R_OK):
            reason = "not readable by you"
        elif isinstance(error, BlockingIOError):
            reason = "locked by another process, which has it open for writing"
        raise UserError(f"{path} is {reason}") from None
    shard: Shard | None = None
    try:
        shard = _check_shard(path, file, image_shape, dtype, in_memory, rows)
        return shard
    except MemoryError:
        raise UserError(f"{path} does not fit into the memory of this machine") from None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    finally:
        if shard is None or not isinstance(shard.images, h5py.Dataset):
            file.close()


def open_hdf5(path: Path) -> h5py.File:
    """Open a file for reading, also on file systems without locks. Raises OSError.

    On those, HDF5's lock fails with many errors, such as 524 of Lustre. Only another process that
    writes the file gives BlockingIOError.
    """
    try:
        return h5py.File(path, "r")
    except BlockingIOError:
        raise
    except OSError as error:
        if "unable to lock" not in str(error):
            raise
        return h5py.File(path, "r", locking=False)


def _check_shard(
    path: Path,
    file: h5py.File,
    image_shape: tuple[int, ...],
    dtype: PixelType,
    in_memory: bool,
    rows: int | None,
) -> Shard:
    version = file.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {str(version)[:20]}, but this program reads "
            f"{FORMAT_VERSION}"
        )
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise UserError(f"{path}: {name} is a link, but a shard must not contain links")
        data = file[name]
        if isinstance(data, h5py.Dataset) and (data.external or data.is_virtual):
            raise UserError(f"{path}: {name} refers to another file, but a shard must be one file")
    images = file.get("images")
    if not isinstance(images, h5py.Dataset):
        raise UserError(f"{path} has no dataset 'images'")
    if images.dtype != dtype:
        raise UserError(f"{path}: images are {images.dtype}, but must be {dtype}")
    if images.ndim != 4 or images.shape[1:] != image_shape:
        expected = "×".join(map(str, image_shape))
        raise UserError(f"{path}: images have shape {images.shape}, but must be N×{expected}")
    if len(images) == 0:
        raise UserError(f"{path} holds no images")
    if rows is not None and len(images) != rows:
        raise UserError(f"{path} holds {len(images)} images, but shards.json describes {rows}")
    _check_storage(images, in_memory)
    labels = _read_integers(path, file, "labels", len(images))
    sha256 = file.attrs.get("pixels_sha256")
    sha256 = sha256.decode() if isinstance(sha256, bytes) else str(sha256)
    indices = _read_integers(path, file, "indices", len(images))
    if indices is None:
        indices = np.empty(0, np.int64)
    shard = Shard(path=path, images=images, labels=labels, sha256=sha256, indices=indices)
    offset = images.id.get_offset()  # None for chunked pixels
    if in_memory:
        shard.images = images[...]
        check_pixels(shard)
    elif offset is not None:
        shard.images = OnDisk(
            path=path,
            offset=offset,
            shape=images.shape,
            dtype=images.dtype,
            identity=identity_of(path),
        )
        if path.stat().st_size < offset + images.nbytes:
            raise ValueError("the file is shorter than its images")
    return shard


def _read_integers(path: Path, file: h5py.File, name: str, rows: int) -> Labels | None:
    """Return one integer per image, or None if the file has none. Raises UserError."""
    if name not in file:
        return None
    data = file[name]
    if data.shape != (rows,) or data.dtype != np.int64:
        raise UserError(
            f"{path}: {name} are {data.dtype} {data.shape}, but must be int64 ({rows},)"
        )
    _check_storage(data, in_memory=True)
    values: Labels = data[...]
    return values


def _check_storage(data: h5py.Dataset, in_memory: bool) -> None:
    """Raise ValueError if a dataset declares more than the file can hold.

    HDF5 fills with zeros what is declared and not stored.
    """
    stored = data.id.get_storage_size()
    nbytes = math.prod(data.shape) * data.dtype.itemsize
    is_compressed = data.chunks is not None and data.id.get_create_plist().get_nfilters() > 0
    if stored < nbytes and not is_compressed:
        raise ValueError(f"{data.name} declares {nbytes:,} bytes, but the file has {stored:,}")
    if in_memory or is_compressed:
        check_sizes(stored, nbytes if in_memory else math.prod(data.chunks))


def check_pixels(shard: Shard) -> None:
    """Compare a shard's pixels with their recorded hash, in blocks of 256 images.

    Raises UserError if they differ.
    """
    digest = hashlib.sha256()
    for part in slices(len(shard)):
        digest.update(shard.images[part].data)
    if digest.hexdigest() != shard.sha256:
        raise UserError(
            f"{shard.path}: the pixels do not match their recorded SHA-256; the file was changed"
        )


def slices(rows: int, size: int = 256) -> Iterator[slice]:
    """Split the range 0 to `rows` into slices of at most `size`."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def union(shards: Sequence[Shard], path: Path) -> Shard:
    """Concatenate shards in memory, for centralized training."""
    labels = [shard.labels for shard in shards if shard.labels is not None]
    return Shard(
        path=path,
        images=np.concatenate([shard.images[...] for shard in shards]),
        labels=np.concatenate(labels) if len(labels) == len(shards) else None,
        sha256="".join(shard.sha256 for shard in shards),
    )
