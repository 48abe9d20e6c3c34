"""Shared-memory transport for ranks that outnumber the cores of their one machine.

A waiting rank sleeps in the kernel until a datagram wakes it. MPI's spinning would occupy the core
that its partner computes on, and polling would wake thousands of times a second. Vectors cross in
a shared window: one copy down, one copy up per rank, summed in rank order.

Counters in the window synchronize the ranks; a datagram only wakes a sleeping rank. A lost datagram
is harmless. The kernel refuses datagrams from other processes.
"""

from __future__ import annotations

import contextlib
import mmap
import platform
import select
import socket
import sys
import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedgan_mpi.hardware.shared_files import map_shared_memory

Bytes = NDArray[np.uint8]

_HEADER = 64  # bytes before the data: the rank's counter, alone on its cache line
_RECHECK = 0.5  # seconds after which a sleeper tests its condition without a datagram


class Doorbell:
    """Wakes sleeping ranks of the same machine: the server any device rank, and these the server.

    Each device rank shares a pair of Unix datagram sockets with the server. A socket that is
    connected receives from its peer only.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        """Collective."""
        peers = range(1, comm.size) if comm.rank == 0 else [0]
        self._sockets = {
            peer: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            for peer in peers
        }
        for own in self._sockets.values():
            own.bind("")  # the kernel chooses the name, so that no process can take it first
        names = [
            self._sockets[peer].getsockname() if peer in self._sockets else None
            for peer in range(comm.size)
        ]
        for peer, name in enumerate(comm.alltoall(names)):
            if name is not None:
                self._sockets[peer].connect(name)
        comm.barrier()
        self._poll = select.poll()
        self._sockets_by_descriptor = {own.fileno(): own for own in self._sockets.values()}
        for descriptor in self._sockets_by_descriptor:
            self._poll.register(descriptor, select.POLLIN)

    @staticmethod
    def is_supported() -> bool:
        """Return whether this machine has abstract sockets and ordered stores."""
        # Abstract sockets need Linux. A counter is stored after the data that it announces: x86
        # makes stores visible in that order, other architectures may not.
        return sys.platform == "linux" and platform.machine() in {"x86_64", "AMD64"}

    def ring(self, rank: int) -> None:
        """Wake the rank if it sleeps."""
        # A full queue wakes the rank anyway. A refused connection means that the rank has died,
        # which the failure detector reports.
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._sockets[rank].send(b"!")

    def sleep_until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds; tested after each datagram and twice a second."""
        while not condition():
            for descriptor, _ in self._poll.poll(1000 * _RECHECK):
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    self._sockets_by_descriptor[descriptor].recv(1)


class Channel:
    """A shared window with one segment per writing rank; each call is one turn.

    All ranks make the same calls in the same order. Each rank counts its finished turns in the
    header of its segment.
    """

    def __init__(self, comm: MPI.Comm, doorbell: Doorbell, capacity: int, writers: range) -> None:
        """Collective. capacity: bytes of the longest vector. writers: range(1), the server, for
        `down`; the device ranks for `up`. Raises AgreedError if memory is short."""
        self._comm, self._doorbell, self.capacity = comm, doorbell, capacity
        lengths = [_HEADER + (capacity if rank in writers else 0) for rank in range(comm.size)]
        pages = [-(-length // mmap.PAGESIZE) * mmap.PAGESIZE for length in lengths]
        ends = np.cumsum(pages)
        memory = np.frombuffer(map_shared_memory(comm, int(ends[-1])), np.uint8)
        segments = [
            part[:length] for part, length in zip(np.split(memory, ends[:-1]), lengths, strict=True)
        ]
        self._finished = [segment[:8].view(np.int64) for segment in segments]
        self._data = [segment[_HEADER:] for segment in segments]
        self.own_buffer = self._data[comm.rank]
        """This rank's segment. `up` copies nothing if the vector is already here. Writable after
        the server has read the previous vector, e.g. after the next `down`."""
        self._turn = 0

    def down(self, vector: Bytes) -> None:
        """Overwrite every other rank's vector with the server's."""
        self._turn += 1
        shared = self._data[0][: vector.size]
        if self._comm.rank == 0:
            self._wait_until(lambda: self._others_finished(self._turn - 1))  # no reader remains
            shared[:] = vector
            self._finish()
            for rank in range(1, self._comm.size):
                self._doorbell.ring(rank)
        else:
            self._doorbell.sleep_until(lambda: self._finished[0][0] >= self._turn)
            vector[:] = shared
            self._finish()

    def up(self, vector: Bytes, consume: Callable[[list[Bytes]], None]) -> None:
        """Pass the device ranks' vectors, in rank order, to the server's `consume`.

        vector: equal size on all ranks; the server's is not sent.
        """
        self._turn += 1
        if self._comm.rank == 0:
            self._doorbell.sleep_until(lambda: self._others_finished(self._turn))
            consume([data[: vector.size] for data in self._data[1:]])
            self._finish()
        else:
            # The server must have read the previous vector.
            self._wait_until(lambda: self._finished[0][0] >= self._turn - 1)
            if vector.ctypes.data != self.own_buffer.ctypes.data:
                self.own_buffer[: vector.size] = vector
            self._finish()
            self._doorbell.ring(0)

    def _finish(self) -> None:
        self._finished[self._comm.rank][0] = self._turn

    def _others_finished(self, turn: int) -> bool:
        return all(finished[0] >= turn for finished in self._finished[1:])

    @staticmethod
    def _wait_until(condition: Callable[[], bool]) -> None:
        # No datagram announces these conditions. They hold at once if `down` and `up` alternate.
        while not condition():
            time.sleep(1e-4)
