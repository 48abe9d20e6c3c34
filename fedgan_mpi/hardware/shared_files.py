"""Files and memory that the ranks of one machine share."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from typing import BinaryIO

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

    The file has no name and vanishes with its last process. Raises AgreedError if no space exists
    or if the ranks see different file systems.
    """
    path = comm.bcast(_reserve(nbytes) if comm.rank == 0 else None)
    if path is None:
        full = f"neither /dev/shm nor {tempfile.gettempdir()}"
        raise AgreedError(
            f"{full} has {nbytes / 1e6:.0f} MB for memory that ranks share; free some"
        )
    file = None
    with contextlib.suppress(OSError):
        file = open(path, "r+b")  # noqa: SIM115 - the caller closes it
    opened_by_all = comm.allreduce(file is not None, MPI.LAND)
    if comm.rank == 0:
        os.unlink(path)
    if file is None or not opened_by_all:
        directory = os.path.dirname(path)
        raise AgreedError(f"{directory} differs between ranks of one machine; let them share it")
    return file


def _reserve(nbytes: int) -> str | None:
    """Create a file with reserved space and return its path; None if no directory has space."""
    for directory in ("/dev/shm", tempfile.gettempdir()):
        try:
            descriptor, path = tempfile.mkstemp(prefix="fedgan_mpi-", dir=directory)
        except OSError:
            continue
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
            return path
        except OSError:
            os.unlink(path)
        finally:
            os.close(descriptor)
    return None
