"""Sum of the device ranks' vectors in device order.

The sum has the same bits for any number of ranks and any MPI library. It is taken in the dtype of
the vectors, also if the wire is lossy. MPI's own reduction chooses its own order and adds in the
dtype of the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, cast

from mpi4py import MPI

from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.gpu.staging import Staging
from fedgan_mpi.comm.gpu.torch_comm import VectorComm

if TYPE_CHECKING:
    from torch import Tensor


def ordered_sum(
    packed: Tensor, into: Tensor, comm: VectorComm, staging: Staging, wire: Wire
) -> None:
    """Collective. Overwrite the server's `into` with the sum of all device ranks' rows.

    The sum runs row by row, and within a row by rank. packed: (rows, n), packed for the wire; the
    server's rows are ignored. into: (n,), unchanged on device ranks.
    """
    few_ranks = (comm.size - 1) * wire.nbytes(into) <= into.nbytes
    # In GPU memory an addition costs little, and MPI has shown that it can send slices there.
    if few_ranks and not staging.sends_gpu_memory:
        _gather(packed, into, cast(MPI.Comm, comm), staging, wire)
    else:
        _add_slices(packed, into, comm, staging, wire)


def sum_rows(tables: Sequence[Tensor], into: Tensor, wire: Wire) -> None:
    """Overwrite `into` with the sum of all ranks' rows, in the order of `ordered_sum`.

    tables: one (rows, n) table per device rank, in memory that this rank can read.
    """
    wire.sum([table[row] for row in range(len(tables[0])) for table in tables], into)


def _gather(packed: Tensor, into: Tensor, comm: MPI.Comm, staging: Staging, wire: Wire) -> None:
    """Gather every chunk on the server and add it there at once."""
    is_server = comm.rank == 0
    total = staging.mpi_buffer(into, "total", load=False) if is_server else into
    if is_server:
        total.zero_()
    for row in packed:
        start = 0
        for chunk in staging.outgoing(row):
            shape = (comm.size if is_server else 0, len(chunk))
            gathered = staging.workspace("gathered", shape, chunk, chunk.dtype)
            comm.Gather(chunk, gathered if is_server else None, root=0)
            for received in gathered[1:]:
                wire.add(received, total[start : start + len(chunk)])
            start += len(chunk)
    if is_server:
        staging.copy_back(into, total)


def _add_slices(
    packed: Tensor, into: Tensor, comm: VectorComm, staging: Staging, wire: Wire
) -> None:
    """Reduce-scatter among the device ranks, then gather the sums on the server.

    Each device rank adds one slice of every chunk, so that no rank receives more if ranks are
    added.
    """
    is_server = comm.rank == 0
    sums: list[tuple[int, Tensor]] = []  # (chunk length, sum of this rank's slice) per chunk
    for row in packed:
        for number, chunk in enumerate(staging.outgoing(row)):
            slices = _exchange_slices(chunk, comm, staging)
            if number == len(sums):
                shape = slices.shape[1:]
                slice_sum = staging.workspace(("sum", number), shape, chunk, into.dtype)
                sums.append((len(chunk), slice_sum.zero_()))
            for received in slices:
                wire.add(received, sums[number][1])
    total = staging.mpi_buffer(into, "total", load=False) if is_server else into
    start = 0
    for number, (length, slice_sum) in enumerate(sums):
        # A GPU may still be adding; `mpi_buffer` waits for it.
        slice_sum = staging.mpi_buffer(slice_sum, ("sum", number), load=True)
        target = (total[start : start + length], _slices_of(length, comm))
        comm.Gatherv(slice_sum, target if is_server else None, root=0)
        start += length
    if is_server:
        staging.copy_back(into, total)


def _exchange_slices(chunk: Tensor, comm: VectorComm, staging: Staging) -> Tensor:
    """Return this rank's slice from all device ranks, (device ranks, length).

    Empty on the server.
    """
    counts, starts = _slices_of(len(chunk), comm)
    ranks, length = comm.size - 1, counts[comm.rank]
    slices = staging.workspace("slices", (ranks, length), chunk, chunk.dtype)
    sends = ([0] * comm.size, starts) if comm.rank == 0 else (counts, starts)
    receives = [0] + [length] * ranks, [0] + [length * n for n in range(ranks)]
    comm.Alltoallv((chunk, sends), (slices, receives))
    return slices


def _slices_of(length: int, comm: VectorComm) -> tuple[list[int], list[int]]:
    """Return (lengths, starts) of all ranks' slices of a vector; the server's is empty."""
    ranks = comm.size - 1
    ends = [0] + [length * rank // ranks for rank in range(comm.size)]
    return [end - start for start, end in pairwise(ends)], ends[:-1]
