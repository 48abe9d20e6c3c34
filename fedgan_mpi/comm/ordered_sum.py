"""Vectors of all device ranks added up in the order of devices, so that the sum has the same bits
on any number of ranks and with any MPI, and does not round where the wire does: MPI's own sum adds
in an order and a type of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from mpi4py import MPI

from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.gpu_staging import Staging

if TYPE_CHECKING:
    from torch import Tensor


def ordered_sum(packed: Tensor, into: Tensor, comm: MPI.Comm, staging: Staging, wire: Wire) -> None:
    """Collective. Overwrite the server's `into` with the sum of all device ranks' rows, row by row
    and in each by rank.

    packed: (rows, n), as they travel; the server's own is not added. into: (n,); untouched on
    device ranks.
    """
    few = (comm.size - 1) * wire.nbytes(into) <= into.nbytes
    (_gather if few else _add_slices)(packed, into, comm, staging, wire)


def sum_rows(tables: Sequence[Tensor], into: Tensor, wire: Wire) -> None:
    """The same where all tables of rows lie before this rank, as in shared memory."""
    wire.sum([table[row] for row in range(len(tables[0])) for table in tables], into)


def _gather(packed: Tensor, into: Tensor, comm: MPI.Comm, staging: Staging, wire: Wire) -> None:
    """The server adds them up, piece by piece: it keeps none of them."""
    is_server = comm.rank == 0
    total = staging.whole(into, "total", load=False) if is_server else into
    if is_server:
        total.zero_()
    for row in packed:
        start = 0
        for piece in staging.outgoing(row):
            shape = (comm.size if is_server else 0, len(piece))
            everyone = staging.workspace("everyone", shape, piece, piece.dtype)
            comm.Gather(piece, everyone if is_server else None, root=0)
            for theirs in everyone[1:]:
                wire.add(theirs, total[start : start + len(piece)])
            start += len(piece)
    if is_server:
        staging.copy_back(into, total)


def _add_slices(packed: Tensor, into: Tensor, comm: MPI.Comm, staging: Staging, wire: Wire) -> None:
    """Each device rank adds up a slice of every piece, and the server takes in the sums: no rank
    takes in more the more there are."""
    is_server = comm.rank == 0
    sums: list[tuple[int, Tensor]] = []  # each piece's length, and what my slice adds up to
    for row in packed:
        for number, piece in enumerate(staging.outgoing(row)):
            slices = _exchange_slices(piece, comm, staging)
            if number == len(sums):
                mine = staging.workspace(("sum", number), slices.shape[1:], piece, into.dtype)
                sums.append((len(piece), mine.zero_()))
            for theirs in slices:
                wire.add(theirs, sums[number][1])
    total = staging.whole(into, "total", load=False) if is_server else into
    start = 0
    for number, (length, mine) in enumerate(sums):
        mine = staging.whole(mine, ("sum", number), load=True)  # what was added is there
        there = [total[start : start + length], _slices_of(length, comm)]
        comm.Gatherv(mine, there if is_server else None, root=0)
        start += length
    if is_server:
        staging.copy_back(into, total)


def _exchange_slices(piece: Tensor, comm: MPI.Comm, staging: Staging) -> Tensor:
    """Everyone's slice that is this rank's, (device ranks, length); the server's are empty."""
    counts, starts = _slices_of(len(piece), comm)
    ranks, mine = comm.size - 1, counts[comm.rank]
    slices = staging.workspace("slices", (ranks, mine), piece, piece.dtype)
    sends = ([0] * comm.size, starts) if comm.rank == 0 else (counts, starts)
    receives = [0] + [mine] * ranks, [0] + [mine * n for n in range(ranks)]
    comm.Alltoallv([piece, sends], [slices, receives])
    return slices


def _slices_of(length: int, comm: MPI.Comm) -> tuple[list[int], list[int]]:
    """(lengths, starts) of all ranks' slices of so many numbers; the server has none."""
    ranks = comm.size - 1
    ends = [0] + [length * rank // ranks for rank in range(comm.size)]
    return [end - start for start, end in pairwise(ends)], ends[:-1]
