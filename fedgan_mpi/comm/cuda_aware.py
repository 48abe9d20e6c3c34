"""Whether MPI may be handed a GPU's own memory. The link's; nobody else asks MPI for it.

Libraries answer for how they were built, and one that cannot crashes on a GPU's address rather than
say so. So an answer comes first, and then a few numbers there and back.
"""

from __future__ import annotations

import ctypes
import os

from mpi4py import MPI

from fedgan_mpi.comm.gpu_staging import Accelerator

# What the libraries of Cray, MVAPICH and ParaStation are told by whoever starts them.
_SWITCHES = ("MPICH_GPU_SUPPORT_ENABLED", "MV2_USE_CUDA", "PSP_CUDA")


def cuda_aware(comm: MPI.Comm) -> bool:
    """What the loaded MPI library says of itself."""
    # Not what a session echoes of a request: Open MPI echoes whatever it was asked for.
    kinds = comm.Get_info().get("mpi_memory_alloc_kinds") or ""
    switched_on = any(os.environ.get(name) == "1" for name in _SWITCHES)
    return _says_so() or "cuda" in kinds or switched_on


def _says_so() -> bool:
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if "/libmpi" in line}
        return any(bool(ctypes.CDLL(path).MPIX_Query_cuda_support()) for path in sorted(paths))
    except (OSError, AttributeError):
        return False


def numbers_travel(comm: MPI.Comm, gpu: Accelerator, torch_device: str) -> bool:
    """Collective. Whether the server's four numbers, and then everyone's sum, come through from one
    GPU's memory to another's; the same answer on every rank."""
    import torch

    numbers = torch.full((4,), 0.0 if comm.rank else 3.0, device=torch_device)
    total = torch.zeros(4, device=torch_device)
    gpu.synchronize()
    try:
        comm.Bcast(numbers, root=0)
        comm.Reduce(numbers, total if comm.rank == 0 else None, MPI.SUM, root=0)
        arrived = numbers.tolist() == [3.0] * 4
        arrived &= comm.rank > 0 or total.tolist() == [3.0 * comm.size] * 4
    except (MPI.Exception, BufferError, TypeError, ValueError):
        arrived = False
    return bool(comm.allreduce(arrived, MPI.LAND))
