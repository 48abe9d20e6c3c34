"""CUDA-aware MPI: whether the MPI library accepts addresses of GPU memory.

A library without this support may crash on such an address. Therefore the library is queried
first, and a small transfer is tried only if it claims support.
"""

from __future__ import annotations

import ctypes
import os

from mpi4py import MPI

from fedgan_mpi.comm.gpu_staging import Accelerator

# Environment variables that enable GPU support in Cray MPICH, MVAPICH2 and ParaStation MPI.
_ENABLING_VARIABLES = ("MPICH_GPU_SUPPORT_ENABLED", "MV2_USE_CUDA", "PSP_CUDA")


def is_cuda_aware(comm: MPI.Comm) -> bool:
    """Return whether the loaded MPI library claims to be CUDA-aware."""
    # The info of `comm`, not of an MPI session: Open MPI copies a session's request into its info.
    kinds = comm.Get_info().get("mpi_memory_alloc_kinds") or ""
    enabled = any(os.environ.get(name) == "1" for name in _ENABLING_VARIABLES)
    return _query_cuda_support() or "cuda" in kinds or enabled


def _query_cuda_support() -> bool:
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if "/libmpi" in line}
        return any(bool(ctypes.CDLL(path).MPIX_Query_cuda_support()) for path in sorted(paths))
    except (OSError, AttributeError):
        return False


def device_memory_round_trip(comm: MPI.Comm, gpu: Accelerator, torch_device: str) -> bool:
    """Collective. Broadcast and reduce four numbers in GPU memory.

    Returns, on every rank alike, whether every rank received the right values.
    """
    import torch

    numbers = torch.full((4,), 0.0 if comm.rank else 3.0, device=torch_device)
    total = torch.zeros(4, device=torch_device)
    gpu.synchronize()
    try:
        comm.Bcast(numbers, root=0)
        comm.Reduce(numbers, total if comm.rank == 0 else None, MPI.SUM, root=0)
        correct = numbers.tolist() == [3.0] * 4
        correct &= comm.rank > 0 or total.tolist() == [3.0 * comm.size] * 4
    except (MPI.Exception, BufferError, TypeError, ValueError):
        correct = False
    return bool(comm.allreduce(correct, MPI.LAND))
