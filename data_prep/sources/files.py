"""Files by relative name, out of a folder or, in place, out of a zip archive."""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Protocol

from data_prep.sources.base import BadImage, named
from fedgan_mpi.errors import UserError


class Files(Protocol):
    """A tree of files. Names are relative, with forward slashes."""

    path: Path

    def names(self) -> list[str]:
        """All files below, sorted, without hidden ones. Raises UserError."""

    def read(self, name: str) -> bytes:
        """Raises OSError or whatever a damaged archive makes of it."""


def open_files(path: Path) -> Files:
    """Raises UserError where there is neither a folder nor a zip archive."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise UserError(f"{path} is missing")
    return Zip(path)


def read_image(files: Files, name: str) -> bytes:
    """The bytes of an image file. Raises BadImage naming it."""
    try:
        return files.read(name)
    except Exception as error:  # a folder raises OSError, a damaged archive what it likes
        raise BadImage(f"{name}: {error}") from None


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        found = []
        for directory, _, files in os.walk(self.path, onerror=_raise):
            below = Path(directory).relative_to(self.path)
            found += [(below / file).as_posix() for file in files]
        return sorted(name for name in found if not _is_hidden(name))

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class Zip:
    """Members are read in place: nothing is unpacked. An archive that would write outside of its
    folder if it were is refused all the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with named(path, "a zip archive"):
            self._archive()
        for name in self._archive().namelist():
            parts = PurePosixPath(name.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts or ":" in name.split("/")[0]:
                raise UserError(f"{path} holds {name!r}, which escapes its folder; do not trust it")

    def names(self) -> list[str]:
        members = self._archive().infolist()
        return sorted(m.filename for m in members if not m.is_dir() and not _is_hidden(m.filename))

    def read(self, name: str) -> bytes:
        return self._archive().read(name)

    def _archive(self) -> zipfile.ZipFile:
        return _open_zip(self.path, os.getpid())


@lru_cache(maxsize=2)
def _open_zip(path: Path, process: int) -> zipfile.ZipFile:
    # One a process: processes that share a file handle would move each other's position.
    return zipfile.ZipFile(path)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _raise(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}")
