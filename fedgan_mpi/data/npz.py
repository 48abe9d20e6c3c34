"""Reads .npz files. The size of an array is checked before memory is reserved for it."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedgan_mpi.data.sizes import check_sizes

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Npz:
    """The arrays of an open .npz file. `numpy.load` would reserve what a header declares."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.names = [
            name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")
        ]

    def read(self, name: str) -> NDArray[Any]:
        """Return an array. Raises ValueError, or an error of zipfile, if it is damaged."""
        info = self._archive.getinfo(f"{name}.npy")
        with self._archive.open(info) as file:
            shape, is_fortran, dtype = _read_header(file)
            if dtype.hasobject:
                raise ValueError(f"{name} holds Python objects")
            if not all(type(length) is int and length >= 0 for length in shape):
                raise ValueError(f"{name} has the shape {shape}")
            nbytes = math.prod(shape) * dtype.itemsize
            if nbytes != info.file_size - file.tell():
                raise ValueError(
                    f"{name} declares {nbytes:,} bytes, but has {info.file_size - file.tell():,}"
                )
            check_sizes(info.compress_size, info.file_size)
            content = file.read(nbytes + 1)  # the additional byte makes zipfile check the CRC
        if len(content) != nbytes:
            raise ValueError(f"{name} is truncated")
        array = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
        return array.reshape(shape, order="F" if is_fortran else "C")


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """Open an .npz file. Raises ValueError for a single array, a .npy file."""
    if not path.is_file():
        raise OSError(f"{path} is not a file" if path.exists() else "No such file or directory")
    with path.open("rb") as file:
        if file.read(6) == npy.MAGIC_PREFIX:
            raise ValueError("it is a single array, a .npy file; numpy.savez writes .npz files")
    with zipfile.ZipFile(path) as archive:
        yield Npz(archive)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"it has the npy version {version}, which images and labels do not need")
    shape, is_fortran, dtype = _HEADERS[version](file)
    return shape, is_fortran, dtype
