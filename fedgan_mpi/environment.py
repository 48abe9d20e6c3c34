"""Settings of math libraries, which read them when they are loaded: import this before numpy and
torch.

Values that the user set stay.
"""

from __future__ import annotations

import os

# Numpy's BLAS is not used in a round; its pool of threads on every rank would only be in the way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# OpenMP's idle threads spin for milliseconds by default, on cores that other ranks could use.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
