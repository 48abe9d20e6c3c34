"""The trial of the direct road: vectors of real size in GPU memory, by each operation that it uses.

MPI may refuse such a vector, deliver wrong values, or wait forever, sometimes only above a size. In
the trial no rank stays in an operation that another one has not joined: the operations are
nonblocking, and have a deadline. After each, all ranks agree by a message in host memory. MPI's
reductions are not tried, because the direct road never calls them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

from fedgan_mpi.comm.gpu.staging import Accelerator

if TYPE_CHECKING:
    from torch import Tensor

NBYTES = 2**23
"""Of each vector: more than the largest eager message of every MPI library."""
SECONDS = 20.0
"""Until an operation has failed. The first one also opens connections."""
_ALLOCATORS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")

Trial = tuple[list[MPI.Request], "Tensor", "Tensor"]
"""(requests, receiving memory, its right values)."""


def problem_of_trial(
    comm: MPI.Comm, gpu: Accelerator, *, nbytes: int = NBYTES, seconds: float = SECONDS
) -> str | None:
    """Collective. Send vectors in GPU memory between all ranks.

    nbytes: of each vector. seconds: deadline of each operation. Returns the first problem of any
    rank, the same on every rank; None if all values arrived everywhere.
    """
    import torch

    trial = comm.Dup()  # so that leftovers reach no later message
    for dtype in (torch.float32, torch.int16):
        length = nbytes // dtype.itemsize
        for name, start in _OPERATIONS.items():
            operation = f"{name} of {nbytes} bytes of {str(dtype).removeprefix('torch.')}"
            vector = gpu.empty((length,), dtype).copy_(_values(length, comm.rank, dtype))
            into = gpu.empty((length + comm.size,), dtype).zero_()
            problem = _attempt(partial(start, trial, vector, into), gpu, seconds)
            found = [each for each in comm.allgather(problem) if each is not None]
            if found:
                _ABANDONED.append((trial, vector, into))
                # If one rank fails, others wait for it until their deadline.
                return f"{operation} {min(found, key=_is_late)}"
    trial.Free()
    return None


def allocator_warning(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return a warning about torch's allocator, from the environment; None if it suits MPI."""
    for name in _ALLOCATORS:
        options = environment.get(name, "").replace(" ", "").lower()
        if "expandable_segments:true" in options:
            return (
                f"{name} has expandable_segments:True, whose memory UCX cannot map into another "
                "process: MPI may be slow or fail with it; leave it out, or set link.route to "
                "'host'"
            )
    return None


def _is_late(problem: str) -> bool:
    return problem.startswith(_LATE)


_LATE = "did not end within"
_ABANDONED: list[Any] = []
"""Communicators and memory of operations that never ended. MPI may still write there."""


def _attempt(start: Callable[[], Trial], gpu: Accelerator, seconds: float) -> str | None:
    """Return the problem of an operation, as the rest of a sentence."""
    import torch

    gpu.synchronize()
    deadline = time.monotonic() + seconds
    try:
        requests, into, expected = start()
        _ABANDONED.append(requests)
        while not all([request.Test() for request in requests]):
            if time.monotonic() > deadline:
                return f"{_LATE} {seconds:g} s"
            time.sleep(1e-4)
        _ABANDONED.pop()
    except (MPI.Exception, BufferError, TypeError, ValueError) as error:
        return f"failed: {' '.join(str(error).split())}"
    return None if torch.equal(into.cpu(), expected) else "delivered wrong values"


def _values(length: int, rank: int, dtype: Any) -> Tensor:
    """Values that tell place and rank, in host memory."""
    import torch

    return ((torch.arange(length) % 251) + 256 * (rank % 64)).to(dtype)


def _broadcast(comm: MPI.Comm, vector: Tensor, into: Tensor) -> Trial:
    buffer = into[: len(vector)] if comm.rank > 0 else vector
    return [comm.Ibcast(buffer, root=0)], buffer, _values(len(vector), 0, vector.dtype)


def _alltoallv(comm: MPI.Comm, vector: Tensor, into: Tensor) -> Trial:
    import torch

    starts, counts = _slices(len(vector), comm.size)
    own = counts[comm.rank]
    received = into[: own * comm.size]
    sends = [vector, (counts, starts)]
    receives = [received, ([own] * comm.size, [own * rank for rank in range(comm.size)])]
    first = starts[comm.rank]
    expected = [
        _values(len(vector), rank, vector.dtype)[first : first + own] for rank in range(comm.size)
    ]
    return [comm.Ialltoallv(sends, receives)], received, torch.cat(expected)


def _gatherv(comm: MPI.Comm, vector: Tensor, into: Tensor) -> Trial:
    import torch

    starts, counts = _slices(len(vector), comm.size)
    own = vector[starts[comm.rank] : starts[comm.rank] + counts[comm.rank]]
    received = into[: len(vector)] if comm.rank == 0 else into[:0]
    target = [received, (counts, starts)] if comm.rank == 0 else None
    expected = [
        _values(len(vector), rank, vector.dtype)[starts[rank] : starts[rank] + counts[rank]]
        for rank in range(comm.size if comm.rank == 0 else 0)
    ]
    request = comm.Igatherv(own, target, root=0)
    return [request], received, torch.cat([received.cpu()[:0], *expected])


def _point_to_point(comm: MPI.Comm, vector: Tensor, into: Tensor) -> Trial:
    """Send to the next rank, and receive from the one before."""
    before, after = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    received = into[: len(vector)]
    requests = [comm.Irecv(received, before), comm.Isend(vector, after)]
    return requests, received, _values(len(vector), before, vector.dtype)


def _slices(length: int, count: int) -> tuple[list[int], list[int]]:
    """Return (starts, lengths) of `count` slices of a vector."""
    ends = [length * n // count for n in range(count + 1)]
    return ends[:-1], [end - start for start, end in pairwise(ends)]


_OPERATIONS = {
    "Bcast": _broadcast,
    "Alltoallv": _alltoallv,
    "Gatherv": _gatherv,
    "Isend and Irecv": _point_to_point,
}
