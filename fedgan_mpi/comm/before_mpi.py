"""Settings and libraries of MPI that must precede its start, the first import of `mpi4py.MPI`.

The package imports this module before all others.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

# MPICH's ranks yield their core while they spin. The library reads this when it is loaded.
os.environ.setdefault("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")

_GTL = ("libmpi_gtl_cuda.so", "libmpi_gtl_hsa.so")  # of NVIDIA, and of AMD
logger = logging.getLogger(__name__)


def load_gtl(
    environment: Mapping[str, str] = os.environ,
    load: Callable[[str, int], object] = ctypes.CDLL,
) -> None:
    """Load Cray MPICH's GPU transport layer (GTL) if its GPU support is switched on.

    Programs in C are linked with this library; Python is not, and MPI would refuse to start.
    environment, load: others are for tests.
    """
    if environment.get("MPICH_GPU_SUPPORT_ENABLED") != "1":
        return
    roots = [environment[name] for name in ("CRAY_MPICH_ROOTDIR",) if name in environment]
    paths = [str(Path(root) / "gtl" / "lib" / name) for root in roots for name in _GTL]
    for path in (*_GTL, *paths):
        try:
            load(path, ctypes.RTLD_GLOBAL)
            return
        except OSError:  # missing, or of another make of GPU
            continue
    logger.warning(
        "MPICH_GPU_SUPPORT_ENABLED is 1, but neither %s nor %s can be loaded, so Cray MPICH may "
        "refuse to start; load the site's module for the GPUs, or set the variable to 0",
        *_GTL,
    )


load_gtl()
