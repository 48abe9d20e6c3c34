"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


def write_over(path: Path, content: bytes | bytearray | memoryview) -> None:
    """Write a file where nobody looks before all of it is there, and let it begin to go to disk.
    Over one that is there it is written in place, which costs far less than a new one."""

    def keep(path: str, flags: int) -> int:
        return os.open(path, flags & ~os.O_TRUNC | os.O_NOFOLLOW, 0o666)

    with open(path, "wb", opener=keep) as file:
        file.write(content)
        file.flush()
        if os.fstat(file.fileno()).st_size != len(content):
            file.truncate()
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice only, and no waiting
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_ours_alone(path: Path) -> bool:
    """Whether a file may be written over unseen: it has no other name, and no process has it open
    or mapped, as a reader of tensors does. Linux knows that by its leases; False where the file
    system has none."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        found = os.fstat(descriptor)
        # Who opens it in this moment sends a signal; the usual one would end this process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1
    except OSError:
        return False
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file where nobody looks before all of it is there, and make it last."""
    write_over(path, content)
    sync_content(path)


def read_whole(
    path: Path, *, follow: bool = True, start: int = 0, nbytes: int | None = None
) -> bytes:
    """A file's content, or what there is of so many bytes of it. Raises OSError for a pipe or a
    device, which may never end, and for a link where such are not to be followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        file.seek(min(start, found.st_size))
        return file.read() if nbytes is None else file.read(min(nbytes, found.st_size))


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal. Raises UserError where it cannot be read."""
    try:
        return hashlib.sha256(read_whole(path)).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        # HDF5 hides the reason in a long text of its own.
        full = "o space left" in str(error)
        reason = os.strerror(errno.ENOSPC) if full else error.strerror or error
        raise UserError(f"{path} cannot be written: {reason}") from None


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
    _with(path, os.fsync)


def sync_content(path: Path) -> None:
    """The same of a file, but for the time that it was written, which costs more."""
    _with(path, getattr(os, "fdatasync", os.fsync))


def _with(path: Path, act: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        act(descriptor)
    finally:
        os.close(descriptor)
