"""Reads files by relative name from a folder or an archive. Never unpacks an archive."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from data_prep.limits import TooSlow
from data_prep.sources.base import BadImage, name_file_in_errors, reason_of
from data_prep.sources.bounded import MAX_BYTES, read_at_most
from data_prep.sources.leftovers import find_leftover
from data_prep.sources.members import safe_name
from data_prep.sources.tar_files import START_BYTES, Tar, find_compression, is_tar
from data_prep.sources.walk import list_files
from fedgan_mpi.data.sizes import check_sizes
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_regular_file


class Files(Protocol):
    """A tree of files. Names are relative and have forward slashes."""

    path: Path
    left_out: Counter[str]
    """Files that `names` omits: name -> how often."""

    def names(self) -> list[str]:
        """Return all file names, sorted, without what systems leave. Raises UserError."""

    def read_start(self, name: str, nbytes: int) -> bytes:
        """Return the first bytes of a file. Raises as `read` does."""

    def read(self, name: str) -> bytes:
        """Return a file's content. Raises OSError, or any error of a damaged archive."""


def open_files(path: Path) -> Files:
    """Open a folder, or a zip or tar archive. Raises UserError if `path` is none of them."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise UserError(f"{path} is missing")
    with name_file_in_errors(path, "an archive"):  # a pipe would block
        start = read_regular_file(path, nbytes=START_BYTES)
    if is_tar(start):
        return Tar(path)
    if (program := find_compression(start)) is not None:
        raise UserError(
            f"{path} is compressed by {program}, and such an archive has no index; unpack it, or "
            "make a .zip or .tar of it"
        )
    return Zip(path)


def read_image(files: Files, name: str) -> bytes:
    """Return the content of an image file. Raises BadImage with its name."""
    try:
        return files.read(name)
    except (MemoryError, TooSlow):
        raise
    except Exception as error:  # zipfile's errors for damaged archives have no common type
        raise BadImage(f"{name}: {reason_of(error)}") from None


class Folder:
    """The files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left_out: Counter[str] = Counter()

    def names(self) -> list[str]:
        names, self.left_out = list_files(self.path)
        return names

    def read_start(self, name: str, nbytes: int) -> bytes:
        return read_regular_file(self.path / name, nbytes=nbytes)

    def read(self, name: str) -> bytes:
        return read_at_most(self.path / name, MAX_BYTES)


class Zip:
    """The members of a zip archive.

    Refuses an archive with paths outside its folder, although nothing is unpacked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left_out: Counter[str] = Counter()
        self._members: dict[str, str] = {}
        with name_file_in_errors(path, "a zip archive"):
            self._archive()
        for member in self._archive().namelist():
            name = safe_name(path, member)
            if member.endswith(("/", "\\")):
                continue
            if (leftover := find_leftover(name)) is not None:
                self.left_out[leftover] += 1
            else:
                self.left_out.update([f"{name}, a repeated member"] * (name in self._members))
                self._members[name] = member  # of members of one name, zipfile reads the last

    def names(self) -> list[str]:
        return sorted(self._members)

    def read_start(self, name: str, nbytes: int) -> bytes:
        with self._archive().open(self._members[name]) as file:
            return file.read(nbytes)

    def read(self, name: str) -> bytes:
        info = self._archive().getinfo(self._members[name])
        if info.file_size > MAX_BYTES:
            raise ValueError(f"it unpacks to {info.file_size:,} bytes, more than {MAX_BYTES:,}")
        check_sizes(info.compress_size, info.file_size)
        return self._archive().read(info)

    def _archive(self) -> zipfile.ZipFile:
        return _open_zip(self.path, os.getpid())


@lru_cache(maxsize=2)
def _open_zip(path: Path, process: int) -> zipfile.ZipFile:
    """Open an archive once per process. Forked processes must not share a file position."""
    return zipfile.ZipFile(path)
