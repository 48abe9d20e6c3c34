"""How models travel between ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """How models travel between ranks."""

    route: Literal["auto", "host", "cuda"] = "auto"
    """Memory that MPI reads: the GPU's own where the MPI library is CUDA-aware (cuda), or host
    memory, by which a GPU's vectors then go piece by piece. auto: cuda where a few numbers come
    through."""
    wire_dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Type of a number on the wire, down and up. 16 bits halve the bytes: each is rounded to the
    nearest, sums are taken in float32 device by device, and the server keeps its own as they
    are. float64 with training.precision float64, the others with float32."""
    error_feedback: bool = False
    """With 16 bits: what rounding took is kept, by each device and by the server, and sent with the
    next values. bfloat16 trains more slowly without it."""
    average: Literal["reduce", "gather"] = "reduce"
    """reduce: each rank adds up its devices, the link adds the ranks. gather: device by device in
    order, so bitwise the same for any number of ranks with equally many threads (one, unless
    OMP_NUM_THREADS says otherwise)."""
    deadline: float | None = None
    """Seconds without an exchange after which a rank counts as hanging and the job ends, with its
    name; more than the longest local work takes. None: ranks may take as long as they like."""
    survive: bool = False
    """A device rank that dies does not end the job: the others go on without its devices. For Open
    MPI 5 under `mpirun --with-ft ulfm`."""

    def __post_init__(self) -> None:
        fits = self.deadline is None or 0 < self.deadline < math.inf
        require(fits, "link.deadline", self.deadline, "above 0 and finite")
