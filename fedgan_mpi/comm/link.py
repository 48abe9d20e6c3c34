"""The link between ranks: verbs that move vectors and sums of numbers.

Only contiguous 1-D vectors of one dtype travel, unchanged or rounded to 16 bits. The link counts
the bytes that one participant sends and receives, and the seconds of its verbs. The other modules
of this package hold the details: shared memory, sums in device order, point-to-point messages,
GPU staging, compression.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.routes import RoutedTransfers
from fedgan_mpi.comm.shared_memory import Bytes
from fedgan_mpi.comm.transport import Transport
from fedgan_mpi.comm.verbs import RankLost, verb
from fedgan_mpi.config import LinkConfig
from fedgan_mpi.errors import AgreedError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AgreedError", "Link", "RankLost", "Uplink"]


class Uplink(Protocol):
    """A rank's upload, and the server's use of the sum."""

    def send(self, into: Tensor) -> None:
        """Collective. Send the participants' vectors to the server, by `reduce` or `gather`."""

    def finish(self, into: Tensor) -> None:
        """Turn what has arrived into the new vector; called on the server."""


class Link(RoutedTransfers):
    """One rank's end of the link. All communication of a run passes through it."""

    def __init__(self, comm: MPI.Comm | None = None, *, transport: Transport | None = None) -> None:
        super().__init__(comm, transport=transport)
        self.prefetches = True
        """Whether `prefetch` sends anything (`training.overlap`)."""
        self._prefetched: Tensor | None = None
        self.reset_counters()

    def reset_counters(self) -> None:
        """Start to count the bytes and seconds of a round."""
        self.bytes_down = self.bytes_up = 0
        self.seconds_down = self.seconds_up = 0.0

    def configure(self, config: LinkConfig) -> None:
        super().configure(config)
        # A resumed run could not repeat the rounding of a vector that was sent in advance.
        self.prefetches = not config.error_feedback

    # ---------------------------------------------------------------- the models

    @verb
    def broadcast(self, vector: Tensor) -> None:
        """Overwrite the vector on every other rank with the server's, rounded as the wire rounds.

        Sends only the rest of the vector if a part of it was prefetched.
        """
        start, parts = time.perf_counter(), [vector]
        if self._prefetched is not None and _contains(vector, self._prefetched):
            parts, self._prefetched = _rest(vector, self._prefetched), None
        for part in parts:
            self._send_down(part, self.wire, self._roads["down"])
        self.bytes_down += self.wire.nbytes(vector)
        self.seconds_down += time.perf_counter() - start

    @verb
    def prefetch(self, vector: Tensor) -> None:
        """Send a part of the next broadcast now. A hint: no result depends on it.

        The server must not change the vector before that broadcast. Bytes count with the broadcast.
        """
        if self.prefetches and self.size > 1:
            self._send_down(vector, self.wire, self._roads["down"])
            self._prefetched = vector

    def has_prefetched(self, vector: Tensor) -> bool:
        """Whether this rank holds the vector of the next broadcast already."""
        return self._prefetched is not None and _same_memory(self._prefetched, vector)

    def discard_prefetched(self) -> None:
        """Send the next broadcast whole. Called before the first round and after a rollback."""
        self._prefetched = None

    @verb
    def broadcast_exact(self, vector: Tensor) -> None:
        """Overwrite the vector on every other rank with the server's, never rounded or counted."""
        if self.size > 1:
            self._send_down(vector, _EXACT, self._roads["down"])

    @verb
    def average(self, uplink: Uplink, into: Tensor) -> None:
        """Overwrite the server's `into` with the average of the participants' vectors: their
        weighted mean, or what another aggregation rule makes of them."""
        self.detector.run_outside_exchange(lambda: uplink.send(into))  # the verbs in it exchange
        if self.is_server:
            self.detector.run_outside_exchange(lambda: uplink.finish(into))

    def rows(self, count: int, like: Tensor) -> Tensor:
        """Collective. Return zeros (count, n), with the dtype and device of `like`, for `reduce`.

        If possible, they are in shared memory, and the server reads them without a copy. A rank
        must not write them between a `reduce` and the next broadcast.
        """
        import torch

        rows = torch.zeros(count, like.numel(), dtype=like.dtype, device=like.device)
        if self._doorbell is None or self._any_gpu or self.wire.is_lossy:
            return rows
        channel = self._new_channel("up", rows.nbytes)
        if not self.is_server:
            rows = (
                torch.from_numpy(channel.own_buffer[: rows.nbytes]).view(rows.dtype).view_as(rows)
            )
        self._own_rows.append((rows, channel))
        return rows

    @verb
    def reduce(self, rows: Tensor, into: Tensor) -> None:
        """Overwrite the server's `into` with the sum of all device ranks' rows.

        rows: (count, n), the count equal on all ranks; each row already multiplied by its device's
        share, and zero for absent devices. The server's own rows must be zero.
        into: (n,); untouched on device ranks. Several rows are summed row by row and by rank, which
        is the order of the devices: the result does not depend on the number of ranks. A single row
        is summed by MPI in its own order, unless the wire rounds: then the sum is taken here, in
        the dtype of `into`.
        """
        start = time.perf_counter()
        self._sum_up(rows, into, self.wire, self._roads["sum"])
        self.bytes_up += self.wire.nbytes(into)
        self.seconds_up += time.perf_counter() - start

    # ---------------------------------------------------------------- one vector a device

    @verb
    def scatter(self, rows: Mapping[int, Tensor]) -> None:
        """Overwrite each listed device's row on its rank with the server's row for that device.

        rows: device -> 1-D vector. The server has all participants; a device rank has the
            participants that it hosts.
        """
        start = time.perf_counter()
        self._exchange(rows, to_server=False)
        self.bytes_down += self._largest(rows)
        self.seconds_down += time.perf_counter() - start

    @verb
    def gather(self, rows: Mapping[int, Tensor]) -> None:
        """Overwrite the server's row for each listed device with that device's row; the reverse of
        `scatter`."""
        start = time.perf_counter()
        self._exchange(rows, to_server=True)
        self.bytes_up += self._largest(rows)
        self.seconds_up += time.perf_counter() - start

    @verb
    def permute(self, vectors: Mapping[int, Tensor], to: Mapping[int, int]) -> None:
        """Move vectors between devices, directly between their ranks.

        vectors: device -> 1-D vector, for the devices in `to` that this rank hosts. Each vector is
            overwritten with the received one.
        to: device -> receiving device. A permutation, equal on every rank.
        """
        start = time.perf_counter()
        self._permute(vectors, to, self.wire, self._roads["point_to_point"])
        self.bytes_up += self._largest(vectors)
        self.seconds_up += time.perf_counter() - start

    # ---------------------------------------------------------------- a few numbers

    @verb
    def sum(
        self, numbers: NDArray[np.float64], *, overlap: Callable[[], None] = lambda: None
    ) -> NDArray[np.float64]:
        """All-reduce: return the elementwise sum over ranks, on every rank.

        The result is exact for entries that only one rank sets. `overlap` is called after this
        rank's numbers are sent; its time does not count as waiting.
        """
        total = np.zeros_like(numbers)
        channel = self._channel("numbers", max(numbers.nbytes, 4096))
        if channel is not None:

            def add(parts: list[Bytes]) -> None:
                np.sum([numbers, *(part.view(np.float64) for part in parts)], 0, out=total)

            if self.is_server:  # it adds: its own numbers need not be sent
                self.detector.run_outside_exchange(overlap)
            channel.up(numbers.view(np.uint8), add)
            if not self.is_server:
                self.detector.run_outside_exchange(overlap)
            channel.down(total.view(np.uint8))
        else:
            request = self._comm.Iallreduce(numbers, total, MPI.SUM)
            self.detector.run_outside_exchange(overlap)
            self._complete([request])
        return total

    def _largest(self, rows: Mapping[int, Tensor]) -> int:
        """Bytes that one participant sends or receives; 0 on a rank without participants."""
        return max((self.wire.nbytes(row) for row in rows.values()), default=0)


_EXACT = Wire("float32")


def _rest(vector: Tensor, part: Tensor) -> list[Tensor]:
    """The parts of a vector before and after a slice of it."""
    start = part.storage_offset() - vector.storage_offset()
    rest = [vector[:start], vector[start + part.numel() :]]
    return [piece for piece in rest if piece.numel() > 0]


def _contains(vector: Tensor, part: Tensor) -> bool:
    """Whether a vector is a slice of another, in memory."""
    start = part.storage_offset() - vector.storage_offset()
    same_storage = part.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
    return same_storage and 0 <= int(start) <= vector.numel() - part.numel()


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()
