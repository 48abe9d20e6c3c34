"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedgan_mpi.errors import UserError


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Give another name to write under; afterwards sync the file and rename it over `path`.

    Where the writing raises, nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_complete(path: Path, content: bytes | memoryview) -> None:
    """Write a file, complete or not at all."""
    with complete_or_absent(path) as temporary:
        temporary.write_bytes(content)


def write_synced(path: Path, content: bytes | bytearray) -> None:
    """Write a file where nobody looks before all of it is there, and make it last."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_whole(path: Path, *, follow: bool = True) -> bytes:
    """A file's content. Raises OSError for a pipe or a device, which may never end, and for a link
    where such are not to be followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return file.read()


def refuse_links(run: Path) -> None:
    """Raises UserError where a link in a run directory would let the run write elsewhere; its
    shards are only read."""
    for path in run.iterdir():
        if path.is_symlink() and path.name != "shards":
            raise UserError(f"{path} is a link, but a run directory must hold its own files")


def sweep(directory: Path) -> None:
    """Remove what a killed process left of files that it was writing here."""
    for path in directory.glob(".*.tmp"):
        if path.is_file() or path.is_symlink():
            path.unlink()


def sync(path: Path) -> None:
    """Make what was written to a file, or renamed in a directory, last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
