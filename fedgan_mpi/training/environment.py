"""Settings of libraries, some of which are read when they are loaded: import this before numpy and
torch.

Values that the user set stay.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Numpy's BLAS is not used in a round; its pool of threads on every rank would only be in the way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# OpenMP's idle threads spin for milliseconds by default, on cores that other ranks could use.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them
# Bytes: mallopt takes an int, and that of older glibc no more than 32 MiB.
_LARGEST = (2**31 - 1, 2**25)


def keep_freed_memory() -> None:
    """Have glibc keep what a step has freed for the next one, which needs as much. By default it
    gives it back, and each step waits for a thousand pages to be zeroed anew: a fifth of its time.
    """
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    by_user = any(name in os.environ for name in names)
    if sys.platform != "linux" or by_user or "threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    # The second alone would have all that is larger than 128 KiB mapped anew each time.
    if mallopt is not None and any(mallopt(_MMAP_THRESHOLD, nbytes) for nbytes in _LARGEST):
        mallopt(_TRIM_THRESHOLD, _LARGEST[0])


keep_freed_memory()


@contextmanager
def importing() -> Iterator[None]:
    """Around what is slow to import: nothing that is made meanwhile is searched for cycles, neither
    then nor later. Modules stay, and torch's are half a million objects: a fifth of its import goes
    into searching them, and another second into a last search when the process ends.
    """
    enabled = gc.isenabled()  # not so within another import
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
