"""Claims of the MPI library: whether it accepts addresses of GPU memory.

A library without this support may crash on such an address. Therefore the library and the modules
that it has loaded are queried first. Only then does `trial.py` send vectors in GPU memory.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

from fedgan_mpi.hardware.gpu import Platform, find_gpus

# Environment variables that switch GPU support on: of Cray MPICH, MVAPICH2 and ParaStation MPI.
_ENABLING_VARIABLES = {
    "cuda": ("MPICH_GPU_SUPPORT_ENABLED", "MV2_USE_CUDA", "PSP_CUDA"),
    "rocm": ("MPICH_GPU_SUPPORT_ENABLED", "MV2_USE_ROCM"),
}
# Functions that claim support: of Open MPI, and of MPICH.
_QUERIES = {
    "cuda": ("MPIX_Query_cuda_support",),
    "rocm": ("MPIX_Query_rocm_support", "MPIX_Query_hip_support"),
}


def is_gpu_aware(comm: MPI.Comm) -> bool:
    """Return whether the MPI library claims to accept the memory of this machine's GPUs."""
    platform = find_gpus().platform
    if platform is None:
        return False
    # The info of `comm`, not of an MPI session: Open MPI copies a session's request into its info.
    kinds = comm.Get_info().get("mpi_memory_alloc_kinds") or ""
    enabled = any(os.environ.get(name) == "1" for name in _ENABLING_VARIABLES[platform])
    return query_support(platform) or platform in kinds or enabled


def query_support(
    platform: Platform,
    maps: Path = Path("/proc/self/maps"),
    load: Callable[[str], Any] = ctypes.CDLL,
    version: str | None = None,
) -> bool:
    """Return whether a loaded library claims support, and nothing known contradicts it.

    Open MPI 4 answers how it was compiled, although CUDA may be switched off, or missing in
    UCX, which moves its messages.

    maps, load, version: others are for tests.
    """
    try:
        paths = {line.split()[-1] for line in maps.read_text().splitlines() if "/" in line}
    except OSError:
        return False
    libraries = [_load(load, path) for path in sorted(paths) if "/libmpi" in path]
    if not any(_claims(library, name) for library in libraries for name in _QUERIES[platform]):
        return False
    version = MPI.Get_library_version() if version is None else version
    is_old = platform == "cuda" and re.match(r"Open MPI v[1-4]\.", version)
    if is_old and not any(map(_opal_cuda_is_on, libraries)):
        return False
    uses_ucx = any("mca_pml_ucx" in path for path in paths)
    return not uses_ucx or any(f"libuct_{platform}" in path for path in paths)


def _load(load: Callable[[str], Any], path: str) -> Any:
    try:
        return load(path)
    except OSError:  # deleted since it was loaded
        return None


def _claims(library: Any, name: str) -> bool:
    try:
        return bool(getattr(library, name)())
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
