"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Give another name to write under; afterwards sync the file and rename it over `path`.

    Where the writing raises, nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_complete(path: Path, content: bytes | memoryview) -> None:
    """Write a file, complete or not at all."""
    with complete_or_absent(path) as temporary:
        temporary.write_bytes(content)


def sweep(directory: Path) -> None:
    """Remove what a killed process left of files that it was writing here."""
    for path in directory.glob(".*.tmp"):
        if path.is_file() or path.is_symlink():
            path.unlink()


def sync_directory(directory: Path) -> None:
    """Make renames and new names in a directory last."""
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
