"""Reads files by relative name from a folder or a zip archive. Never unpacks an archive."""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Protocol

from data_prep.sources.base import BadImage, name_file_in_errors
from data_prep.sources.bounded import read_at_most
from fedgan_mpi.data.sizes import check_sizes
from fedgan_mpi.errors import UserError

MAX_BYTES = 2**30
"""Of one file, also of a table."""


class Files(Protocol):
    """A tree of files. Names are relative and have forward slashes."""

    path: Path

    def names(self) -> list[str]:
        """Return all file names, sorted, without hidden files. Raises UserError."""

    def read(self, name: str) -> bytes:
        """Return a file's content. Raises OSError, or any error of a damaged archive."""


def open_files(path: Path) -> Files:
    """Open a folder or a zip archive. Raises UserError if `path` is neither."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise UserError(f"{path} is missing")
    return Zip(path)


def read_image(files: Files, name: str) -> bytes:
    """Return the content of an image file. Raises BadImage with its name."""
    try:
        return files.read(name)
    except Exception as error:  # zipfile's errors for damaged archives have no common type
        raise BadImage(f"{name}: {error}") from None


class Folder:
    """The files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        found = []
        for directory, _, files in os.walk(self.path, onerror=_raise):
            below = Path(directory).relative_to(self.path)
            found += [(below / file).as_posix() for file in files]
        return sorted(name for name in found if not _is_hidden(name))

    def read(self, name: str) -> bytes:
        return read_at_most(self.path / name, MAX_BYTES)


class Zip:
    """The members of a zip archive.

    Refuses an archive with paths outside its folder, although nothing is unpacked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with name_file_in_errors(path, "a zip archive"):
            self._archive()
        for name in self._archive().namelist():
            member = PurePosixPath(name.replace("\\", "/"))
            if member.is_absolute() or ".." in member.parts or ":" in name.split("/")[0]:
                raise UserError(
                    f"{path} has the member {name!r}, whose path leaves the archive's folder; "
                    "do not trust this archive"
                )

    def names(self) -> list[str]:
        members = self._archive().infolist()
        return sorted(m.filename for m in members if not m.is_dir() and not _is_hidden(m.filename))

    def read(self, name: str) -> bytes:
        info = self._archive().getinfo(name)
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


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _raise(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}")
