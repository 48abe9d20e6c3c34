"""Options of the messages between ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """Messages between the server and the device ranks."""

    route: Literal["auto", "host", "cuda", "nccl"] = "auto"
    """Memory from which MPI sends vectors of a GPU. cuda: GPU memory, of NVIDIA or of AMD, which
    needs an MPI library that accepts it. host: host memory, with the vector copied in pieces. auto:
    the faster one for each kind of transfer, if all vectors of a trial at the start arrive intact;
    else host. nccl: GPU memory, sent by NCCL instead of MPI; needs a GPU of its own for each
    rank."""
    wire_dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Number type of messages, down and up. bfloat16 and float16 halve the bytes. Values are then
    rounded to nearest, but sums and the server's own parameters remain float32. float64 requires
    training.precision float64. The other types require float32."""
    error_feedback: bool = False
    """Add the rounding error of each 16-bit message to the sender's next one. Training with
    bfloat16 converges more slowly without it."""
    average: Literal["reduce", "gather"] = "reduce"
    """How the server averages. reduce: each rank sums its devices, then MPI sums over ranks.
    gather: sum in the order of devices. With gather, results are bitwise equal for any number of
    ranks if all use the same OMP_NUM_THREADS (default 1)."""
    deadline: float | None = 1800.0
    """Seconds without progress after which a rank counts as hanging. The job then ends and names
    the rank. A local step or a chunk of a score is progress; on several machines it must exceed
    the longest score. The server's plots and files at the end of a run are exempt. None, written
    null: no limit."""
    peer_monitor: str = "on"
    """TCP connections by which the server and ranks on other machines notice each other's death.
    on: over any network. off: none; the launcher must end the job. Otherwise the network: an
    interface of the server's machine, such as ib0, or one of its addresses."""
    survive: bool = False
    """Continue without the devices of a rank that dies. Needs Open MPI 5 and `mpirun --with-ft
    ulfm`. False: the job ends."""

    def __post_init__(self) -> None:
        valid = self.deadline is None or 0 < self.deadline < math.inf
        require(valid, "link.deadline", self.deadline, "above 0 and finite")
        right = "'on', 'off', or an interface or address of the server's machine"
        require(self.peer_monitor != "", "link.peer_monitor", self.peer_monitor, right)
        valid = self.route != "nccl" or not self.survive
        right = "'auto', 'host' or 'cuda' when link.survive is true"
        require(valid, "link.route", self.route, right)
