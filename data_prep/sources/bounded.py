"""Reads files and compressed data with a bound, so that a small hostile file cannot fill memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fedgan_mpi.files import read_regular_file

_COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""First bytes of a file -> function that opens it."""


MAX_BYTES = 2**30
"""Of one picture or table."""


def read_at_most(path: Path, most: int) -> bytes:
    """Return the content of a regular file.

    Raises OSError for anything else, such as a pipe, and ValueError if it has more bytes.
    """
    content = b""
    if not (too_large := os.stat(path).st_size > most):
        content = read_regular_file(path, nbytes=most + 1)
    if too_large or len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


class _Bounded(io.RawIOBase):
    """A stream in which a single read and the position have bounds."""

    def __init__(self, stream: IO[bytes], *, most_read: int, most: int) -> None:
        self._stream, self._most_read, self._most = stream, most_read, most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, position: int, whence: int = 0) -> int:
        if whence == 0 and position > self._most:
            raise ValueError(f"it has more than {self._most:,} bytes when it is unpacked")
        return self._stream.seek(position, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._most_read:
            raise ValueError(f"one of its parts has more than {self._most_read:,} bytes")
        if self.tell() + size > self._most + self._most_read:
            raise ValueError(f"it has more than {self._most:,} bytes when it is unpacked")
        return self._stream.read(size)


@contextmanager
def open_tar(path: Path, *, most_member: int, most: int) -> Iterator[tarfile.TarFile]:
    """Open a tar archive, plain or compressed, without unpacking it.

    A read raises ValueError if a member or the whole archive is larger than its bound.
    """
    start = read_regular_file(path, nbytes=6)
    opener = next((o for magic, o in _COMPRESSIONS.items() if start.startswith(magic)), open)
    with opener(path, "rb") as stream:
        bounded = _Bounded(stream, most_read=most_member, most=most)
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            yield tar


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    """Return the content of a regular member. Raises ValueError if it is larger than `most`."""
    if member.size > most:
        raise ValueError(f"{member.name} has {member.size:,} bytes, more than {most:,}")
    file = tar.extractfile(member)
    assert file is not None, "not a regular file"
    return file.read()
