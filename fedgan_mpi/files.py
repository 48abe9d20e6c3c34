"""Reads and writes files so that a crash or a hostile file does no harm.

A written file is complete or absent. Knows nothing of the content of files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedgan_mpi.errors import UserError

_MAX_STEM = 50
"""Characters of a file's name in the name of its temporary file, which a long name would exceed."""
SECONDS_FOR_READER = 10.0
"""How long a FIFO may be without a program that reads it."""
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}
_STREAMS = (stat.S_IFIFO, stat.S_IFCHR)


@contextmanager
def complete_or_absent(path: Path, *, stream: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; afterwards sync that file and rename it to `path`.

    If the block raises, the temporary file is removed and `path` is unchanged. A link remains, and
    its target is replaced. Raises OSError before the block if `path` is not a regular file.

    stream: copy the content to `path` if it is a FIFO, a character device or standard output.
    """
    target = _destination(path, stream)
    if target is None:
        with tempfile.TemporaryDirectory() as directory:
            temporary = Path(directory) / "content"
            yield temporary
            with (
                _named(path, temporary),
                temporary.open("rb") as content,
                _open_stream(path) as file,
            ):
                shutil.copyfileobj(content, file)
        return
    temporary = target.with_name(f".{target.name[:_MAX_STEM]}.{os.getpid()}.tmp")
    try:
        with _named(path, temporary):
            yield temporary
            sync(temporary)
            os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync(target.parent)


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Give an OSError of the block, if it is about the temporary file, the name of the real one."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def is_standard_output(path: Path) -> bool:
    """Return whether writing to `path` writes to this process's standard output."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:
        return False


def _destination(path: Path, stream: bool) -> Path | None:
    """Return the file to replace, behind any links; None for a stream.

    Raises OSError if `path` is neither.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:  # also behind a link
        kind = stat.S_IFREG
    if stream and (kind in _STREAMS or is_standard_output(path)):
        return None
    if kind != stat.S_IFREG:
        is_kind = f"it is {_KINDS.get(kind, 'special')}, but must be a regular file"
        raise OSError(errno.EINVAL, is_kind, str(path))
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _open_stream(path: Path) -> BinaryIO:
    """Open a FIFO or a device to write to, and wait some seconds for the reader of a FIFO."""
    if is_standard_output(path):  # perhaps a file that the shell appends to
        return os.fdopen(os.dup(1), "wb")
    deadline = time.monotonic() + SECONDS_FOR_READER
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise OSError(errno.ENXIO, "no program reads from it", str(path)) from None
            time.sleep(0.05)
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb")


def write_complete(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that after a crash it has its old content or the new one."""
    with complete_or_absent(path) as temporary:
        temporary.write_bytes(content)


def write_synced(path: Path, content: bytes | bytearray) -> None:
    """Write a file in place and sync it. For directories that no reader sees yet."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_regular_file(
    path: Path, *, follow_links: bool = True, start: int = 0, nbytes: int | None = None
) -> bytes:
    """Return the content of a file, or up to `nbytes` bytes from the offset `start`.

    Raises OSError for pipes and devices, which may never end, and for links unless `follow_links`.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        file.seek(min(start, status.st_size))
        return file.read() if nbytes is None else file.read(min(nbytes, status.st_size))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises UserError if it cannot be read."""
    try:
        return hashlib.sha256(read_regular_file(path)).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a UserError that names `path` and the reason.

    If `path` is a directory, it also names the file in it that the system refused.
    """
    try:
        yield
    except OSError as error:
        # HDF5 puts the reason into the middle of a long message.
        full = "o space left" in str(error)
        reason = os.strerror(errno.ENOSPC) if full else error.strerror or error
        if isinstance(error.filename, str) and path in Path(error.filename).parents:
            reason = f"{Path(error.filename).relative_to(path)}: {reason}"
        raise UserError(f"{path} cannot be written: {reason}") from None


def refuse_links(run: Path) -> None:
    """Raise UserError if a run directory contains a link, through which it would write elsewhere.

    `shards` may be a link, because shards are only read.
    """
    for path in run.iterdir():
        if path.is_symlink() and path.name != "shards":
            raise UserError(f"{path} is a link, but a run directory must hold its own files")


def remove_temporary_files(directory: Path) -> None:
    """Remove the temporary files that a killed process wrote to a directory."""
    for path in directory.glob(".*.tmp"):
        if path.is_file() or path.is_symlink():
            path.unlink()


def sync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


PRIVATE = "077"
"""The umask of files that hold data or models: only their owner may read them."""
UMASK_FORM = "'0' and two octal digits, such as '077' (private) or '027' (your group may read)"


def is_umask(text: str) -> bool:
    """Return whether a text is a umask under which this user can read and write own files."""
    return re.fullmatch("0?0[0-7][0-7]", text) is not None


@contextmanager
def umask(text: str) -> Iterator[None]:
    """Set the umask of the process during the block. It also affects other threads."""
    previous = os.umask(int(text, 8))
    try:
        yield
    finally:
        os.umask(previous)
