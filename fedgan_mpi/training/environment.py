"""Settings of libraries, some of which are read when they are loaded: import this before numpy and
torch.

Values that the user has set stay unchanged.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Rounds do not use numpy's BLAS; its thread pool on every rank would only take cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# OpenMP's idle threads spin for milliseconds by default, on cores that other ranks could use.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt
_LARGEST = (2**31 - 1, 2**25)  # bytes: an int, but older glibc accepts at most 32 MiB


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step, which needs as much again.

    By default glibc returns it, and each step waits for a thousand pages to be zeroed again: a
    fifth of its time.
    """
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    by_user = any(name in os.environ for name in names)
    if sys.platform != "linux" or by_user or "threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    # The trim threshold alone would map every block above 128 KiB anew each time.
    if mallopt is not None and any(mallopt(_MMAP_THRESHOLD, nbytes) for nbytes in _LARGEST):
        mallopt(_TRIM_THRESHOLD, _LARGEST[0])


keep_freed_memory()


@contextmanager
def importing() -> Iterator[None]:
    """Exclude what is imported inside the block from garbage collection, then and later.

    Modules are never freed. Torch has half a million objects: searching them for cycles takes a
    fifth of its import, and a second when the process ends.
    """
    enabled = gc.isenabled()  # False inside another `importing`
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
