"""Vectors between the ranks of one machine that have to share its cores.

Where ranks outnumber cores, an MPI library's waiting rank spins on the core that its partner
computes on, and a rank that naps wakes thousands of times a second. Here a waiting rank sleeps in
the kernel until a datagram wakes it, and the vector itself crosses in a window of shared memory:
one write down, one write up per rank, added up in rank order.

What arrived is said by counters in the window; a datagram only wakes. A lost or a foreign one does
no harm.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedgan_mpi.errors import AgreedError

Bytes = NDArray[np.uint8]

_HEADER = 64  # bytes before a segment's data: the rank's counter, alone on its cache line
_WAKE_AGAIN = 0.5  # seconds after which a sleeper looks for itself


class Doorbell:
    """Wakes a rank of the same machine; a Unix datagram socket without a file."""

    def __init__(self, comm: MPI.Comm) -> None:
        name = comm.bcast(secrets.token_hex(8))
        self._addresses = [f"\0fedgan_mpi-{name}-{rank}" for rank in range(comm.size)]
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(self._addresses[comm.rank])
        self._ear.settimeout(_WAKE_AGAIN)
        self._voice = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._voice.setblocking(False)
        comm.barrier()

    @staticmethod
    def works_here() -> bool:
        # Abstract sockets are Linux's. A counter is written after the data that it announces, and
        # seen so by other cores: x86 keeps that order, other processors need not.
        return sys.platform == "linux" and platform.machine() in {"x86_64", "AMD64"}

    def ring(self, rank: int) -> None:
        """Wake that rank, should it sleep."""
        # A full queue will wake its rank all the same; one that has gone is the launcher's to tell.
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            self._voice.sendto(b"!", self._addresses[rank])

    def sleep_until(self, arrived: Callable[[], bool]) -> None:
        """Return once `arrived` says so; asked whenever somebody rings, and twice a second."""
        while not arrived():
            with contextlib.suppress(TimeoutError):
                self._ear.recv(1)


class Channel:
    """A segment for each rank that writes, in one shared window; a turn a call.

    All ranks make the same calls in the same order. Each rank counts in a header the turns it has
    finished.
    """

    def __init__(self, comm: MPI.Comm, bell: Doorbell, capacity: int, writers: range) -> None:
        """Collective. capacity: bytes of the longest vector. writers: the server, rank 0, for what
        goes down; the others for what goes up."""
        self._comm, self._bell, self.capacity = comm, bell, capacity
        lengths = [_HEADER + (capacity if rank in writers else 0) for rank in range(comm.size)]
        pages = [-(-length // mmap.PAGESIZE) * mmap.PAGESIZE for length in lengths]
        ends = np.cumsum(pages)
        memory = np.frombuffer(shared_memory(comm, int(ends[-1])), np.uint8)
        segments = [
            part[:length] for part, length in zip(np.split(memory, ends[:-1]), lengths, strict=True)
        ]
        self._finished = [segment[:8].view(np.int64) for segment in segments]
        self._data = [segment[_HEADER:] for segment in segments]
        self.mine = self._data[comm.rank]
        """Where a writer may put what goes `up`, which then copies nothing; not before it knows
        that its last one was taken."""
        self._turn = 0

    def down(self, vector: Bytes) -> None:
        """Copy the server's (rank 0's) vector into everyone's."""
        self._turn += 1
        shared = self._data[0][: vector.size]
        if self._comm.rank == 0:
            self._wait_for_others(self._turn - 1)  # nobody still reads what is overwritten now
            shared[:] = vector
            self._finish()
            for rank in range(1, self._comm.size):
                self._bell.ring(rank)
        else:
            self._bell.sleep_until(lambda: self._finished[0][0] >= self._turn)
            vector[:] = shared
            self._finish()

    def up(self, vector: Bytes, take: Callable[[list[Bytes]], None]) -> None:
        """Hand the others' vectors, in rank order, to the server's `take`; the server's own is not
        sent."""
        self._turn += 1
        if self._comm.rank == 0:
            self._bell.sleep_until(lambda: self._others_finished(self._turn))
            take([data[: vector.size] for data in self._data[1:]])
            self._finish()
        else:
            self._wait_until(
                lambda: self._finished[0][0] >= self._turn - 1
            )  # my last one was taken
            if vector.ctypes.data != self.mine.ctypes.data:
                self.mine[: vector.size] = vector
            self._finish()
            self._bell.ring(0)

    def _finish(self) -> None:
        self._finished[self._comm.rank][0] = self._turn

    def _others_finished(self, turn: int) -> bool:
        return all(finished[0] >= turn for finished in self._finished[1:])

    def _wait_for_others(self, turn: int) -> None:
        self._wait_until(lambda: self._others_finished(turn))

    @staticmethod
    def _wait_until(ready: Callable[[], bool]) -> None:
        # Nobody rings for these: where down and up alternate, as in a round, they hold already.
        while not ready():
            time.sleep(1e-4)


def shared_memory(comm: MPI.Comm, nbytes: int) -> mmap.mmap:
    """Collective. Zeros that all ranks of one machine see, with no name left behind.

    Not an MPI window: Open MPI's print complaints where a transport is missing, and none reserves
    its pages, so that a full /dev/shm would end the job by a signal. Here it is found out in time,
    and the disk serves. Raises AgreedError where there is none.
    """
    with shared_file(comm, nbytes) as file:
        return mmap.mmap(file.fileno(), nbytes)


def shared_file(comm: MPI.Comm, nbytes: int) -> BinaryIO:
    """Collective. The same, as a file without a name."""
    path = comm.bcast(_reserve(nbytes) if comm.rank == 0 else None)
    if path is None:
        room = f"neither /dev/shm nor {tempfile.gettempdir()} has {nbytes / 1e6:.0f} MB"
        raise AgreedError(f"{room} for the memory that ranks of one machine share")
    file = None
    with contextlib.suppress(OSError):
        file = open(path, "r+b")  # noqa: SIM115 - the caller's to close
    seen_by_all = comm.allreduce(file is not None, MPI.LAND)
    if comm.rank == 0:
        os.unlink(path)
    if file is None or not seen_by_all:
        raise AgreedError(f"ranks of one machine see different files in {os.path.dirname(path)}")
    return file


def _reserve(nbytes: int) -> str | None:
    """A new file with that much room; None where there is none."""
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
