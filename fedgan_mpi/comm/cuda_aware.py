"""CUDA-aware MPI: whether the MPI library accepts addresses of GPU memory.

A library without this support may crash on such an address. Therefore the library and the modules
that it has loaded are queried first, and a small transfer is tried only if they claim support.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def _query_cuda_support(
    maps: Path = Path("/proc/self/maps"),
    load: Callable[[str], Any] = ctypes.CDLL,
    version: str | None = None,
) -> bool:
    """Return whether a loaded library claims CUDA support, and nothing known contradicts it.

    Open MPI 4 answers what it was compiled with, although CUDA may be switched off, or missing in
    UCX, which moves its messages.

    maps, load, version: others are for tests.
    """
    try:
        paths = {line.split()[-1] for line in maps.read_text().splitlines() if "/" in line}
    except OSError:
        return False
    libraries = [_load(load, path) for path in sorted(paths) if "/libmpi" in path]
    if not any(_claims_cuda(library) for library in libraries):
        return False
    version = MPI.Get_library_version() if version is None else version
    if re.match(r"Open MPI v[1-4]\.", version) and not any(map(_opal_cuda_is_on, libraries)):
        return False
    uses_ucx = any("mca_pml_ucx" in path for path in paths)
    return not uses_ucx or any("libuct_cuda" in path for path in paths)


def _load(load: Callable[[str], Any], path: str) -> Any:
    try:
        return load(path)
    except OSError:  # deleted since it was loaded
        return None


def _claims_cuda(library: Any) -> bool:
    try:
        return bool(library.MPIX_Query_cuda_support())
    except AttributeError:  # one of several libraries; another may have it
        return False


def _opal_cuda_is_on(library: Any) -> bool:
    """Read Open MPI's variable opal_cuda_support through the tools interface of MPI."""
    index, provided, count = (ctypes.c_int() for _ in range(3))
    handle, value = ctypes.c_void_p(), ctypes.c_int(0)
    try:
        if library.MPI_T_init_thread(0, ctypes.byref(provided)) != 0:
            return False
        if library.MPI_T_cvar_get_index(b"opal_cuda_support", ctypes.byref(index)) != 0:
            return False
        if library.MPI_T_cvar_handle_alloc(index, None, ctypes.byref(handle), ctypes.byref(count)):
            return False
        return library.MPI_T_cvar_read(handle, ctypes.byref(value)) == 0 and value.value != 0
    except AttributeError:
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
