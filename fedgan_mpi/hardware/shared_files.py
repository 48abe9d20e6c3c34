"""Files and memory that the ranks of one machine share."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from typing import BinaryIO, NamedTuple

from mpi4py import MPI

from fedgan_mpi.errors import AgreedError


def map_shared_memory(comm: MPI.Comm, nbytes: int) -> mmap.mmap:
    """Collective. Map zeroed memory that all ranks of `comm`, on one machine, read and write.

    Not an MPI window: no MPI library reserves its pages, so that a full /dev/shm would end the job
    with a signal, and Open MPI warns about missing transports. Here space is reserved first, on
    disk if necessary. Raises AgreedError if no space exists.
    """
    with open_shared_file(comm, nbytes) as file:
        return mmap.mmap(file.fileno(), nbytes)


def open_shared_file(comm: MPI.Comm, nbytes: int) -> BinaryIO:
    """Collective. Open a file of zeros that all ranks of `comm`, on one machine, read and write.

    The file never has a name: it vanishes with its last process, however that ends. Raises
    AgreedError if no space exists, or if a rank cannot open another rank's file.
    """
    own = _reserve(nbytes) if comm.rank == 0 else None
    address = comm.bcast(None if own is None else _address(own))
    if address is None:
        full = f"neither /dev/shm nor {tempfile.gettempdir()}"
        raise AgreedError(
            f"{full} has {nbytes / 1e6:.0f} MB for memory that ranks share; free some"
        )
    file = own or _open(address)
    if not comm.allreduce(file is not None, MPI.LAND):
        raise AgreedError(
            "a rank cannot open another rank's file in /proc; on each machine, start all ranks as "
            "one user, in one container or PID namespace"
        )
    assert file is not None
    return file


class _Address(NamedTuple):
    """The address in /proc of an open file that has no name."""

    process: int
    descriptor: int
    device: int
    inode: int


def _address(file: BinaryIO) -> _Address:
    status = os.fstat(file.fileno())
    return _Address(os.getpid(), file.fileno(), status.st_dev, status.st_ino)


def _open(address: _Address) -> BinaryIO | None:
    """Open another process's file; None if it is not accessible from here."""
    path = f"/proc/{address.process}/fd/{address.descriptor}"
    with contextlib.suppress(OSError):
        status = os.stat(path)  # in another container the number may belong to another process
        if (status.st_dev, status.st_ino) == (address.device, address.inode):
            return open(path, "r+b")
    return None


def _reserve(nbytes: int) -> BinaryIO | None:
    """Open a file with reserved space; None if no directory has space."""
    for directory in ("/dev/shm", tempfile.gettempdir()):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(dir=directory))
            os.posix_fallocate(file.fileno(), 0, nbytes)
            stack.pop_all()
            return file
    return None
