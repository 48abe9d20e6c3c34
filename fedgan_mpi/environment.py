"""Settings of libraries, some of which are read when they are loaded: import this before numpy and
torch.

Values that the user set stay.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Numpy's BLAS is not used in a round; its pool of threads on every rank would only be in the way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# OpenMP's idle threads spin for milliseconds by default, on cores that other ranks could use.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them
_ALL_OF_IT = 2**31 - 1  # bytes; mallopt takes an int


def keep_freed_memory() -> None:
    """Have glibc keep what a step has freed for the next one, which needs as much. By default it
    gives it back, and each step waits for a thousand pages to be zeroed anew: a fifth of its time.
    """
    by_user = any(name.startswith("MALLOC_") for name in os.environ)
    if sys.platform == "linux" and not by_user and "GLIBC_TUNABLES" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(_MMAP_THRESHOLD, _ALL_OF_IT)
            mallopt(_TRIM_THRESHOLD, _ALL_OF_IT)


keep_freed_memory()
