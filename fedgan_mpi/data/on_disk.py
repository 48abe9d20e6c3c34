"""Images of a file that are read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.data.pixels import Images
from fedgan_mpi.errors import UserError

OPEN_FILES = 64
"""Files that stay open, because a rank may host a thousand devices."""


@dataclass(frozen=True, kw_only=True)
class OnDisk:
    """Images of a contiguous dataset."""

    path: Path
    offset: int
    """Position of the first pixel in the file, bytes."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    identity: tuple[int, int]
    """Number and time of the file, so that a file that replaces it later is not taken for it."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.int64] | slice | EllipsisType) -> Images:
        """Return images by index. Raises UserError if the file has become shorter."""
        if not isinstance(rows, np.ndarray):
            rows = np.arange(len(self))[rows]
        images = np.empty((len(rows), *self.shape[1:]), self.dtype)
        file = _open(self.path, self.identity)
        for begin, end in _runs(rows):
            self._read(file, int(rows[begin]), images[begin:end])
        return images

    def _read(self, file: _OpenFile, first: int, images: Images) -> None:
        """Fill an array with consecutive images."""
        buffer = images.data.cast("B")
        position = self.offset + first * (len(buffer) // len(images))
        while buffer:
            count = os.preadv(file.descriptor, [buffer], position)
            if count == 0:
                raise UserError(f"{self.path} was cut while this job read it")
            buffer, position = buffer[count:], position + count


class _OpenFile:
    """A descriptor that is closed with its last reference."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@lru_cache(maxsize=OPEN_FILES)
def _open(path: Path, identity: tuple[int, int]) -> _OpenFile:
    return _OpenFile(path)


def identity_of(path: Path) -> tuple[int, int]:
    """Return what distinguishes a file from one that replaces it."""
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns


def _runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of parts whose indices are consecutive, which need one read each."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    bounds = [0, *ends.tolist(), len(rows)]
    for begin, end in pairwise(bounds):
        if begin < end:
            yield begin, end
